import hashlib
import weakref
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import groupvit
from groupvit.errors import InputError
from groupvit.evaluation import pictures
from groupvit.evaluation.benchmark import evaluate
from groupvit.evaluation.datasets import Dataset, MaskedPhoto
from groupvit.evaluation.pictures import confusion, draw, extremes, grid, iou_bars, make_folder, row, rows_of
from groupvit.evaluation.protocols import CALIBRATED_NATIVE, PAPER_2022
from groupvit.evaluation.results import Result
from groupvit.evaluation.scoring import score_prediction
from groupvit.models import ImageEncoderConfig, ModelConfig, Stage, TextEncoderConfig, build_model
from groupvit.segmentation import Segmenter
from test_evaluation_scoring import random_segmenter

CLASSES = ("background", "cat", "dog")


@pytest.fixture
def photo():
    mask = np.zeros((40, 60), np.uint8)
    mask[10:30, 10:30], mask[10:30, 40:50] = 1, 255
    return MaskedPhoto("tom", Image.new("RGB", (60, 40), (90, 120, 200)), mask)


def test_prediction_and_truth_agree_in_colour_where_they_agree(photo):
    truth = np.where(photo.mask == 255, 0, photo.mask).astype(np.uint8)
    right, wrong = (row(photo, [], prediction, CLASSES) for prediction in (truth, 2 * truth))
    assert right.size == wrong.size
    changed = np.argwhere((np.asarray(right) != np.asarray(wrong)).any(axis=2))
    third = right.width / 3
    assert third < changed[:, 1].min()
    assert changed[:, 1].max() < 2 * third


def test_a_row_has_a_picture_for_each_stage(photo):
    groups = [np.arange(2400, dtype=np.uint16).reshape(40, 60) % count for count in (8, 3)]
    plain, staged = row(photo, [], photo.mask * 0, CLASSES), row(photo, groups, photo.mask * 0, CLASSES)
    assert staged.height == plain.height
    assert (staged.width + 8) * 3 == (plain.width + 8) * 5


def test_rows_stand_below_each_other_at_one_width():
    image = grid([Image.new("RGB", (100, 20), "red"), Image.new("RGB", (50, 20), "blue")], width=200)
    assert image.size == (200, 40 + 80)
    assert image.getpixel((100, 10))[0] > 200
    assert image.getpixel((100, 100))[2] > 200


def test_best_and_worst_photos_are_found_and_one_without_labels_is_neither(photo):
    right = np.where(photo.mask == 255, 0, photo.mask).astype(np.uint8)
    unlabelled = replace(photo, mask=np.full_like(photo.mask, 255))
    scored = [(photo, 2 * right), (unlabelled, right), (photo, right), (photo, right * 0)]
    photos = tuple(score_prediction(*pair, len(CLASSES)) for pair in scored)
    result = Result("folder", CLASSES, {}, {}, (), photos)
    assert extremes(result, 2) == ([2, 3], [0, 3])
    assert extremes(result, 9) == ([2, 3, 0], [0, 3, 2])


@pytest.mark.parametrize("protocol", [PAPER_2022, CALIBRATED_NATIVE])
def test_an_evaluation_is_drawn(photo, tmp_path, protocol):
    pytest.importorskip("matplotlib")
    config = ModelConfig(
        ImageEncoderConfig(16, 8, 32, 2, stages=(Stage(1, 4, 4), Stage(1, 3, 3))),
        TextEncoderConfig(16, 2, 1),
        embed_dim=8,
        projector_dim=16,
    )
    segmenter = Segmenter(build_model(config), config, device="cpu")
    view = replace(protocol.view, short_side=16, window=None)
    protocol = replace(protocol, view=view, unit="pixels", thresholds={"pets": 0.4})
    other = replace(photo, name="rex", mask=2 * (photo.mask == 1).astype(np.uint8))
    photos = {"tom": photo, "rex": other}
    dataset = Dataset("pets", tmp_path, CLASSES, tuple(photos), photos.__getitem__)
    result = evaluate(segmenter, dataset, protocol)
    paths = draw(result, rows_of(result, segmenter, dataset, protocol), tmp_path / "pictures", count=1)
    assert sorted(path.name for path in paths) == ["best.png", "confusion.png", "iou.png", "worst.png"]
    with Image.open(tmp_path / "pictures/best.png") as picture:
        assert picture.width / picture.height > 5 * 60 / (40 + 40)  # five pictures of 60 x 40 beside each other


def test_a_photo_is_drawn_with_the_threshold_of_its_own_half(photo, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    segmenter, seen, drawn = random_segmenter(), [], {}
    photos = {str(i): replace(photo, name=str(i)) for i in range(4)}
    dataset = Dataset("pets", tmp_path, CLASSES, tuple(photos), photos.__getitem__)
    result, segment = evaluate(segmenter, dataset, CALIBRATED_NATIVE), segmenter.segment

    def watched(image, labels, view=None, **changes):
        seen.extend([view.background] if view else [])
        return segment(image, labels, view, **changes)

    def kept(photo, *_):
        drawn[photo.name] = seen[-1]
        return Image.new("RGB", (9, 9))

    monkeypatch.setattr(segmenter, "segment", watched)
    monkeypatch.setattr(pictures, "row", kept)
    halved = replace(result, thresholds=(0.25, 0.75))
    draw(halved, rows_of(halved, segmenter, dataset, CALIBRATED_NATIVE), tmp_path / "pictures")
    hashes = sorted(photos, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    assert [drawn[name] for name in hashes] == [0.25, 0.75, 0.25, 0.75]


def test_a_bar_is_longer_where_the_class_is_better_found():
    pytest.importorskip("matplotlib")
    poor, good = np.array([[50, 50], [50, 50]]), np.array([[50, 0], [0, 100]])
    pictures = [iou_bars(matrix, ("cat", "dog"), "test") for matrix in (poor, good)]
    blue = [((np.asarray(p)[..., 2] > 150) & (np.asarray(p)[..., 0] < 60)).sum() for p in pictures]
    assert blue[1] > 2.5 * blue[0] > 0


def test_a_class_that_is_nowhere_has_no_bar():
    pytest.importorskip("matplotlib")
    without = iou_bars(np.diag([5, 5, 0]), ("cat", "dog", "cow"), "test")
    assert without.height < iou_bars(np.diag([5, 5, 5]), ("cat", "dog", "cow"), "test").height


def test_confusion_is_dark_where_pixels_are():
    pytest.importorskip("matplotlib")
    right, wrong = np.diag([90, 10, 0]), np.array([[0, 90, 0], [10, 0, 0], [0, 0, 0]])
    pictures = [np.asarray(confusion(matrix, CLASSES, "test")) for matrix in (right, wrong)]
    dark = [((p[..., 2] > 80) & (p[..., 0] < 30)) for p in pictures]
    assert dark[0].sum() == pytest.approx(dark[1].sum(), rel=0.1)
    assert not (dark[0] & dark[1]).sum() > 0.1 * dark[0].sum()
    rows, columns = np.nonzero(dark[1])
    upper = rows < np.median(rows)
    assert columns[upper].mean() > columns[~upper].mean()  # of the first class, truly, most are called the second


def test_a_row_is_shrunk_before_the_next_is_made():
    alive = []

    def rows():
        for _ in range(4):
            assert not any(reference() for reference in alive)
            image = Image.new("RGB", (100, 20))
            alive.append(weakref.ref(image))
            yield image
            del image

    assert grid(rows(), width=50).size == (50, 40)


def test_a_background_of_words_is_drawn_in_its_own_place(photo, tmp_path):
    """The segmenter calls it "background" and puts it first, wherever and however the data set writes it."""
    segmenter = random_segmenter()
    dataset = Dataset("folder", tmp_path, ("cat", "Background=wall", "dog"), ("tom",), lambda _: photo)
    result = evaluate(segmenter, dataset, PAPER_2022)
    paths = draw(result, rows_of(result, segmenter, dataset, PAPER_2022), tmp_path / "pictures")
    assert len(paths) == 4


def test_a_long_photo_has_groups_whatever_windows_a_trunk_has(photo, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    segmenter, rows = groupvit.load("photos-trunk", engine="torch", precision="fp32"), []
    long = replace(photo, image=photo.image.resize((320, 100)), mask=np.zeros((100, 320), np.uint8))
    dataset = Dataset("folder", tmp_path, CLASSES, ("tom",), lambda _: long)
    monkeypatch.setattr(pictures, "row", lambda photo, groups, *rest: rows.append(groups) or row(photo, groups, *rest))
    result = Result("folder", CLASSES, {}, {}, (), (score_prediction(long, long.mask, len(CLASSES)),))
    draw(result, rows_of(result, segmenter, dataset, CALIBRATED_NATIVE), tmp_path / "pictures")
    assert [[stage.shape for stage in groups] for groups in rows] == [[(100, 320)]] * 2


def test_charts_without_matplotlib_are_refused_before_anything(tmp_path, monkeypatch):
    monkeypatch.setattr("groupvit.evaluation.pictures.find_spec", lambda _: None)
    with pytest.raises(InputError, match="pip install matplotlib"):
        make_folder(tmp_path / "pictures")
    assert not list(tmp_path.iterdir())


def test_a_file_is_no_folder_for_pictures(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file cannot be a folder of pictures"):
        make_folder(tmp_path / "file")
