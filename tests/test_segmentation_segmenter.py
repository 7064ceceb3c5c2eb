import math
import pickle
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from groupvit.checkpoints import native
from groupvit.errors import InputError
from groupvit.models import (
    Assignment,
    ImageEncoderConfig,
    ImageFeatures,
    ModelConfig,
    Stage,
    TextEncoderConfig,
    build_model,
)
from groupvit.photos import load_rgb
from groupvit.segmentation import Label, Segmentation, Segmenter, View, parse_labels
from groupvit.segmentation import segmenter as module
from groupvit.segmentation.windows import shared_scores
from groupvit.text.tokenizer import Tokenizer

LABELS = ["dog", "grass", "sky", "cat"]
TWO_STAGES = (Stage(1, 8, 8), Stage(1, 4, 4), Stage(1))
SLIDING = {"short_side": 48, "window": 32, "stride": 16}


def tiny(*stages: Stage, dtype: torch.dtype = torch.float64, segment_loss: bool = False, **image: Any) -> Segmenter:
    """Random weights, so large that groups differ, and labels too once BatchNorm has statistics of such photos."""
    torch.manual_seed(1)
    image = {"image_size": 32, "patch_size": 8, "dim": 32, "heads": 2, "pre_assign_attention": False} | image
    encoder = ImageEncoderConfig(stages=stages or TWO_STAGES, **image)
    config = ModelConfig(encoder, TextEncoderConfig(32, 2, 1), 16, 32, segment_loss=segment_loss)
    model = build_model(config)
    for name, parameter in model.image_encoder.named_parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=2.0 if "tokens" in name else 0.05 if "attn.proj" in name else 0.3)
    for projector in (model.image_projector, model.text_projector):
        projector.norm.momentum = 1.0
    photos = torch.stack([torch.from_numpy(photo(32, 32, seed)) for seed in range(16)])
    model.embed_image_features(model.image_encoder(photos.permute(0, 3, 1, 2) / 64 - 2).segments)
    model.encode_text(Tokenizer()([f"a photo of a {word}." for word in [*LABELS, "man", "woman", "water", "night"]]))
    return Segmenter(model.to(dtype), config, device="cpu", precision="fp32")


def photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Large random squares with a little noise."""
    random = np.random.default_rng(seed)
    squares = random.integers(0, 256, (-(-height // 8), -(-width // 8), 3)).repeat(8, 0).repeat(8, 1)[:height, :width]
    return (squares + random.integers(-20, 20, squares.shape)).clip(0, 255).astype(np.uint8)


@torch.inference_mode()
def reference(segmenter: Segmenter, image: np.ndarray) -> tuple[ImageFeatures, torch.Tensor]:
    """The features of a photo at its own size, and its segments' scores for `LABELS`."""
    pixels = segmenter._pixels(Image.fromarray(image), (image.shape[0], image.shape[1]))
    features = segmenter.model.image_encoder(pixels[None])
    embedded = segmenter.model.encode_text(Tokenizer()([f"a photo of a {label}." for label in LABELS]))
    cosines = segmenter.model.embed_image_features(features.segments)[0] @ embedded.T
    return features, (cosines * segmenter.model.logit_scale.exp()).softmax(-1)


def share_of_equal(a: Segmentation, b: Segmentation) -> float:
    return float((a.label_map == b.label_map).mean())


def count_rows(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> list[int]:
    """The batch sizes of all calls of a method, from now on."""
    rows, original = [], getattr(owner, name)

    def counted(x: Any, *rest: Any) -> Any:
        rows.append(len(x))
        return original(x, *rest)

    monkeypatch.setattr(owner, name, counted)
    return rows


@pytest.mark.parametrize("size", [(1, 7), (333, 500), (64, 64), (9, 700)])
@pytest.mark.parametrize("options", [{}, SLIDING, {"maps": "hard"}])
def test_a_label_map_has_the_photo_s_size(size: tuple[int, int], options: Any) -> None:
    result = tiny().segment(photo(*size), LABELS, **options)
    assert result.label_map.shape == size
    assert result.label_map.dtype == np.uint8
    assert result.image.size == size[::-1]
    assert result.label_map.max() < len(LABELS)
    assert all(group.shape == size for group in result.groups)


def test_the_test_s_model_uses_its_labels_and_groups() -> None:
    result = tiny().segment(photo(64, 96), LABELS)
    assert len(np.unique(result.label_map)) > 1
    assert len(np.unique(result.groups[0])) > len(np.unique(result.groups[1])) > 1


def test_permuting_labels_permutes_the_map() -> None:
    segmenter, order = tiny(), [2, 0, 3, 1]
    one = segmenter.segment(photo(64, 96), LABELS)
    other = segmenter.segment(photo(64, 96), [LABELS[i] for i in order])
    assert (np.array(order)[other.label_map] == one.label_map).all()
    assert [other.shares[order.index(i)] for i in range(4)] == list(one.shares)


def test_one_label_takes_the_whole_photo() -> None:
    result = tiny().segment(photo(33, 50), ["dog"])
    assert not result.label_map.any()
    assert result.shares == (1.0,)
    assert result.scores == pytest.approx((1.0,))


def test_of_several_words_for_a_label_the_best_one_counts() -> None:
    segmenter = tiny()
    apart = segmenter.segment(photo(64, 96), ["man", "woman", "grass", "sky"])
    together = segmenter.segment(photo(64, 96), ["person=man,woman", "grass", "sky"])
    assert 0 < apart.shares[0] + apart.shares[1] < 1
    features, _ = reference(segmenter, photo(64, 96))
    with torch.inference_mode():
        groups = (["man", "woman", "grass", "sky"], ["person=man,woman", "grass", "sky"])
        templates = ("a photo of a {}.",)
        one, other = (segmenter.label_scores(features.segments, parse_labels(own), templates).log() for own in groups)
    odds = one[..., :2].amax(-1) - one[..., 2]
    assert torch.allclose(other[..., 0] - other[..., 1], odds)
    # A label that wins apart still wins, since the softmax keeps the order of the logits.
    assert share_of_equal(together, replace(apart, label_map=np.array([0, 0, 1, 2], np.uint8)[apart.label_map])) > 0.98
    assert together.names == ("person", "grass", "sky")


def test_a_label_s_embedding_is_the_normalised_mean_over_templates() -> None:
    segmenter = tiny()
    templates = ("a photo of a {}.", "the {} at night, {}")
    embedded = segmenter.embed_words(("dog", "sky"), templates)
    prompts = ["a photo of a dog.", "the dog at night, dog", "a photo of a sky.", "the sky at night, sky"]
    single = segmenter.model.encode_text(Tokenizer()(prompts))
    expected = F.normalize(torch.stack([single[:2].mean(0), single[2:].mean(0)]), dim=-1)
    assert torch.allclose(embedded, expected, atol=1e-12)


@pytest.mark.parametrize("size", [(32, 32), (40, 61), (64, 40)])
def test_a_window_as_large_as_the_photo_is_the_whole(size: tuple[int, int]) -> None:
    segmenter = tiny()
    whole = segmenter.segment(photo(*size), LABELS)
    windowed = segmenter.segment(photo(*size), LABELS, window=200, stride=3)
    assert (whole.label_map == windowed.label_map).all()
    assert whole.scores == windowed.scores


def test_windows_are_averaged_by_count() -> None:
    segmenter = tiny()
    image = photo(32, 48)
    parts = []
    for left in (0, 16):
        scores = torch.zeros(4, 32, 48, dtype=torch.float64)
        features, fit = reference(segmenter, image[:, left : left + 32])
        maps = F.interpolate(features.groups(), (32, 32), mode="bilinear")[0]
        scores[:, :, left : left + 32] = fit.T[:, maps.argmax(0)]
        parts.append(scores)
    expected = sum(parts) / torch.tensor([1.0] * 16 + [2.0] * 16 + [1.0] * 16)
    result = segmenter.segment(image, LABELS, short_side=32, window=32, stride=16)
    best, index = expected.max(dim=0)
    assert (result.label_map == index.numpy()).all()
    assert result.scores == pytest.approx(
        [float(best[index == i].mean()) if (index == i).any() else 0 for i in range(4)]
    )
    assert result.groups == ()


@pytest.mark.parametrize("options", [{}, SLIDING, {"background": 0.5}, {"maps": "hard"}])
def test_photos_together_are_as_photos_one_by_one(options: Any) -> None:
    segmenter = tiny()
    photos = [photo(64, 96, 1), photo(50, 40, 2), photo(32, 48, 3), photo(64, 96, 4)]
    together = segmenter.segment(photos, LABELS, batch_size=3, **options)
    for image, result in zip(photos, together, strict=True):
        alone = segmenter.segment(image, LABELS, **options)
        assert (np.asarray(result.image) == image).all()
        assert share_of_equal(result, alone) > 0.999
        assert result.scores == pytest.approx(alone.scores, abs=1e-3)


@pytest.mark.parametrize("keep_features", [False, True])
def test_a_result_keeps_nothing_of_the_other_photos_of_its_batch(keep_features: bool) -> None:
    segmenter, photos = tiny(dtype=torch.float32), [photo(32, 32, seed) for seed in range(8)]
    together = segmenter.segment(photos, LABELS, keep_features=keep_features)[0]
    alone = segmenter.segment(photos[0], LABELS, keep_features=keep_features)
    assert len(pickle.dumps(together)) < 1.01 * len(pickle.dumps(alone))


def test_a_vector_of_a_word_is_one_that_autograd_takes() -> None:
    segmenter = tiny()
    weights = torch.zeros(16, dtype=torch.float64, requires_grad=True)
    (segmenter.embed_words(["dog", "sky"]) @ weights).sum().backward()
    assert weights.grad is not None


def test_an_empty_list_gives_an_empty_list() -> None:
    assert tiny().segment([], LABELS) == []


def test_labels_are_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    segmenter = tiny()
    rows = count_rows(monkeypatch, segmenter.model, "encode_text")
    segmenter.segment([photo(40, 40), photo(32, 64)], ["person=man,woman", "sky"], templates=("a {}", "{}"), **SLIDING)
    segmenter.segment(photo(40, 40), [Label("people", ("man", "woman")), "sky"], templates=("a {}", "{}"))
    assert rows == [6]
    for i in range(80):
        segmenter.embed_words([f"word {i}"], ["{}"])
    assert segmenter.words._kept.cache_info().currsize <= 64


def test_each_window_is_encoded_once_and_together_with_others(monkeypatch: pytest.MonkeyPatch) -> None:
    segmenter = tiny()
    rows = count_rows(monkeypatch, segmenter.model.image_encoder, "forward")
    segmenter.segment([photo(40, 40), photo(64, 64), photo(32, 64)], LABELS, batch_size=8, **SLIDING)
    # 48 x 48 (4 windows), 48 x 48 (4 windows) and 48 x 96 (10 windows), all of 32 x 32
    assert rows == [8, 8, 2]
    rows.clear()
    segmenter.segment([photo(40, 40), photo(32, 64), photo(64, 64)], LABELS)
    assert rows == [2, 1]


def test_a_background_threshold_of_0_takes_nothing_and_above_1_everything() -> None:
    segmenter = tiny()
    plain = segmenter.segment(photo(64, 96), LABELS)
    none = segmenter.segment(photo(64, 96), LABELS, background=0.0)
    assert none.names == ("background", *LABELS)
    assert (none.label_map == plain.label_map + 1).all()
    every = segmenter.segment(photo(64, 96), LABELS, background=1.0)
    assert not every.label_map.any()
    assert every.shares == (1, 0, 0, 0, 0)
    assert every.scores[1:] == (0, 0, 0, 0)


def test_what_is_below_the_threshold_is_background_and_the_rest_keeps_its_label() -> None:
    segmenter = tiny()
    plain = segmenter.segment(photo(64, 96), LABELS)
    threshold = (min(s for s in plain.scores if s) + max(plain.scores)) / 2
    result = segmenter.segment(photo(64, 96), LABELS, background=threshold)
    assert 0 < result.shares[0] < 1
    assert result.scores[0] < threshold <= min(s for s in result.scores[1:] if s)
    kept = result.label_map > 0
    assert (result.label_map[kept] == plain.label_map[kept] + 1).all()
    highest = plain.confidence.max()
    best = segmenter.segment(photo(64, 96), LABELS, background=float(highest))
    assert ((best.label_map > 0) == (plain.confidence == highest)).all()


def test_background_s_own_words_compete_and_share_its_index() -> None:
    segmenter = tiny()
    labels = ["dog", "background=grass,sky", "cat"]
    without = segmenter.segment(photo(64, 96), labels)
    assert without.names == ("background", "dog", "cat")
    result = segmenter.segment(photo(64, 96), labels, background=0.0)
    assert result.names == without.names
    assert (result.label_map == without.label_map).all()
    assert without.shares[0] > 0


def test_soft_and_hard_maps_agree_inside_groups_and_differ_between_them() -> None:
    segmenter = tiny(Stage(1, 6, 6), Stage(1))
    soft, hard = (segmenter.segment(photo(64, 64), LABELS, maps=maps) for maps in ("soft", "hard"))
    # The centres of patches belong to the patch's group whichever way; one stage has only one way to multiply.
    centres = np.s_[8::16, 8::16]
    assert (soft.groups[0][centres] == hard.groups[0][centres]).mean() > 0.8
    assert (soft.groups[0] != hard.groups[0]).any()


def test_hard_maps_are_the_product_of_hard_assignments() -> None:
    segmenter = tiny()
    image = photo(32, 32)
    features, _ = reference(segmenter, image)
    expected = features.groups(hard=True)[0].argmax(0).numpy()
    result = segmenter.segment(image, LABELS, maps="hard")
    blocks = result.groups[-1].reshape(4, 8, 4, 8)
    assert (blocks[:, 3:5, :, 3:5] == expected[:, None, :, None]).all()


def test_each_pixel_has_the_best_label_of_the_group_that_owns_it() -> None:
    segmenter = tiny()
    result = segmenter.segment(photo(32, 32), LABELS)
    for group in np.unique(result.groups[-1]):
        assert len(np.unique(result.label_map[result.groups[-1] == group])) == 1


def test_without_the_group_residual_a_group_without_patches_owns_no_pixel() -> None:
    # Between a patch of group 0 and one of group 1 the interpolated map of group 2 is the largest.
    soft = torch.tensor([[[0.5, 0.0], [0.05, 0.55], [0.45, 0.45]]])
    hard = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]])
    tokens = torch.zeros(1, 4), torch.zeros(1, 3, 4), ()
    features = module.ImageFeatures(*tokens, (Assignment(soft, hard),), (1, 2))
    for residual, owners in ((True, {0, 1, 2}), (False, {0, 1})):
        maps = features.stages(keep_empty=residual)[-1]
        assert set(F.interpolate(maps, (8, 16), mode="bilinear").argmax(1).unique().tolist()) == owners


def test_a_result_s_maps_leave_out_groups_without_patches() -> None:
    segmenter, image = tiny(group_residual=False), photo(32, 32)
    features, _ = reference(segmenter, image)
    owns = features.occupied()[0]
    (window,) = segmenter.segment(image, LABELS).windows
    assert 0 < owns.sum() < len(owns)
    assert (window.groups[-1][~owns] == -1).all()
    assert (window.groups[-1][owns] >= 0).all()


@pytest.mark.parametrize("residual", [True, False])
def test_a_plain_vit_interpolates_the_scores_of_its_patches(residual: bool) -> None:
    segmenter = tiny(Stage(2), group_residual=residual)
    image = photo(32, 32)
    result = segmenter.segment(image, LABELS)
    _, scores = reference(segmenter, image)
    expected = F.interpolate(scores.T.reshape(1, 4, 4, 4), (32, 32), mode="bilinear").argmax(1)[0]
    assert (result.label_map == expected.numpy()).all()
    assert len(np.unique(result.label_map)) > 1
    assert result.groups == ()


def test_patches_beyond_the_border_of_a_photo_are_not_shown() -> None:
    segmenter = tiny(Stage(2))
    image = photo(32, 37)
    features, scores = reference(segmenter, image)
    assert features.grid == (4, 5)
    expected = F.interpolate(scores.T.reshape(1, 4, 4, 5), (32, 40), mode="bilinear").argmax(1)[0, :, :37]
    assert (segmenter.segment(image, LABELS).label_map == expected.numpy()).all()


def test_the_segment_loss_s_scale_is_used_where_there_is_one() -> None:
    segmenter = tiny(segment_loss=True)
    before = segmenter.segment(photo(64, 64), LABELS)
    segmenter.model.logit_scale.data.fill_(4.0)
    assert segmenter.segment(photo(64, 64), LABELS).scores == before.scores
    segmenter.model.segment_logit_scale.data.fill_(4.0)
    assert max(segmenter.segment(photo(64, 64), LABELS).scores) > max(before.scores)


def gated(segmenter: Segmenter, pixels: torch.Tensor, threshold: float | None, template: str) -> torch.Tensor:
    """The published evaluation of one window, segment by segment and pixel by pixel."""
    features = segmenter.model.image_encoder(pixels[None])
    texts = segmenter.model.encode_text(Tokenizer()([template.format(label) for label in WORDS]))
    scale = segmenter.model.logit_scale.exp()
    whole = scale * (segmenter.model.embed_image_features(features.pooled)[0] @ texts.T)
    in_best_five = torch.zeros_like(whole).index_fill(0, whole.argsort(descending=True)[:5], 1)
    rows = []
    for segment in segmenter.model.embed_image_features(features.segments)[0]:
        chances = (scale * (texts @ segment)).softmax(0)
        kept = chances * in_best_five
        rows.append((chances * kept / kept.sum()).tolist())
    highest = max(map(max, rows))
    if threshold is not None:
        rows = [[1.0 if max(row) < min(threshold, highest) else 0.0, *row] for row in rows]
    owner = F.interpolate(features.groups(), pixels.shape[1:], mode="bilinear")[0].argmax(0)
    return torch.tensor(rows, dtype=torch.float64)[owner].permute(2, 0, 1)


WORDS = [*LABELS, "man", "woman", "water"]


@pytest.mark.parametrize("threshold", [None, 0.05, 0.3, 0.99])
@pytest.mark.parametrize("template", ["a photo of a {}.", "{} at night"])
@torch.inference_mode()
def test_gated_scores_are_the_published_evaluation_s(threshold: float | None, template: str) -> None:
    segmenter = tiny(group_residual=True)
    image = photo(32, 48)
    total, count = torch.zeros(len(WORDS) + (threshold is not None), 32, 48, dtype=torch.float64), torch.zeros(32, 48)
    for left in (0, 16):
        pixels = segmenter._pixels(Image.fromarray(image[:, left : left + 32]), (32, 32))
        total[:, :, left : left + 32] += gated(segmenter, pixels, threshold, template)
        count[:, left : left + 32] += 1
    best, index = (total / count).max(dim=0)
    view = View(short_side=32, window=32, stride=16, scores="gated", background=threshold, templates=(template,))
    result = segmenter.segment(image, WORDS, view)
    assert result.names == (("background",) if threshold is not None else ()) + tuple(WORDS)
    np.testing.assert_allclose(result.confidence, best.numpy(), atol=1e-12)
    assert (result.label_map == index.numpy()).all()
    assert len(np.unique(index)) > 1


def test_a_capped_threshold_leaves_a_label_in_every_window() -> None:
    segmenter = tiny()
    result = segmenter.segment(photo(64, 96), WORDS, scores="gated", background=0.999999, short_side=32)
    scores = result.windows[0].scores
    assert (scores[:, 1:].amax(dim=1) < 0.999999).all()
    assert (scores[:, 0] == 0).sum() == 1
    assert scores[:, 1:].amax(dim=1).argmax() == (scores[:, 0] == 0).nonzero()[0, 0]


def test_gated_rejects_into_a_background_of_words() -> None:
    segmenter = tiny()
    labels = ["background=night,wall", *LABELS]
    result = segmenter.segment(photo(64, 96), labels, scores="gated", background=0.9)
    assert result.names == ("background", *LABELS)
    assert result.shares[0] > segmenter.segment(photo(64, 96), labels, scores="gated").shares[0]


@pytest.mark.parametrize("size", [(48, 64), (32, 32), (20, 33)])
def test_without_antialiasing_four_pixels_make_one(size: tuple[int, int]) -> None:
    image = photo(32, 48)
    pixels = tiny()._pixels(Image.fromarray(image), size, antialias=False)
    values = (pixels * torch.tensor([0.229, 0.224, 0.225])[:, None, None]) + torch.tensor([0.485, 0.456, 0.406])[
        :, None, None
    ]
    for y, x in [(0, 0), (7, 11), (size[0] - 1, size[1] - 1)]:
        down, along = (y + 0.5) * 32 / size[0] - 0.5, (x + 0.5) * 48 / size[1] - 0.5
        down, along = min(max(down, 0), 31), min(max(along, 0), 47)
        top, left = min(int(down), 30), min(int(along), 46)
        square = image[top : top + 2, left : left + 2].astype(float)
        rows = square[0] * (1 - (down - top)) + square[1] * (down - top)
        expected = rows[0] * (1 - (along - left)) + rows[1] * (along - left)
        found = values[:, y, x].numpy() * 255
        assert found == pytest.approx(found.round(), abs=1e-3)
        assert abs(found - expected).max() < 0.501


def test_each_window_s_groups_lie_where_it_lay() -> None:
    segmenter = tiny()
    image = photo(80, 60)
    result = segmenter.segment(image, LABELS, short_side=60, window=40, stride=20)
    covered = np.zeros((80, 60), int)
    for window in result.windows:
        place, groups = result.groups_of(window)
        covered[place] += 1
        assert (place[0].start, place[0].stop) == (window.top, window.top + 40)
        assert [group.shape for group in groups] == [(40, 40)] * 2
        alone = segmenter.segment(image[place], LABELS, short_side=40)
        assert all((a == b).all() for a, b in zip(groups, alone.groups, strict=True))
    assert covered.min() == 1
    assert result.groups == ()


def test_scores_and_shares_describe_the_map() -> None:
    result = tiny().segment(photo(64, 96), LABELS)
    assert sum(result.shares) == pytest.approx(1)
    for i, (share, score) in enumerate(zip(result.shares, result.scores, strict=True)):
        assert share == (result.label_map == i).mean()
        assert 0.25 <= score <= 1 if share else score == 0


def test_a_result_becomes_plain_values() -> None:
    result = tiny().segment(photo(20, 30), ["dog", "sky"])
    values = result.to_dict()
    assert (values["width"], values["height"]) == (30, 20)
    assert [(label["index"], label["name"]) for label in values["labels"]] == [(0, "dog"), (1, "sky")]
    assert result.overlay().width >= 320


def test_more_than_256_labels_need_16_bits() -> None:
    result = tiny().segment(photo(20, 30), [f"word {i}" for i in range(257)])
    assert result.label_map.dtype == np.uint16


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "RGBA", "CMYK"])
def test_pil_images_of_every_mode_are_photos(mode: str) -> None:
    image = Image.fromarray(photo(20, 30)).convert(mode)
    segmenter = tiny()
    as_rgb = segmenter.segment(np.array(image.convert("RGB")), LABELS)
    assert (segmenter.segment(image, LABELS).label_map == as_rgb.label_map).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision_gives_nearly_the_same_map(dtype: torch.dtype) -> None:
    exact = tiny().segment(photo(64, 96), LABELS)
    assert share_of_equal(tiny(dtype=dtype).segment(photo(64, 96), LABELS), exact) > (
        0.99 if dtype == torch.float32 else 0.6
    )


def test_bf16_gives_nearly_the_same_map_and_scores_in_float32() -> None:
    segmenter = tiny(dtype=torch.float32)
    exact = segmenter.segment(photo(64, 96), LABELS)
    segmenter.precision = "bf16"
    result = segmenter.segment(photo(64, 96), LABELS)
    assert share_of_equal(result, exact) > 0.6
    assert not np.array_equal(result.confidence, exact.confidence)
    assert result.confidence.dtype == np.float32
    assert segmenter.embed_words(["dog"], ("a {}",)).dtype == torch.float32


@pytest.mark.parametrize("faster", [True, False])
def test_the_precision_is_what_is_faster_unless_one_is_asked_for(faster: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "bfloat16_is_faster", lambda *_: faster)
    model, config = tiny().model, tiny().config
    assert Segmenter(model, config).precision == ("bf16" if faster else "fp32")
    assert Segmenter(model, config, precision="bf16").precision == "bf16"


def test_a_view_and_its_fields_are_the_same() -> None:
    segmenter, image = tiny(), photo(64, 96)
    fields: Any = {"maps": "hard", "background": 0.4, **SLIDING}
    one = segmenter.segment(image, LABELS, View(**fields))
    assert (one.label_map == segmenter.segment(image, LABELS, **fields).label_map).all()
    other = segmenter.segment(image, LABELS, View(**fields), background=None)
    assert one.names == ("background", *other.names)


def test_features_are_kept_on_demand() -> None:
    segmenter, image = tiny(), photo(32, 32)
    assert segmenter.segment(image, LABELS).windows[0].features is None
    (window,) = segmenter.segment([image, photo(32, 32, 1)], LABELS, keep_features=True)[0].windows
    expected, _ = reference(segmenter, image)
    assert window.features is not None
    torch.testing.assert_close(window.features.segments, expected.segments)
    assert window.features.ungrouped[0].segments.shape == expected.ungrouped[0].segments.shape


def test_segmenting_leaves_no_gradient_and_no_training_mode() -> None:
    segmenter = tiny()
    assert not segmenter.model.training
    segmenter.segment(photo(32, 32), LABELS)
    assert all(parameter.grad is None for parameter in segmenter.model.parameters())


def test_a_file_is_one_photo_however_it_is_given(tmp_path: Path) -> None:
    exif, deep = Image.Exif(), Image.fromarray(np.asarray(Image.linear_gradient("L")).astype(np.uint16) * 257)
    exif[0x0112] = 6
    Image.fromarray(photo(20, 30)).save(tmp_path / "turned.jpg", exif=exif)
    deep.save(tmp_path / "deep.png")
    for file in (tmp_path / "turned.jpg", tmp_path / "deep.png"):
        with Image.open(file) as image:
            results = tiny().segment([load_rgb(file, "x"), image, file, str(file)], LABELS)
        assert all(np.array_equal(result.confidence, results[0].confidence) for result in results[1:])


def test_labels_may_be_a_dictionary() -> None:
    shares = tiny().segment(photo(20, 30), {"person": ["man", "woman"], "animal": "dog,cat"}).shares
    assert shares == tiny().segment(photo(20, 30), ["person=man,woman", "animal=dog,cat"]).shares


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4, 3)),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((2, 4, 4, 3), np.uint8),
        Image.new("RGB", (0, 3)),
        b"",
        b"JPEG",
        bytearray(),
    ],
)
def test_what_is_no_photo_is_refused(image: Any) -> None:
    with pytest.raises(InputError, match="an image is"):
        tiny().segment(image, LABELS)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"templates": ()}, "templates"),
        ({"templates": None}, "templates"),
        ({"templates": [1]}, "templates"),
        ({"view": View(templates=("{}",)), "templates": "no"}, "templates"),
        ({"templates": ("a photo",)}, "templates"),
        ({"batch_size": 0}, "whole number from 1"),
        ({"batch_size": 2.0}, "whole number from 1"),
        ({"batch_size": 10**30}, "from 1 to 65536"),
        ({"background": math.nan}, "a score between 0 and 1"),
        ({"background": -0.1}, "a score between 0 and 1"),
        ({"background": 1.1}, "a score between 0 and 1"),
        ({"background": "0.5"}, "a score between 0 and 1"),
        ({"background": True}, "a score between 0 and 1"),
        ({"background": False}, r"none \(None in Python\)"),
        ({"antialias": "no"}, "must be True or False"),
        ({"short_side": 48.5}, "whole numbers"),
        ({"short_side": "48"}, "whole numbers"),
        ({"window": 32.0}, "whole numbers"),
        ({"short_side": 10**6}, "enlarges a photo to 1000000 x 1000000 pixels"),
        ({"short_side": 10**5, "window": 32}, "choose a smaller one, or a window"),
        ({"short_side": 0}, "at least 1"),
        ({"window": 0}, "at least 1"),
        ({"window": 8, "stride": 0}, "at least 1"),
        ({"window": 8, "stride": 9}, "stride of 9"),
        ({"stride": 9}, "stride of 9"),
    ],
)
def test_impossible_settings_are_refused(options: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        tiny().segment(photo(20, 20), LABELS, **options)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("options", [{"precision": "fp16"}, {"precision": "float32"}, {"device": "gpu"}])
def test_an_impossible_precision_or_device_is_refused(options: Any) -> None:
    segmenter = tiny()
    with pytest.raises(InputError, match=str(*options.values())):
        Segmenter(segmenter.model, segmenter.config, **options)


def test_a_threshold_needs_a_rival_label() -> None:
    with pytest.raises(InputError, match="rivals for 'dog'"):
        tiny().segment(photo(20, 20), ["dog"], background=0.5)


def test_words_that_training_never_saw_are_named_once_or_to_whoever_asks() -> None:
    segmenter = tiny()
    seen = Tokenizer()(["a photo of a dog.", "zeppelin-like grass"]).unique()
    native.forget_unseen(segmenter.model, seen)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        segmenter.segment(photo(32, 32), ["dog", "grass"])
    for _ in range(2):
        segmenter.words.told.clear()
        with pytest.warns(UserWarning, match="training never saw: zebra, dogfish"):
            segmenter.segment(photo(32, 32), ["dog", "animal=zebra,dogfish", "grass"])
    segmenter.segment(photo(32, 32), ["dog", "animal=zebra,dogfish", "grass"])


def test_a_word_that_is_longer_than_the_model_reads_is_told() -> None:
    segmenter = tiny()
    length = segmenter.config.text.context_length
    with pytest.warns(UserWarning, match=r"this model reads only the beginning of: very very .* dog$"):
        segmenter.segment(photo(32, 32), ["cat", "very " * length + "dog"])
    fits = " ".join(["very"] * (length - 2 - 6)) + " dog"  # start, "a photo of a", ".", end
    assert int(segmenter.words._tokenizer(f"a photo of a {fits}.")[0].argmax()) == length - 1
    segmenter.segment(photo(32, 32), ["cat", fits])


def test_a_model_with_a_trunk_sees_photos_whole_at_twice_the_size_and_longer_ones_in_windows() -> None:
    segmenter = tiny(
        Stage(0, output_groups=4, seeded=True), dtype=torch.float32, image_size=32, stem="efficientnet-lite0"
    )
    for (height, width), windows in (
        ((20, 20), [(0, 0, 64, 64)]),
        ((40, 20), [(0, 0, 128, 64)]),
        ((20, 50), [(0, 0, 64, 128), (0, 32, 64, 128)]),
    ):
        found = segmenter.segment(photo(height, width), LABELS)
        assert [(window.top, window.left, window.height, window.width) for window in found.windows] == windows
        assert found.label_map.shape == (height, width)


def test_three_numbers_of_seeded_groups_name_a_pixel_together() -> None:
    segmenter = tiny(Stage(0, output_groups=8, seeded=True), dtype=torch.float32, stem="efficientnet-lite0")
    image, seeded = photo(64, 96), segmenter.model.image_encoder.stages[0].seeded
    found = segmenter.segment(image, LABELS).windows
    alone = []
    seeded.others = ()
    for seeded.groups in (8, 4, 16):
        alone += segmenter.segment(image, LABELS).windows
    size = (found[0].height, found[0].width)
    (table, rows), (expected, others) = (shared_scores(windows, size, 8) for windows in (found, alone))
    torch.testing.assert_close(table[rows], expected[others])


def with_rivals(*rivals: str) -> Segmenter:
    segmenter = tiny()
    return Segmenter(segmenter.model, replace(segmenter.config, rivals=rivals), device="cpu", precision="fp32")


def test_rivals_take_pixels_from_a_lone_label() -> None:
    result = with_rivals("grass", "sky").segment(photo(64, 96), ["dog"])
    assert result.names == ("background", "dog")
    assert 0 < result.shares[1] < 1
    worded = tiny().segment(photo(64, 96), ["background=grass,sky", "dog"])
    assert (result.label_map == worded.label_map).all()


def test_a_model_without_rivals_and_background_none_name_every_pixel() -> None:
    alone = tiny().segment(photo(64, 96), LABELS)
    assert alone.names == tuple(LABELS)
    unasked = with_rivals("water", "wall").segment(photo(64, 96), LABELS, background=None)
    assert (unasked.label_map == alone.label_map).all()
    assert unasked.names == alone.names
    kin_alone = with_rivals("puppy", "animal").segment(photo(64, 96), ["dog"])
    assert kin_alone.names == ("dog",)


def test_a_threshold_and_a_worded_background_keep_the_rivals_out() -> None:
    segmenter = with_rivals("water", "wall")
    labels = ["background=grass,sky", "dog", "cat"]
    for options in ({"background": 0.3}, {}):
        expected = tiny().segment(photo(64, 96), labels, **options)
        assert (segmenter.segment(photo(64, 96), labels, **options).label_map == expected.label_map).all()


def test_a_synonym_that_is_taken_for_something_else_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    segmenter, vectors = with_rivals("airplane", "plane", "cat"), {"airplane": 0.0, "plane": 0.5, "aeroplane": 2.0}
    vectors |= {"jet": 0.9, "cat": 2.0, "kitten": 2.5}  # angles in the plane

    def embed(words: list[str], _: object) -> torch.Tensor:
        angles = torch.tensor([vectors[word.lower()] for word in words])
        return torch.stack([angles.cos(), angles.sin()], dim=1)

    monkeypatch.setattr(segmenter.words, "embed", embed)
    kept = {
        "flyer=aeroplane,Airplane,plane,jet": ("Airplane", "plane", "jet"),  # cosines 0.07, 0.92
        "flyer=plane,aeroplane": ("plane",),
        "cat=kitten,cat": ("kitten", "cat"),
        "flyer=aeroplane,jet": ("aeroplane", "jet"),  # no noun to compare with
        "aeroplane": ("aeroplane",),
        "background=airplane,aeroplane": ("airplane",),
    }
    for text, words in kept.items():
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            assert segmenter.words.without_strangers([text])[0].words == words
        dropped = set(text.partition("=")[2].split(",")) - set(words) if "=" in text else set()
        assert [str(warning.message).rpartition("not by ")[2] for warning in said] == sorted(dropped)


@pytest.mark.parametrize("size", [(64, 96), (63, 97)])
def test_a_reduced_result_shows_the_same(size: tuple[int, int]) -> None:
    result = tiny().segment(photo(*size), LABELS)
    small = result.reduced(math.ceil(size[0] * size[1] / 4))
    assert result.reduced(10_000) is result
    assert small.image.size == small.label_map.shape[::-1] == small.groups[0].shape[::-1]
    assert (small.label_map == result.label_map[::2, ::2]).all()
    assert (small.groups[0] == result.groups[0][::2, ::2]).mean() > 0.8


def test_shares_and_scores_of_a_large_photo_are_counted_in_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tiny().segment(photo(20, 30), LABELS)
    monkeypatch.setattr(module, "_COUNTED", 70)
    strips = tiny().segment(photo(20, 30), LABELS)
    assert strips.shares == whole.shares
    assert strips.scores == pytest.approx(whole.scores)
