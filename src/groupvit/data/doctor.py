"""Find what is wrong with training shards before a training run does.

Every image is decoded in full. Photos are compared by their decoded pixels: a copy with other metadata, or in another
lossless file, is found; a resized, turned or newly compressed one is not.
"""

import contextlib
import glob
import hashlib
import json
import re
import zlib
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from groupvit.data import report
from groupvit.data.order import Order
from groupvit.data.report import Finding, Findings, NounStatistics, Report
from groupvit.data.shards import Members, Row, read_image, read_members, read_vocabulary, rows_of
from groupvit.data.storage import File, stamp
from groupvit.data.tar import TEXT_ENDINGS, Fault, split_name
from groupvit.data.workers import mapped
from groupvit.errors import InputError
from groupvit.files import PHOTO_SUFFIXES, found_below
from groupvit.photos import load_rgb
from groupvit.progress import tracked
from groupvit.text.nouns import nouns, nouns_of_photo, nouns_of_tags, with_person
from groupvit.text.tokenizer import Tokenizer

_LONGEST = 256  # tokens; longer captions count as this long
_BATCHES = 32
_LARGE = 500  # photos of a shard, in which a caption may be rare that is not rare in all
_URL = re.compile(r"(\w+://|www\.)\S+|\S+\.(jpe?g|png|webp|gif)(\?\S*)?", re.IGNORECASE)


@dataclass
class _Shard:
    """The examination of one shard. What stays of it is few bytes a photo, for there may be millions of these."""

    name: str
    findings: list[Finding] = field(default_factory=list)
    digests: "array[int]" = field(default_factory=lambda: array("Q"))
    keys: bytes = b""
    drawn_nouns: bytes = b""
    photos: int = 0
    tagged: int = 0
    without_noun: int = 0
    one_word: int = 0
    lengths: Counter[int] = field(default_factory=Counter)
    captions: Counter[str] = field(default_factory=Counter)
    noun_counts: Counter[str] = field(default_factory=Counter)

    def add(self, kind: str, key: str = "", detail: str = "") -> None:
        self.findings.append(Finding(kind, self.name, key, detail))

    def add_faults(self, faults: Sequence[Fault], samples: Members) -> None:
        """Add each fault once a sample, and none that only follows from another one."""
        of_members = ("link", "twice")
        faults = [f._replace(key=split_name(f.key)[0]) if f.kind in of_members else f for f in faults]
        damaged = {fault.key for fault in faults if fault.kind == "link"}
        if any(fault.kind == "cut" for fault in faults):
            damaged.add(next(reversed(samples), ""))
        for key, kind, detail in dict.fromkeys(faults):
            if key not in damaged or kind not in ("no-image", "no-caption", "bad-json"):
                empty = kind == "no-caption" and samples[key].keys() & TEXT_ENDINGS
                self.add(kind, key, detail or "it is empty" * bool(empty))

    def add_image(self, row: Row, data: bytes) -> bool:
        """Return True if the image could be decoded."""
        try:
            image = load_rgb(data, row.key)
        except InputError as error:
            bomb = isinstance(error.__cause__, (Image.DecompressionBombError, Image.DecompressionBombWarning))
            self.add("bomb" if bomb else "undecodable", row.key, str(error).removeprefix(f"{row.key}: "))
            return False
        if min(image.size) < report.MIN_SIDE:
            self.add("tiny", row.key, f"{image.width} x {image.height}")
        self.digests.append(_digest(image))
        return True

    def add_texts(self, row: Row, generator: np.random.Generator, tokenizer: Tokenizer) -> tuple[str, ...]:
        """Return the nouns of one of the captions, drawn by the generator."""
        if row.tags is None:
            ends = tokenizer(row.captions) == tokenizer.end_of_text
            self.lengths.update((ends.int().argmax(dim=1) + 1).tolist())
            self.one_word += sum(len(caption.split()) == 1 for caption in row.captions)
            self.captions.update(set(row.captions))
            drawn = nouns(row.captions[int(generator.integers(len(row.captions)))])
            of_photo = nouns_of_photo(row.captions)
        else:  # captions made of tags are no sentences, and the caption losses leave them out
            self.tagged += 1
            drawn = nouns_of_tags(row.tags)
            of_photo = with_person(drawn)
        self.noun_counts.update(of_photo)
        self.without_noun += not of_photo
        self.photos += 1
        return drawn

    def add_url(self, row: Row, samples: Members) -> None:
        if caption := next(filter(_URL.fullmatch, row.captions), None):
            url = ""
            with contextlib.suppress(ValueError, KeyError, AttributeError, TypeError):
                url = json.loads(samples[row.key]["json"].text)["url"].strip()
            swapped = f', and its url is "{url[:60]}"' if url and not _URL.fullmatch(url) else ""
            self.add("url-caption", row.key, f'"{caption[:60]}"{swapped}')

    def add_unlisted(self, shard: File, rows: Sequence[Row]) -> None:
        try:
            listed = set(nouns_of_tags(read_vocabulary(shard)))
        except InputError as error:
            self.add("no-vocabulary", detail=str(error).partition(";")[0])
            return
        used = Counter(noun for row in rows for noun in nouns_of_tags(row.tags or ()))
        for noun in sorted(used.keys() - listed):
            self.add("unlisted-tag", detail=f'"{noun}", {used[noun]:,} photos')


def _digest(image: Image.Image) -> int:
    content = hashlib.blake2b(image.tobytes(), digest_size=8, salt=f"{image.width}".encode())
    return int.from_bytes(content.digest())


def _packed(words: Sequence[Any]) -> bytes:
    return zlib.compress(json.dumps(words).encode(), 1)


def _unpacked(words: bytes) -> Any:
    return json.loads(zlib.decompress(words))


def _examine_shard(shard: File) -> _Shard:
    """Examine one shard; nothing that is wrong with it is raised."""
    result = _Shard(str(shard))
    generator, tokenizer = np.random.default_rng(0), Tokenizer(_LONGEST)
    keys: list[str] = []
    drawn: list[tuple[str, ...]] = []
    try:
        expected = stamp(shard)
        samples, faults = read_members(shard) if expected[0] else ({}, [])
        rows, faults = rows_of(samples, faults)
        result.add_faults(faults, samples)
        for row in rows:
            if result.add_image(row, read_image(shard, row, expected)):
                keys.append(row.key)
            drawn.append(result.add_texts(row, generator, tokenizer))
            result.add_url(row, samples)
        if result.tagged:
            result.add_unlisted(shard, rows)
        if not rows and not result.findings:
            result.add("no-samples", detail="" if expected[0] else "the file is empty")
    except InputError as error:
        result.add("unreadable", detail=str(error).removeprefix(f"{shard}: "))
    result.keys, result.drawn_nouns = _packed(keys), _packed(drawn)
    # Captions that are frequent in the whole are so in its large shards, and all of them would not fit into memory.
    least = max(1, report.REPEATED / 10 * result.photos) if result.photos >= _LARGE else 0
    result.captions = Counter({caption: count for caption, count in result.captions.items() if count > least})
    return result


def _digest_of(path: Path) -> int | str:
    """Return the digest of a file, or the text of its error."""
    try:
        return _digest(load_rgb(path, str(path)))
    except InputError as error:
        return str(error).removeprefix(f"{path}: ")


def _images(folder: Path) -> list[Path]:
    names = map(Path, found_below(f"{glob.escape(str(folder))}/**"))
    paths = [path for path in names if path.suffix.lower() in PHOTO_SUFFIXES and path.is_file()]
    if not paths:
        raise InputError(f"{folder}: no images to compare with; give the folder of an evaluation")
    return paths


def examine(
    shards: Sequence[File], *, evaluation: Sequence[Path] = (), batch_size: int = 256, processes: int = 1
) -> Report:
    """Read every shard whole, and compare its photos with all images below the folders of `evaluation`.

    Nothing is written. Nouns per batch are those of one caption a photo in batches of the training's own order.

    Raises:
        InputError: an evaluation folder has no images, textblob is not installed, or a process died.
    """
    nouns("")  # raises if textblob is missing
    images = [path for folder in evaluation for path in _images(folder)]
    digests = dict(zip(images, tracked("comparing", mapped(_digest_of, images, processes), len(images)), strict=True))
    findings = Findings()
    examined: list[_Shard] = []
    lengths, captions, noun_counts = Counter[int](), Counter[str](), Counter[str]()
    results = mapped(_examine_shard, shards, processes)
    for each in tracked("examining", results, len(shards), lambda each: each.photos):
        findings.add(each.findings)
        for total, part in ((lengths, each.lengths), (captions, each.captions), (noun_counts, each.noun_counts)):
            total.update(part)
            part.clear()
        each.findings.clear()
        examined.append(each)
    photos = sum(each.photos for each in examined)
    noun_statistics = _noun_statistics(noun_counts, examined, batch_size)
    paths = {pixels: path for path, pixels in reversed(digests.items()) if isinstance(pixels, int)}
    in_evaluation = _photos_of(examined, paths.keys())
    findings.add(Finding("in-evaluation", shard, key, str(paths[pixels])) for shard, key, pixels in in_evaluation)
    duplicates, copies = _duplicates(examined)
    findings.add(duplicates)
    if copies:  # those of all photos, of which the first have been added
        findings.counts["duplicate"] = copies
    for caption, count in captions.most_common():
        if count >= max(10, report.REPEATED * photos):
            detail = f'"{caption[:60]}", {count:,} photos, {count / photos:.0%}'
            findings.add([Finding("repeated-caption", detail=detail)])
    if photos and noun_statistics.per_batch < report.MIN_NOUNS:
        findings.add([Finding("few-nouns", detail=f"{noun_statistics.per_batch:.1f} in a batch of {batch_size}")])
    unreadable = [(path, text) for path, text in digests.items() if isinstance(text, str)]
    findings.add(Finding("unreadable-evaluation", str(path), "", text) for path, text in unreadable)
    return Report(
        shards=len(shards),
        photos=photos,
        tagged=sum(each.tagged for each in examined),
        captions=report.caption_statistics(lengths, sum(each.one_word for each in examined)),
        nouns=noun_statistics,
        findings=tuple(findings.kept),
        counts=dict(findings.counts),
    )


def _photos_of(examined: Sequence[_Shard], digests: Set[int]) -> Iterator[tuple[str, str, int]]:
    """Yield shard, key and digest of each photo that has one of the digests."""
    for each in examined:
        if not digests.isdisjoint(each.digests):
            photos = zip(_unpacked(each.keys), each.digests, strict=True)
            yield from ((each.name, key, pixels) for key, pixels in photos if pixels in digests)


def _duplicates(examined: Sequence[_Shard]) -> tuple[Iterator[Finding], int]:
    """Yield the copies of the first `MOST` photos that have some; return how many copies there are of all, too."""
    digests = np.sort(np.concatenate([np.array(each.digests, dtype=np.uint64) for each in examined]))
    copies = digests[1:][digests[1:] == digests[:-1]]
    repeated = set(np.unique(copies)[: report.MOST].tolist())

    def find() -> Iterator[Finding]:
        first: dict[int, tuple[str, str]] = {}
        for shard, key, pixels in _photos_of(examined, repeated):
            if pixels in first:
                yield Finding("duplicate", shard, key, "as {1} in {0}".format(*first[pixels]))
            first.setdefault(pixels, (shard, key))

    return find(), len(copies)


def _noun_statistics(counts: Counter[str], examined: Sequence[_Shard], batch_size: int) -> NounStatistics:
    photos = np.array([each.photos for each in examined], dtype=np.int64)
    size = min(batch_size, int(photos.sum()))  # a larger batch repeats photos
    batches = min(_BATCHES, -(-int(photos.sum()) // batch_size))
    order = Order(photos, seed=0)(np.arange(batches * size)) if batches else np.empty((0, 3), dtype=np.int64)
    drawn = {shard: _unpacked(examined[shard].drawn_nouns) for shard in np.unique(order[:, 1]).tolist()}
    distinct = [
        len({noun for _, shard, row in batch for noun in drawn[shard][row]})
        for batch in order.reshape(batches, size, 3).tolist()
    ]
    return NounStatistics(
        distinct=len(counts),
        frequent=sum(count >= 10 for count in counts.values()),
        photos_without=sum(each.without_noun for each in examined),
        batch_size=batch_size,
        per_batch=sum(distinct) / max(len(distinct), 1),
    )
