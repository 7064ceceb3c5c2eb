"""What is wrong with training shards: found before a training finds it, or learns from it without a word.

Every image is decoded in full. Photos are compared by their decoded pixels: a copy with other metadata, or in another
lossless file, is found; a resized, turned or newly compressed one is not.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from groupvit.data.checkup import Examined, digest, examine_shard
from groupvit.data.findings import MIN_NOUNS, REPEATED, Finding
from groupvit.data.order import Order
from groupvit.data.storage import File
from groupvit.data.transforms import load_rgb
from groupvit.data.workers import mapped
from groupvit.errors import InputError
from groupvit.files import PHOTO_SUFFIXES
from groupvit.text.nouns import nouns
from groupvit.text.tokenizer import Tokenizer

T = TypeVar("T")

_BATCHES = 32
_PHOTOS_A_JOB = 64


@dataclass(frozen=True)
class CaptionStatistics:
    """Lengths are in CLIP's tokens with start and end; `cut` and `one_word` are shares of the captions."""

    captions: int
    median_length: float
    length_95: float
    cut: float
    one_word: float


@dataclass(frozen=True)
class NounStatistics:
    """`frequent` nouns stand in ten photos' captions or more; a batch is expected to have `per_batch` distinct ones."""

    distinct: int
    frequent: int
    photos_without: int
    batch_size: int
    per_batch: float


@dataclass(frozen=True)
class Report:
    """What `examine` found; `photos` are those that training would be given, `tagged` those of them with tags."""

    shards: int
    photos: int
    tagged: int
    captions: CaptionStatistics
    nouns: NounStatistics
    findings: tuple[Finding, ...]

    @property
    def ready(self) -> bool:
        """Whether training may start: there are no errors."""
        return all(finding.severity != "error" for finding in self.findings)


def _digests_of(paths: Sequence[Path]) -> list[tuple[Path, int | str]]:
    """The digest of each file, or what is wrong with it."""
    digests: list[tuple[Path, int | str]] = []
    for path in paths:
        try:
            digests.append((path, digest(load_rgb(path, str(path)))))
        except InputError as error:
            digests.append((path, str(error).removeprefix(f"{path}: ")))
    return digests


def _images(folder: Path) -> list[Path]:
    paths = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in PHOTO_SUFFIXES and path.is_file()]
    if not paths:
        raise InputError(f"{folder}: no images to compare with; give the folder of an evaluation")
    return paths


def examine(
    shards: Sequence[File],
    *,
    evaluation: Sequence[Path] = (),
    batch_size: int = 256,
    processes: int = 1,
    progress: Callable[[Iterable[Any], int], Iterable[Any]] = lambda done, total: done,
) -> Report:
    """Read every shard whole, and compare its photos with all images below the folders of `evaluation`.

    Nothing is written. Nouns per batch are those of one caption a photo in batches of the training's own order.

    Raises:
        InputError: an evaluation folder has no images, textblob is not installed, or a process died.
    """
    nouns("")  # whether textblob is there
    images = [path for folder in evaluation for path in _images(folder)]
    chunks = [images[start : start + _PHOTOS_A_JOB] for start in range(0, len(images), _PHOTOS_A_JOB)]
    digests = [pair for chunk in progress(mapped(_digests_of, chunks, processes), len(chunks)) for pair in chunk]
    found: list[Examined] = list(progress(mapped(examine_shard, shards, processes), len(shards)))
    photos, noun_statistics = sum(each.photos for each in found), _noun_statistics(found, batch_size)
    findings = [finding for each in found for finding in each.findings]
    findings += _shared(found, {d: path for path, d in reversed(digests) if isinstance(d, int)})
    findings += _duplicates(found)
    findings += _repeated(found, photos)
    if photos and noun_statistics.per_batch < MIN_NOUNS:
        findings.append(Finding("few-nouns", detail=f"{noun_statistics.per_batch:.1f} in a batch of {batch_size}"))
    findings += [Finding("unreadable-evaluation", str(p), "", text) for p, text in digests if isinstance(text, str)]
    tagged = sum(each.tagged for each in found)
    return Report(len(shards), photos, tagged, _caption_statistics(found), noun_statistics, tuple(findings))


def _shared(found: Sequence[Examined], evaluation: dict[int, Path]) -> Iterator[Finding]:
    for each in found:
        for key, pixels in zip(each.keys, each.digests, strict=True):
            if pixels in evaluation:
                yield Finding("in-evaluation", each.shard, key, str(evaluation[pixels]))


def _duplicates(found: Sequence[Examined]) -> Iterator[Finding]:
    digests = np.concatenate([np.array(each.digests, dtype=np.uint64) for each in found])
    _, first, inverse = np.unique(digests, return_index=True, return_inverse=True)
    copies = np.flatnonzero(first[inverse] != np.arange(len(digests)))
    ends = np.cumsum([len(each.keys) for each in found])

    def place(number: int) -> tuple[str, str]:
        shard = int(np.searchsorted(ends, number, side="right"))
        return found[shard].shard, found[shard].keys[number - int(ends[shard])]  # counted from the end

    for copy in copies.tolist():
        shard, key = place(int(first[inverse[copy]]))
        yield Finding("duplicate", *place(copy), f"as {key} in {shard}")


def _repeated(found: Sequence[Examined], photos: int) -> Iterator[Finding]:
    for caption, count in _sum(each.captions for each in found).most_common():
        if count >= max(10, REPEATED * photos):
            yield Finding("repeated-caption", detail=f'"{caption[:60]}", {count:,} photos, {count / photos:.0%}')


def _sum(counters: Iterable[Counter[T]]) -> Counter[T]:
    total: Counter[T] = Counter()
    for counter in counters:
        total.update(counter)
    return total


def _caption_statistics(found: Sequence[Examined]) -> CaptionStatistics:
    counts = _sum(each.lengths for each in found)
    lengths = np.repeat(np.array(list(counts), dtype=np.int16), np.array(list(counts.values()), dtype=np.int64))
    if not len(lengths):
        return CaptionStatistics(0, 0.0, 0.0, 0.0, 0.0)
    median, long = (float(value) for value in np.percentile(lengths, [50, 95]))
    cut = float((lengths > Tokenizer().context_length).mean())
    return CaptionStatistics(len(lengths), median, long, cut, sum(each.one_word for each in found) / len(lengths))


def _noun_statistics(found: Sequence[Examined], batch_size: int) -> NounStatistics:
    counts = _sum(each.noun_counts for each in found)
    frequent = sum(count >= 10 for count in counts.values())
    photos = np.array([each.photos for each in found], dtype=np.int64)
    batches = min(_BATCHES, -(-int(photos.sum()) // batch_size))
    order = Order(photos, seed=0)(np.arange(batches * batch_size)) if batches else np.empty((0, 3), dtype=np.int64)
    distinct = [
        len({noun for _, shard, row in batch for noun in found[shard].drawn_nouns[row]})
        for batch in order.reshape(batches, batch_size, 3).tolist()
    ]
    per_batch = sum(distinct) / max(len(distinct), 1)
    return NounStatistics(len(counts), frequent, sum(each.without_noun for each in found), batch_size, per_batch)
