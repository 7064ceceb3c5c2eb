"""Write files whole or not at all, find the cache, and tell photos by their names."""

import errno
import glob
import io
import os
import re
import shutil
import tempfile
import uuid
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from groupvit.errors import InputError, input_error

if TYPE_CHECKING:
    from PIL import Image

_SUFFIXES = ".jpg .jpeg .jfif .png .webp .gif .bmp .tif .tiff .ppm .pgm .avif"
PHOTO_SUFFIXES = frozenset([*_SUFFIXES.split(), *((".heic", ".heif") if find_spec("pillow_heif") else ())])

MAX_PIXELS = 300_000_000
"""Photos of more are refused: a file of some kilobytes could fill the memory. Phones take up to 200 million."""


def cache_folder() -> Path:
    """Return a folder for what can be made again: in the user's cache, or the temporary folder if that is unusable."""
    parents = [os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")]
    with suppress(OSError):
        parents.append(os.path.join(tempfile.gettempdir(), f"cache-{getattr(os, 'getuid', int)()}"))
    folders = [Path(parent, "groupvit") for parent in parents if os.path.isabs(parent)]
    for folder in folders:
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            if os.access(folder, os.W_OK):
                return folder
    return next(iter(folders), Path("groupvit-cache"))  # whoever writes there is told what is wrong


def found_below(pattern: str) -> list[str]:
    """Return what a pattern matches; `**` stands for folders of any depth, each once, as links may lead back."""
    if not (every := re.search(r"(?:^|(?<=[/\\]))\*\*(?:[/\\]|$)", pattern)):
        return sorted(glob.glob(pattern))
    head, tail = pattern[: every.start()], pattern[every.end() :] or "*"
    seen, found = set[str](), set[str]()
    folders = sorted(glob.glob(head)) if head else [""]
    for folder in folders:  # grows, so that nearer ones come first
        if (real := os.path.realpath(folder)) not in seen:
            seen.add(real)
            folders += sorted(glob.glob(os.path.join(glob.escape(folder), "*", "")))
            found.update(found_below(os.path.join(glob.escape(folder), tail)))
    return sorted(found)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give the name of a file to write, which then replaces `path`, or what it links to, or goes if the block fails."""
    path = Path(os.path.realpath(path)) if path.is_symlink() else path
    temporary = path.parent / f".{uuid.uuid4().hex}.tmp"  # machines share folders, and process numbers
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(folder: Path, *, locked: bool = False) -> Iterator[Path]:
    """Give an empty folder to fill, which then becomes `folder`, or goes if the block fails.

    One that another process fills, or has left, is an `InputError`; whoever is `locked` knows that it has left it.
    """
    refuse_remote(folder)
    folder = folder.resolve() if folder.is_symlink() else folder
    with suppress(FileNotFoundError):  # the folder that one is in may be gone
        if folder.resolve() == Path.cwd():
            raise InputError(f"{folder} is the folder you are in, which cannot be replaced: name a new one")
    if folder.is_mount():
        raise InputError(
            f"{folder}: a disk is mounted there, so it cannot be written whole or not at all; name one in it"
        )
    unfinished = folder.with_name(folder.name + ".partial")
    if locked:
        shutil.rmtree(unfinished, ignore_errors=True)
    try:
        unfinished.mkdir(parents=True, exist_ok=locked)
    except FileExistsError:
        text = f"{unfinished} is there already, of another run or of one that was killed: remove it first"
        raise InputError(text) from None
    try:
        yield unfinished
        if folder.exists():
            folder.rmdir()
        os.replace(unfinished, folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def refuse_address(photo: str) -> None:
    """Refuse standard input and addresses, of which no photo is read, with the way to do it."""
    if not photo.strip():
        raise InputError("a photo has no name, of which an unset variable may be the cause: name a file")
    if photo == "-":
        raise InputError("-: no photo is read from standard input: write it to a file first (cat > photo.jpg)")
    if match := re.match(r"([a-z][a-z0-9+.-]+):(//|.*;base64,)", photo, re.IGNORECASE):
        ways = {"file": f"give its path, {photo[match.end() :]}", "data": "decode it into a file first"}
        ways |= dict.fromkeys(("http", "https", "ftp"), f"download it first (curl -LO '{photo}')")
        way = ways.get(match[1].lower(), "download it first")
        raise InputError(f"{photo[:200]}: photos are read from files only: {way}")


def refuse_remote(path: Path) -> None:
    """Refuse what was an address before it became a path; else there would be a folder of the name `s3:`."""
    if match := re.match(r"([a-z][a-z0-9+.-]+):/", place := path.as_posix(), re.IGNORECASE):
        address = f"{match[1]}://{place[match.end() :]}"
        raise InputError(f"{address}: only data is read from an address, results go to a disk")


def refuse_pointer(file: Path) -> None:
    """Say what to do about a file that git has not downloaded."""
    with suppress(OSError):  # whoever reads it says why
        if file.is_file() and file.stat().st_size < 1024 and file.read_bytes().startswith(b"version https://git-lfs"):
            raise InputError(f"{file} is a pointer of git-lfs, not the file: run `git lfs pull` in its repository")


def write_atomically(path: Path, data: bytes | Iterable[bytes]) -> None:
    """Replace the file `path` once `data`, whole or in pieces, is on the disk, and make its folder.

    A full disk, a missing permission and the like are an `InputError` that names the folder.
    """
    refuse_remote(path)
    with input_error(f"cannot write {path.name} in {path.parent}", OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary, open(temporary, "wb") as file:
            file.writelines([data] if isinstance(data, bytes) else data)
            file.flush()
            os.fsync(file.fileno())
        sync_folder(Path(os.path.realpath(path)).parent)


def png(picture: "Image.Image") -> bytes:
    """Return the picture as a PNG file."""
    data = io.BytesIO()
    # Run lengths alone: a fourth of the time of Pillow's default, and pictures of segments grow by a tenth.
    picture.save(data, "PNG", compress_type=zlib.Z_RLE)
    return data.getvalue()


def write_picture(path: Path, picture: "Image.Image") -> None:
    """Write the picture as PNG, or as JPEG if its name says so; whole or not at all."""
    write_atomically(path, _jpeg(picture) if path.suffix == ".jpg" else png(picture))


def _jpeg(picture: "Image.Image") -> bytes:
    """Return the picture as a JPEG file, in a tenth of PNG's time and a third of its size."""
    picture.thumbnail((65_500, 65_500))  # no JPEG is larger
    data = io.BytesIO()
    picture.save(data, "JPEG", quality=90, subsampling=0)
    return data.getvalue()


def sync_folder(folder: Path) -> None:
    """Put the names in a folder on the disk, as fsync does with the bytes of a file."""
    if os.name == "posix":  # elsewhere a folder cannot be opened
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno != errno.EINVAL:  # network and FUSE file systems do it on their own, or cannot
                raise
        finally:
            os.close(descriptor)
