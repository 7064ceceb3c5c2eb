"""Find files on a disk or behind a URL (`s3://…`, `https://…`, whatever fsspec knows), and read parts of them."""

import functools
import glob
import itertools
import os
import random
import re
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import fsspec
from fsspec.asyn import sync
from fsspec.spec import AbstractBufferedFile

from groupvit.data.tar import SHARD
from groupvit.errors import InputError
from groupvit.files import found_below, refuse_pointer

T = TypeVar("T")

File = Path | str
"""A path on this machine, or a URL as a string."""

_MOST_NAMES = 300_000  # of a pattern
_OPEN_FILES = 64
# What file systems tell of a file's version, the surest first; a web server that tells nothing leaves its size.
_VERSIONS = (
    *("ETag", "etag", "md5", "md5Hash", "Content-MD5", "LastModified", "last_modified", "Last-Modified"),
    *("mtime", "updated", "created"),
)
_PAUSES = (0.5, 1, 2, 4, 8, 16)  # seconds before a server is asked again
_PATIENCE = 60  # seconds after which it is not
_SILENCE = 10  # seconds without a byte after which a web server is asked again
_SIGNED = 1800  # seconds for which the address of an object is used; it stays valid for twice as long
_AHEAD: Any = 2**23  # bytes that are read at once where a file is read from start to end


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
        raise InputError(f"{file} cannot be read: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    if isinstance(status := getattr(error, "status", None), int):  # signed addresses in a message would be keys
        return f"its server answered {status} {getattr(error, 'message', '')}".strip()
    said = "its server is silent" if isinstance(error, TimeoutError) else type(error).__name__
    return (getattr(error, "strerror", None) or str(error) or said).splitlines()[0]


def _patiently(ask: Callable[[], T]) -> T:
    """Ask a server, and again after growing pauses where that may help, for a minute or so."""
    end = time.monotonic() + _PATIENCE
    for pause in (*_PAUSES, 0):
        try:
            return ask()
        except Exception as error:
            refusal = _refusal(error)
            if not pause or time.monotonic() > end or _lasting(refusal):
                raise refusal from None
        time.sleep(pause * random.uniform(0.5, 1))  # readers that failed together do not come back together
    raise AssertionError


def _refusal(error: Exception) -> BaseException:
    """Return what a web server answered, which fsspec calls a missing file, whatever it is."""
    cause = error.__cause__ if isinstance(error, FileNotFoundError) else None
    of_web = isinstance(cause, TimeoutError) or type(cause).__module__.startswith("aiohttp")
    return cause if cause and of_web and getattr(cause, "status", 0) != 404 else error


def _lasting(error: BaseException) -> bool:
    """Return True if asking again does not help: the file is missing or forbidden, or the request is wrong."""
    if isinstance(status := getattr(error, "status", None), int):
        return 400 <= status < 500 and status not in (408, 425, 429)
    kinds = (FileNotFoundError, PermissionError, ImportError, ValueError, TypeError)
    return isinstance(error, kinds) or re.search("Credential|Certificate", type(error).__name__) is not None


def _remote(url: str) -> tuple[Any, str]:
    """Return the fsspec file system of a URL, and the path on it."""
    with told(url):
        filesystem, path = fsspec.url_to_fs(url)
    if hasattr(filesystem, "retries"):
        filesystem.retries = 1  # s3fs would ask five times whenever it is asked once
    return filesystem, path


def matching(head: str, pattern: str) -> dict[str, list[File]]:
    """Return the shards of each name in the pattern, `head` and `pattern` together; `head` as it is.

    A name is a shard's, that of a folder of shards, or a pattern of both.
    """
    if is_url(head + pattern):
        return {head + name: _remote_shards(head + name) for name in _expand_braces(pattern)}
    whole = Path(head + pattern)
    with told(whole):
        if max(map(len, whole.parts), default=0) < 256 and whole.exists():  # long braces are no name
            return {str(whole): _local_shards(whole)}
        found: dict[str, list[File]] = {}
        for name in _expand_braces(pattern):
            whole_name = glob.escape(head) + name
            # Links may lead to one file by several names, of which the shortest counts.
            names = sorted(found_below(whole_name), key=len, reverse=True)
            paths = sorted({os.path.realpath(name): name for name in names}.values())
            found[head + name] = [shard for path in paths for shard in _local_shards(Path(path))]
        return found


def _local_shards(path: Path) -> list[File]:
    return sorted(file for file in path.iterdir() if _is_shard(file.name)) if path.is_dir() else [path]


def _is_shard(name: str) -> bool:
    return SHARD.search(name) is not None and not name.startswith(".")  # macOS puts ._NAME beside NAME


def _remote_shards(url: str) -> list[File]:
    name = url.partition("?")[0] if url.startswith(("http://", "https://")) else url
    if SHARD.search(name) and not glob.has_magic(name):
        return [url]  # asking for each of thousands would take minutes; a missing one is named when it is indexed
    with told(url):
        filesystem, path = _remote(url)
        pattern = path if glob.has_magic(path) else f"{path.rstrip('/')}/*"
        found = _patiently(lambda: filesystem.glob(pattern, detail=True))
    files = sorted(file for file, facts in found.items() if facts.get("type") != "directory")
    chosen = files if pattern == path else [file for file in files if _is_shard(file.rpartition("/")[2])]
    return [filesystem.unstrip_protocol(file) for file in chosen]


def _expand_braces(pattern: str) -> list[str]:
    names = list(itertools.islice(_expanded(pattern), _MOST_NAMES + 1))
    if len(names) > _MOST_NAMES:
        raise InputError(f"{pattern}: no such shard, for these are more than {_MOST_NAMES:,} names; count less far")
    return names


def _expanded(pattern: str) -> Iterator[str]:
    match = re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", pattern)
    if not match:
        yield pattern
        return
    first, last, names = match.groups()
    if not names and int(first) > int(last):
        raise InputError(f"{pattern}: no such shard, for {{{first}..{last}}} counts down")
    chosen = names.split(",") if names else (f"{n:0{len(first)}d}" for n in range(int(first), int(last) + 1))
    head, tail = pattern[: match.start()], pattern[match.end() :]
    for name in chosen:
        yield from _expanded(head + name + tail)


def stamp(file: File) -> tuple[int, str]:
    """Return the size in bytes and a text that changes with the content, of a URL as far as its server tells it."""
    with told(file):
        if not isinstance(file, str):
            status = file.stat()
            if not stat.S_ISREG(status.st_mode):  # reading a pipe may never end
                raise InputError(f"{file} cannot be read: it is a folder, a pipe or a device; name a file")
            refuse_pointer(file)
            return status.st_size, str(status.st_mtime_ns)
        filesystem, path = _remote(file)
        facts = _patiently(lambda: filesystem.info(path))
        if not isinstance(facts.get("size"), int):
            raise InputError(f"{file}: its server does not tell its size, so it cannot be read by ranges")
        return facts["size"], next((str(facts[name]) for name in _VERSIONS if name in facts), "")


def open_file(file: File) -> Any:
    """Open a file to read it from start to end."""
    if isinstance(file, str):
        return _Remote(file)
    stamp(file)  # which refuses pipes
    with told(file):
        return file.open("rb")


class _Remote(AbstractBufferedFile):
    """A file behind a URL, read ahead by ranges of one version of it."""

    def __init__(self, url: str):
        self.stamp = stamp(url)
        super().__init__(None, url, block_size=_AHEAD, size=self.stamp[0])

    def _fetch_range(self, start: int, end: int) -> bytes:
        return read_range(str(self.path), start, end - start, self.stamp)


def changed(file: File) -> InputError:
    """Return the error of a file that is not as it was when it was indexed."""
    return InputError(f"{file} has changed since it was indexed; run: groupvit data index {file}")


class _Opened:
    """A local file for reads at any position; descriptors may be shared with forked processes."""

    def __init__(self, path: Path, expected: tuple[int, str]):
        if stamp(path) != expected:
            raise changed(path)
        with told(path):
            self.descriptor = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


_opened = functools.lru_cache(maxsize=_OPEN_FILES)(_Opened)


def read_range(file: File, start: int, size: int, expected: tuple[int, str]) -> bytes:
    """Read `size` bytes from position `start`; a file that had another stamp than `expected` is an `InputError`.

    Of a local file that is seen when it is opened, of a URL with each read, if its server tells an ETag.
    """
    with told(file):
        if not isinstance(file, str):
            opened = _opened(file, expected)  # held, or another thread's read may close it
            return os.pread(opened.descriptor, size, start)
        return _patiently(lambda: _read_remote(file, start, size, expected[1]))


def _read_remote(url: str, start: int, size: int, version: str) -> bytes:
    filesystem, path = _remote(url)
    kind = filesystem.protocol if isinstance(filesystem.protocol, str) else filesystem.protocol[0]
    data, bucket = None, (path.split("/")[0], int(time.monotonic() / _SIGNED))
    if kind in ("http", "https"):
        data = sync(filesystem.loop, _get, filesystem, filesystem.encode_url(path), url, start, size, version)
    elif kind == "s3" and bucket not in _refusing:
        data = _read_signed(url, start, size, version)
    if data is None:
        data = filesystem.cat_file(path, start=start, end=start + size)
        _refusing.add(bucket)
    if len(data) != size:
        raise OSError(f"its server sent {len(data):,} bytes where {size:,} were asked for")
    return data


_refusing: set[tuple[str, int]] = set()
"""Buckets that refuse signed addresses, though s3fs can read them, and when."""


def _read_signed(url: str, start: int, size: int, version: str) -> Any:
    """Return a range of an S3 object by a signed address, in a third of s3fs's time; None if that is refused."""
    web = fsspec.filesystem("https")
    try:
        address = _sign(url, os.getpid(), int(time.monotonic() / _SIGNED))
        return sync(web.loop, _get, web, address, url, start, size, version)
    except Exception as error:
        if isinstance(error, InputError) or not _lasting(error):
            raise
        return None  # s3fs knows other regions, certificates and customs, and what to say


@functools.lru_cache(maxsize=4 * _OPEN_FILES)
def _sign(url: str, process: int, slot: int) -> Any:
    from yarl import URL

    filesystem, path = _remote(url)
    settings: dict[str, Any] = filesystem.storage_options
    version = {"signature_version": "s3v4"}  # unasked botocore takes the second, which S3 accepts of old buckets alone
    signer = fsspec.filesystem("s3", **settings | {"config_kwargs": version | (settings.get("config_kwargs") or {})})
    return URL(signer.sign(path, expiration=2 * _SIGNED), encoded=True)


async def _get(filesystem: Any, address: Any, url: str, start: int, size: int, version: str) -> bytes:
    """Return a range of what is at a web address, once it is sure that the answer is that range of that version."""
    from aiohttp import ClientTimeout

    session, kwargs = await filesystem.set_session(), dict(filesystem.kwargs)
    span = f"bytes={start}-{start + size - 1}"
    kwargs["headers"] = {**kwargs.get("headers", {}), "Range": span, "Accept-Encoding": "identity"}
    kwargs["timeout"] = ClientTimeout(sock_connect=_SILENCE, sock_read=_SILENCE)
    async with session.get(address, **kwargs) as answer:
        if answer.status == 404:
            raise FileNotFoundError(url)
        tag = answer.headers.get("ETag", version) if version.startswith(('"', "W/")) else version
        if answer.status == 416 or (answer.ok and tag != version):
            raise changed(url)
        answer.raise_for_status()
        given = answer.headers.get("Content-Range", "the whole file")
        if not given.replace(" ", "=", 1).startswith(f"{span}/"):
            raise OSError(f"its server sent {given} where {span} were asked for")
        return await answer.read()
