"""Walk the files of a tar, tell what in it cannot be used, and unpack one that is compressed."""

import bz2
import gzip
import lzma
import os
import posixpath
import re
import shutil
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from groupvit.errors import InputError, input_error
from groupvit.files import PHOTO_SUFFIXES, replacing

IMAGE_ENDINGS = frozenset(suffix[1:] for suffix in PHOTO_SUFFIXES)
TEXT_ENDINGS = frozenset(("txt", "json"))
MAX_TEXT = 2**20  # bytes; larger ones are not read
MAX_CAPTION = 10_000  # characters; the time that nouns of web pages' code take grows with the square
BLOCK = 512  # bytes of a tar header, which stands right before its member's data


class Fault(NamedTuple):
    """Something in a shard that cannot be used; `kind` is one word of `FAULTS`."""

    key: str
    kind: str
    detail: str = ""

    def __str__(self) -> str:
        return (f"{self.key}: " if self.key else "") + FAULTS[self.kind] + (f" ({self.detail})" if self.detail else "")


FAULTS = {
    "no-samples": "the shard holds no whole sample",
    "cut": "the tar ends too early or is damaged from here on",
    "link": "a link, or a sparse or special file, which is not followed",
    "twice": "two members have this name",
    "unreadable": "a file cannot be read",
    "undecodable": "the image is of no format that training reads",
    "no-image": "no image",
    "two-images": "more than one image",
    "empty-image": "the image has no bytes",
    "no-caption": "no caption",
    "not-utf8": "the caption is not UTF-8",
    "bad-json": "the JSON is broken, or its captions or tags are no texts",
    "long-text": f"a text of more than {MAX_TEXT >> 20} MB, or a caption of more than {MAX_CAPTION:,} characters",
}
"""What may be wrong with a sample or a tar, before an image is decoded."""


def left_out(faults: Sequence[tuple[str, Fault]]) -> Iterator[str]:
    """Yield a line for each kind of fault, and for the first ones of it."""
    for kind, count in Counter(fault.kind for _, fault in faults).most_common():
        yield f"left out: {count:,} x {FAULTS[kind]}"
        places = [f"{place}{fault}" for place, fault in faults if fault.kind == kind][:3]
        yield from ("  " + " ".join(place.splitlines()) for place in places)  # names may hold line breaks


class Member(NamedTuple):
    """A file in a tar; only texts are read."""

    name: str
    offset: int
    size: int
    header: int
    text: bytes


def split_name(name: str) -> tuple[str, str]:
    """Split a member's name, at the last dot of its base name, into its sample's key and its ending."""
    stem, suffix = posixpath.splitext(name)
    return stem, suffix[1:].lower()


def members_of(file: Any, size: int, faults: list[Fault]) -> Iterator[Member]:
    """Yield every file of a tar; add what is left out, and damage, where it stops, to `faults`."""
    start: int | None = 0
    while start is not None:  # `cat` joins tars, each with its end
        file.seek(start)
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while member := _next(tar):
                tar.members.clear()  # pyright: ignore[reportAttributeAccessIssue]; it would keep all
                name = member.name.encode(errors="surrogateescape").decode(errors="backslashreplace").removeprefix("./")
                # `tar -V` and `tar -g` write a label (V) and a list of names (D), macOS ._NAME beside each file.
                if member.isdir() or member.type in (b"V", b"D") or posixpath.basename(name).startswith("._"):
                    continue
                if not member.isreg() or member.issparse():
                    faults.append(Fault(name, "link"))
                elif not 0 <= member.size <= size - member.offset_data:
                    break
                else:
                    yield _member(file, name, member)
            end = tar.offset
        file.seek(min(end, size))
        # tarfile takes a damaged header for the end of the archive; the true end is a block of zeros. One whose size is
        # negative leads back.
        if file.read(BLOCK) != bytes(BLOCK) or end < start:
            faults.append(Fault("", "cut", f"byte {min(end, size):,}"))
            return
        start = _after_zeros(file, end + BLOCK)


def _next(tar: tarfile.TarFile) -> tarfile.TarInfo | None:
    try:
        return tar.next()
    except MemoryError:
        raise tarfile.ReadError("a header tells an impossible size") from None


def _member(file: Any, name: str, member: tarfile.TarInfo) -> Member:
    header, text, ending = 0, b"", split_name(name)[1]
    if ending in IMAGE_ENDINGS:
        file.seek(member.offset_data - BLOCK)
        header = zlib.crc32(file.read(BLOCK))
    elif ending in TEXT_ENDINGS and member.size <= MAX_TEXT:
        file.seek(member.offset_data)
        text = file.read(member.size)
    return Member(name, member.offset_data, member.size, header, text)


def _after_zeros(file: Any, start: int) -> int | None:
    """Return the position of the first block that is not all zeros from `start` on, where the file is."""
    while data := file.read(2**20):
        if rest := data.lstrip(b"\0"):
            return (start + len(data) - len(rest)) // BLOCK * BLOCK
        start += len(data)
    return None


SHARD = re.compile(r"\.(?:tar|(tar\.(?:gz|bz2|xz|zst|lz4|lzma|z)|tgz|tbz2?|txz|tzst))$", re.IGNORECASE)
"""The end of a shard's name; a group matches if it is compressed, so that it cannot be read at any place."""
_PACKERS: dict[bytes, tuple[str, Callable[[Path], Any]]] = {
    b"\x1f\x8b": (".gz", gzip.open),
    b"BZh": (".bz2", bz2.open),
    b"\xfd7zXZ": (".xz", lzma.open),
}
_PROGRAMS = {".zst": "zstd -d", ".tzst": "zstd -d", ".lz4": "lz4 -d", ".z": "uncompress", ".lzma": "unlzma"}


def is_compressed(shard: Path | str) -> bool:
    """Return True for a .tar.gz and the like, which cannot be read at any place."""
    match = SHARD.search(str(shard))
    return bool(match and match[1])


def how_to_unpack(shard: Path | str) -> str:
    """Return the command that unpacks a compressed shard beside itself."""
    return f"{_PROGRAMS.get(Path(shard).suffix.lower(), 'groupvit data index')} {shard}"


def _tar_of(shard: Path | str) -> Path | str:
    """Return the name of the tar that a compressed one on a disk becomes."""
    return shard.with_name(SHARD.sub(".tar", shard.name)) if isinstance(shard, Path) and is_compressed(shard) else shard


def newest(shards: Iterable[Path | str]) -> list[Path | str]:
    """Return each shard once, and of one that was unpacked beside itself the tar, unless that is older.

    Some programs give the tar the archive's time, and some of these whole seconds of it.
    """
    latest: dict[Path | str, Path | str] = {}
    for shard in shards:
        tar = _tar_of(shard)
        current = tar == shard or (os.path.isfile(tar) and os.path.getmtime(tar) >= int(os.path.getmtime(shard)))
        if not current or tar not in latest:
            latest[tar] = tar if current else shard
    return list(latest.values())


def packed_by(start: bytes) -> tuple[str, Callable[[Path], Any]] | None:
    """Return the ending of a compressed file's name, and what opens it, by its first bytes."""
    return next((packer for magic, packer in _PACKERS.items() if start.startswith(magic)), None)


def unpack(shard: Path | str) -> Path:
    """Unpack a .tar.gz, .bz2 or .xz beside itself, whole or not at all, and return the tar, which has its time.

    A tar that is there already may be another one, and is not replaced.
    """
    if isinstance(shard, str):
        raise InputError(f"{shard} is compressed; unpack it where it is, or fetch it first")
    tar = Path(_tar_of(shard))
    if tar.exists():
        raise InputError(f"{tar} is older than {shard.name}, or of another kind: remove or rename one of them")
    with input_error(f"{shard} cannot be unpacked", OSError, EOFError, zlib.error, lzma.LZMAError):
        with shard.open("rb") as file:
            packer = packed_by(file.read(5))
        if not packer:
            raise InputError(f"{shard} cannot be unpacked: it is neither gzip, bzip2 nor xz: {how_to_unpack(shard)}")
        with replacing(tar) as temporary, packer[1](shard) as source, temporary.open("wb") as target:
            shutil.copyfileobj(source, target, 2**20)
            target.close()
            with input_error(f"{shard}: not a tar in it", tarfile.TarError, advice="fetch or write it again"):
                tarfile.open(temporary, "r:").close()
            shutil.copystat(shard, temporary)
    return tar


def image_ending(image: bytes) -> str | None:
    """Return the ending for the format that the first bytes tell, or None if training does not read it."""
    starts = ((ending, start) for ending, start in _STARTS.items() if ending in IMAGE_ENDINGS)
    return next((ending for ending, start in starts if re.match(start, image, re.DOTALL)), None)


_STARTS = {
    "jpg": rb"\xff\xd8\xff",
    "png": rb"\x89PNG",
    "webp": rb"RIFF.{4}WEBP",
    "gif": rb"GIF8",
    "bmp": rb"BM",
    "tif": rb"II[*+]\0|MM\0[*+]",
    "ppm": rb"P[1-6]\s",
    "avif": rb".{4}ftypavi[fs]",
    "heic": rb".{4}ftyp(hei[cmsx]|hev[cmsx]|mif1|msf1)",
}
