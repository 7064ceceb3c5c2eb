"""Find files on a disk or behind a URL (`s3://…`, `https://…`, whatever fsspec knows), and read parts of them."""

import functools
import glob
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec

from groupvit.errors import InputError

File = Path | str
"""A path on this machine, or a URL as a string."""

_OPEN_FILES = 64
# What file systems tell of a file's version; a web server that tells nothing leaves its size.
_VERSIONS = ("ETag", "etag", "LastModified", "last_modified", "mtime", "updated", "md5", "md5Hash", "created")


def is_url(name: File) -> bool:
    """Return True if `name` is for fsspec rather than for this machine's disks."""
    return "://" in str(name)


@contextmanager
def told(file: File) -> Iterator[None]:
    """Turn what a disk or a server refuses into an `InputError` that names the file."""
    try:
        yield
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{file} does not exist") from None
    except Exception as error:
        if not isinstance(error, OSError) and not is_url(file):  # servers' libraries have errors of their own
            raise
        raise InputError(f"{file} cannot be read: {getattr(error, 'strerror', None) or error}") from error


def _remote(url: str) -> tuple[Any, str]:
    """Return the fsspec file system of a URL, and the path on it."""
    with told(url):
        return fsspec.url_to_fs(url)


def matching(head: str, pattern: str) -> dict[str, list[File]]:
    """Return the tars in the folder, or of each name in the pattern, `head` and `pattern` together; `head` as it is."""
    if is_url(head + pattern):
        return {head + name: _remote_tars(head + name) for name in _expand_braces(pattern)}
    whole = Path(head + pattern)
    with told(whole):
        if whole.exists():
            return {str(whole): sorted(whole.glob("*.tar")) if whole.is_dir() else [whole]}
        names = _expand_braces(pattern)
        return {head + name: sorted(map(Path, glob.glob(glob.escape(head) + name))) for name in names}


def _remote_tars(url: str) -> list[File]:
    if "*" not in url and url.endswith(".tar"):
        return [url]  # asking for each of thousands would take minutes; a missing one is named when it is indexed
    with told(url):
        filesystem, path = _remote(url)
        pattern = path if "*" in path else f"{path.rstrip('/')}/*.tar"
        return [filesystem.unstrip_protocol(name) for name in sorted(filesystem.glob(pattern))]


def _expand_braces(pattern: str) -> list[str]:
    match = re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", pattern)
    if not match:
        return [pattern]
    first, last, names = match.groups()
    if not names and int(first) > int(last):
        raise InputError(f"{pattern}: no such shard, for {{{first}..{last}}} counts down")
    chosen = names.split(",") if names else [f"{n:0{len(first)}d}" for n in range(int(first), int(last) + 1)]
    head, tail = pattern[: match.start()], pattern[match.end() :]
    return [expanded for name in chosen for expanded in _expand_braces(head + name + tail)]


def stamp(file: File) -> tuple[int, str]:
    """Return the size in bytes and a text that changes with the content, of a URL as far as its server tells it."""
    with told(file):
        if not isinstance(file, str):
            status = file.stat()
            return status.st_size, str(status.st_mtime_ns)
        filesystem, path = _remote(file)
        facts = filesystem.info(path)
        if not isinstance(facts.get("size"), int):
            raise InputError(f"{file}: its server does not tell its size, so it cannot be read by ranges")
        return facts["size"], " ".join(str(facts[name]) for name in _VERSIONS if name in facts)


def open_file(file: File) -> Any:
    """Open a file to read it from start to end."""
    with told(file):
        if not isinstance(file, str):
            return file.open("rb")
        filesystem, path = _remote(file)
        return filesystem.open(path, "rb")


class _Opened:
    """A local file for reads at any position; descriptors may be shared with forked processes."""

    def __init__(self, path: Path, expected: tuple[int, str]):
        if stamp(path) != expected:
            raise InputError(f"{path} has changed since it was indexed; run: groupvit data index {path}")
        with told(path):
            self.descriptor = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


_opened = functools.lru_cache(maxsize=_OPEN_FILES)(_Opened)


def read_range(file: File, start: int, size: int, expected: tuple[int, str]) -> bytes:
    """Read `size` bytes from position `start`; a local file must have the `expected` stamp when it is opened."""
    with told(file):
        if not isinstance(file, str):
            return os.pread(_opened(file, expected).descriptor, size, start)
        filesystem, path = _remote(file)
        return filesystem.cat_file(path, start=start, end=start + size)
