"""The Arrow table of an index: a row for each sample, with its place, its texts and their nouns."""

import importlib
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from groupvit.data.shards import Row
from groupvit.data.tar import BLOCK
from groupvit.errors import input_error
from groupvit.text.nouns import Style, nouns, nouns_of_photo, nouns_of_tags, with_person


def arrow() -> Any:
    with input_error("indexes need the package pyarrow", ImportError, advice="pip install pyarrow"):
        return importlib.import_module("pyarrow")


def open_table(path: Path) -> Any:
    pa = arrow()
    return pa.ipc.open_file(pa.memory_map(os.fsencode(path))).read_all()


def schema() -> Any:
    pa = arrow()
    strings = pa.list_(pa.string())
    types = (pa.string(), pa.int64(), pa.int64(), pa.uint32(), strings, strings)
    more = [("nouns_paper", pa.list_(strings)), ("nouns_release", pa.list_(strings)), ("nouns_of_photo", strings)]
    return pa.schema([*zip(Row._fields, types, strict=True), *more])


def _cells(row: Row) -> tuple[Any, ...]:
    """Return the cells of a row: the nouns of each caption in both styles, and those of the photo, are its last."""
    if row.tags is None:
        paper, release = ([nouns(text, style=style) for text in row.captions] for style in get_args(Style))
        return *row, paper, release, sorted(nouns_of_photo(row.captions))
    tags = nouns_of_tags(row.tags)
    return *row, *[[tags] * len(row.captions)] * 2, sorted(with_person(tags))


def table_of(rows: list[Row]) -> Any:
    cells = [dict(zip(schema().names, _cells(row), strict=True)) for row in rows]
    return arrow().Table.from_pylist(cells, schema=schema())


def fits(table: Any, size: int) -> bool:
    """Return True if all is there, each photo lies in a shard of `size` bytes, and each caption has its nouns."""
    compute = importlib.import_module("pyarrow.compute")

    def nulls(column: Any) -> int:
        inside = nulls(compute.list_flatten(column)) if arrow().types.is_list(column.type) else 0
        return column.null_count + inside

    lengths = [compute.list_value_length(table[name]) for name in ("captions", "nouns_paper", "nouns_release")]
    if any(nulls(table[name].drop_null() if name == "tags" else table[name]) for name in table.column_names):
        return False
    starts, sizes = (table[name].to_numpy() for name in ("offset", "size"))
    inside = (starts >= BLOCK) & (sizes > 0) & (starts <= size) & (sizes <= size - starts)
    return bool(inside.all() and all(each.equals(lengths[0]) for each in lengths) and 0 not in lengths[0].to_numpy())


def photos_with_noun(tables: Sequence[Any]) -> Counter[str]:
    """Return how many photos of the tables have each noun."""
    chunks = [chunk.flatten() for table in tables for chunk in table["nouns_of_photo"].chunks]
    cells = arrow().chunked_array(chunks, arrow().string()).value_counts()
    return Counter(dict(zip(cells.field("values").to_pylist(), cells.field("counts").to_pylist(), strict=True)))
