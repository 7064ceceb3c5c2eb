import numpy as np
from experiments.given_truth import evaluate_given

from groupvit.evaluation.benchmark import evaluate
from groupvit.evaluation.datasets import open_benchmark
from groupvit.evaluation.protocols import PROTOCOLS
from groupvit.evaluation.scoring import score_prediction
from layouts import LAYOUTS
from test_evaluation_scoring import random_segmenter


def test_given_what_is_background_only_objects_are_confused(tmp_path):
    LAYOUTS["voc21"](tmp_path)
    segmenter = random_segmenter()
    data, protocol = open_benchmark("voc21", tmp_path), PROTOCOLS["calibrated-native"]
    found = evaluate_given(segmenter, data, protocol, "objects")
    errors = found.metrics()["errors"]
    assert errors["background called an object"] == errors["object called background"] == 0
    assert errors["one object called another"] > 0
    assert found.metrics()["classes"]["background"]["iou"] == 100
    photo, view = data[0], protocol.view_of(segmenter.config, data)
    result = segmenter.segment(photo.image, protocol.labels(data)[1:], view)
    expected = np.where(photo.mask > 0, result.label_map + 1, 0).astype(np.uint8)
    own = score_prediction(photo, expected, 21).matrix
    assert found.photos[0].matrix.tolist() == own.tolist()


def test_given_a_photos_labels_no_other_is_called(tmp_path):
    LAYOUTS["voc21"](tmp_path)
    segmenter = random_segmenter()
    voc, protocol = open_benchmark("voc21", tmp_path), PROTOCOLS["calibrated-native"]
    found = evaluate_given(segmenter, voc, protocol, "labels")
    assert len(found.thresholds) == 2
    for counted, photo in zip(found.photos, voc, strict=True):
        assert {*counted.matrix[:, 1].tolist()} <= {0, *np.unique(photo.mask).tolist()}
        assert counted.pending is None
    again = evaluate(segmenter, voc, protocol)
    assert [photo.digest for photo in found.photos] == [photo.digest for photo in again.photos]
