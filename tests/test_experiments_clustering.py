from dataclasses import replace

import numpy as np
import pytest
import torch
from experiments.clustering import CLUSTERINGS, _grouped, cluster, clustered, refined
from PIL import Image
from sklearn.cluster import KMeans

from groupvit.errors import InputError
from groupvit.models import ImageEncoderConfig, ModelConfig, Stage, TextEncoderConfig, build_model, with_stages
from groupvit.segmentation import Segmenter
from test_evaluation_metrics import oracle_names

LABELS = ("red", "green", "blue")
PLAIN = ModelConfig(
    ImageEncoderConfig(32, 8, 32, 2, stages=(Stage(2),)), TextEncoderConfig(16, 2, 1), embed_dim=8, projector_dim=16
)


@pytest.fixture(scope="module")
def segmenter():
    torch.manual_seed(0)
    return Segmenter(build_model(PLAIN), PLAIN, precision="fp32")


@pytest.fixture(scope="module")
def quarters():
    """A photo of four colours, and which quarter each pixel is in."""
    quarter = np.repeat(np.repeat(np.arange(4, dtype=np.uint8).reshape(2, 2), 16, axis=0), 16, axis=1)
    colours = np.array([[220, 20, 20], [20, 200, 20], [20, 20, 220], [250, 250, 250]], dtype=np.uint8)
    return Image.fromarray(colours[quarter]), quarter


def blobs(count: int, patches: int, seed: int = 0) -> tuple[torch.Tensor, np.ndarray]:
    generator = np.random.default_rng(seed)
    owner = np.arange(patches) % count
    points = 10 * np.eye(16)[owner] + 0.1 * generator.normal(size=(patches, 16))
    return torch.from_numpy(points.astype(np.float32)), owner


@pytest.mark.parametrize("method", CLUSTERINGS[1:])
def test_clusters_that_lie_apart_are_found(method):
    points, owner = blobs(4, 40)
    found = cluster(points, method, groups=4)
    assert len(np.unique(found)) == 4
    assert len(np.unique(np.stack([found, owner]), axis=1).T) == 4
    assert np.array_equal(found, cluster(points, method, groups=4))


@pytest.mark.parametrize("method", CLUSTERINGS[1:])
def test_equal_or_few_patches_are_no_error(method):
    assert cluster(torch.ones(9, 4), method).tolist() == [0] * 9
    assert cluster(torch.eye(3), method).shape == (3,)
    assert len(np.unique(cluster(blobs(2, 20)[0].round(), method))) == 2


@pytest.mark.parametrize("method", CLUSTERINGS[1:])
def test_pixels_of_one_cluster_have_one_name(segmenter, quarters, method):
    photo, _ = quarters
    result = clustered(segmenter, method, 4).segment(photo, LABELS)
    assert 1 < result.groups[-1].max() + 1 <= 16
    named = result.label_map.astype(np.uint8)
    assert np.array_equal(oracle_names(result.groups[-1], named, 3), named)


def test_a_cluster_is_named_after_its_mean_feature(segmenter):
    with torch.inference_mode():
        encoder = clustered(segmenter, "k-means", 3).model.image_encoder
        pixels = torch.randn(2, 3, 32, 32)
        patches, grouped = segmenter.model.image_encoder(pixels), encoder(pixels)
    assert grouped.segments.shape == (2, 3, 32)
    assert torch.equal(grouped.pooled, patches.pooled)
    for i in range(2):
        owner = grouped.assignments[0].hard[i].argmax(dim=0)
        for group in range(3):
            expected = patches.segments[i, owner == group].mean(dim=0)
            torch.testing.assert_close(grouped.segments[i, group], expected, rtol=1e-4, atol=1e-5)


def test_a_photo_is_grouped_alike_alone_and_beside_others(segmenter, quarters):
    photo, _ = quarters
    other = Image.effect_noise((32, 32), 90).convert("RGB")
    shifted = clustered(segmenter, "mean-shift")
    beside = shifted.segment([other, photo], LABELS)[1]
    assert np.array_equal(beside.label_map, shifted.segment(photo, LABELS).label_map)


def test_pixel_wise_is_what_the_plain_model_does_and_the_model_itself_stays_as_it_was(segmenter, quarters):
    photo, _ = quarters
    before = segmenter.segment(photo, LABELS)
    pixel_wise = clustered(segmenter, "pixel-wise").segment(photo, LABELS)
    clustered(segmenter, "k-means").segment(photo, LABELS)
    after = segmenter.segment(photo, LABELS)
    assert before.groups == pixel_wise.groups == after.groups == ()
    assert np.array_equal(before.label_map, pixel_wise.label_map)
    assert np.array_equal(before.label_map, after.label_map)


def test_windows_are_grouped_one_by_one(segmenter, quarters):
    photo, _ = quarters
    result = clustered(segmenter, "k-means").segment(photo, LABELS, short_side=64, window=32, stride=16)
    assert result.label_map.shape == (32, 32)
    assert result.groups == ()


def test_a_model_with_group_tokens_is_refused():
    config = with_stages(PLAIN, Stage(1, 4, 4))
    with pytest.raises(InputError, match="plain ViT"):
        clustered(Segmenter(build_model(config), config), "k-means")


def test_a_photo_with_fewer_clusters_has_no_more_scores_than_alone(segmenter):
    """Missing clusters are filled up to the largest count of the batch, and must not be new segments."""
    with torch.inference_mode():
        features = segmenter.model.image_encoder(torch.randn(2, 3, 32, 32))
    grouped = _grouped(features, [np.arange(16) % 5, np.arange(16) % 2])
    assert torch.equal(grouped.segments[1, 2:], grouped.segments[1, :1].expand(3, -1))
    other = Image.effect_noise((32, 32), 90).convert("RGB")
    plain, options = clustered(segmenter, "k-means", 4), {"scores": "gated", "background": 0.9}
    flat = Image.new("RGB", (32, 32))
    beside, alone = plain.segment([other, flat], LABELS, **options)[1], plain.segment(flat, LABELS, **options)
    assert np.array_equal(beside.label_map, alone.label_map)


def test_refined_groups_are_nearer_to_their_segments_and_leave_the_model_alone(quarters):
    torch.manual_seed(0)
    config = with_stages(replace(PLAIN, image=replace(PLAIN.image, assign_logits="cosine")), Stage(2, 8, 8))
    grouped = Segmenter(build_model(config), config, precision="fp32")
    before = grouped.segment(quarters[0], LABELS)
    finer = refined(grouped, rounds=8)
    assert np.array_equal(grouped.segment(quarters[0], LABELS).label_map, before.label_map)

    def nearness(segmenter):
        [stage] = segmenter.model.image_encoder.grouping_stages()
        with torch.inference_mode():
            features = segmenter.model.image_encoder(torch.randn(1, 3, 128, 128, generator=torch.manual_seed(1)))
            block, segments = stage.grouping, features.ungrouped[0].segments
            keys = block.assign.k_proj(block.norm_segments(segments))[0]
        keys = torch.nn.functional.normalize(keys - keys.mean(dim=0), dim=-1)
        hard = features.assignments[0].hard[0]
        return ((hard @ keys).norm(dim=-1)).sum()  # what spherical k-means makes large

    assert nearness(finer) > nearness(refined(grouped, rounds=1)) > nearness(grouped)
    assert nearness(refined(grouped, rounds=0)) == nearness(grouped)
    with pytest.raises(InputError, match="cosine"):
        refined(Segmenter(build_model(PLAIN), PLAIN))


def test_k_means_is_the_best_of_ten_beginnings():
    points = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)

    def spread(owner):
        return sum(((points[owner == i] - points[owner == i].mean(axis=0)) ** 2).sum() for i in range(8))

    once = [KMeans(8, n_init=1, random_state=seed).fit_predict(points) for seed in range(5)]
    assert spread(cluster(torch.from_numpy(points), "k-means", 8)) < min(map(spread, once))
