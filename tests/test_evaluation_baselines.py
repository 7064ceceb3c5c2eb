from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from experiments.predictions import evaluate_predictions
from PIL import Image

from groupvit.evaluation.baselines import ellipse, score_baselines, trivial_baselines
from groupvit.evaluation.benchmark import evaluate
from groupvit.evaluation.datasets import Dataset, MaskedPhoto, open_benchmark
from groupvit.evaluation.protocols import CALIBRATED_NATIVE
from groupvit.models import build_model
from groupvit.segmentation import Segmenter, parse_labels
from layouts import LAYOUTS
from test_evaluation_classification import CONFIG as GROUPED
from test_evaluation_scoring import random_segmenter


@pytest.fixture(scope="module")
def grouped():
    torch.manual_seed(0)
    return Segmenter(build_model(GROUPED), GROUPED)


def photo(height: int = 20, width: int = 30) -> MaskedPhoto:
    return MaskedPhoto("a", Image.new("RGB", (width, height), "red"), np.zeros((height, width), np.uint8))


def dataset(*labels: str) -> Dataset:
    return Dataset("folder", Path(), labels, ("a",), lambda name: photo())


def test_the_ellipse_lies_in_the_middle_and_covers_its_share():
    inside = ellipse(101, 203)
    assert inside.mean() == pytest.approx(np.pi / 4 * 0.65**2, rel=0.01)
    assert np.array_equal(inside, inside[::-1])
    assert np.array_equal(inside, inside[:, ::-1])
    assert inside[50, 101]
    assert not inside[0].any()
    assert not inside[:, 0].any()
    assert ellipse(1, 1).all()


def test_the_own_label_is_the_class_whose_best_word_is_nearest_to_the_whole_photo(grouped, monkeypatch):
    data = dataset("background", "cat", "dog")
    labels = parse_labels(["background=wall,grass", "cat", "dog=puppy,dog"])
    cosines = torch.tensor([[0.2, 0.1, 0.3]])  # cat, puppy, dog
    asked = []

    def similarities(segmenter, photos, names, templates):
        asked.append(tuple(names))
        return cosines

    monkeypatch.setattr("groupvit.evaluation.baselines.similarities", similarities)
    named = trivial_baselines(grouped, data, labels)
    assert list(named) == ["all background", "one segment, own label", "centred ellipse, own label"]
    everything, one, centred = (predict(photo()) for predict in named.values())
    assert set(asked) == {("cat", "puppy", "dog")}
    assert np.unique(everything).tolist() == [0]
    assert np.unique(one).tolist() == [2]
    assert np.array_equal(centred, np.where(ellipse(20, 30), 2, 0))
    assert {everything.dtype, one.dtype, centred.dtype} == {np.dtype(np.uint8)}


def test_a_model_is_asked_once_about_a_photo(grouped, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "groupvit.evaluation.baselines.similarities", lambda *_: asked.append(1) or torch.tensor([[1, 0]])
    )
    for predict in trivial_baselines(grouped, dataset("cat", "dog"), parse_labels(["cat", "dog"])).values():
        predict(photo())
    assert len(asked) == 1


def test_baselines_stand_beside_the_model_on_the_same_photos(tmp_path):
    LAYOUTS["pets"](tmp_path)
    pets, segmenter = open_benchmark("pets", tmp_path), random_segmenter()
    result = evaluate(segmenter, pets, CALIBRATED_NATIVE)
    advanced = []
    found = score_baselines(result, segmenter, pets, CALIBRATED_NATIVE, lambda: advanced.append(1))
    assert len(advanced) == len(pets)
    named = trivial_baselines(segmenter, pets, CALIBRATED_NATIVE.labels(pets))
    assert list(found) == list(named)
    for name, predict in named.items():
        baseline = evaluate_predictions(pets, predict, name)
        assert found[name]["miou"] == baseline.metrics()["miou"]
        assert found[name]["difference"] == pytest.approx(result.metrics()["miou"] - baseline.metrics()["miou"])
        low, high = found[name]["interval"]
        assert low <= found[name]["difference"] <= high


def test_words_stand_in_the_protocol_s_own_prompts(tmp_path, monkeypatch):
    LAYOUTS["pets"](tmp_path)
    pets, segmenter, asked = open_benchmark("pets", tmp_path), random_segmenter(), set()
    protocol = replace(CALIBRATED_NATIVE, view=replace(CALIBRATED_NATIVE.view, templates=("{} at night",)))
    result = evaluate(segmenter, pets, protocol)

    def similarities(segmenter, photos, names, templates):
        asked.add(tuple(templates))
        return torch.ones(1, len(names))

    monkeypatch.setattr("groupvit.evaluation.baselines.similarities", similarities)
    score_baselines(result, segmenter, pets, protocol, lambda: None)
    assert asked == {("{} at night",)}


def test_without_a_background_the_runner_up_lies_around_the_ellipse(grouped, monkeypatch):
    monkeypatch.setattr("groupvit.evaluation.baselines.similarities", lambda *_: torch.tensor([[0.2, 0.1, 0.3]]))
    named = trivial_baselines(grouped, dataset("cat", "dog", "cow"), parse_labels(["cat", "dog", "cow"]))
    assert list(named) == ["one segment, own label", "centred ellipse, own label"]
    assert np.array_equal(named["centred ellipse, own label"](photo()), np.where(ellipse(20, 30), 2, 0))


def test_a_single_class_is_no_error(grouped, monkeypatch):
    monkeypatch.setattr("groupvit.evaluation.baselines.similarities", lambda *_: torch.tensor([[0.2]]))
    named = trivial_baselines(grouped, dataset("cat"), parse_labels(["cat"]))
    assert (named["centred ellipse, own label"](photo()) == 0).all()


def test_a_model_gives_its_own_labels(grouped):
    named = trivial_baselines(grouped, dataset("cat", "dog"), parse_labels(["cat", "dog"]))
    one, centred = (predict(photo()) for predict in named.values())
    assert len(np.unique(one)) == 1
    assert sorted(np.unique(centred).tolist()) == [0, 1]
    assert centred[10, 15] == one[0, 0]
