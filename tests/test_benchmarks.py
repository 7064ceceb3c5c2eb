"""The straightforward way is a fair yardstick only if it does the same."""

import numpy as np
import pytest
import torch
from benchmarks import segmentation, straightforward
from PIL import Image

from groupvit.models import ImageEncoderConfig, ModelConfig, Stage, TextEncoderConfig, build_model
from groupvit.segmentation import Segmenter

LABELS = ["cat", "traffic light", "grass"]
CONFIG = ModelConfig(
    ImageEncoderConfig(32, 8, 32, 2, stages=(Stage(1, 8, 8), Stage(1, 4, 4), Stage(1))),
    TextEncoderConfig(16, 2, 1),
    embed_dim=8,
    projector_dim=16,
)


@pytest.mark.parametrize("size", [(50, 70), (97, 40), (32, 32)])
def test_the_straightforward_way_names_pixels_as_the_segmenter_does(size):
    model = build_model(CONFIG)
    segmenter = Segmenter(model, CONFIG)
    photo = Image.effect_noise(size, 80).convert("RGB")
    ours = segmenter.segment(photo, LABELS, short_side=48, window=48, stride=24).label_map
    with torch.inference_mode():
        plain = straightforward.segment(model, photo, LABELS, window=48, stride=24)
    assert plain.shape == ours.shape
    assert (plain == ours).mean() >= 0.999


def test_every_way_is_timed_on_every_photo_and_compared_with_the_first():
    photos = [Image.new("RGB", (4, 2))] * 5
    zeros, wrong = np.zeros((2, 4), np.uint8), np.zeros((2, 4), np.uint8)
    wrong[0, 0] = 1
    turns = []

    def way(name, label_map):
        def run(images):
            turns.append((name, len(images)))
            return [label_map] * len(images)

        return run

    results = segmentation.measure({"first": way("first", zeros), "second": way("second", wrong)}, photos, 2)
    assert turns == [("first", 2), ("second", 2), ("first", 2), ("second", 2), ("first", 1), ("second", 1)]
    assert results["first"].equal == 5 * 8
    assert results["second"].equal == 5 * 7
    assert 0 < results["second"].seconds < 10
