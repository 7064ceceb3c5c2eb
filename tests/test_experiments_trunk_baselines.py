from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from experiments.trunk_baselines import TrunkClassifier, class_members, k_means, trunk_baselines, ungrouped
from PIL import Image

from groupvit.errors import InputError
from groupvit.evaluation.benchmark import evaluate
from groupvit.evaluation.datasets import open_benchmark
from groupvit.evaluation.protocols import CALIBRATED_WHOLE
from groupvit.evaluation.thresholds import THRESHOLDS
from groupvit.models import ImageEncoderConfig, ModelConfig, Stage, TextEncoderConfig, build_model, with_stages
from groupvit.models.config import ViTConfig
from groupvit.segmentation import Segmenter, parse_labels
from groupvit.text.imagenet import imagenet_names
from layouts import LAYOUTS
from test_evaluation_scoring import random_segmenter
from test_models_trunks import randomise

ONE = ModelConfig(
    ImageEncoderConfig(64, 8, 32, 2, stages=(Stage(0, output_groups=6, seeded=True),), stem="efficientnet-lite0"),
    TextEncoderConfig(16, 2, 1),
    embed_dim=8,
    projector_dim=16,
    segment_loss=True,
)
TWO = with_stages(ONE, Stage(0, output_groups=12, seeded=True), Stage(1, 4, 4))
VIT = ViTConfig(32, 8, 16, 2, 2)
LABELS = ("cat", "dog", "grass")


def made(config: ModelConfig) -> Segmenter:
    torch.manual_seed(0)
    model = build_model(config)
    randomise(model.image_encoder.trunk)
    return Segmenter(model, config, device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def one():
    return made(ONE)


@pytest.fixture(scope="module")
def photo():
    cells = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return Image.fromarray(cells).resize((150, 90))


def test_every_baseline_names_each_pixel_of_a_photo(one, photo):
    baselines = trunk_baselines(one)
    assert list(baselines) == ["k-means on the trunk's features", "each patch alone", "the trunk's classifier, dense"]
    for baseline in baselines.values():
        result = baseline.segment(photo, LABELS)
        assert result.label_map.shape == (90, 150)
        assert result.names == LABELS


def test_a_model_without_a_trunk_has_none():
    assert trunk_baselines(random_segmenter()) == {}
    with pytest.raises(InputError, match="no trunk with a classifier"):
        TrunkClassifier(random_segmenter())


def test_k_means_is_the_model_without_smooth_features_and_other_numbers_of_groups(one, photo):
    clusters = k_means(one)
    smooth, plain = (segmenter.model.image_encoder.stages[0].seeded for segmenter in (one, clusters))
    assert (smooth.smooth, smooth.others) == (True, (3, 12))
    assert (plain.smooth, plain.others) == (False, ())
    assert len(clusters.segment(photo, LABELS).windows[0].others) == 0
    assert clusters.segment(photo, LABELS).groups[-1].max() == one.segment(photo, LABELS).groups[-1].max()


def test_clusters_take_the_place_of_both_stages(photo):
    two = made(TWO)
    result = k_means(two).segment(photo, LABELS)
    assert len(two.segment(photo, LABELS).groups) == 2
    assert len(result.groups) == 1
    assert 1 < len(np.unique(result.groups[0])) <= 5
    with torch.inference_mode():
        pixels = two._pixels(photo, (90, 150))[None]
        features, (patches, *_) = k_means(two).model.image_encoder(pixels), two.model.image_encoder.embed(pixels)
    for group, owned in enumerate(features.assignments[0].hard[0].bool()):
        expected = two.model.image_encoder.norm(patches[0, owned].mean(dim=0))
        torch.testing.assert_close(features.segments[0, group], expected, rtol=1e-4, atol=1e-4)


def test_a_patch_alone_is_in_no_group_and_is_named_as_in_training(one, photo):
    alone = ungrouped(one)
    assert alone.segment(photo, LABELS).groups == ()
    assert len(one.segment(photo, LABELS).groups) == 1
    vit = made(replace(ONE, image=replace(ONE.image, stem="vit", vit=VIT)))
    with torch.inference_mode():
        images = torch.randn(1, 3, 40, 56)
        features = vit.model.image_encoder(images)
        expected = vit.model.image_encoder.patches_alone(features)
        torch.testing.assert_close(ungrouped(vit).model.image_encoder(images).segments, expected)
    assert list(trunk_baselines(vit)) == ["k-means on the trunk's features", "each patch alone"]


def test_classes_belong_to_the_labels_with_one_of_their_words():
    labels = parse_labels(["background=fence,wall", "Dog=DOG", "pet=cat,goldfish", "qqq"])
    members = class_members(labels).bool()
    background, dog, pet, nothing = (
        {name for name, own in zip(imagenet_names(), m, strict=True) if own} for m in members.T
    )
    assert "picket fence" in background
    assert {"Beagle", "pug"} <= dog
    assert {"tabby cat", "goldfish"} <= pet
    assert not dog & pet
    assert not nothing


def test_the_classifier_sums_the_probabilities_of_a_labels_classes_at_every_cell(one, photo, monkeypatch):
    """A trunk that is rigged: its last map is known."""
    classifier = TrunkClassifier(one)
    weight = torch.nn.init.normal_(one.model.image_encoder.trunk.classifier.weight.data)
    names = {name: index for index, name in enumerate(imagenet_names())}
    cells = [["tabby cat", "tabby cat", "Beagle", "pug", "pug"]] * 2 + [["tench"] * 5]
    last = torch.stack([torch.stack([weight[names[cell]] for cell in row], dim=1) for row in cells], dim=1)[None] / 50
    monkeypatch.setattr(classifier._trunk, "forward", lambda images: (None, None, last))
    labels = parse_labels(["qqq", "cat", "dog"])
    result = classifier.segment(photo, labels, short_side=90)
    probabilities = F.linear(last[0].permute(1, 2, 0), weight, classifier._trunk.classifier.bias).softmax(dim=-1)
    expected = torch.stack([probabilities[..., own].sum(dim=-1) for own in class_members(labels).bool().T])
    pixels = F.interpolate(expected[None], scale_factor=32, mode="bilinear")[0, :, :90, :150]
    assert expected[0].max() == 0
    assert np.array_equal(result.label_map, pixels.argmax(dim=0).numpy())
    assert [result.label_map[row, column] for row, column in ((16, 32), (16, 80), (16, 130))] == [1, 2, 2]
    assert result.confidence[80].max() < 0.5 < result.confidence[16, 32]
    np.testing.assert_allclose(result.confidence, pixels.amax(dim=0).detach().numpy(), rtol=1e-5)


def test_the_classifiers_background_is_cross_fitted_like_the_models(one, tmp_path):
    LAYOUTS["pets"](tmp_path)
    pets = open_benchmark("pets", tmp_path)
    result = evaluate(TrunkClassifier(one), pets, CALIBRATED_WHOLE)
    assert len(result.thresholds) == 2
    assert set(result.thresholds) <= {float(threshold) for threshold in THRESHOLDS}
    assert result.matrix.sum() == sum((photo.mask != 255).sum() for photo in pets)
    assert result.grouping() == result.naming() == []
