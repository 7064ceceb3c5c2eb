import numpy as np
import pytest
from scipy import ndimage
from sklearn import metrics as sklearn

from groupvit.evaluation.metrics import (
    accuracy,
    adjusted_rand_index,
    area_iou,
    areas,
    boundary_areas,
    confusion_matrix,
    contingency,
    error_split,
    iou,
    mean_iou,
    mean_known,
    oracle_matrix,
    pixel_accuracy,
)


def random_map(seed: int, classes: int = 4) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, classes, (13, 17)).astype(np.uint8)


def regions(seed: int, classes: int = 4, size: tuple[int, int] = (70, 93)) -> np.ndarray:
    """Smooth shapes."""
    noise = np.random.default_rng(seed).normal(size=(classes, *size))
    return np.stack([ndimage.gaussian_filter(n, 8) for n in noise]).argmax(axis=0).astype(np.uint8)


def with_ignored(mask: np.ndarray) -> np.ndarray:
    mask = mask.copy()
    mask[:3], mask[-9:, 5:30] = 255, 255
    return mask


def test_a_perfect_prediction_has_a_mean_iou_of_100():
    truth = random_map(0)
    assert mean_iou(confusion_matrix(truth, truth, 4)) == 100


def test_iou_agrees_with_counting_pixels():
    truth, prediction = random_map(0), random_map(1)
    truth[:3] = 255
    values = iou(confusion_matrix(truth, prediction, 4))
    known = truth != 255
    for c in range(4):
        both = ((truth == c) & (prediction == c) & known).sum()
        either = (((truth == c) | (prediction == c)) & known).sum()
        assert values[c] == pytest.approx(100 * both / either)


def test_iou_and_accuracies_are_scikit_learn_s():
    truth, prediction = with_ignored(regions(0)), regions(1)
    matrix = confusion_matrix(truth, prediction, 4)
    pair = truth[truth != 255], prediction[truth != 255]
    assert np.array_equal(matrix, sklearn.confusion_matrix(*pair, labels=range(4)))
    np.testing.assert_allclose(iou(matrix), 100 * sklearn.jaccard_score(*pair, average=None), atol=1e-9)
    np.testing.assert_allclose(accuracy(matrix), 100 * sklearn.recall_score(*pair, average=None), atol=1e-9)
    assert pixel_accuracy(matrix) == pytest.approx(100 * sklearn.accuracy_score(*pair))
    assert mean_known(accuracy(matrix)) == pytest.approx(100 * sklearn.balanced_accuracy_score(*pair))


def test_255_is_ignored():
    truth, prediction = random_map(0), random_map(1)
    truth[4:6] = 255
    changed = prediction.copy()
    changed[4:6] = 0
    assert np.array_equal(confusion_matrix(truth, prediction, 4), confusion_matrix(truth, changed, 4))


def test_an_absent_class_does_not_count_but_a_wrongly_predicted_one_does():
    truth = np.zeros((4, 4), dtype=np.uint8)
    assert mean_iou(confusion_matrix(truth, truth, 3)) == 100
    prediction = truth.copy()
    prediction[0, 0] = 2
    matrix = confusion_matrix(truth, prediction, 3)
    assert mean_iou(matrix) == pytest.approx((100 * 15 / 16 + 0) / 2)
    assert np.array_equal(np.isnan(accuracy(matrix)), [False, True, True])
    assert np.isnan(mean_iou(np.zeros((3, 3), np.int64)))


def test_areas_of_many_matrices_are_those_of_each():
    matrices = np.stack([confusion_matrix(random_map(i), random_map(i + 9), 4) for i in range(3)])
    for matrix, own in zip(matrices, areas(matrices), strict=True):
        assert np.array_equal(own, areas(matrix))
        np.testing.assert_allclose(area_iou(own), iou(matrix))


def brute_boundary(mask: np.ndarray, distance: int) -> np.ndarray:
    """What `distance` erosions with a square of 3 x 3 take away, outside of the map being empty."""
    return mask & ~ndimage.binary_erosion(mask, np.ones((3, 3)), distance, border_value=0)


@pytest.mark.parametrize("ratio", [0.005, 0.02, 0.1, 0.4])
def test_boundary_areas_are_those_of_repeated_erosion(ratio):
    truth, prediction = with_ignored(regions(0)), regions(1)
    distance = max(1, round(ratio * (70**2 + 93**2) ** 0.5))
    counted = boundary_areas(truth, prediction, 4, ratio)
    seen = np.where(truth == 255, 255, prediction)
    for c in range(4):
        near_true, near_seen = brute_boundary(truth == c, distance), brute_boundary(seen == c, distance)
        assert counted[c].tolist() == [(near_true & near_seen).sum(), near_true.sum(), near_seen.sum()]


def test_a_perfect_boundary_scores_100_and_a_shifted_one_less_than_the_region():
    truth = regions(3)
    assert np.array_equal(area_iou(boundary_areas(truth, truth, 4)), [100] * 4)
    shifted = np.roll(truth, 2, axis=1)
    assert (area_iou(boundary_areas(truth, shifted, 4)) < iou(confusion_matrix(truth, shifted, 4))).all()


@pytest.mark.parametrize("seeds", [(0, 1), (2, 2), (4, 5)])
def test_the_rand_index_is_scikit_learn_s(seeds):
    truth, groups = (regions(seed, classes) for seed, classes in zip(seeds, (3, 5), strict=True))
    truth = with_ignored(truth)
    pair = truth[truth != 255], groups[truth != 255]
    assert adjusted_rand_index(contingency(groups, truth, 3)) == pytest.approx(sklearn.adjusted_rand_score(*pair))


def test_the_rand_index_of_equal_partitions_is_one_and_of_one_group_zero():
    truth = regions(0)
    assert adjusted_rand_index(contingency(3 - truth, truth, 4)) == 1
    assert adjusted_rand_index(contingency(np.zeros_like(truth), truth, 4)) == 0
    assert adjusted_rand_index(contingency(np.zeros_like(truth), np.zeros_like(truth), 4)) == 1


def test_the_rand_index_of_a_large_photo_does_not_overflow():
    table = np.array([[6_000_000, 500_000], [500_000, 5_000_000]])
    assert 0.6 < adjusted_rand_index(table) < 0.8


def oracle_names(groups: np.ndarray, truth: np.ndarray, classes: int) -> np.ndarray:
    """Name each group by the class of most of its pixels, which `oracle_matrix` counts without a map."""
    return contingency(groups, truth, classes).argmax(axis=1).astype(np.uint8)[groups]


def test_purity_is_the_pixel_accuracy_of_the_best_names():
    truth, groups = with_ignored(regions(0)), regions(7, 9)
    table = contingency(groups, truth, 4)
    matrix = oracle_matrix(table)
    assert np.array_equal(matrix, confusion_matrix(truth, oracle_names(groups, truth, 4), 4))
    largest = sum(np.bincount(truth[(groups == g) & (truth != 255)], minlength=4).max() for g in range(9))
    assert pixel_accuracy(matrix) == pytest.approx(100 * largest / (truth != 255).sum())


def test_oracle_calls_each_group_what_most_of_its_known_pixels_are():
    groups = np.array([[0, 0, 0, 1], [0, 2, 2, 1]], dtype=np.uint8)
    truth = np.array([[1, 1, 0, 3], [255, 255, 2, 3]], dtype=np.uint8)
    expected = np.array([[1, 1, 1, 3], [1, 2, 2, 3]], dtype=np.uint8)
    assert np.array_equal(oracle_names(groups, truth, 4), expected)


def test_oracle_of_true_segments_is_perfect_and_of_one_segment_is_the_majority():
    truth = random_map(2)
    assert np.array_equal(oracle_names(truth, truth, 4), truth)
    majority = np.bincount(truth.ravel()).argmax()
    assert (oracle_names(np.zeros_like(truth), truth, 4) == majority).all()


def test_no_pixels_have_no_accuracy():
    assert np.isnan(pixel_accuracy(np.zeros((3, 3), np.int64)))


def test_every_known_pixel_is_right_or_in_one_kind_of_error():
    truth = np.array([[0, 0, 0, 1], [1, 2, 2, 2], [2, 255, 255, 0]], np.uint8)
    called = np.array([[0, 1, 2, 1], [0, 1, 1, 2], [0, 1, 0, 0]], np.uint8)
    split = error_split(confusion_matrix(truth, called, 3))
    assert list(split.values()) == [40, 20, 20, 20]
    assert list(split) == [
        "right",
        "background called an object",
        "object called background",
        "one object called another",
    ]
    rng = np.random.default_rng(0)
    matrix = confusion_matrix(*rng.integers(0, 6, (2, 30, 40), dtype=np.uint8), 6)
    split = error_split(matrix)
    assert sum(split.values()) == pytest.approx(100)
    assert split["right"] == pixel_accuracy(matrix)
    assert np.isnan(list(error_split(np.zeros((3, 3), np.int64)).values())).all()
