import errno
import sys
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from groupvit import progress


def test_a_log_has_a_line_every_half_minute(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    times = iter([0.0, 10.0, 40.0, 60.0, 80.0])
    monkeypatch.setattr(progress, "time", SimpleNamespace(perf_counter=lambda: next(times)))
    with progress.progress("evaluating", 2000) as advance:
        for _ in range(4):
            advance(400, 800)
    assert capsys.readouterr().err.splitlines() == [
        "evaluating: 800 of 2000, 40.0 photos/s, 1 min left",
        "evaluating: 1600 of 2000, 40.0 photos/s, 0 min left",
    ]


def test_what_has_no_known_number_has_no_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY", -1.0)
    assert list(progress.tracked("packing", iter("ab"))) == ["a", "b"]
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(", ")[0] for line in lines] == ["packing: 1", "packing: 2"]
    assert "left" not in "".join(lines)


def test_a_clock_that_stands_still_stops_no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "time", SimpleNamespace(perf_counter=lambda: 1.0))
    assert list(progress.tracked("packing", [1, 2], 2)) == [1, 2]


def test_a_log_without_room_stops_no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY", -1.0)
    full = Mock(write=Mock(side_effect=OSError(errno.ENOSPC, "No space left on device")), isatty=lambda: False)
    monkeypatch.setattr(sys, "stderr", full)
    assert list(progress.tracked("packing", [1, 2], 2)) == [1, 2]
    assert full.write.called
