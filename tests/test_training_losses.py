import math
from collections.abc import Callable
from itertools import product

import pytest
import torch
import torch.nn.functional as F

from groupvit.training import losses
from groupvit.training.losses import (
    contrastive_loss,
    local_alignment_loss,
    multi_label_loss,
    multi_positive_multi_label_loss,
    segment_noun_loss,
    teacher_loss,
)

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
    known = present | (torch.rand(BATCH, WORDS) < 0.7)
    weights = torch.rand(WORDS, dtype=torch.float64)
    return segments, occupied, nouns, present, known, weights


def test_segment_noun_loss_is_the_naive_double_loop():
    segments, occupied, nouns, present, known, weights = segment_inputs()
    bias, total = -2.0, 0.0
    for b in range(BATCH):
        for v in known[b].nonzero().flatten().tolist():
            odds = sum(dot(segments[b, s], nouns[v]) * math.exp(bias) for s in range(SEGMENTS) if occupied[b, s])
            p = odds / (1 + odds)
            total -= float(weights[v]) * math.log(p if present[b, v] else 1 - p) / BATCH
    loss = segment_noun_loss(
        segments, occupied, nouns, present, known, SCALE, torch.tensor(bias, dtype=torch.float64), weights
    )
    assert loss.item() == pytest.approx(total, rel=1e-9)


def test_empty_segments_do_not_matter_and_get_no_gradient():
    segments, occupied, nouns, present, known, weights = segment_inputs()
    segments.requires_grad_()
    bias = torch.tensor(-2.0, dtype=torch.float64)
    segment_noun_loss(segments, occupied, nouns, present, known, SCALE, bias, weights).backward()
    assert segments.grad is not None
    assert segments.grad.isfinite().all()
    assert not segments.grad[~occupied].any()
    assert segments.grad[occupied].abs().sum(dim=-1).min() > 0


def test_a_noun_that_is_not_known_is_neither_there_nor_missing():
    segments, occupied, nouns, present, _, weights = segment_inputs()
    known = torch.rand(BATCH, WORDS) < 0.6
    known[0], known[1:3], known[:, 1] = False, True, False

    def gradients(present: torch.Tensor) -> tuple[torch.Tensor, ...]:
        bias = torch.full((WORDS,), -2.0, dtype=torch.float64)
        leaves = [tensor.clone().requires_grad_() for tensor in (segments, nouns, bias)]
        loss = segment_noun_loss(leaves[0], occupied, leaves[1], present, known, SCALE, leaves[2], weights)
        return torch.autograd.grad(loss, leaves)

    of_segments, of_nouns, of_bias = gradients(present)
    assert not of_segments[0].any()
    assert not of_nouns[1].any()
    assert not of_bias[1]
    assert of_segments[1].any()
    assert of_nouns[0].any()
    assert all(map(torch.equal, gradients(present ^ ~known), (of_segments, of_nouns, of_bias)))


def test_the_segment_that_fits_a_noun_best_learns_most_from_it():
    segments, _, nouns, *_ = segment_inputs()
    segments.requires_grad_()
    occupied, bias = torch.ones(BATCH, SEGMENTS, dtype=torch.bool), torch.tensor(-2.0, dtype=torch.float64)
    present, weights = torch.ones(BATCH, 1, dtype=torch.bool), torch.ones(1, dtype=torch.float64)
    segment_noun_loss(segments, occupied, nouns[:1], present, present, SCALE, bias, weights).backward()
    assert segments.grad is not None
    assert torch.equal(segments.grad.norm(dim=-1).argmax(dim=1), (segments @ nouns[0]).argmax(dim=1))


# Photo 0 draws prompt 1 twice; prompts 0 and 1 belong to several photos; photo 3 shares nothing.
COUNTS = torch.tensor([[1, 2, 0, 0, 0], [2, 0, 1, 0, 0], [1, 1, 1, 0, 0], [0, 0, 0, 3, 0], [0, 1, 0, 0, 2]])
DISTINCT = torch.eye(BATCH, dtype=torch.int64).repeat_interleave(COUNT, dim=1)
BIAS = torch.tensor(-2.0, dtype=torch.float64)


def gradient(loss: Callable[[torch.Tensor], torch.Tensor], at: torch.Tensor) -> torch.Tensor:
    (result,) = torch.autograd.grad(loss(at.requires_grad_()), at)
    return result


@pytest.mark.parametrize("form", ["release", "paper"])
def test_multi_positive_loss_is_the_naive_loop_over_photos_and_drawn_prompts(form):
    images, prompts = unit(BATCH), unit(5)
    drawn = [[p for p in range(5) for _ in range(int(COUNTS[i, p]))] for i in range(BATCH)]
    copies = [p for own in drawn for p in own]
    to_text = to_image = 0.0
    for i, own in enumerate(drawn):
        everything = sum(dot(images[i], prompts[p]) for p in copies)
        column = {p: copies.count(p) * dot(images[i], prompts[p]) / everything for p in own}
        if form == "paper":
            to_text -= math.log(sum(column.values())) / BATCH
        else:
            to_text -= sum(math.log(column[p]) for p in own) / len(own) / BATCH
        for p in own:
            rivals = sum(dot(images[j], prompts[p]) for j in range(BATCH) if p not in drawn[j])
            to_image -= math.log(dot(images[i], prompts[p]) / (dot(images[i], prompts[p]) + rivals)) / len(copies)
    expected = (to_text + to_image) * (1.0 if form == "paper" else 0.5)
    loss = multi_positive_multi_label_loss(images, prompts, COUNTS, SCALE, form)
    assert loss.item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("form", ["release", "paper"])
def test_if_all_prompts_differ_the_multi_positive_loss_is_the_multi_label_loss(form):
    images, prompts = unit(BATCH), unit(BATCH, COUNT)
    expected = multi_label_loss(images, prompts, SCALE, form)
    loss = multi_positive_multi_label_loss(images, prompts.flatten(0, 1), DISTINCT, SCALE, form)
    torch.testing.assert_close(loss, expected, rtol=1e-14, atol=0)


@pytest.mark.parametrize("form", ["release", "paper"])
def test_photos_of_one_prompt_reach_a_loss_that_the_multi_label_loss_cannot(form):
    """Two photos that match their common prompt are told apart by the one and left alone by the other."""
    prompts, scale = torch.eye(2, dtype=torch.float64), torch.tensor(100.0, dtype=torch.float64)
    images = prompts[[0, 0, 1]]
    loss = multi_positive_multi_label_loss(images, prompts, torch.tensor([[1, 0], [1, 0], [0, 1]]), scale, form)
    assert loss.item() == pytest.approx(0, abs=1e-12)
    floor = math.log(2) * 2 / 3 * (2 if form == "paper" else 1)
    assert multi_label_loss(images, images[:, None], scale, form).item() == pytest.approx(floor)


def test_no_photo_is_pushed_from_a_prompt_it_drew():
    """With prompts for axes, an image's coordinates are its similarities."""
    prompts, images = torch.eye(3, dtype=torch.float64), unit(BATCH)[:, :3].contiguous()
    images[0] = prompts[0]  # better than the other two photos of this prompt
    counts = torch.tensor([[1, 0, 0], [1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    own = prompts[counts.argmax(dim=1)][:, None]
    assert gradient(lambda at: multi_label_loss(at, own, SCALE), images)[0, 0] > 0
    for form in ("release", "paper"):
        slope = gradient(
            lambda at, form=form: multi_positive_multi_label_loss(at, prompts, counts, SCALE, form), images
        )
        assert (slope[counts > 0] < 0).all()
        assert (slope[counts == 0] > 0).all()


def test_the_multi_positive_loss_is_least_where_photos_of_one_prompt_all_match_it():
    """Two opposite prompts: each photo's best place is its prompt."""
    prompts = unit(1) * torch.tensor([[1.0], [-1.0]])
    counts = torch.tensor([[1, 0], [1, 0], [0, 1]])
    best = multi_positive_multi_label_loss(prompts[[0, 0, 1]], prompts, counts, SCALE)
    for photo in range(3):
        images = prompts[[0, 0, 1]]
        images[photo] = F.normalize(images[photo] + 0.3 * unit(), dim=-1)
        assert multi_positive_multi_label_loss(images, prompts, counts, SCALE) > best


def test_a_prompt_that_every_photo_drew_teaches_nothing():
    images, prompts, counts = unit(BATCH), unit(1), torch.ones(BATCH, 1, dtype=torch.int64)
    assert multi_positive_multi_label_loss(images, prompts, counts, SCALE).item() == 0
    assert not gradient(lambda at: multi_positive_multi_label_loss(at, prompts, counts, SCALE), images).any()


def test_the_mean_over_all_targets_is_the_multi_label_loss_with_repeated_prompts():
    """Hard targets of equal prompts average, so supervised contrastive targets alone would change nothing."""
    images, distinct = unit(BATCH), unit(2)
    drawn = torch.tensor([0, 0, 0, 1, 1])
    log_p = (SCALE * distinct @ images.T).log_softmax(dim=1)
    to_images = -torch.stack([log_p[p, drawn == p].mean() for p in drawn]).mean()
    to_texts = -(SCALE * images @ distinct[drawn].T).log_softmax(dim=1).diagonal().mean()
    loss = multi_label_loss(images, distinct[drawn][:, None], SCALE, "paper")
    torch.testing.assert_close(loss, to_images + to_texts)


def alignment_inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    occupied, exist = torch.rand(BATCH, SEGMENTS) < 0.6, torch.rand(BATCH, WORDS) < 0.6
    occupied[:, 1] = exist[:, 2] = True
    return unit(BATCH, SEGMENTS), occupied, unit(BATCH, WORDS), exist


def test_local_alignment_loss_is_the_naive_loop_over_pairs_segments_and_words():
    segments, occupied, words, exist = alignment_inputs()
    to_text, to_image = torch.zeros(2, BATCH, BATCH, dtype=torch.float64)
    for i, j in product(range(BATCH), range(BATCH)):
        own = [segment for s, segment in enumerate(segments[i]) if occupied[i, s]]
        named = [word for w, word in enumerate(words[j]) if exist[j, w]]
        to_text[i, j] = sum(max(float(segment @ word) for word in named) for segment in own) / len(own)
        to_image[i, j] = sum(max(float(segment @ word) for segment in own) for word in named) / len(named)
    total = 0.0
    for i in range(BATCH):
        total -= math.log(math.exp(7 * to_text[i, i]) / sum(math.exp(7 * to_text[i, j]) for j in range(BATCH))) / BATCH
        total -= (
            math.log(math.exp(7 * to_image[i, i]) / sum(math.exp(7 * to_image[j, i]) for j in range(BATCH))) / BATCH
        )
    loss = local_alignment_loss(segments, occupied, words, exist, SCALE)
    assert loss.item() == pytest.approx(total / 2, rel=1e-9)


def test_with_one_segment_and_one_word_local_alignment_is_the_contrastive_loss():
    images, texts, all_of_them = unit(BATCH), unit(BATCH), torch.ones(BATCH, 1, dtype=torch.bool)
    loss = local_alignment_loss(images[:, None], all_of_them, texts[:, None], all_of_them, SCALE)
    torch.testing.assert_close(loss, contrastive_loss(images, texts, SCALE))


def test_local_alignment_in_parts_is_the_whole(monkeypatch):
    segments, occupied, words, exist = alignment_inputs()

    def loss(at: torch.Tensor) -> torch.Tensor:
        return local_alignment_loss(at, occupied, words, exist, SCALE)

    whole = loss(segments), gradient(loss, segments)
    monkeypatch.setattr(losses, "_ROWS_AT_ONCE", 2)
    torch.testing.assert_close((loss(segments), gradient(loss, segments)), whole)


def test_empty_segments_and_missing_words_change_nothing_and_get_no_gradient():
    segments, occupied, words, exist = alignment_inputs()
    before = local_alignment_loss(segments, occupied, words, exist, SCALE)
    to_segments = gradient(lambda at: local_alignment_loss(at, occupied, words, exist, SCALE), segments)
    to_words = gradient(lambda at: local_alignment_loss(segments.detach(), occupied, at, exist, SCALE), words)
    assert not to_segments[~occupied].any()
    assert not to_words[~exist].any()
    assert to_segments[occupied].abs().sum(dim=-1).min() > 0
    assert to_words[exist].abs().sum(dim=-1).min() > 0
    with torch.no_grad():
        segments[~occupied], words[~exist] = 100.0, -100.0
    assert torch.equal(local_alignment_loss(segments, occupied, words, exist, SCALE), before)
    again = gradient(lambda at: local_alignment_loss(at, occupied, words.detach(), exist, SCALE), segments)
    assert torch.equal(again, to_segments)


def test_the_order_of_the_photos_does_not_matter():
    images, prompts, order = unit(BATCH), unit(5), torch.randperm(BATCH)
    segments, occupied, words, exist = alignment_inputs()
    for first, second in (
        (
            multi_positive_multi_label_loss(images, prompts, COUNTS, SCALE),
            multi_positive_multi_label_loss(images[order], prompts, COUNTS[order], SCALE),
        ),
        (
            local_alignment_loss(segments, occupied, words, exist, SCALE),
            local_alignment_loss(segments[order], occupied[order], words[order], exist[order], SCALE),
        ),
    ):
        torch.testing.assert_close(first, second)


def test_the_gradients_are_the_finite_differences():
    images, prompts, texts = unit(BATCH), unit(5), unit(BATCH)
    segments, occupied, words, exist = alignment_inputs()
    scale, bias = SCALE.clone(), BIAS.clone()
    for leaf in (images, prompts, texts, segments, words, scale, bias):
        leaf.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda i, p, s: multi_positive_multi_label_loss(i, p, COUNTS, s, "release"), (images, prompts, scale)
    )
    assert torch.autograd.gradcheck(
        lambda i, p, s: multi_positive_multi_label_loss(i, p, COUNTS, s, "paper"), (images, prompts, scale)
    )
    assert torch.autograd.gradcheck(
        lambda part, word, s: local_alignment_loss(part, occupied, word, exist, s), (segments, words, scale)
    )


def test_the_teacher_loss_is_the_cross_entropy_of_each_cell():
    generator = torch.Generator().manual_seed(3)
    cells, classes = (torch.randn(*shape, dtype=torch.float64, generator=generator) for shape in ((2, 3, 4), (5, 4)))
    taught = torch.rand(2, 3, 5, dtype=torch.float64, generator=generator).softmax(dim=-1)
    expected = []
    for photo in range(2):
        for cell in range(3):
            logits = [float(SCALE * (cells[photo, cell] * name).sum()) for name in classes]
            total = math.log(sum(math.exp(logit) for logit in logits))
            expected.append(sum(float(p) * (total - x) for p, x in zip(taught[photo, cell], logits, strict=True)))
    found = teacher_loss(cells, classes, taught, SCALE)
    assert float(found) == pytest.approx(sum(expected) / 6, abs=1e-12)
