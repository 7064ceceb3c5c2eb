import json
import os
from dataclasses import replace

import numpy as np
import pytest
from experiments.predictions import evaluate_predictions
from sklearn.metrics import adjusted_rand_score

from groupvit.errors import InputError
from groupvit.evaluation import results
from groupvit.evaluation.metrics import (
    adjusted_rand_index,
    area_iou,
    confusion_matrix,
    dense,
    mean_iou,
    resampled_means,
    sparse,
)
from groupvit.evaluation.results import PhotoScores, Result, compare, difference
from groupvit.evaluation.scoring import score_prediction, stage_scores
from test_evaluation_scoring import made, masked

CLASSES = ("background", "cat", "dog", "cow")


def result(error: float, photos: int = 12, seed: int = 0, **changes) -> Result:
    """Predictions of which a share is wrong."""
    scores = []
    for i in range(photos):
        photo = masked(i)
        prediction = made(photo, error, seed + i)
        groups = [prediction // 2, prediction]
        scores.append(score_prediction(photo, prediction, len(CLASSES), groups))
    values = {"benchmark": "voc21", "classes": CLASSES, "protocol": {"name": "none"}, "model": {"sha256": str(error)}}
    return Result(**{**values, "photos": tuple(scores), **changes})


def test_sparse_matrices_add_up_to_the_dense_one():
    matrices = [np.random.default_rng(i).integers(0, 3, (4, 4)) for i in range(3)]
    assert np.array_equal(dense([sparse(matrix) for matrix in matrices], 4), sum(matrices))
    assert np.array_equal(dense([], 4), np.zeros((4, 4)))


def test_numbers_are_those_of_counting_pixels_over_all_photos():
    counted, numbers = result(0.4), result(0.4).metrics()
    photos = [masked(i) for i in range(12)]
    predictions = [made(photo, 0.4, i) for i, photo in enumerate(photos)]
    matrix = sum(confusion_matrix(p.mask, q, 4) for p, q in zip(photos, predictions, strict=True))
    assert np.array_equal(counted.matrix, matrix)
    assert numbers["miou"] == pytest.approx(mean_iou(matrix), abs=1e-9)
    assert list(numbers["classes"]) == list(CLASSES)
    for i, own in enumerate(counted.photo_areas):
        truth, seen = photos[i].mask, predictions[i]
        known = truth != 255
        for c in range(4):
            both = (truth == c) & (seen == c) & known
            assert own[c].tolist() == [both.sum(), (truth == c).sum(), ((seen == c) & known).sum()]


def test_iou_by_size_counts_a_class_in_photos_where_it_has_that_size():
    numbers = result(0.4).iou_by_size()
    for size, (low, high) in results.SIZES.items():
        means = []
        for c in (1, 2, 3):
            both = either = 0
            for i in range(12):
                photo = masked(i)
                known = photo.mask != 255
                truth, seen = (photo.mask == c)[known], (made(photo, 0.4, i) == c)[known]
                if truth.any() and low <= truth.sum() / photo.mask.size < high:
                    both, either = both + (truth & seen).sum(), either + (truth | seen).sum()
            means += [100 * both / either] if either else []
        assert numbers[size] == pytest.approx(np.mean(means)) if means else np.isnan(numbers[size])
    assert sum(not np.isnan(value) for value in numbers.values()) >= 2


def test_shares_below_2_and_below_15_percent_are_small_and_medium():
    def of_share(index, pixels):
        matrix = np.array([[1, 1, pixels], [0, 0, 100 - pixels]])[: 2 if pixels < 100 else 1]
        return PhotoScores(str(index), "d", 100, matrix, np.zeros((0, 4), np.int64))

    found = []
    for pixels in (1, 2, 14, 15, 100):
        numbers = Result("x", ("background", "cat"), {}, {}, photos=(of_share(0, pixels),)).iou_by_size()
        found += [size for size, value in numbers.items() if not np.isnan(value)]
    assert found == ["small", "medium", "medium", "large", "large"]


def test_a_stage_of_several_windows_is_averaged_by_their_pixels():
    exact, mixed = np.array([[60, 0], [0, 30]]), np.array([[3, 3], [2, 2], [0, 0]])
    scores = stage_scores([exact, mixed])
    assert scores.ari == pytest.approx((90 * 1 + 10 * adjusted_rand_index(mixed)) / 100)
    assert scores.groups == 4  # the last has no labelled pixel
    assert scores.oracle[:, 2].sum() == 100


def test_results_on_other_masks_have_no_difference():
    ours = result(0.4)
    changed = replace(ours, photos=(replace(ours.photos[0], digest="other"), *ours.photos[1:]))
    with pytest.raises(InputError, match="the same photos and masks"):
        difference(ours, changed)


def test_grouping_is_measured_stage_by_stage():
    stages = result(0.4).grouping()
    assert len(stages) == 2
    indices, right, pixels = [], 0, 0
    for i in range(12):
        photo = masked(i)
        known = photo.mask != 255
        truth, groups = photo.mask[known], made(photo, 0.4, i)[known]
        indices.append(adjusted_rand_score(truth, groups))
        right += sum(np.bincount(truth[groups == g]).max() for g in np.unique(groups))
        pixels += len(truth)
    assert stages[1]["adjusted_rand_index"] == pytest.approx(np.mean(indices))
    assert stages[1]["purity"] == pytest.approx(100 * right / pixels)
    assert stages[1]["oracle_miou"] >= result(0.4).metrics()["miou"]
    assert stages[0]["purity"] < stages[1]["purity"]


def test_the_interval_is_that_of_drawing_photos_one_by_one():
    areas = result(0.4).photo_areas
    drawn = np.random.default_rng(0).multinomial(12, np.full(12, 1 / 12), 1000)
    means = resampled_means(areas)
    whole = areas.sum(axis=0)
    for counts, mean in list(zip(drawn, means, strict=True))[:50]:
        sums = sum(own * n for own, n in zip(areas, counts, strict=True))
        values = []
        for c in range(4):
            both, truth, seen = sums[c] if sums[c, 1:].any() else whole[c]
            values.append(100 * both / (truth + seen - both))
        assert mean == pytest.approx(np.mean(values))
    low, high = result(0.4).interval()
    assert low == pytest.approx(np.percentile(means, 2.5))
    assert low < result(0.4).metrics()["miou"] < high


def test_a_class_that_is_not_drawn_keeps_its_value():
    areas = np.zeros((20, 3, 3), np.int64)
    areas[:, 0] = [50, 100, 50]
    areas[0, 1] = [10, 10, 10]
    means = resampled_means(areas)
    np.testing.assert_allclose(means, 75)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    """The mean over 4,000 photos lies in 95 % of the intervals of 80 of them."""
    generator = np.random.default_rng(0)
    truth = generator.integers(50, 100, (4000, 2))
    hits = (truth * generator.beta(2, 2, truth.shape)).astype(int)
    areas = np.stack([hits, truth, truth], axis=-1)
    mean = area_iou(areas.sum(axis=0)).mean()
    inside = 0
    for trial in range(60):
        own = resampled_means(areas[generator.choice(4000, 80, replace=False)], trial, 200)
        inside += np.percentile(own, 2.5) <= mean <= np.percentile(own, 97.5)
    assert 50 <= inside <= 60


def test_a_file_holds_all_that_was_counted(tmp_path):
    first = result(0.3, thresholds=(0.25, 0.5))
    first.save(tmp_path / "a.json")
    second = Result.load(tmp_path / "a.json")
    assert second.metrics() == first.metrics()
    assert second.identity() == first.identity()
    assert second.thresholds == (0.25, 0.5)
    assert second.versions == first.versions
    second.save(tmp_path / "b.json")
    assert (tmp_path / "a.json").read_text() == (tmp_path / "b.json").read_text()
    document = json.loads((tmp_path / "a.json").read_text())
    assert document["data"]["photos"] == len(document["photos"]) == 12
    assert {"groupvit", "torch", "numpy", "pillow", "python"} == document["versions"].keys()
    assert "NaN" not in (tmp_path / "a.json").read_text()


def test_numbers_of_no_photos_of_a_class_are_null(tmp_path):
    one = result(0.0, 1)
    one.save(tmp_path / "a.json")
    counted = json.loads((tmp_path / "a.json").read_text())["metrics"]
    assert None in counted["by_size"].values()


def test_a_result_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(InputError, match=r"cannot write a.json in .*: No space left on device"):
        result(0.1, 2).save(tmp_path / "a.json")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["", "[]", '{"format": 9}', '{"format": 2, "benchmark": "x"}'])
def test_what_is_no_result_is_named(text, tmp_path):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(InputError, match=r"a.json is no result of an evaluation"):
        Result.load(tmp_path / "a.json")
    with pytest.raises(InputError, match=r"b.json cannot be read"):
        Result.load(tmp_path / "b.json")


def test_two_results_are_compared_photo_by_photo(tmp_path):
    result(0.30).save(tmp_path / "a.json")
    result(0.33, seed=50).save(tmp_path / "b.json")
    ours = compare(tmp_path / "a.json", tmp_path / "b.json")
    assert ours["difference"] == pytest.approx(ours["miou"][0] - ours["miou"][1])
    assert ours["interval"][0] < ours["difference"] < ours["interval"][1]
    apart = result(0.30).interval()
    assert ours["interval"][1] - ours["interval"][0] < apart[1] - apart[0]
    theirs = compare(tmp_path / "b.json", tmp_path / "a.json")
    assert theirs["interval"] == pytest.approx((-ours["interval"][1], -ours["interval"][0]))
    same = compare(tmp_path / "a.json", tmp_path / "a.json")
    assert same["interval"] == (0, 0)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"photos": 11}, r"b.json is of other photos or masks than .*a.json \(11 and 12 photos\)"),
        ({"benchmark": "pets"}, r"b.json is of pets, .*a.json of voc21"),
        (
            {"classes": ("background", "cow", "dog", "cat")},
            r"b.json has other classes than .*a.json \(cow there, .* here\)",
        ),
    ],
)
def test_results_of_different_data_are_not_compared(changes, said, tmp_path):
    result(0.3).save(tmp_path / "a.json")
    result(0.3, **changes).save(tmp_path / "b.json")
    with pytest.raises(InputError, match=said):
        compare(tmp_path / "a.json", tmp_path / "b.json")


def test_results_with_other_masks_are_not_compared(tmp_path):
    result(0.3).save(tmp_path / "a.json")
    text = (tmp_path / "a.json").read_text()
    (tmp_path / "b.json").write_text(text.replace('"digest":"3"', '"digest":"changed"'))
    with pytest.raises(InputError, match="other photos or masks"):
        compare(tmp_path / "a.json", tmp_path / "b.json")


def test_other_predictions_make_results_too(tmp_path):
    from groupvit.evaluation.datasets import open_benchmark
    from layouts import voc

    voc(tmp_path)
    dataset = open_benchmark("voc21", tmp_path)
    perfect = evaluate_predictions(dataset, lambda photo: np.where(photo.mask == 255, 0, photo.mask), "truth")
    numbers = perfect.metrics()
    assert numbers["miou"] == numbers["boundary_miou"] == numbers["pixel_accuracy"] == 100
    assert perfect.interval() == (100, 100)
    assert numbers["grouping"] == []
    assert numbers["naming"] == []


def test_one_photo_has_no_interval(tmp_path):
    one = result(0.4, 1)
    assert one.metrics()["interval"] is None
    one.save(tmp_path / "a.json")
    assert compare(tmp_path / "a.json", tmp_path / "a.json")["interval"] is None


def test_a_share_of_a_photo_is_of_all_its_pixels():
    """What is not labelled is a part of the photo, too."""
    mask = np.full((10, 10), 255, np.uint8)
    mask[0, :1] = 1
    photo = replace(masked(0), mask=mask)
    counted = Result("voc20", ("cat", "dog"), {}, {}, photos=(score_prediction(photo, mask % 2, 2),))
    numbers = counted.iou_by_size()
    assert numbers["small"] == 100
    assert np.isnan(numbers["large"])


def test_groups_of_a_photo_are_counted():
    photo = masked(0)
    groups = np.arange(80, dtype=np.uint8) // 20 * np.ones((60, 1), np.uint8)
    counted = score_prediction(photo, made(photo, 0.4, 0), 4, [groups])
    assert counted.stages[0].groups == 4
    assert result(0.4, photos=2).grouping()[1]["groups"] == pytest.approx(4, abs=0.5)


def test_data_without_labelled_pixels_have_no_numbers():
    photos = tuple(
        score_prediction(
            replace(masked(i), mask=np.full((60, 80), 255, np.uint8)), made(masked(i), 1, i), 4, [made(masked(i), 1, i)]
        )
        for i in range(2)
    )
    numbers = Result("voc21", CLASSES, {}, {}, photos=photos).metrics()
    for key in ("miou", "interval", "pixel_accuracy", "mean_accuracy", "boundary_miou"):
        assert numbers[key] is None
    assert set(numbers["grouping"][0].values()) == {None}


def test_the_same_tensors_in_another_configuration_are_another_model():
    ours, theirs = (result(0.4, model={"sha256": "a", "config": {"heads": heads}}) for heads in (2, 4))
    assert ours.identity() != theirs.identity()
    ours, theirs = (result(0.4, model={"sha256": "a", "engine": engine}) for engine in ("torch", "openvino"))
    assert ours.identity() != theirs.identity()
    coarse = result(0.4, model={"sha256": "a", "precision": "bf16"})
    assert coarse.identity() != ours.identity()
    assert ours.identity() == result(0.4, model={"sha256": "a"}).identity()  # before there were engines


def test_errors_are_told_apart_where_there_is_a_background():
    numbers = result(0.4).metrics()
    assert numbers["errors"]["right"] == numbers["pixel_accuracy"]
    assert min(numbers["errors"].values()) > 0
    assert sum(numbers["errors"].values()) == pytest.approx(100)
    assert result(0.4, classes=("bird", "cat", "dog", "cow")).metrics()["errors"] == {}


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("classes", [f"{number}" for number in range(300)]),
        ("classes", ["cat", {}]),
        ("matrix", [[0, 99, 1]]),
        ("matrix", [[-1, 0, 1]]),
        ("matrix", [[0, 0, 10**30]]),
        ("matrix", [[0, 0, -5]]),
        ("matrix", [[0, 0, 2.9]]),
        ("boundary", [[99, 1, 1, 1]]),
        ("pixels", 0),
        ("pixels", float("inf")),
        ("naming", [[1, 2], [3]]),
        ("naming", [5]),
        ("stages", [{"ari": "high", "oracle": [], "groups": 1}]),
        ("stages", [{"ari": [], "oracle": [], "groups": 1}]),
        ("thresholds", "x"),
        ("thresholds", [None]),
        ("protocol", []),
        ("protocol", {"name": 3}),
        ("model", None),
        ("floors", []),
        ("floors", {"all background": {}}),
        ("floors", {"all background": {"miou": "high", "difference": 1, "interval": None}}),
        ("floors", {"all background": {"miou": 1, "difference": 1, "interval": [1]}}),
        ("photos", []),
        ("photos", {}),
    ],
)
def test_a_result_whose_values_cannot_be_is_one_line(tmp_path, part, value):
    path = tmp_path / "result.json"
    scores = PhotoScores("a", "d", 12, np.array([[0, 0, 9]]), np.array([[0, 1, 2, 3]]))
    Result("folder", ("cat", "dog"), {"name": "none"}, {}, photos=(scores,)).save(path)
    Result.load(path).metrics()
    document = json.loads(path.read_text())
    (document if part in document else document["photos"][0])[part] = value
    path.write_text(json.dumps(document))
    with pytest.raises(InputError, match="is no result of an evaluation"):
        Result.load(path)
