"""Files on a disk, and files behind a URL (`s3://…`, `https://…`, whatever fsspec knows), read by ranges of bytes."""

import functools
import os
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
    """Whether `name` is for fsspec rather than for this machine's disks."""
    return "://" in str(name)


@contextmanager
def told(file: File) -> Iterator[None]:
    """What a disk or a server refuses becomes an `InputError` that names the file."""
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


def remote(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL, and the path on it."""
    with told(url):
        return fsspec.url_to_fs(url)


def stamp(file: File) -> tuple[int, str]:
    """Size in bytes, and a text that changes with the content: of a URL as far as its server tells versions apart."""
    with told(file):
        if not isinstance(file, str):
            status = file.stat()
            return status.st_size, str(status.st_mtime_ns)
        filesystem, path = remote(file)
        facts = filesystem.info(path)
        if not isinstance(facts.get("size"), int):
            raise InputError(f"{file}: its server does not tell its size, so it cannot be read by ranges")
        return facts["size"], " ".join(str(facts[name]) for name in _VERSIONS if name in facts)


def open_file(file: File) -> Any:
    """For reading from the start to the end."""
    with told(file):
        if not isinstance(file, str):
            return file.open("rb")
        filesystem, path = remote(file)
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
    """`size` bytes from position `start`; a local file must have the `expected` stamp when it is opened.

    Raises:
        InputError: the file is gone, cannot be read, or has changed.
    """
    with told(file):
        if not isinstance(file, str):
            return os.pread(_opened(file, expected).descriptor, size, start)
        filesystem, path = remote(file)
        return filesystem.cat_file(path, start=start, end=start + size)
