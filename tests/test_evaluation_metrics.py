import numpy as np
import pytest

from groupvit.evaluation.metrics import confusion_matrix, iou, mean_iou, oracle_names


def random_map(seed: int, classes: int = 4) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, classes, (13, 17)).astype(np.uint8)


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
    assert mean_iou(confusion_matrix(truth, prediction, 3)) == pytest.approx((100 * 15 / 16 + 0) / 2)


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
