import errno
import json
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image

from groupvit.errors import InputError
from groupvit.training.health import Alarm
from groupvit.training.monitor import Progress, _curves, draw_curves


def metrics(path: Path, lines: list[dict]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_each_number_with_two_points_has_a_curve(tmp_path: Path) -> None:
    lines = [
        {"step": 10, "loss": 3.0, "time": 1.0, "lr": 0.1},
        {"step": 10, "miou": 40.0},
        {"step": 20, "loss": 2.0, "time": 2.0, "lr": 0.1, "warning": "ill"},
    ]
    file = metrics(tmp_path / "metrics.jsonl", lines)
    assert _curves(file) == {"loss": [(10, 3.0), (20, 2.0)], "lr": [(10, 0.1), (20, 0.1)]}
    assert draw_curves(file, tmp_path / "curves.png") == tmp_path / "curves.png"
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.width > 500


def test_lines_of_others_do_not_hinder_resuming(tmp_path: Path) -> None:
    foreign = [{"loss": "low"}, {"loss": None}, {"loss": 1.0, "skipped": "no"}, {"loss": 1.0, "stage1/similarity": 0.5}]
    ours = [{"step": step, "loss": 3.0, "unreadable": 1, "skipped": 2} for step in (1, 2, 3)]
    file = metrics(tmp_path / "metrics.jsonl", [*ours, *({"step": 2, **line} for line in foreign)])
    progress = Progress(file, 2, 9, 8, Alarm(0, 1.0))
    progress.close()
    assert (progress.unreadable, progress.skips) == (1, 2)
    assert [json.loads(line)["step"] for line in file.read_text().splitlines()] == [1, 2, 2, 2, 2, 2]
    assert _curves(file)["loss"] == [(1, 3.0), (2, 3.0), (2, 1.0), (2, 1.0)]


def test_counts_outlast_a_stop_between_two_reports(tmp_path: Path) -> None:
    file, alarm = tmp_path / "metrics.jsonl", Alarm(0, 1.0)
    values = {"loss": torch.tensor(1.0), "grad_norm": torch.tensor(1.0)}
    progress = Progress(file, 0, 99, 8, alarm)
    for step in range(1, 13):
        progress.left_out(("a",) * (step == 12))
        progress.step(step, 0.1, {**values, "grad_norm": torch.tensor(float("nan") if step == 11 else 1.0)})
    progress.close()
    assert [json.loads(line)["step"] for line in file.read_text().splitlines()] == [10, 12]
    resumed = Progress(file, 12, 99, 8, alarm)
    assert (resumed.unreadable, resumed.skips) == (1, 1)
    resumed.close()
    assert len(file.read_text().splitlines()) == 2


def test_event_files_without_room_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    progress = Progress(tmp_path / "metrics.jsonl", 0, 9, 8, Alarm(0, 1.0), tensorboard=True)
    full = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(
        progress, "board", Mock(**{f"{do}.side_effect": full for do in ("add_scalar", "add_image", "close")})
    )
    for call in (lambda: progress.write(1, {"loss": 1.0}), lambda: progress.show(1, np.zeros((2, 2, 3), np.uint8))):
        with pytest.raises(InputError, match="event files: No space left on device; resume when there is space"):
            call()
    progress.close()


def test_a_training_of_one_report_has_no_curves(tmp_path: Path) -> None:
    file = metrics(tmp_path / "metrics.jsonl", [{"step": 10, "loss": 3.0}])
    assert draw_curves(file, tmp_path / "curves.png") is None
    assert not (tmp_path / "curves.png").exists()
