from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from groupvit.data.batches import Batch
from groupvit.models import (
    GroupViT,
    ImageEncoderConfig,
    ImageFeatures,
    ModelConfig,
    Stage,
    TextEncoderConfig,
    build_model,
    noise,
)
from groupvit.text.tokenizer import Tokenizer
from groupvit.training.objective import (
    Captions,
    LocalAlignment,
    MultiLabel,
    Nouns,
    Objective,
    Teacher,
    Vocabulary,
    terms_of,
)
from groupvit.training.self_supervised import Classify, Dino, Moco
from groupvit.training.step import Learner, gradient_of

IMAGE = ImageEncoderConfig(16, 4, 32, 2, stages=(Stage(2, 6, 6), Stage(1, 3, 3)), drop_path=0.3)
RELEASE = ModelConfig(IMAGE, TextEncoderConfig(32, 2, 1, context_length=24), embed_dim=16, projector_dim=32)
OURS = replace(
    RELEASE,
    image=replace(IMAGE, stages=(Stage(2, 6, 6),), stem="conv", assign_logits="cosine", group_residual=False),
    multi_label_scale=False,
    segment_loss=True,
)
SOFT = replace(RELEASE, image=replace(IMAGE, hard_assignment=False))
PLAIN = replace(RELEASE, image=replace(IMAGE, stages=(Stage(2),)), multi_label_scale=False)


@dataclass(frozen=True)
class Case:
    """A model and its objective; with `early` the trunk's maps take the place of the images."""

    model: ModelConfig
    objective: Objective
    early: bool = False


CASES = {
    "release": Case(RELEASE, (Captions(), MultiLabel())),
    "paper": Case(RELEASE, (Captions(form="paper"), MultiLabel(form="paper"))),
    "soft": Case(SOFT, (Captions(), MultiLabel())),
    "plain ViT, captions only": Case(PLAIN, (Captions(),)),
    "nouns": Case(OURS, (Captions(), Nouns("segment", 0.5), Nouns("patch", 0.25))),
    "nouns, prior": Case(OURS, (Captions(), Nouns("segment", 0.5, prior=1.0), Nouns("patch", 0.25, prior=1.0))),
    "two stages, nouns": Case(
        replace(OURS, image=replace(OURS.image, stages=(Stage(1, 6, 6), Stage(0, 3, 3)))),
        (Captions(), Nouns("segment", 0.5), Nouns("patch", 0.25, prior=1.0)),
    ),
    "distinct prompts": Case(RELEASE, (Captions(), MultiLabel(distinct=True))),
    "local": Case(RELEASE, (Captions(), LocalAlignment(0.5))),
    "local, nouns": Case(OURS, (Captions(), LocalAlignment(0.5), Nouns("segment", 0.5))),
    "patch dropout": Case(
        replace(OURS, image=replace(OURS.image, patch_dropout=0.5)),
        (Captions(), Nouns("segment", 0.5), Nouns("patch", 0.5)),
    ),
    "nouns alone": Case(OURS, (Nouns("segment", 1.0),)),
}
TRUNK = replace(
    RELEASE,
    image=ImageEncoderConfig(
        32, 8, 32, 2, stages=(Stage(0, output_groups=3, seeded=True),), drop_path=0.0, stem="efficientnet-lite0"
    ),
    multi_label_scale=False,
    segment_loss=True,
    teacher_loss=True,
)
CASES["trunk"] = Case(TRUNK, (Captions(), Nouns("segment", 0.5), Teacher(0.25)))
CASES["trunk, patches, early maps"] = Case(
    TRUNK, (Captions(), Nouns("segment", 0.5), Nouns("patch", 0.5), Teacher(0.25)), early=True
)
CASES["trunk, its classifier alone"] = Case(TRUNK, (Teacher(0.25),))
RIVALS = Case(PLAIN, (Dino(prototypes=16, local_crops=1, hidden=8), Moco(hidden=8), Classify()))
"""Of photos alone, and so without chunks."""
TOKENIZER = Tokenizer(24)
KEYS = noise.sample_keys(0, 7, torch.arange(16))


def batch_of(case: Case) -> tuple[Batch, Vocabulary]:
    """Sixteen photos with captions of many lengths, three prompts each where the run has prompts, and a few nouns.

    The captions of the last seven are made of tags, of a source that does not know every noun.
    """
    generator, prompted = torch.Generator().manual_seed(0), terms_of(case.objective, MultiLabel)
    count = prompted[0].prompts if prompted else 0
    nouns = ["dog", "cat", "hat", "tree"]
    captions = ["a " + " and a ".join(nouns[: 1 + i % 4]) + " again" * i for i in range(16)]
    prompts = TOKENIZER([f"a photo of a {nouns[(i * i) % 4]}." for i in range(16 * count)])
    present = torch.rand(16, 4, generator=generator) < 0.4
    human = torch.arange(16) < 9
    known = present | human[:, None] | torch.tensor([True, False, True, False])
    classes = [[nouns[i % 4], f"thing {i % 7}"] for i in range(1000)] if terms_of(case.objective, Teacher) else []
    named = any(isinstance(term, Nouns | Classify) for term in case.objective)
    words = {noun: 3 + i for i, noun in enumerate(nouns)} if named else {}
    side = case.model.image.image_size
    return Batch(
        torch.randint(0, 256, (16, 3, side, side), dtype=torch.uint8, generator=generator),
        TOKENIZER(captions),
        prompts.unflatten(0, (16, count)),
        present if words else present[:, :0],
        known if words else known[:, :0],
        human,
    ), Vocabulary.from_counts(words, 16, TOKENIZER, classes)


def model_of(case: Case, dtype: torch.dtype) -> GroupViT:
    torch.manual_seed(0)
    model = build_model(case.model).to(dtype).train()
    if model.image_encoder.trunk is not None:
        model.image_encoder.trunk.requires_grad_(False)
    return model


def gradients(
    case: Case, dtype: torch.dtype, chunk: int = 0, *, bfloat16: bool = False
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], Learner]:
    """Terms, every parameter's gradient, and the model and its objective with what their BatchNorm has seen."""
    model, (batch, words) = model_of(case, dtype), batch_of(case)
    if case.early:
        with torch.no_grad():
            batch = replace(batch, images=batch.images[:0], early=model.image_encoder.early(batch.images))
    learner = Learner(model, case.objective, words, bfloat16).to(dtype)
    terms = gradient_of(learner, chunk)(batch, KEYS)
    found = {name: parameter.grad for name, parameter in learner.named_parameters()}
    return terms, {name: gradient for name, gradient in found.items() if gradient is not None}, learner


@pytest.mark.parametrize("chunk", [4, 8])
@pytest.mark.parametrize("name", CASES)
def test_in_chunks_loss_and_gradients_are_those_of_the_whole_batch(name: str, chunk: int) -> None:
    terms, whole, model = gradients(CASES[name], torch.float64)
    again, chunked, other = gradients(CASES[name], torch.float64, chunk)
    assert terms.keys() == again.keys()
    for key, value in terms.items():
        torch.testing.assert_close(again[key], value, atol=1e-10, rtol=0)
    assert chunked.keys() == whole.keys()
    for key, gradient in whole.items():
        torch.testing.assert_close(chunked[key], gradient, atol=1e-10, rtol=0, msg=key)
    for one, two in zip(model.buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(one, two, atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", ["release", "nouns, prior"])
def test_in_float32_chunks_agree_within_rounding(name: str) -> None:
    """Of these photos no assignment is flipped by rounding; the largest gradients are in the hundreds."""
    _, whole, _ = gradients(CASES[name], torch.float32)
    _, chunked, _ = gradients(CASES[name], torch.float32, 4)
    largest = max(gradient.abs().max().item() for gradient in whole.values())
    for key, gradient in whole.items():
        torch.testing.assert_close(chunked[key] / largest, gradient / largest, atol=1e-4, rtol=0, msg=key)


def test_in_bfloat16_chunks_agree_roughly() -> None:
    terms, whole, _ = gradients(CASES["release"], torch.float32, bfloat16=True)
    again, chunked, _ = gradients(CASES["release"], torch.float32, 4, bfloat16=True)
    for key, value in terms.items():
        torch.testing.assert_close(again[key], value, atol=0.02, rtol=0.02)
    one, two = (torch.cat([g.flatten() for g in grads.values()]) for grads in (whole, chunked))
    assert torch.nn.functional.cosine_similarity(one, two, dim=0) > 0.98


def test_a_pass_keeps_to_the_groups_of_an_earlier_one() -> None:
    model, (batch, _) = model_of(CASES["release"], torch.float64), batch_of(CASES["release"])
    images = batch.images.double()
    quiet = model.image_encoder(images)
    joined = [assignment.joined for assignment in quiet.assignments]
    noisy = model.image_encoder(images, KEYS)
    forced = model.image_encoder(images, KEYS, joined=joined)
    assert any(not torch.equal(a.hard, b.hard) for a, b in zip(noisy.assignments, quiet.assignments, strict=True))
    for own, expected in zip(forced.assignments, quiet.assignments, strict=True):
        assert torch.equal(own.hard, expected.hard)


def test_no_graph_is_kept_for_more_than_a_chunk_and_the_second_pass_keeps_to_the_groups_of_the_first() -> None:
    case = CASES["release"]
    model, (batch, words) = model_of(case, torch.float32), batch_of(case)
    passes = []

    def look(module: torch.nn.Module, args: Any, given: dict[str, Any], features: ImageFeatures) -> None:
        passes.append((features.pooled.requires_grad, given["joined"], [a.joined for a in features.assignments]))
        assert len(features.pooled) == 4

    model.image_encoder.register_forward_hook(look, with_kwargs=True)
    gradient_of(Learner(model, case.objective, words), 4)(batch, KEYS)
    assert [graph for graph, _, _ in passes] == [False] * 4 + [True] * 4
    for (_, none, made), (_, kept, _) in zip(passes[:4], passes[4:], strict=True):
        assert not none
        assert len(kept) == len(made) == 2
        assert all(torch.equal(a, b) for a, b in zip(kept, made, strict=True))


def test_early_maps_teach_what_the_images_do_and_leave_the_trunk_as_it_is() -> None:
    case = CASES["trunk, patches, early maps"]
    terms, early, learner = gradients(case, torch.float64)
    again, whole, _ = gradients(replace(case, early=False), torch.float64)
    assert terms.keys() == {"caption", "segment_nouns", "patch_nouns", "teacher"}
    for key, value in terms.items():
        torch.testing.assert_close(again[key], value, atol=1e-10, rtol=0)
    assert early.keys() == whole.keys()
    assert not [name for name in whole if ".trunk." in name]
    assert {"model.image_encoder.stem.from_last.weight", "model.teacher_logit_scale"} < whole.keys()
    for key, gradient in whole.items():
        torch.testing.assert_close(early[key], gradient, atol=1e-10, rtol=0, msg=key)
    untouched = model_of(case, torch.float64).image_encoder.trunk
    assert untouched is not None
    assert learner.model.image_encoder.trunk is not None
    for one, two in zip(
        untouched.state_dict().values(), learner.model.image_encoder.trunk.state_dict().values(), strict=True
    ):
        assert torch.equal(one, two)
