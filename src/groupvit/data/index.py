"""Sidecar indexes: where each photo of a shard lies, its captions and their nouns, so that any sample is one read away.

An index is one Arrow IPC file per tar, read through a memory map. `groupvit data index` puts it beside the shard; a
training that finds none makes one under the user's cache directory, for it never writes into its data.
"""

import functools
import hashlib
import importlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from groupvit.data.shards import Fault, Row, Sample, read_image, read_vocabulary, scan_shard
from groupvit.data.storage import File, stamp
from groupvit.data.workers import mapped
from groupvit.errors import InputError
from groupvit.files import write_atomically
from groupvit.text import nouns as noun_rules
from groupvit.text.nouns import Style, is_word, nouns, nouns_of_photo, nouns_of_tags, with_person

_VERSION = 3
_LOOKUPS = 32
_HEADER = b"groupvit"
_SAYABLE = b"sayable"


@dataclass(frozen=True)
class Index:
    """The index of a shard at `path`: how many samples it lists, and what had to be left out.

    It was made when the shard had `stamp`, under `rules`, which stand for everything but the shard that could change
    it. `content` is a hash of all that it lists. `vocabulary` is that of the words that the source of its tags could
    have said, as they were in their file; it is empty if the shard has no tags.
    """

    shard: File
    path: Path
    stamp: tuple[int, str]
    rules: str
    samples: int
    faults: tuple[Fault, ...]
    content: str
    vocabulary: str


def _arrow() -> Any:
    try:
        return importlib.import_module("pyarrow")
    except ImportError:
        raise InputError("indexes need the package pyarrow: pip install pyarrow") from None


@functools.cache
def _rules() -> str:
    source = Path(noun_rules.__file__).read_bytes() + version("textblob").encode()
    return f"{_VERSION}-{hashlib.blake2b(source, digest_size=8).hexdigest()}"


def beside(shard: File) -> Path:
    """Where `groupvit data index` puts an index: next to its shard, or for a URL into the cache."""
    return in_cache(shard) if isinstance(shard, str) else shard.with_name(f"{shard.name}.arrow")


def in_cache(shard: File) -> Path:
    """Where a training puts an index that it has to make itself."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "groupvit" / "index"
    name = shard if isinstance(shard, str) else str(shard.resolve())
    return folder / f"{hashlib.blake2b(name.encode(), digest_size=16).hexdigest()}.arrow"


def _open_table(path: Path) -> Any:
    pa = _arrow()
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()


def _read(shard: File, path: Path) -> Index | None:
    """None when there is no index at `path`, or none that can be read."""
    try:
        values = json.loads(_open_table(path).schema.metadata[_HEADER])
        (size, changed), faults = values["stamp"], values["faults"]
        found = (size, changed), values["rules"], values["samples"], tuple(Fault(*f) for f in faults)
        return Index(shard, path, *found, values["content"], values["vocabulary"])
    except (OSError, ValueError, KeyError, TypeError):  # Arrow's own errors are ValueErrors
        return None


def find_index(shard: File, where: Callable[[File], Path] = in_cache) -> Index | None:
    """The index that fits the shard and its vocabulary as they are now, if there is one beside it or at `where`."""
    now = stamp(shard)
    for path in dict.fromkeys((beside(shard), where(shard))):
        index = _read(shard, path) if path.is_file() else None
        if (
            index
            and (index.stamp, index.rules) == (now, _rules())
            and (not index.vocabulary or index.vocabulary == _hash(read_vocabulary(shard)))
        ):
            return index
    return None


def _hash(listed: object) -> str:
    return hashlib.blake2b(repr(listed).encode(), digest_size=8).hexdigest()


def _table_of(rows: list[Row]) -> Any:
    pa = _arrow()
    strings = pa.list_(pa.string())
    own = [None if row.tags is None else nouns_of_tags(row.tags) for row in rows]

    def of_captions(style: Style) -> Any:
        found = [
            [nouns(text, style=style) if tags is None else tags for text in row.captions]
            for row, tags in zip(rows, own, strict=True)
        ]
        return pa.array(found, pa.list_(strings))

    of_photo = [
        nouns_of_photo(row.captions) if tags is None else with_person(tags) for row, tags in zip(rows, own, strict=True)
    ]
    return pa.table(
        {
            "key": pa.array([row.key for row in rows], pa.string()),
            "offset": pa.array([row.offset for row in rows], pa.int64()),
            "size": pa.array([row.size for row in rows], pa.int64()),
            "header": pa.array([row.header for row in rows], pa.uint32()),
            "captions": pa.array([row.captions for row in rows], strings),
            "tags": pa.array([row.tags for row in rows], strings),
            "nouns_paper": of_captions("paper"),
            "nouns_release": of_captions("release"),
            "nouns_of_photo": pa.array([sorted(found) for found in of_photo], strings),
        }
    )


def _write(path: Path, table: Any) -> None:
    pa = _arrow()
    file = pa.BufferOutputStream()
    with pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    write_atomically(path, file.getvalue().to_pybytes())


def build_index(shard: File, path: Path) -> Index:
    """Scan a shard and write its index to `path`.

    Raises:
        InputError: the shard cannot be read, is no tar, or holds links, which are refused; or it has tags, and the
            file of its vocabulary is missing.
    """
    now = stamp(shard)
    rows, faults = scan_shard(shard)
    if links := [fault for fault in faults if fault.kind == "link"]:
        raise InputError(f"{shard}: {links[0]}; write the shard again without it")
    listed: list[Any] = [(row.key, row.header, row.captions) for row in rows]
    vocabulary, sayable = "", ()
    if any(row.tags is not None for row in rows):
        words = read_vocabulary(shard)
        vocabulary = _hash(words)
        sayable = sorted(set(nouns_of_tags([*words, *(tag for row in rows for tag in row.tags or ())])))
        listed += [[row.tags for row in rows], sayable]
    index = Index(shard, path, now, _rules(), len(rows), tuple(faults), _hash(listed), vocabulary)
    names = ("stamp", "rules", "samples", "faults", "content", "vocabulary")
    document = {name: getattr(index, name) for name in names}
    header = {_HEADER: json.dumps(document), _SAYABLE: json.dumps(sayable)}
    _write(path, _table_of(rows).replace_schema_metadata(header))
    return index


def _attempt(make: Callable[..., Index | None], *given: Any) -> Index | InputError | None:
    try:
        return make(*given)
    except InputError as error:
        return error


def _build(place: tuple[File, Path]) -> Index | InputError | None:
    return _attempt(build_index, *place)


def index_shards(
    shards: Sequence[File],
    *,
    where: Callable[[File], Path] = in_cache,
    processes: int = 1,
    progress: Callable[[Iterable[Any], int], Iterable[Any]] = lambda done, total: done,
) -> list[Index | InputError]:
    """The index of each shard; those that are missing or out of date are made, at `where`.

    A shard that cannot be indexed gets the error instead, and does not keep the others waiting.
    """
    _arrow()
    with ThreadPoolExecutor(_LOOKUPS) as threads:  # each waits for a disk or a server
        found = dict(zip(shards, threads.map(lambda shard: _attempt(find_index, shard, where), shards), strict=True))
    missing = [shard for shard, index in found.items() if index is None]
    if missing:
        made = mapped(_build, [(shard, where(shard)) for shard in missing], processes)
        found.update(progress(zip(missing, made, strict=True), len(missing)))
    return [index for index in found.values() if index]


@functools.cache
def _columns(index: Index) -> Any:
    return _open_table(index.path)


@functools.cache
def _sayable(index: Index) -> frozenset[str]:
    return frozenset(json.loads(_columns(index).schema.metadata[_SAYABLE]))


class CaptionedPhotos:
    """The samples of many shards, each one read away: `read(shard, row)` for rows below `counts[shard]`.

    Tables are opened by the process that first reads from them and stay memory-mapped: what all processes of a machine
    share is in memory once, and a copy of this object is small.
    """

    def __init__(self, indexes: Sequence[Index]):
        self.indexes = list(indexes)
        self.counts: Int64[np.ndarray, " shards"] = np.array([index.samples for index in indexes], dtype=np.int64)
        if not self.counts.sum():
            raise InputError(f"{indexes[0].shard if indexes else 'no shards'}: no samples to train on")

    @classmethod
    def open(cls, shards: Sequence[File], **options: Any) -> "CaptionedPhotos":
        """With the options of `index_shards`; a shard that cannot be indexed is an `InputError`."""
        indexes = index_shards(shards, **options)
        for index in indexes:
            if isinstance(index, InputError):
                raise index
        return cls([index for index in indexes if isinstance(index, Index)])

    def __len__(self) -> int:
        return int(self.counts.sum())

    def _cell(self, column: str, shard: int, row: int) -> Any:
        return _columns(self.indexes[shard])[column][row].as_py()

    def read(self, shard: int, row: int) -> Sample:
        """Image and captions; the shard must be as it was when it was indexed."""
        index = self.indexes[shard]
        found = Row(*(self._cell(name, shard, row) for name in Row._fields))
        image, tags = read_image(index.shard, found, index.stamp), found.tags
        return Sample(found.key, image, tuple(found.captions), str(index.shard), None if tags is None else tuple(tags))

    def place(self, number: int) -> tuple[int, int]:
        """Shard and row of photo `number` of all."""
        ends = self.counts.cumsum()
        shard = int(np.searchsorted(ends, number, side="right"))
        return shard, number - int(ends[shard] - self.counts[shard])

    def captions(self, shard: int, row: int) -> tuple[str, ...]:
        """All captions of the photo."""
        return tuple(self._cell("captions", shard, row))

    def nouns(self, shard: int, row: int, caption: int, style: Style) -> tuple[str, ...]:
        """What `text.nouns.nouns` says of one caption of the photo, or its tags."""
        return tuple(self._cell(f"nouns_{style}", shard, row)[caption])

    def nouns_of_photo(self, shard: int, row: int) -> list[str]:
        """What `text.nouns.nouns_of_photo` says of all its captions, or of its tags."""
        return self._cell("nouns_of_photo", shard, row)

    def sayable(self, shard: int, row: int) -> frozenset[str] | None:
        """The nouns that the source of the photo's tags could have said; None for captions, which could say any."""
        index = self.indexes[shard]
        return _sayable(index) if index.vocabulary and self._cell("tags", shard, row) is not None else None

    def noun_counts(self) -> tuple[Counter[str], Counter[str]]:
        """In how many photos' captions or tags each noun stands, and in how many it could have stood."""
        found = _value_counts([_columns(index) for index in self.indexes])
        tagged = [(index, _columns(index)) for index in self.indexes if index.vocabulary]
        tagged = [(index, table.filter(table["tags"].is_valid())) for index, table in tagged]
        captions = len(self) - sum(len(table) for _, table in tagged)
        known = Counter({noun: captions * is_word(noun) for noun in found})
        for index, table in tagged:
            sayable, own = _sayable(index), _value_counts([table])
            known.update({noun: len(table) if noun in sayable else own[noun] for noun in found})
        return found, known


def _value_counts(tables: Sequence[Any]) -> Counter[str]:
    parts = [chunk.flatten() for table in tables for chunk in table["nouns_of_photo"].chunks]
    cells = _arrow().chunked_array(parts, _arrow().string()).value_counts()
    return Counter(dict(zip(cells.field("values").to_pylist(), cells.field("counts").to_pylist(), strict=True)))
