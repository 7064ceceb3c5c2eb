"""Tar shards as img2dataset writes them (the WebDataset layout): found, scanned, read and written.

A sample is the members with one stem: `KEY.jpg` (or jpeg, png, webp), and its captions in `KEY.json` (`captions`, a
list, or `caption`) or in `KEY.txt`. Members with other endings are passed over. Where the JSON says `"kind": "tags"`,
the photo was labelled with `tags`, a list of words out of a vocabulary, and its captions are only made of them.
"""

import glob
import io
import itertools
import json
import os
import re
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from groupvit.data.storage import File, is_url, open_file, read_range, remote, stamp, told
from groupvit.errors import InputError

IMAGE_ENDINGS = frozenset(("jpg", "jpeg", "png", "webp"))
TEXT_ENDINGS = frozenset(("txt", "json"))
BLOCK = 512
"""Bytes of a tar header; the header of a member stands right before its data."""


@dataclass(frozen=True)
class Sample:
    """An encoded photo and its captions, and the tags they are made of, if they are; `shard` says where it was read."""

    key: str
    image: bytes
    captions: tuple[str, ...]
    shard: str = field(default="", compare=False)
    tags: tuple[str, ...] | None = None


class Row(NamedTuple):
    """A whole sample: where its image's bytes lie, the CRC-32 of their tar header, and its texts."""

    key: str
    offset: int
    size: int
    header: int
    captions: tuple[str, ...]
    tags: tuple[str, ...] | None = None


class Fault(NamedTuple):
    """Something in a shard that cannot be used; `kind` is one word of `FAULTS`."""

    key: str
    kind: str
    detail: str = ""

    def __str__(self) -> str:
        return (f"{self.key}: " if self.key else "") + FAULTS[self.kind] + (f" ({self.detail})" if self.detail else "")


FAULTS = {
    "cut": "the tar ends too early or is damaged from here on",
    "link": "a link, or a sparse or special file, which is not followed",
    "twice": "two members have this name",
    "no-image": "no image",
    "two-images": "more than one image",
    "empty-image": "the image has no bytes",
    "no-caption": "no caption",
    "not-utf8": "the caption is not UTF-8",
    "bad-json": "the JSON is broken, or its captions or tags are no texts",
}
"""What may be wrong with a sample or a tar, before an image is decoded."""


def find_shards(source: File | Sequence[File], below: File | None = None) -> list[File]:
    """The shards of a folder (its *.tar, sorted), of a pattern (`cc3m-{00000..00330}.tar`, `*-train-*.tar`), or a file.

    URLs (`s3://bucket/{00000..00330}.tar`) stay strings, and patterns in them are asked of their file system. With
    `below`, `source` is a pattern inside that folder, whose own name is none.

    Raises:
        InputError: there are none, or one that is named does not exist.
    """
    if not isinstance(source, (str, Path)):
        return list(dict.fromkeys(shard for part in source for shard in find_shards(part)))
    head, text = ("", str(source)) if below is None else (f"{str(below).rstrip('/')}/", str(source))
    if is_url(head + text):
        return [shard for name in _expand_braces(text) for shard in _found(head + name, _remote_shards(head + name))]
    whole = Path(head + text)
    with told(whole):
        if whole.exists():
            return _found(whole, sorted(whole.glob("*.tar")) if whole.is_dir() else [whole])
        names = [(head + name, glob.glob(glob.escape(head) + name)) for name in _expand_braces(text)]
    return [shard for name, paths in names for shard in _found(name, sorted(map(Path, paths)))]


def _remote_shards(url: str) -> list[str]:
    if "*" not in url and url.endswith(".tar"):
        return [url]  # asking for each of thousands would take minutes; a missing one is named when it is indexed
    with told(url):
        filesystem, path = remote(url)
        pattern = path if "*" in path else f"{path.rstrip('/')}/*.tar"
        return [filesystem.unstrip_protocol(name) for name in sorted(filesystem.glob(pattern))]


def _found(name: File, shards: Sequence[File]) -> list[File]:
    if not shards:
        raise InputError(f"{name}: no such shard; give a folder of .tar files, a .tar file, or a pattern of them")
    return list(shards)


def _expand_braces(pattern: str) -> list[str]:
    match = re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", pattern)
    if not match:
        return [pattern]
    first, last, names = match.groups()
    if not names and int(first) > int(last):
        raise InputError(f"{pattern}: no such shard, for {{{first}..{last}}} counts down")
    parts = names.split(",") if names else [f"{n:0{len(first)}d}" for n in range(int(first), int(last) + 1)]
    head, tail = pattern[: match.start()], pattern[match.end() :]
    return [expanded for part in parts for expanded in _expand_braces(head + part + tail)]


class _Member(NamedTuple):
    name: str
    stem: str
    ending: str
    offset: int
    size: int
    header: int
    text: bytes


def _members(file: Any, size: int, faults: list[Fault]) -> Iterator[_Member]:
    """Every image and text of a tar; stops at damage, which becomes a fault like all that is left out."""
    with tarfile.open(fileobj=file, mode="r:") as tar:
        for member in tar:
            name = member.name.encode(errors="surrogateescape").decode(errors="replace")
            folder, slash, base = name.rpartition("/")
            stem, _, ending = base.partition(".")
            ending = ending.lower()
            if member.isdir():
                continue
            if not member.isreg() or member.issparse():
                faults.append(Fault(name, "link"))
            elif member.offset_data + member.size > size:
                break
            elif ending in IMAGE_ENDINGS | TEXT_ENDINGS:
                file.seek(member.offset_data - BLOCK)
                header = zlib.crc32(file.read(BLOCK))
                text = file.read(member.size) if ending in TEXT_ENDINGS else b""
                yield _Member(member.name, folder + slash + stem, ending, member.offset_data, member.size, header, text)
        # tarfile takes a damaged header for the end of the archive; the true end is a block of zeros.
        file.seek(tar.offset)
        if file.read(BLOCK) != bytes(BLOCK):
            faults.append(Fault("", "cut", f"byte {min(tar.offset, size):,}"))


def _texts(files: dict[str, _Member]) -> tuple[tuple[str, ...], tuple[str, ...] | None] | Fault:
    """Captions, and tags if the sample is of that kind."""
    try:
        meta = json.loads(files["json"].text) if "json" in files else {}
        captions = meta.get("captions") or meta.get("caption") or []
        if not captions and "txt" in files:
            captions = files["txt"].text.decode()
        captions = captions if isinstance(captions, list) else [captions.strip()]
        captions, tags = _stripped(captions), None
        if meta.get("kind") == "tags":
            if not isinstance(meta.get("tags"), list):
                raise TypeError("tags are no list")
            tags = _stripped(meta["tags"])
        "".join((*captions, *(tags or ()))).encode()  # JSON can spell halves of characters
    except UnicodeError as error:
        return Fault("", "not-utf8", str(error))
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        return Fault("", "bad-json", str(error))
    return (captions, tags) if captions else Fault("", "no-caption")


def _stripped(texts: list[Any]) -> tuple[str, ...]:
    return tuple(text.strip() for text in texts if text.strip())


def _row(key: str, files: dict[str, _Member]) -> Row | Fault:
    images = [member for ending, member in files.items() if ending in IMAGE_ENDINGS]
    if len(images) != 1:
        return Fault(key, "two-images" if images else "no-image")
    if not images[0].size:
        return Fault(key, "empty-image")
    texts = _texts(files)
    if isinstance(texts, Fault):
        return texts._replace(key=key)
    return Row(key, images[0].offset, images[0].size, images[0].header, *texts)


def scan_shard(shard: File) -> tuple[list[Row], list[Fault]]:
    """The whole samples of a shard in their order, and what had to be left out. Images are not read.

    Raises:
        InputError: the file cannot be read, or is no uncompressed tar at all.
    """
    faults: list[Fault] = []
    samples: dict[str, dict[str, _Member]] = {}
    size, _ = stamp(shard)
    try:
        with open_file(shard) as file:
            for member in _members(file, size, faults):
                files = samples.setdefault(member.stem, {})
                if member.ending in files:
                    faults.append(Fault(member.name, "twice"))
                else:
                    files[member.ending] = member
    except OSError as error:
        raise InputError(f"{shard} cannot be read: {error.strerror or error}") from error
    except tarfile.TarError as error:
        if size >= BLOCK and not samples:
            raise InputError(f"{shard}: not an uncompressed tar file: {error}; fetch or write it again") from error
        faults.append(Fault("", "cut", str(error)))
    rows = [_row(key, files) for key, files in samples.items()]
    faults += [row for row in rows if isinstance(row, Fault)]
    return [row for row in rows if isinstance(row, Row)], faults


def read_vocabulary(shard: File) -> tuple[str, ...]:
    """The words that the source of a shard with tags could have said, from `coco-vocabulary.txt` for `coco-0001.tar`.

    Raises:
        InputError: there is no such file, or none that can be read.
    """
    folder, _, name = str(shard).rpartition("/") if isinstance(shard, str) else ("", "", shard.name)
    name = re.sub(r"(^|-)\d+$", "", name.removesuffix(".tar")) + "-vocabulary.txt"
    name = name.removeprefix("-")  # of 00000.tar
    file = f"{folder}/{name}" if isinstance(shard, str) else shard.with_name(name)
    try:
        with told(file), open_file(file) as opened:
            text = opened.read().decode("utf-8-sig")
    except (InputError, UnicodeError) as error:
        reason = error if isinstance(error, InputError) else f"{file} is not UTF-8"
        raise InputError(
            f"{reason}; {shard} has tags: write there all words that its source could have said, one a line"
        ) from None
    return _stripped(text.splitlines())


def read_image(shard: File, row: Row, expected: tuple[int, str]) -> bytes:
    """The image's bytes; its tar header must still be the one that was scanned."""
    data = read_range(shard, row.offset - BLOCK, BLOCK + row.size, expected)
    if len(data) != BLOCK + row.size or zlib.crc32(data[:BLOCK]) != row.header:
        raise InputError(f"{shard} has changed since it was indexed; run: groupvit data index {shard}")
    return data[BLOCK:]


def read_shard(shard: File) -> Iterator[Sample]:
    """The samples of a shard in their order.

    Raises:
        InputError: the shard cannot be read, or anything in it would have to be left out.
    """
    expected = stamp(shard)
    rows, faults = scan_shard(shard)
    if faults:
        raise InputError(f"{shard}: {faults[0]}; repair the shard")
    for row in rows:
        yield Sample(row.key, read_image(shard, row, expected), row.captions, str(shard), row.tags)


def write_shards(samples: Iterable[Sample], folder: str | Path, *, prefix: str, per_shard: int = 1000) -> list[Path]:
    """Write `prefix-0000.tar`, … with `per_shard` samples each; the same samples make the same bytes.

    Raises:
        InputError: an image is not JPEG, PNG or WebP, or a sample has no caption.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    samples = iter(samples)
    paths = []
    while batch := list(itertools.islice(samples, per_shard)):
        path = folder / f"{prefix}-{len(paths):04d}.tar"
        temporary = path.with_suffix(".tar.tmp")
        try:
            with tarfile.open(temporary, "w") as shard:
                for sample in batch:
                    _add_sample(shard, sample)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        paths.append(path)
    return paths


def _add_sample(shard: tarfile.TarFile, sample: Sample) -> None:
    if not sample.captions:
        raise InputError(f"sample {sample.key} has no caption to write")
    meta: dict[str, Any] = {"key": sample.key, "captions": sample.captions}
    if sample.tags is not None:
        meta |= {"kind": "tags", "tags": sample.tags}
    contents = {
        _image_ending(sample): sample.image,
        "txt": sample.captions[0].encode(),
        "json": json.dumps(meta, ensure_ascii=False).encode(),
    }
    for ending, data in contents.items():
        member = tarfile.TarInfo(f"{sample.key}.{ending}")
        member.size = len(data)
        shard.addfile(member, io.BytesIO(data))


def _image_ending(sample: Sample) -> str:
    if sample.image.startswith(b"\xff\xd8\xff"):
        return "jpg"
    if sample.image.startswith(b"\x89PNG"):
        return "png"
    if sample.image.startswith(b"RIFF") and sample.image[8:12] == b"WEBP":
        return "webp"
    raise InputError(f"sample {sample.key}: the image is neither JPEG, PNG nor WebP; convert it first")
