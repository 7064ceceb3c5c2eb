"""Files on a disk, and files behind a URL (`s3://…`, `https://…`, whatever fsspec knows), read by ranges of bytes."""

import functools
import os
from pathlib import Path
from typing import Any

import fsspec

from groupvit.errors import InputError

File = Path | str
"""A path on this machine, or a URL as a string."""

_OPEN_FILES = 64


def is_url(name: File) -> bool:
    """Whether `name` is for fsspec rather than for this machine's disks."""
    return "://" in str(name)


def remote(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL, and the path on it."""
    try:
        return fsspec.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise InputError(f"{url}: {error}") from None


def stamp(file: File) -> tuple[int, str]:
    """Size in bytes, and a text that changes whenever the content does."""
    try:
        if not isinstance(file, str):
            status = file.stat()
            return status.st_size, str(status.st_mtime_ns)
        filesystem, path = remote(file)
        return int(filesystem.size(path)), str(filesystem.ukey(path))
    except FileNotFoundError:
        raise InputError(f"{file} does not exist") from None
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror or error}") from error


def open_file(file: File) -> Any:
    """For reading from the start to the end."""
    try:
        if not isinstance(file, str):
            return file.open("rb")
        filesystem, path = remote(file)
        return filesystem.open(path, "rb")
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror or error}") from error


class _Opened:
    """A local file for reads at any position; descriptors may be shared with forked processes."""

    def __init__(self, path: Path, expected: tuple[int, str]):
        if stamp(path) != expected:
            raise InputError(f"{path} has changed since it was indexed; run: groupvit data index {path}")
        try:
            self.descriptor = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror or error}") from error

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


_opened = functools.lru_cache(maxsize=_OPEN_FILES)(_Opened)


def read_range(file: File, start: int, size: int, expected: tuple[int, str]) -> bytes:
    """`size` bytes from position `start`, of a file whose stamp must be the `expected` one when it is opened.

    Raises:
        InputError: the file is gone, cannot be read, or has changed.
    """
    try:
        if not isinstance(file, str):
            return os.pread(_opened(file, expected).descriptor, size, start)
        filesystem, path = remote(file)
        return filesystem.cat_file(path, start=start, end=start + size)
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror or error}") from error
