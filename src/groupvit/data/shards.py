"""Tar shards as img2dataset writes them (the WebDataset layout), and the endless stream of batches made of them.

A sample is a run of neighbouring members with one stem: `KEY.jpg` (or jpeg, png, webp), and its captions in `KEY.json`
(`captions`, a list, or `caption`) or in `KEY.txt`. Members with other endings are passed over.
"""

import glob
import hashlib
import io
import itertools
import json
import os
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn, TypeVar

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from groupvit.errors import InputError

T = TypeVar("T")

IMAGE_ENDINGS = frozenset(("jpg", "jpeg", "png", "webp"))
TEXT_ENDINGS = frozenset(("txt", "json"))


@dataclass(frozen=True)
class Sample:
    """An encoded photo and its captions; `shard` says where it was read."""

    key: str
    image: bytes
    captions: tuple[str, ...]
    shard: str = field(default="", compare=False)


def find_shards(source: str | Path | Sequence[str | Path]) -> list[Path]:
    """The shards of a folder (its *.tar, sorted), of a pattern (`cc3m-{00000..00330}.tar`, `*-train-*.tar`), or a file.

    Raises:
        InputError: there are none, or one that is named does not exist.
    """
    if not isinstance(source, (str, Path)):
        return list(dict.fromkeys(shard for part in source for shard in find_shards(part)))
    if Path(source).exists():
        return _found(source, sorted(Path(source).glob("*.tar")) if Path(source).is_dir() else [Path(source)])
    names = _expand_braces(str(source))
    return [shard for name in names for shard in _found(name, [Path(path) for path in sorted(glob.glob(name))])]


def _found(name: str | Path, shards: list[Path]) -> list[Path]:
    if not shards:
        raise InputError(f"{name}: no such shard; give a folder of .tar files, a .tar file, or a pattern of them")
    return shards


def _expand_braces(pattern: str) -> list[str]:
    match = re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", pattern)
    if not match:
        return [pattern]
    first, last, names = match.groups()
    parts = names.split(",") if names else [f"{n:0{len(first)}d}" for n in range(int(first), int(last) + 1)]
    head, tail = pattern[: match.start()], pattern[match.end() :]
    return [expanded for part in parts for expanded in _expand_braces(head + part + tail)]


def _members(path: Path, endings: frozenset[str]) -> Iterator[tuple[str, str, bytes]]:
    """Stem, ending and bytes of each member with one of the endings; the whole file is checked on the way."""
    try:
        with open(path, "rb") as file, tarfile.open(fileobj=file, mode="r:") as shard:
            for member in shard:
                stem, ending = _split_name(member.name)
                if member.isdir():
                    continue
                if not member.isreg() or member.issparse():
                    raise InputError(f"{path}: member {member.name} is a link or a sparse or special file; rewrite it")
                if ending in endings:
                    file.seek(member.offset_data)
                    yield stem, ending, file.read(member.size)
            # tarfile takes a damaged header for the end of the archive; the true end is a block of zeros.
            file.seek(shard.offset)
            if file.read(512) != bytes(512):
                raise InputError(f"{path}: damaged or cut short at byte {shard.offset:,}; fetch or write it again")
    except (tarfile.TarError, OSError) as error:
        raise InputError(f"{path}: cannot read this tar file: {error}; fetch or write it again") from error


def _split_name(name: str) -> tuple[str, str]:
    folder, slash, base = name.rpartition("/")
    stem, _, ending = base.partition(".")
    return folder + slash + stem, ending.lower()


def _groups(path: Path, endings: frozenset[str]) -> Iterator[tuple[str, dict[str, bytes]]]:
    for key, members in itertools.groupby(_members(path, endings), key=lambda member: member[0]):
        files: dict[str, bytes] = {}
        for _, ending, data in members:
            if ending in files:
                raise InputError(f"{path}: two members are called {key}.{ending}; give each sample its own key")
            files[ending] = data
        yield key, files


def _captions(path: Path, key: str, files: dict[str, bytes]) -> tuple[str, ...]:
    ending = "json"
    try:
        meta = json.loads(files["json"]) if "json" in files else {}
        captions = meta.get("captions") or meta.get("caption") or []
        if not captions and "txt" in files:
            ending = "txt"
            captions = files["txt"].decode()
        captions = [captions] if isinstance(captions, str) else captions
        captions = tuple(caption.strip() for caption in captions if caption.strip())
    except (ValueError, AttributeError, TypeError) as error:
        raise InputError(f"{path}: member {key}.{ending} holds no captions in UTF-8: {error}") from error
    if not captions:
        raise InputError(f"{path}: sample {key} has no caption; its members must stand side by side")
    return captions


def read_shard(path: str | Path) -> Iterator[Sample]:
    """The samples of a shard in their order.

    Raises:
        InputError: the tar is damaged or holds links, or a sample lacks its image or its captions.
    """
    path = Path(path)
    for key, files in _groups(path, IMAGE_ENDINGS | TEXT_ENDINGS):
        images = [data for ending, data in files.items() if ending in IMAGE_ENDINGS]
        if len(images) != 1:
            raise InputError(f"{path}: sample {key} has {len(images)} images; its members must stand side by side")
        yield Sample(key, images[0], _captions(path, key, files), str(path))


def captions_of(shards: Iterable[str | Path]) -> Iterator[tuple[str, ...]]:
    """The captions of every sample; the images are not read."""
    for path in map(Path, shards):
        for key, files in _groups(path, TEXT_ENDINGS):
            yield _captions(path, key, files)


def sample_generator(seed: int, epoch: int, key: str) -> np.random.Generator:
    """The randomness of one sample in one epoch, whatever the worker, the position or the run."""
    digest = hashlib.blake2b(f"{seed}/{epoch}/{key}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "little")))


class CaptionBatches(IterableDataset[T]):
    """An endless stream of batches, for `DataLoader(batches, batch_size=None, num_workers=n)`.

    Every epoch shuffles the shards, reads them one after the other, and mixes neighbours in a buffer of
    `shuffle_buffer` samples that is emptied at its end: each sample comes once. Batches straddle epochs. The order is a
    function of `seed` and the epoch alone, and `make_batch` gets a generator with each sample. Every worker walks the
    whole order and makes its share of the batches: neither their number nor a start at `start_batch` changes a batch.

    Raises:
        InputError: while iterating, when a shard is broken or there are no samples.
    """

    def __init__(
        self,
        shards: Sequence[str | Path],
        *,
        batch_size: int,
        seed: int,
        make_batch: Callable[[list[Sample], list[np.random.Generator]], T],
        shuffle_buffer: int = 2000,
        start_batch: int = 0,
    ):
        self.shards = shards
        self.batch_size = batch_size
        self.seed = seed
        self.make_batch = make_batch
        self.shuffle_buffer = shuffle_buffer
        self.start_batch = start_batch

    def __iter__(self) -> Iterator[T]:
        worker = get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        stream = self._stream()
        # Counted from `start_batch`, for a DataLoader asks worker 0 first.
        for index in itertools.count():
            samples = list(itertools.islice(stream, self.batch_size))
            if index % workers == number:
                generators = [sample_generator(self.seed, epoch, sample.key) for epoch, sample in samples]
                yield self.make_batch([sample for _, sample in samples], generators)

    def _stream(self) -> Iterator[tuple[int, Sample]]:
        epoch, skip = 0, self.start_batch * self.batch_size
        if skip:
            epoch, skip = divmod(skip, sum(1 for _ in captions_of(self.shards)) or self._no_samples())
        samples = ((epoch, sample) for epoch in itertools.count(epoch) for sample in self._epoch(epoch))
        return itertools.islice(samples, skip, None)

    def _no_samples(self) -> NoReturn:
        raise InputError(f"{self.shards[0] if self.shards else 'no shards'}: no samples to train on")

    def _epoch(self, epoch: int) -> Iterator[Sample]:
        generator = np.random.Generator(np.random.PCG64([self.seed, epoch]))
        buffer: list[Sample] = []
        for shard in generator.permutation(len(self.shards)):
            for sample in read_shard(self.shards[shard]):
                if len(buffer) < self.shuffle_buffer:
                    buffer.append(sample)
                else:
                    position = generator.integers(len(buffer))
                    buffer[position], sample = sample, buffer[position]
                    yield sample
        if not buffer:
            self._no_samples()
        for position in generator.permutation(len(buffer)):
            yield buffer[position]


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
    meta = {"key": sample.key, "captions": sample.captions}
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
