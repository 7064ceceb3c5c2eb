from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn

from groupvit.models import GroupViT, ImageEncoderConfig, ModelConfig, Stage, TextEncoderConfig, build_model
from groupvit.training.optim import (
    MuonAndAdamW,
    Optimizer,
    Schedule,
    hidden_matrices,
    make_optimizer,
    orthogonal,
    parameter_groups,
    set_rate,
)

SCHEDULE = Schedule(steps=100, warmup=10, lr=1.6e-3, lr_start=4e-6, lr_end=4e-5)


def small_model() -> GroupViT:
    stages = (Stage(1, 4, 4), Stage(1, 2, 2))
    image = ImageEncoderConfig(32, 8, 32, 2, stages=stages, assign_logits="cosine", stem="conv")
    text = TextEncoderConfig(width=16, heads=2, layers=1)
    return build_model(ModelConfig(image, text, segment_loss=True))


def test_positions_group_tokens_scales_norms_and_biases_are_not_decayed():
    model = small_model()
    decayed, kept = parameter_groups(model, Optimizer(weight_decay=0.05))
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.05, 0.0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = [{names[id(parameter)] for parameter in group["params"]} for group in (decayed, kept)]
    assert groups[0].isdisjoint(groups[1])
    assert groups[0] | groups[1] == set(names.values())
    for name in groups[1]:
        last, module = name.split(".")[-1], name.split(".")[-2] if "." in name else ""
        assert (
            last in ("bias", "pos_embed", "group_tokens", "scale")
            or "scale" in last
            or "bias" in last
            or ("norm" in module or module.isdigit())
        )
    for name in groups[0]:
        assert name.endswith("weight")
        assert "norm" not in name
    assert "text_encoder.pos_embed" in groups[1]
    assert "image_encoder.stages.1.group_tokens" in groups[1]
    assert "image_encoder.stages.0.grouping.assign.scale" in groups[1]
    assert "logit_scale" in groups[1]
    assert "text_encoder.token_embedding.weight" in groups[0]


def test_muon_is_for_what_maps_features_to_features():
    model = small_model()
    names = hidden_matrices(model)
    rest = {name for name, parameter in model.named_parameters() if parameter.ndim > 1} - names
    assert rest == {
        "image_encoder.stem.0.weight",
        "image_encoder.pos_embed",
        "image_encoder.stages.0.group_tokens",
        "image_encoder.stages.1.group_tokens",
        "text_encoder.pos_embed",
        "text_encoder.token_embedding.weight",
    }
    patches = build_model(ModelConfig(ImageEncoderConfig(32, 8, 32, 2, stages=(Stage(1),))))
    assert "image_encoder.stem.weight" not in hidden_matrices(patches)


@pytest.mark.parametrize("bfloat16", [True, False])
def test_muon_steps_kernels_as_matrices_and_adamw_the_rest(bfloat16: bool) -> None:
    torch.manual_seed(0)
    model = small_model()
    optimizer = make_optimizer(model, Optimizer(weight_decay=0.0, muon=4.0), bfloat16=bfloat16)
    set_rate(optimizer, 2e-3)
    assert sorted(group["lr"] for group in optimizer.param_groups) == [2e-3, 2e-3, 8e-3]
    hidden = set(hidden_matrices(model))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        step = parameter.detach() - before[name]
        if name in hidden:  # one size in all directions, as far as five iterations get
            sizes = torch.linalg.svdvals(step.flatten(1)) / (0.2 * 8e-3 * max(step.flatten(1).shape) ** 0.5)
            assert sizes.quantile(0.1) > 0.65, name
            assert sizes.max() < 1.25, name
        else:
            torch.testing.assert_close(step.abs(), torch.full_like(step, 2e-3), rtol=0.02, atol=0)
    optimizer.zero_grad()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_orthogonal_keeps_the_directions_and_levels_their_sizes() -> None:
    torch.manual_seed(0)
    for shape in ((12, 30), (30, 12)):
        left, sizes, right = torch.linalg.svd(torch.randn(shape), full_matrices=False)
        found = left.T @ orthogonal(left * sizes @ right, torch.float32) @ right.T
        assert found.diagonal().min() > 0.65
        assert found.diagonal().max() < 1.25
        torch.testing.assert_close(found, found.diagonal().diag(), rtol=0, atol=1e-4)
    assert not orthogonal(torch.zeros(3, 4), torch.float32).any()


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="PyTorch 2.9 brought Muon")
def test_steps_of_matrices_are_those_of_pytorchs_muon() -> None:
    torch.manual_seed(0)
    ours, theirs = (nn.Linear(6, 9, bias=False) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    settings: dict[str, Any] = {"lr": 0.01, "weight_decay": 0.5}
    steps = (
        MuonAndAdamW([{"params": [ours.weight], "muon": True, **settings}], torch.bfloat16),
        torch.optim.Muon([theirs.weight], adjust_lr_fn="match_rms_adamw", **settings),
    )
    for _ in range(4):
        ours.weight.grad = torch.randn(9, 6)
        theirs.weight.grad = ours.weight.grad.clone()
        for optimizer in steps:
            optimizer.step()
        torch.testing.assert_close(ours.weight, theirs.weight, rtol=0, atol=1e-4)


def test_muon_decays_what_it_steps_and_leaves_what_has_no_gradient() -> None:
    weights = [nn.Parameter(torch.ones(2, 3, 1, 1)) for _ in range(2)]
    weights[0].grad = torch.zeros(2, 3, 1, 1)
    group = {"params": weights, "muon": True, "lr": 0.1, "weight_decay": 0.5}
    MuonAndAdamW([group], torch.float32).step()
    torch.testing.assert_close(weights[0].detach(), torch.full((2, 3, 1, 1), 0.95))
    assert torch.equal(weights[1].detach(), torch.ones(2, 3, 1, 1))


def test_schedule_warms_up_linearly_and_falls_along_a_cosine():
    rates = [SCHEDULE.rate(step) for step in range(101)]
    assert rates[0] == 4e-6
    assert rates[5] == pytest.approx((4e-6 + 1.6e-3) / 2)
    assert max(rates) == rates[10] == 1.6e-3
    assert rates[55] == pytest.approx((1.6e-3 + 4e-5) / 2)
    assert rates[100] == pytest.approx(4e-5)
    assert all(earlier > later for earlier, later in pairwise(rates[10:]))


def test_schedule_without_warm_up_starts_at_the_peak():
    assert replace(SCHEDULE, warmup=0).rate(0) == 1.6e-3


def test_without_the_prefix_the_cosine_has_fallen_since_step_0_and_the_rate_drops_onto_it():
    schedule = replace(SCHEDULE, steps=30_000, warmup=2000, warmup_prefix=False)
    rates = [schedule.rate(step) for step in (0, 1999, 2000, 15_000, 30_000)]
    assert rates == pytest.approx([4e-6, 1.6e-3, 1.583e-3, (1.6e-3 + 4e-5) / 2, 4e-5], rel=6e-4)
    assert rates[2] < rates[1]
    with_prefix = [replace(schedule, warmup_prefix=True).rate(step) for step in (0, 1999, 2000, 30_000)]
    assert with_prefix[:2] == rates[:2]
    assert with_prefix[2:] == pytest.approx([1.6e-3, 4e-5])


def test_decay_shrinks_only_the_decayed_group():
    model = torch.nn.Linear(3, 3)
    before = model.bias.detach().clone(), model.weight.detach().clone()
    optimizer = torch.optim.AdamW(parameter_groups(model, Optimizer(weight_decay=0.5)), lr=0.1)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert torch.equal(model.bias, before[0])
    torch.testing.assert_close(model.weight, before[1] * 0.95)
