import math

import pytest
import torch
import torch.nn.functional as F

from groupvit.training.losses import contrastive_loss, multi_label_loss, segment_noun_loss

BATCH, COUNT, DIM, SEGMENTS, WORDS = 5, 3, 8, 4, 6
SCALE = torch.tensor(7.0, dtype=torch.float64)


def unit(*shape: int) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, DIM, dtype=torch.float64), dim=-1)


def dot(a: torch.Tensor, b: torch.Tensor) -> float:
    return math.exp(7 * float(a @ b))


@pytest.mark.parametrize(("form", "factor"), [("release", 0.5), ("paper", 1.0)])
def test_contrastive_loss_is_equation_6(form, factor):
    images, texts = unit(BATCH), unit(BATCH)
    total = 0.0
    for i in range(BATCH):
        to_text = sum(dot(images[i], texts[j]) for j in range(BATCH))
        to_image = sum(dot(images[j], texts[i]) for j in range(BATCH))
        own = dot(images[i], texts[i])
        total -= math.log(own / to_text) / BATCH + math.log(own / to_image) / BATCH
    assert contrastive_loss(images, texts, SCALE, form).item() == pytest.approx(factor * total, rel=1e-9)


@pytest.mark.parametrize("form", ["release", "paper"])
def test_multi_label_loss_is_equation_7_or_the_releases_mean_of_logarithms(form):
    images, prompts = unit(BATCH), unit(BATCH, COUNT)
    to_text = to_image = 0.0
    for i in range(BATCH):
        everything = sum(dot(images[i], prompts[j, k]) for j in range(BATCH) for k in range(COUNT))
        own = [dot(images[i], prompts[i, k]) / everything for k in range(COUNT)]
        if form == "paper":
            to_text -= math.log(sum(own)) / BATCH
        else:
            to_text -= sum(math.log(p) for p in own) / COUNT / BATCH
        for k in range(COUNT):
            rivals = sum(dot(prompts[i, k], images[j]) for j in range(BATCH))
            to_image -= math.log(dot(prompts[i, k], images[i]) / rivals) / (COUNT * BATCH)
    expected = (to_text + to_image) * (1.0 if form == "paper" else 0.5)
    assert multi_label_loss(images, prompts, SCALE, form).item() == pytest.approx(expected, rel=1e-9)


def test_with_one_prompt_the_multi_label_loss_is_the_contrastive_loss():
    images, texts = unit(BATCH), unit(BATCH)
    for form in ("release", "paper"):
        expected = contrastive_loss(images, texts, SCALE, form)
        torch.testing.assert_close(multi_label_loss(images, texts[:, None], SCALE, form), expected)


def segment_inputs():
    segments, nouns = unit(BATCH, SEGMENTS), unit(WORDS)
    occupied = torch.rand(BATCH, SEGMENTS) < 0.6
    occupied[:, 0] = True
    present = torch.rand(BATCH, WORDS) < 0.3
    weights = torch.rand(WORDS, dtype=torch.float64)
    return segments, occupied, nouns, present, weights


def test_segment_noun_loss_is_the_naive_double_loop():
    segments, occupied, nouns, present, weights = segment_inputs()
    bias, total = -2.0, 0.0
    for b in range(BATCH):
        for v in range(WORDS):
            odds = sum(dot(segments[b, s], nouns[v]) * math.exp(bias) for s in range(SEGMENTS) if occupied[b, s])
            p = odds / (1 + odds)
            total -= float(weights[v]) * math.log(p if present[b, v] else 1 - p) / BATCH
    loss = segment_noun_loss(
        segments, occupied, nouns, present, SCALE, torch.tensor(bias, dtype=torch.float64), weights
    )
    assert loss.item() == pytest.approx(total, rel=1e-9)


def test_empty_segments_do_not_matter_and_get_no_gradient():
    segments, occupied, nouns, present, weights = segment_inputs()
    segments.requires_grad_()
    bias = torch.tensor(-2.0, dtype=torch.float64)
    segment_noun_loss(segments, occupied, nouns, present, SCALE, bias, weights).backward()
    assert segments.grad is not None
    assert segments.grad.isfinite().all()
    assert not segments.grad[~occupied].any()
    assert segments.grad[occupied].abs().sum(dim=-1).min() > 0


def test_the_segment_that_fits_a_noun_best_learns_most_from_it():
    segments, _, nouns, _, _ = segment_inputs()
    segments.requires_grad_()
    occupied, bias = torch.ones(BATCH, SEGMENTS, dtype=torch.bool), torch.tensor(-2.0, dtype=torch.float64)
    present, weights = torch.ones(BATCH, 1, dtype=torch.bool), torch.ones(1, dtype=torch.float64)
    segment_noun_loss(segments, occupied, nouns[:1], present, SCALE, bias, weights).backward()
    assert segments.grad is not None
    assert torch.equal(segments.grad.norm(dim=-1).argmax(dim=1), (segments @ nouns[0]).argmax(dim=1))
