"""Hostile bytes: each reader gives a value or an `InputError`."""

import json
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pytest
from experiments import fuzz
from hypothesis import HealthCheck, given, settings

from groupvit.data import index
from groupvit.errors import InputError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
FEW = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), database=None)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz, "SLOW", 1000)  # a busy machine is no hang


@pytest.mark.parametrize("name", fuzz.READERS)
def test_a_reader_takes_its_valid_file(name: str, tmp_path: Path) -> None:
    reader = fuzz.READERS[name]
    seed = reader.seed(tmp_path)
    for _ in range(2):  # nothing of one input is in the way of the next
        assert fuzz.attempt(reader, tmp_path / "input", seed) == "value"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [name for name, reader in fuzz.READERS.items() if reader.kind != "zip"])
@FEW
@given(data=st.binary(max_size=600) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_a_value_or_one_line(name: str, data: bytes, tmp_path: Path) -> None:
    assert fuzz.attempt(fuzz.READERS[name], tmp_path / "input", data) in ("value", "refused")


@FEW
@given(field=st.sampled_from(("caption", "captions", "tags", "kind", "url")), value=JSON)
def test_any_value_of_a_caption_is_a_sample_or_a_fault(field: str, value: Any, tmp_path: Path) -> None:
    data = json.dumps({**fuzz.SAMPLE, field: value}).encode()
    assert fuzz.attempt(fuzz.READERS["captions"], tmp_path / "input", data) == "value"


def test_a_broken_promise_would_be_noticed(tmp_path: Path) -> None:
    def broken(path: Path) -> None:
        raise IndexError("out of range")

    reader = fuzz.Reader(broken, lambda folder: b"")
    assert "IndexError" in fuzz.attempt(reader, tmp_path / "input", b"")


@pytest.mark.parametrize("damage", ["offsets", "beyond", "nulls", "no captions", "other nouns", "other columns", "cut"])
def test_a_damaged_index_is_made_anew_or_named(tmp_path: Path, damage: str) -> None:
    shard = tmp_path / "a.tar"
    shard.write_bytes(fuzz._tar(a_jpg=fuzz.photo(), a_txt=b"a dog", b_jpg=fuzz.photo(), b_txt=b"grass"))
    path = index.beside(shard)
    made = index.build_index(shard, path)
    table = index.open_table(path)
    columns = {name: table[name] for name in table.column_names}
    if damage == "offsets":  # of a column of texts, far outside of its memory
        wild = np.array([0, 2**30, 2], np.int32).tobytes()
        keys = pa.Array.from_buffers(pa.string(), 2, [None, pa.py_buffer(wild), pa.py_buffer(b"ab")])
        columns["key"] = pa.chunked_array([keys])
    elif damage == "beyond":
        columns["size"] = pa.chunked_array([pa.array([10**12, 1])])
    elif damage == "nulls":
        columns["captions"] = pa.chunked_array([pa.array([["a", None], ["b"]], columns["captions"].type)])
    elif damage == "no captions":
        columns["captions"] = pa.chunked_array([pa.array([[], ["b"]], columns["captions"].type)])
    elif damage == "other nouns":
        columns["nouns_paper"] = pa.chunked_array([pa.array([[], [["b"]]], columns["nouns_paper"].type)])
    elif damage == "other columns":
        columns.pop("nouns_of_photo")
    table = pa.table(columns).replace_schema_metadata(table.schema.metadata)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-400])
    found = index.find_index(shard)
    if damage == "cut":
        assert found is None
        return
    assert found == made
    index._columns.cache_clear()
    with pytest.raises(InputError, match=r"a\.tar\.arrow is damaged, delete it, and it will be made anew"):
        index.CaptionedPhotos([found]).read(0, 0)


@pytest.mark.slow
@pytest.mark.parametrize("name", fuzz.READERS)
def test_a_minute_of_hostile_files(name: str) -> None:
    row = fuzz.fuzz(name, 10**9, seconds=60)
    assert row["failures"] == {}
