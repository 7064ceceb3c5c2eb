"""Find, scan, read and write tar shards as img2dataset writes them (the WebDataset layout).

A sample is the members with one stem: `KEY.jpg` (or png, webp, …), and its captions in `KEY.json` (`captions`, a list,
or `caption`) or in `KEY.txt`. A key may have dots. Other members are passed over: those of a whole sample with a longer
ending (`KEY.seg.png`), and lone ones (`README.md`). Where the JSON says `"kind": "tags"`, the photo was labelled with
`tags`, a list of words from a vocabulary, and its captions are made of them.
"""

import glob
import html
import io
import itertools
import json
import os
import posixpath
import re
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, NoReturn
from unicodedata import category

from groupvit.data import tar
from groupvit.data.storage import File, changed, is_url, matching, open_file, read_range, stamp, told
from groupvit.data.tar import BLOCK, IMAGE_ENDINGS, TEXT_ENDINGS, Fault, Member, image_ending, split_name
from groupvit.errors import InputError, input_error
from groupvit.files import replacing


@dataclass(frozen=True)
class Sample:
    """An encoded photo with its captions and the tags they are made of, if any; `shard` is where it was read."""

    key: str
    image: bytes
    captions: tuple[str, ...]
    shard: str = field(default="", compare=False)
    tags: tuple[str, ...] | None = None


Members = dict[str, dict[str, Member]]
"""The members of each sample, by their endings."""


class Row(NamedTuple):
    """A whole sample: the place of its image's bytes, the CRC-32 of their tar header, and its texts."""

    key: str
    offset: int
    size: int
    header: int
    captions: tuple[str, ...]
    tags: tuple[str, ...] | None = None


def find_shards(source: File | Sequence[File], below: File | None = None) -> list[File]:
    """Return the shards of a folder (its tars, sorted), a pattern (`cc3m-{000..330}.tar`, `*-train-*.tar`) or a file.

    For a .tar.gz it is the tar that was unpacked beside it, unless that is older.
    URLs (`s3://bucket/{00000..00330}.tar`) stay strings, and their file system resolves patterns in them. With `below`,
    `source` is a pattern inside that folder, whose own name is taken as it is, or an absolute one. None at all is an
    `InputError`.
    """
    if not isinstance(source, (str, Path)):
        return tar.newest([shard for one in source for shard in find_shards(one, below)])
    alone = below is None or os.path.isabs(source)  # as with Path's /
    head, text = ("" if alone else f"{str(below).rstrip('/')}/"), str(source)
    if not (head + text).strip() or (below is not None and not str(below)):
        raise InputError("no such shard as '', of which an unset variable may be the cause: name a folder or a file")
    if not alone and not is_url(head) and not os.path.isdir(head):
        raise InputError(f"{below}: no such folder")
    found: list[File] = []
    for name, files in matching(head, text).items():
        if not files:
            _refuse(name)
        for file in files:
            if isinstance(file, Path) and file.suffix == ".parquet" and file.with_suffix(".tar").exists():
                raise InputError(f"{file} is no shard but lists one; name the folder, of which the tars are taken")
            if Path(file).suffix in (".parquet", ".csv", ".tsv"):
                raise InputError(f"{file} is no shard; make some of it: groupvit data pack {file} OUT")
            if Path(file).suffix in (".json", ".txt", ".arrow"):
                raise InputError(f"{file} is no shard; name the folder, of which the tars are taken")
        found += files
    return tar.newest(found)


def _refuse(name: str) -> NoReturn:
    """Say that there is no such shard, and of photos how to make shards of them."""
    if not (is_url(name) or glob.has_magic(name) or name.endswith((".tar", ".gz")) or os.path.exists(name)):
        raise InputError(f"{name}: no such file or folder")
    folder = Path(name) if os.path.isdir(name) else Path(name).parent
    files = () if is_url(name) else itertools.chain(folder.glob("*"), folder.glob("*/*"))
    if any(file.suffix == ".parquet" or split_name(file.name)[1] in IMAGE_ENDINGS for file in files):
        raise InputError(f"{name}: no such shard, but photos; make shards of them: groupvit data pack {folder} OUT")
    raise InputError(f"{name}: no such shard; give a folder of .tar files, a .tar file, or a pattern of them")


def _texts(files: dict[str, Member]) -> tuple[tuple[str, ...], tuple[str, ...] | None] | Fault:
    """Return the captions, and the tags if the sample is of that kind."""
    if any(member.size > tar.MAX_TEXT for ending, member in files.items() if ending in TEXT_ENDINGS):
        return Fault("", "long-text")
    try:
        meta = json.loads(files["json"].text) if "json" in files else {}
        if not isinstance(meta, dict):
            raise TypeError(f"it is a {type(meta).__name__}, no object with captions")
        given = [meta.get(name) or [] for name in ("captions", "caption")]
        found = (_stripped(each if isinstance(each, list) else [each]) for each in given)
        captions = next(filter(None, found), ())
        if not captions and "txt" in files:
            captions = _stripped([files["txt"].text.decode("utf-8-sig")])
        tags = _stripped(meta.get("tags")) if meta.get("kind") == "tags" else None
        "".join((*captions, *(tags or ()))).encode()  # JSON can spell halves of characters
    except UnicodeError as error:
        return Fault("", "not-utf8", str(error))
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        return Fault("", "bad-json", str(error))
    if any(len(caption) > tar.MAX_CAPTION for caption in captions):
        return Fault("", "long-text")
    if any("\0" in caption for caption in captions):
        return Fault("", "not-utf8", "it has zeros, as UTF-16 does")
    others = "" if meta.keys() & {"captions", "caption"} else ", ".join(meta)[:80]
    return (captions, tags) if captions else Fault("", "no-caption", f"its JSON has {others}" if others else "")


def _stripped(texts: Any) -> tuple[str, ...]:
    if not isinstance(texts, list):
        raise TypeError("tags are no list")
    if strange := [text for text in texts if not isinstance(text, str)]:
        raise TypeError(f"{json.dumps(strange[0])[:40]} is no text")
    return tuple(text.strip() for text in texts if is_text(text.strip()))


def is_text(text: str) -> bool:
    """Return True if it has a letter, a number or a picture: spaces, zeros and punctuation alone are no text."""
    signs = html.unescape(html.unescape(text))
    return any(category(sign)[0] in "LN" or category(sign) in ("So", "Co", "Cs") for sign in signs)


def _row(key: str, files: dict[str, Member]) -> Row | Fault:
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
    """Return the whole samples of a shard in their order, and what had to be left out. Images are not read."""
    return rows_of(*read_members(shard))


def read_members(shard: File) -> tuple[Members, list[Fault]]:
    """Return the members of each sample of a shard, and what had to be left out of them.

    Raises:
        InputError: the file cannot be read, or is no uncompressed tar at all.
    """
    faults: list[Fault] = []
    samples: Members = {}
    if tar.is_compressed(shard):
        raise InputError(f"{shard} is compressed; unpack it beside itself: {tar.how_to_unpack(shard)}")
    size, _ = stamp(shard)
    start = b""
    try:
        with input_error(f"{shard} cannot be read", OSError), open_file(shard) as file:
            start = file.read(5)
            for member in tar.members_of(file, size, faults):
                key, ending = split_name(member.name)
                if samples.setdefault(key, {}).setdefault(ending, member) is not member:
                    faults.append(Fault(member.name, "twice"))
    except InputError:
        raise
    # A header can name places that no file has, and headers without end.
    except (tarfile.TarError, ValueError, IndexError, OverflowError, RecursionError) as error:
        if size >= BLOCK and not samples:
            packer = tar.packed_by(start)
            advice = f"add {packer[0]} to its name, and index it" if packer else f"{error}; fetch or write it again"
            raise InputError(f"{shard}: not an uncompressed tar file: {advice}") from error
        faults.append(Fault("", "cut", str(error)))
    return samples, faults


def rows_of(samples: Members, faults: list[Fault], *, extras: bool = True) -> tuple[list[Row], list[Fault]]:
    """Return the whole samples, and `faults` with those of the others but `extras` (`_is_extra`)."""
    found = {key: _row(key, files) for key, files in samples.items()}
    broken = [(key, row) for key, row in found.items() if isinstance(row, Fault)]
    broken = [row for key, row in broken if not (extras and _is_extra(key, samples[key], found))]
    return [row for row in found.values() if isinstance(row, Row)], [*faults, *broken]


def _is_extra(key: str, files: dict[str, Member], found: dict[str, Row | Fault]) -> bool:
    """Return True for a lone member that is neither image nor text, or is more of a whole sample, as `KEY.seg.png`."""
    folder, base = posixpath.split(key)
    whole = found.get(posixpath.join(folder, base.partition(".")[0]))
    return len(files) == 1 and (isinstance(whole, Row) or files.keys().isdisjoint(IMAGE_ENDINGS | TEXT_ENDINGS))


def read_vocabulary(shard: File) -> tuple[str, ...]:
    """Return the words that the source of a shard's tags could have said: `coco-vocabulary.txt` for `coco-0001.tar`."""
    web = str(shard).startswith(("http://", "https://"))
    address, mark, query = str(shard).partition("?") if web else (str(shard), "", "")
    folder, _, name = address.rpartition("/") if isinstance(shard, str) else ("", "", shard.name)
    name = re.sub(r"(?i)((^|-)\d+)?(\.tar)?$", "-vocabulary.txt", name, count=1).removeprefix("-")
    file = f"{folder}/{name}{mark}{query}" if isinstance(shard, str) else shard.with_name(name)
    try:
        with told(file), open_file(file) as opened:
            text = opened.read().decode("utf-8-sig")
    except (InputError, UnicodeError) as error:
        reason = error if isinstance(error, InputError) else f"{file} is not UTF-8"
        advice = f"{shard} has tags: write there all words that its source could have said, one a line"
        raise InputError(f"{reason}; {advice}") from None
    return _stripped(text.splitlines())


def read_image(shard: File, row: Row, expected: tuple[int, str]) -> bytes:
    """Return the image's bytes; its tar header must still be the one that was scanned."""
    data = read_range(shard, row.offset - BLOCK, BLOCK + row.size, expected)
    if len(data) != BLOCK + row.size or zlib.crc32(data[:BLOCK]) != row.header:
        raise changed(shard)
    return data[BLOCK:]


def read_shard(shard: File) -> Iterator[Sample]:
    """Yield the samples of a shard in their order; one that would have to be left out is an `InputError`."""
    expected = stamp(shard)
    rows, faults = scan_shard(shard)
    if faults:
        raise InputError(f"{shard}: {faults[0]}; repair the shard")
    for row in rows:
        yield Sample(row.key, read_image(shard, row, expected), row.captions, str(shard), row.tags)


def write_shards(samples: Iterable[Sample], folder: str | Path, *, prefix: str, per_shard: int = 1000) -> list[Path]:
    """Write `prefix-0000.tar`, … with `per_shard` samples each, all or none; the same samples make the same bytes.

    A folder that holds shards of this prefix is an `InputError`: what is left of them would be trained on, too.
    """
    if per_shard < 1 or Path(prefix).name != prefix or prefix.startswith("."):
        raise InputError(f"{per_shard} samples a shard of the prefix {prefix!r}: give one at least, and a plain name")
    samples, paths = iter(samples), []
    Path(folder).mkdir(parents=True, exist_ok=True)
    if there := [file for file in Path(folder).iterdir() if re.fullmatch(rf"{re.escape(prefix)}-\d+\.tar", file.name)]:
        raise InputError(f"{min(there)} is there already: remove it, or give another folder or prefix")
    try:
        while first := list(itertools.islice(samples, 1)):
            paths.append(Path(folder) / f"{prefix}-{len(paths):04d}.tar")
            keys = set[str]()
            with replacing(paths[-1]) as temporary, tarfile.open(temporary, "w") as shard:
                for sample in itertools.chain(first, itertools.islice(samples, per_shard - 1)):
                    if sample.key in keys:
                        raise InputError(f"two samples of a shard have the key {sample.key!r}: give each its own")
                    keys.add(sample.key)
                    with input_error(f"sample {sample.key!r} cannot be written", UnicodeError):
                        _add_sample(shard, sample)
    except BaseException:
        for path in paths:
            path.unlink(missing_ok=True)
        raise
    return paths


def _add_sample(shard: tarfile.TarFile, sample: Sample) -> None:
    if isinstance(meta := meta_of(sample), Fault):
        raise InputError(f"sample {sample.key} cannot be written: {meta}")
    found = split_name(f"{sample.key}.txt") == (sample.key, "txt") and "\0" not in sample.key
    if not found or posixpath.basename(sample.key).startswith("._"):
        raise InputError(f"sample {sample.key!r}: no reader would find this key; give it a name of letters or digits")
    if not (ending := image_ending(sample.image)):
        raise InputError(f"sample {sample.key}: the image is of no format that training reads; convert it first")
    contents = {ending: sample.image, "txt": sample.captions[0].encode(), "json": meta}
    for ending, data in contents.items():
        member = tarfile.TarInfo(f"{sample.key}.{ending}")
        member.size = len(data)
        shard.addfile(member, io.BytesIO(data))


def meta_of(sample: Sample) -> bytes | Fault:
    """Return the sample's JSON, or why a reader would leave out the sample for its texts."""
    if isinstance(sample.captions, str):
        return Fault("", "bad-json", "captions are one text, not several")
    tags = {} if sample.tags is None else {"kind": "tags", "tags": sample.tags}
    meta = json.dumps({"key": sample.key, "captions": sample.captions, **tags}, ensure_ascii=False).encode()
    read = _texts({"json": Member("", 0, len(meta), 0, meta)})
    return read if isinstance(read, Fault) else meta
