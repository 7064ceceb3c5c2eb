"""Indexes of shards: the place of each photo, its captions and their nouns, so that any sample is one read away.

An index is one Arrow IPC file per tar, read through a memory map. `groupvit data index` puts it beside the shard. A
training that finds none makes one in the user's cache, for it never writes into its data.
"""

import functools
import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from groupvit.data.shards import Row, Sample, read_image, read_vocabulary, scan_shard
from groupvit.data.storage import File, stamp
from groupvit.data.table import arrow, fits, open_table, photos_with_noun, schema, table_of
from groupvit.data.tar import FAULTS, Fault, is_compressed, left_out, unpack
from groupvit.data.workers import mapped
from groupvit.errors import InputError, input_error
from groupvit.files import cache_folder, write_atomically
from groupvit.progress import tracked
from groupvit.text.nouns import Style, is_word, nouns_of_tags

_VERSION = 7  # of the format and of the rules of `text.nouns`: raise it with either, and indexes are made anew
_LOOKUPS = 32
_HEADER = b"groupvit"
_SAYABLE = b"sayable"


@dataclass(frozen=True)
class Index:
    """The index at `path` of a shard that had `stamp`: how many samples it lists, and what had to be left out.

    `content` is a hash of all that it lists. `vocabulary` is a hash of the words that the source of the tags could have
    said, and empty if the shard has no tags. `made` is True if it was not found but made.
    """

    shard: File
    path: Path
    stamp: tuple[int, str]
    samples: int
    faults: tuple[Fault, ...] = field(hash=False)  # may be thousands, and each look into the index hashes it
    content: str
    vocabulary: str
    made: bool = field(default=False, compare=False)


def beside(shard: File) -> Path:
    """Return where `groupvit data index` puts an index: next to its shard, or for a URL in the cache."""
    return in_cache(shard) if isinstance(shard, str) else shard.with_name(f"{shard.name}.arrow")


def in_cache(shard: File) -> Path:
    """Return where a training puts an index that it has to make itself."""
    name = shard if isinstance(shard, str) else str(shard.resolve())
    return cache_folder() / "index" / f"{hashlib.blake2b(os.fsencode(name), digest_size=16).hexdigest()}.arrow"


def _read(shard: File, path: Path) -> Index | None:
    """Return the index at `path`, or None if it cannot be read or is of another version."""
    try:
        table = open_table(path)
        values = json.loads(table.schema.metadata[_HEADER])
        size, changed = values["stamp"]
        faults = tuple(Fault(*fault) for fault in values["faults"])
        known = values["rules"] == str(_VERSION) and all(fault.kind in FAULTS for fault in faults)
        if not known or values["samples"] != len(table):
            return None
        texts = str(values["content"]), str(values["vocabulary"])
        return Index(shard, path, (size, changed), len(table), faults, *texts)
    except Exception:  # Arrow raises nearly anything on broken data
        return None


def find_index(shard: File, where: Callable[[File], Path] = in_cache) -> Index | None:
    """Return the index beside the shard or at `where` that fits the shard and its vocabulary as they are now."""
    now = stamp(shard)
    for path in dict.fromkeys((beside(shard), where(shard))):
        index = _read(shard, path) if os.path.isfile(path) else None  # its name may be too long
        if index and index.stamp == now and (not index.vocabulary or index.vocabulary == _hash(read_vocabulary(shard))):
            return index
    return None


def _hash(listed: object) -> str:
    return hashlib.blake2b(repr(listed).encode(), digest_size=8).hexdigest()


def build_index(shard: File, path: Path) -> Index:
    """Scan a shard and write its index to `path`; links, and tags without a vocabulary, are an `InputError`.

    If its index goes beside it, a compressed shard is unpacked there first.
    """
    if is_compressed(shard) and path == beside(shard):
        shard = unpack(shard)
        path = beside(shard)
    pa, now = arrow(), stamp(shard)
    rows, faults = scan_shard(shard)
    faults = faults if rows or faults else [Fault("", "no-samples")]
    if links := [fault for fault in faults if fault.kind == "link"]:
        raise InputError(f"{shard}: {links[0]}; write the shard again without it")
    listed: list[Any] = [(row.key, row.header, row.captions) for row in rows]
    vocabulary, sayable = "", ()
    if any(row.tags is not None for row in rows):
        words = read_vocabulary(shard)
        vocabulary = _hash(words)
        sayable = sorted(set(nouns_of_tags([*words, *(tag for row in rows for tag in row.tags or ())])))
        listed += [[row.tags for row in rows], sayable]
    index = Index(shard, path, now, len(rows), tuple(faults), _hash(listed), vocabulary, made=True)
    document = {"stamp": now, "rules": str(_VERSION), "samples": len(rows), "faults": faults}
    document |= {"content": index.content, "vocabulary": vocabulary}
    header = {_HEADER: json.dumps(document), _SAYABLE: json.dumps(sayable)}
    table = table_of(rows).replace_schema_metadata(header)
    with pa.ipc.new_file(file := pa.BufferOutputStream(), table.schema) as writer:
        writer.write_table(table)
    write_atomically(path, file.getvalue().to_pybytes())
    return index


def _attempt(make: Callable[..., Index | None], given: tuple[Any, ...]) -> Index | InputError | None:
    try:
        return make(*given)
    except InputError as error:
        return error


def index_shards(
    shards: Sequence[File], *, where: Callable[[File], Path] = in_cache, processes: int = 1
) -> list[Index | InputError]:
    """Return the index of each shard, or the error of one that cannot be indexed.

    Indexes that are missing or out of date are made, at `where`.
    """
    arrow()
    no_threads = input_error("cannot look for indexes", RuntimeError, advice="let this process have more threads")
    with no_threads, ThreadPoolExecutor(_LOOKUPS) as threads:  # each waits for a disk or a server
        looked_up = threads.map(partial(_attempt, find_index), [(shard, where) for shard in shards])
        indexes = dict(zip(shards, looked_up, strict=True))
    missing = [shard for shard, index in indexes.items() if index is None]
    if missing:
        made = mapped(partial(_attempt, build_index), [(shard, where(shard)) for shard in missing], processes)
        made = tracked("indexing shards", made, len(missing), lambda index: getattr(index, "samples", 0))
        indexes.update(zip(missing, made, strict=True))
    return [index for index in indexes.values() if index]


def summary(indexes: Sequence[Index], shards: int) -> str:
    """Describe the indexes of all `shards`, and what they leave out."""
    found, photos = sum(not index.made for index in indexes), sum(index.samples for index in indexes)
    captions = sum(len(chunk.flatten()) for index in indexes for chunk in open_table(index.path)["captions"].chunks)
    indexed = f"{len(indexes):,} of {shards:,} shards indexed ({found:,} were up to date)"
    faults = left_out([(f"{index.shard}: ", fault) for index in indexes for fault in index.faults])
    return "\n".join([f"{indexed}: {photos:,} photos, {captions:,} captions", *faults])


def _damaged(index: Index) -> AbstractContextManager[None]:
    return input_error(f"{index.path} is damaged, delete it, and it will be made anew", Exception)


@functools.cache
def _columns(index: Index) -> Any:
    """Return the table of an index. Arrow would read wherever a damaged one points, so it is checked first."""
    with _damaged(index):
        table = open_table(index.path)
        table.validate(full=True)
        if not table.schema.equals(schema()) or not fits(table, index.stamp[0]):
            raise ValueError("its columns do not fit")
    return table


@functools.cache
def _sayable(index: Index) -> frozenset[str]:
    with _damaged(index):
        return _listed(_columns(index).schema.metadata[_SAYABLE])


@functools.cache
def _listed(words: bytes) -> frozenset[str]:
    """Return a set that the shards of one source share."""
    return frozenset(json.loads(words))


class CaptionedPhotos:
    """The samples of many shards, each one read away: `read(shard, row)` for rows below `counts[shard]`.

    Each process opens a table when it first reads from it. Tables are memory-mapped, so that processes share their
    memory and a copy of this object is small.
    """

    def __init__(self, indexes: Sequence[Index]):
        self.indexes = list(indexes)
        self.counts: Int64[np.ndarray, " shards"] = np.array([index.samples for index in indexes], dtype=np.int64)
        if not self.counts.sum():
            raise InputError(f"{indexes[0].shard if indexes else 'no shards'}: no samples to train on")

    @classmethod
    def open(cls, shards: Sequence[File], **options: Any) -> "CaptionedPhotos":
        """Index the shards with the options of `index_shards`; one that cannot be indexed is an `InputError`."""
        indexes = index_shards(shards, **options)
        for index in indexes:
            if isinstance(index, InputError):
                raise index
        return cls([index for index in indexes if isinstance(index, Index)])

    def __len__(self) -> int:
        return int(self.counts.sum())

    def human_share(self) -> float:
        """Return the share of the photos that have captions by people, and no tags."""
        tags = [_columns(index)["tags"] for index in self.indexes if index.vocabulary]
        return 1 - sum(len(column) - column.null_count for column in tags) / len(self)

    def _cell(self, column: str, shard: int, row: int) -> Any:
        return _columns(self.indexes[shard])[column][row].as_py()

    def read(self, shard: int, row: int) -> Sample:
        """Read the image and its texts; the shard must be as it was when it was indexed."""
        index = self.indexes[shard]
        listed = Row(*(self._cell(name, shard, row) for name in Row._fields))
        tags = None if listed.tags is None else tuple(listed.tags)
        image = read_image(index.shard, listed, index.stamp)
        return Sample(listed.key, image, tuple(listed.captions), str(index.shard), tags)

    def place(self, number: int) -> tuple[int, int]:
        """Return shard and row of photo `number` of all."""
        ends = self.counts.cumsum()
        shard = int(np.searchsorted(ends, number, side="right"))
        return shard, number - int(ends[shard] - self.counts[shard])

    def captions(self, shard: int, row: int) -> tuple[str, ...]:
        """Return all captions of the photo."""
        return tuple(self._cell("captions", shard, row))

    def nouns(self, shard: int, row: int, caption: int, style: Style) -> tuple[str, ...]:
        """Return the nouns of one caption of the photo, or its tags."""
        return tuple(self._cell(f"nouns_{style}", shard, row)[caption])

    def nouns_of_photo(self, shard: int, row: int) -> list[str]:
        """Return `text.nouns.nouns_of_photo` of all its captions, or of its tags."""
        return self._cell("nouns_of_photo", shard, row)

    def sayable(self, shard: int, row: int) -> frozenset[str] | None:
        """Return the nouns that the source of the photo's tags could have said, or None if it has none."""
        index = self.indexes[shard]
        return _sayable(index) if index.vocabulary and self._cell("tags", shard, row) is not None else None

    def noun_counts(self) -> tuple[Counter[str], Counter[str]]:
        """Return in how many photos' captions or tags each noun stands, and in how many it could have stood."""
        counts = photos_with_noun([_columns(index) for index in self.indexes])
        tagged = [(index, _columns(index)) for index in self.indexes if index.vocabulary]
        tagged = [(index, table.filter(table["tags"].is_valid())) for index, table in tagged]
        captions = len(self) - sum(len(table) for _, table in tagged)
        known = Counter({noun: captions * is_word(noun) for noun in counts})
        for index, table in tagged:
            sayable, said = _sayable(index), photos_with_noun([table])
            known.update({noun: len(table) if noun in sayable else said[noun] for noun in counts})
        return counts, known
