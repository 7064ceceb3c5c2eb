"""Shards in an S3 store and behind https, and what their servers do wrong."""

import itertools
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from experiments import faults, stores
from fsspec.config import conf
from safetensors.torch import load_file

from groupvit.data import storage
from groupvit.data.shards import find_shards, scan_shard
from groupvit.errors import InputError

Store = tuple[str, stores.Server]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    faults.make(folder)
    return folder


@pytest.fixture(scope="module")
def expected(folder: Path) -> str:
    return stores.digest(folder)


@pytest.fixture(scope="module", params=["https", pytest.param("S3", marks=pytest.mark.slow)])
def store(request: pytest.FixtureRequest, folder: Path) -> Iterator[Store]:
    with stores.STORES[request.param](folder) as store:
        yield store


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "_PAUSES", (0.01, 0.01, 0.01, 0.01))
    monkeypatch.setattr(storage, "_SILENCE", 0.3)
    monkeypatch.setattr(storage, "_refusing", set())


@pytest.mark.parametrize("fault", stores.SPOILT)
def test_what_a_server_spoils_for_a_while_costs_nothing(store: Store, folder: Path, expected: str, fault: str) -> None:
    row = stores.spoilt(*store, fault, 3, expected)
    if fault in ("403", "404"):
        assert row["lost"] == stores.FINALLY
        assert {"403": "Forbidden", "404": "does not exist"}[fault] in row["it says"]
    else:
        assert (row["lost"], row["it says"]) == ("nothing", "nothing")


@pytest.mark.parametrize("fault", [name for name in stores.SPOILT if name not in ("403", "404", "429")])
def test_what_a_server_spoils_for_good_is_one_line(store: Store, expected: str, fault: str) -> None:
    row = stores.spoilt(*store, fault, 10**9, expected)
    assert row["lost"] == stores.FINALLY
    assert "t-0000.tar cannot be read: " in row["it says"]
    assert "\n" not in row["it says"]
    assert "Signature" not in row["it says"]


def test_a_shard_that_is_replaced_while_it_is_read_is_noticed(store: Store, folder: Path) -> None:
    row = stores.replaced(store[0], folder)
    assert row["lost"] == stores.FINALLY
    assert "t-0001.tar has changed since it was indexed; run: groupvit data index" in row["it says"]


def test_a_shard_that_shrinks_while_it_is_scanned_is_noticed(store: Store, folder: Path) -> None:
    url = stores.names(store[0])[2]
    opened = storage.open_file(url)
    shard = folder / "train" / "t-0002.tar"
    data = shard.read_bytes()
    shard.write_bytes(data[:5000])
    stores.upload(folder) if url.startswith("s3") else None
    try:
        with pytest.raises(InputError, match="has changed"):
            opened.read(10_000)
    finally:
        shard.write_bytes(data)
        stores.upload(folder) if url.startswith("s3") else None


def test_a_scan_reads_ahead_and_finds_what_a_disk_has(
    store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "_AHEAD", 20_000)  # several ranges a shard
    for url, shard in zip(stores.names(store[0]), find_shards(folder / "train"), strict=True):
        assert scan_shard(url) == scan_shard(shard)


def test_an_unknown_host_a_closed_port_and_a_missing_file_are_one_line(store: Store) -> None:
    for url, why in (
        ("https://nowhere.invalid/a.tar", "cannot be read"),
        ("https://localhost:9/a.tar", "cannot be read: .*[Cc]onnect"),
        (f"{store[0]}/train/none.tar", "does not exist"),
    ):
        with pytest.raises(InputError, match=why):
            storage.stamp(url)


def test_asking_again_ends_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, clock = [], [0.0]
    monkeypatch.undo()
    monkeypatch.setattr(time, "sleep", lambda pause: clock.append(clock[-1] + pause))
    monkeypatch.setattr(time, "monotonic", lambda: clock[-1])

    def ask() -> None:
        asked.append(clock[-1])
        raise ConnectionResetError("reset by peer")

    with pytest.raises(ConnectionResetError):
        storage._patiently(ask)
    pauses = [after - before for before, after in itertools.pairwise(asked)]
    assert len(asked) == 7
    assert pauses == sorted(pauses)
    assert 15 < sum(pauses) < 32


def test_s3_addresses_are_signed_by_the_fourth_version_or_as_the_user_says(monkeypatch: pytest.MonkeyPatch) -> None:
    storage._sign.cache_clear()
    for name, value in stores.CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    assert storage._sign("s3://bucket/0.tar", 0, 0).query["X-Amz-Algorithm"] == "AWS4-HMAC-SHA256"
    monkeypatch.setitem(conf, "s3", {"config_kwargs": {"signature_version": "s3"}})
    assert "Signature" in storage._sign("s3://bucket/1.tar", 0, 0).query


@pytest.mark.slow
@pytest.mark.parametrize("refuses", [False, True])
def test_a_store_that_refuses_signed_addresses_is_asked_for_one_and_then_read_without(
    folder: Path, expected: str, refuses: bool
) -> None:
    with stores.s3(folder) as (address, server):
        origin, signed = server.origin, []

        def answered(method: str, path: str, headers: dict[str, str], body: bytes) -> stores.Answer:
            if method == "GET" and "Range" in headers:
                signed.append("X-Amz-Signature" in path)
            refused = refuses and "X-Amz-Signature" in path
            return stores.Answer(403, {"Content-Length": "0"}, b"") if refused else origin(method, path, headers, body)

        server.origin = answered
        assert stores.digest(address) == expected
    assert signed == ([True] + [False] * (len(signed) - 1) if refuses else [True] * len(signed))


@pytest.mark.slow
def test_the_commands_take_shards_from_a_store_as_from_a_disk(
    store: Store, folder: Path, tmp_path: Path, run_cli: Callable[..., tuple[int, str, str]]
) -> None:
    pattern, weights = "train/t-{0000..0003}.tar", []
    code, out, err = run_cli("data", "index", f"{store[0]}/{pattern}")
    assert (code, err) == (0, "")
    assert "4 of 4 shards indexed" in out
    reports = [json.loads(run_cli("data", "doctor", f"{at}/{pattern}", "--json")[1]) for at in (store[0], folder)]
    assert reports[0]["photos"] == reports[1]["photos"] == faults.PHOTOS
    for out_folder, address in (("remote", store[0]), ("disk", folder)):
        options = ("--train", pattern, "--held-out", "", "--steps", 6, "--out", out_folder, "--workers", 2)
        code, _, err = run_cli("train", "debug", "--data", address, *options)
        assert code == 0, err
        weights.append(load_file(tmp_path / out_folder / "step-00000006" / "model.safetensors"))
    assert all((value == weights[1][name]).all() for name, value in weights[0].items())
