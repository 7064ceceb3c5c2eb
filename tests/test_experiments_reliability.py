"""The tables of docs/RELIABILITY.md, in small."""

from pathlib import Path

import pytest
from experiments import faults, haul, kills, order, record


@pytest.mark.parametrize("count", [1, pytest.param(20, marks=pytest.mark.slow)])
def test_a_training_that_is_killed_again_and_again_ends_with_the_same_weights(tmp_path: Path, count: int) -> None:
    found = kills.compare(tmp_path, count)
    assert found["kills"] == count
    assert found["of them while a checkpoint was written"] >= count // 2
    assert found["tensors"] > 50
    assert found["tensors that differ in any bit"] == 0


@pytest.mark.slow
def test_a_long_haul_goes_on_after_an_interruption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(haul, "_haul", interrupted)
        with pytest.raises(KeyboardInterrupt):
            haul.haul(tmp_path / "haul", 0.5, 2, seed=0)
    found = haul.haul(tmp_path / "haul", 100, 2, seed=0)  # as long as it was to be at first
    assert sum(found[fault] for fault in haul.FAULTS) >= 1  # it is short, and may end before the second
    assert found["tensors that differ in any bit"] == 0


@pytest.mark.parametrize("world", [1, 8, 64])
def test_every_photo_comes_once_in_every_epoch(world: int) -> None:
    assert order.wrong(60_000, lambda step: world) == 0


def test_a_photo_that_comes_twice_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = order.BatchSampler.__iter__

    def repeating(sampler: order.BatchSampler):
        for batch in whole(sampler):
            batch[0] = batch[1]
            yield batch

    monkeypatch.setattr(order.BatchSampler, "__iter__", repeating)
    assert order.wrong(60_000, lambda step: 1) > 0


@pytest.mark.parametrize(
    ("fault", "lost"), [("tar cut in the seventh of its ten photos", 4), ("JPEG cut after 200 bytes", 1)]
)
def test_only_what_is_counted_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, lost: int) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    row = faults.planted(fault, tmp_path)
    assert (row["exit code"], row["lost"]) == (0, f"{lost} of 40 photos")


def test_a_table_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    document = tmp_path / "DOC.md"
    document.write_text("text\n\n<!-- table: a -->\n| old |\n| --- |\n\nmore\n")
    for number in (1, 2):
        record.write_table(document, "a", [{"x": number, "y": "z"}])
    assert document.read_text() == "text\n\n<!-- table: a -->\n| x | y |\n| --- | --- |\n| 2 | z |\n\nmore\n"
    with pytest.raises(ValueError, match="0 places"):
        record.write_table(document, "b", [{"x": 1}])
