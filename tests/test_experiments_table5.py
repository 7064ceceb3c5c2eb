import json
from pathlib import Path

import numpy as np
import pytest
from experiments import table5

import layouts
from groupvit.checkpoints import native
from groupvit.errors import InputError
from groupvit.evaluation.datasets import open_benchmark
from groupvit.models import ImageEncoderConfig, ModelConfig, Stage, TextEncoderConfig, build_model
from groupvit.training import transfer
from groupvit.training.runs import RUNS

SMALL = ModelConfig(
    ImageEncoderConfig(32, 16, 32, 2, stages=(Stage(1),)),
    TextEncoderConfig(width=32, heads=2, layers=1, context_length=16),
)


def test_the_rivals_are_one_network_on_the_same_photos() -> None:
    runs = [RUNS[source] for source in table5.ROWS.values() if source in RUNS and source != "photos-trunk"]
    assert len(runs) == 3
    assert len({(run.model, run.data.train) for run in runs}) == 1
    assert {run.data.train for run in runs} == {RUNS["photos-trunk"].data.train}


def test_a_row_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layouts.voc(tmp_path)
    layouts.save_lines(tmp_path / "ImageSets/Segmentation/val.txt", ["2007_0", "2007_1"])
    layouts.save_lines(tmp_path / "ImageSets/Segmentation/train.txt", ["2007_2", "2007_3"])
    native.save(tmp_path / "model", build_model(SMALL), SMALL)
    monkeypatch.setattr(transfer, "CROP", 32)
    dataset = open_benchmark("voc21", tmp_path)
    given = (str(tmp_path / "model"), dataset, tmp_path / "row", 50, 0, 2, 2)
    result = table5.transferred(*given)
    assert (result.protocol["masks"], len(result.photos)) == (1, 2)
    monkeypatch.setattr(transfer, "_save", lambda *_: pytest.fail("trained again"))
    again = table5.transferred(*given)
    cells = table5.line("x", "1", again, {"zero-shot": result, "random start": None})
    assert cells["ahead of zero-shot"].startswith("+0.0")
    assert cells["ahead of random start"] == ""
    layouts.save_lines(tmp_path / "ImageSets/Segmentation/train.txt", ["2007_3"])
    with pytest.raises(InputError, match="photos was"):
        table5.transferred(*given)


def test_a_trial_is_not_recorded(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--record is for"):
        table5.main(tmp_path, tmp_path, tmp_path, record=True, limit=3)
    with pytest.raises(InputError, match="--record is for"):
        table5.main(tmp_path, tmp_path, tmp_path, record=True, minutes=1)


def test_a_random_start_that_was_half_written_is_written_again(tmp_path: Path) -> None:
    (tmp_path / "random-0").mkdir()
    source = table5.pretrained("random start", tmp_path, tmp_path, 1, 0)
    assert native.load(Path(source))


def test_blurred_photos_keep_their_size_and_masks(tmp_path: Path) -> None:
    layouts.voc(tmp_path)
    sharp = open_benchmark("voc21", tmp_path)
    for photo, before in zip(table5.blurred(sharp, 8), sharp, strict=True):
        assert photo.image.size == before.image.size
        assert (photo.mask == before.mask).all()
        steps = [np.abs(np.diff(np.asarray(each.image, np.float32), axis=0)).mean() for each in (photo, before)]
        assert steps[0] < steps[1]


def test_rows_that_are_not_made_again_stay_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def row(name: str, masks: str, miou: str, steps: str = "9") -> dict[str, str]:
        return {"pre-training": name, "masks": masks, "steps": steps, "mIoU": miou}

    file = tmp_path / "results.json"
    monkeypatch.setattr(table5, "RESULTS", file)
    file.write_text("{}")
    first = table5.joined([row(table5.ZERO_SHOT, "0", "46"), row("tags", "34 (1 %), seed 0", "9")])
    assert [cells["mIoU"] for cells in first] == ["46", "9"]
    file.write_text(json.dumps({"table5": {"rows": first}}))
    second = [row(table5.ZERO_SHOT, "0", "47"), row("DINO", "34 (1 %), seed 0", "8"), row("DINO", "336", "12")]
    second.append(row("DINO", "34 (1 %), seed 0", "10", steps="40"))
    second.append(row("DINO, photos of 160 px", "34 (1 %), seed 0", "11"))
    assert [cells["mIoU"] for cells in table5.joined(second)] == ["47", "8", "12", "10", "11", "9"]
