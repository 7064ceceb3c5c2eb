import pytest
from experiments import photos
from experiments.trunk_baselines import trunk_baselines

from layouts import LAYOUTS
from test_evaluation_scoring import random_segmenter
from test_experiments_trunk_baselines import ONE, made


@pytest.fixture
def evaluation(tmp_path):
    for name in ("voc2012", "camvid5"):
        benchmark, folder = photos.BENCHMARKS[name]
        LAYOUTS[benchmark](tmp_path / folder)
    return tmp_path


def test_the_table_has_the_baselines_and_the_errors(evaluation):
    model = made(ONE)
    protocol = photos.choose(model)
    voc, camvid = (
        list(photos.rows(model, None, photos.open_from(evaluation, name, 3), protocol))
        for name in ("voc2012", "camvid5")
    )
    lines = [row[""] for row in voc]
    assert lines[0] == "the model"
    assert {photos.ELLIPSE, *trunk_baselines(model), "given what is background", "given the photo's labels"} < {*lines}
    ahead = dict(zip(lines, (row["model ahead by"] for row in voc), strict=True))
    assert all(" to " in ahead[name] for name in trunk_baselines(model))
    assert sum(float(row["mIoU"]) for row in voc[-4:]) == pytest.approx(100, abs=0.3)
    assert {*lines} - {row[""] for row in camvid} == {"all background", "given what is background", *lines[-4:]}


def test_a_model_with_a_trunk_is_asked_about_whole_photos():
    assert photos.choose(made(ONE)).name == "calibrated-whole"
    assert photos.choose(random_segmenter()).name == "calibrated-native"
    assert photos.choose(random_segmenter(), "paper-2022").name == "paper-2022"
