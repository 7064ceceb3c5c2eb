import numpy as np
import pytest
from experiments.intervals import share_that_holds


def test_intervals_of_photos_that_are_alike_hold_the_truth_as_often_as_they_say() -> None:
    generator = np.random.default_rng(0)
    truth = generator.integers(500, 1000, (300, 2))
    hits = (truth * generator.uniform(0.3, 0.9, truth.shape)).astype(np.int64)
    areas = np.stack([hits, truth, truth], axis=-1)
    assert 90 < share_that_holds(areas, 100, 200) < 99


def test_photos_that_hardly_ever_show_a_class_have_intervals_that_miss_it() -> None:
    areas = np.zeros((300, 2, 3), np.int64)
    areas[:, 0] = 90, 100, 100
    areas[:3, 1] = 10, 100, 100
    assert share_that_holds(areas, 20, 50) < 50
    assert share_that_holds(areas[3:], 20, 50) == pytest.approx(100)
