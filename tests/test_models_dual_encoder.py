from dataclasses import replace

import pytest
import torch
from torch import nn

from groupvit.models import (
    PAPER,
    RELEASE,
    ImageEncoderConfig,
    ModelConfig,
    Stage,
    build_model,
    temperature,
    with_stages,
)


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_release_has_the_size_of_the_published_model():
    with torch.device("meta"):
        model = build_model(RELEASE)
    assert count(model.image_encoder) == 28_837_136
    assert count(model.text_encoder) == 22_145_792
    assert count(model) == 55_726_609 + 1  # the port leaves out the second temperature


def test_paper_preset_has_no_pre_assignment_attention_no_eps_and_clips_text_encoder():
    with torch.device("meta"):
        model = build_model(PAPER)
    grouping = model.image_encoder.stages[0].grouping
    assert grouping.pre_assign_attn is None
    assert isinstance(grouping.token_mixer, nn.Identity)
    assert grouping.assign.eps == 0
    assert model.text_encoder.pos_embed.shape == (77, 512)
    assert not hasattr(model, "multi_label_logit_scale")


@pytest.mark.parametrize("preset", [RELEASE, PAPER], ids=["release", "paper"])
@pytest.mark.parametrize(
    "stages",
    [
        (Stage(6, 64, 64), Stage(3, 8, 8), Stage(3)),
        (Stage(6, 64, 8), Stage(6)),
        (Stage(6, 16, 4), Stage(6)),
        (Stage(6, 64, 16), Stage(6)),
        (Stage(12),),
    ],
)
def test_every_table_of_the_paper_builds_from_stages(preset, stages):
    small = replace(preset, image=replace(preset.image, dim=24))
    model = build_model(with_stages(small, *stages))
    features = model.image_encoder(torch.zeros(1, 3, 224, 224))
    assert len(model.image_encoder.stages) == len(stages)
    assert features.segments.shape[1] == next((s.output_groups for s in reversed(stages) if s.output_groups), 196)


def test_initialisation_is_the_releases():
    torch.manual_seed(0)
    model = build_model(RELEASE).image_encoder
    first, second, _ = model.stages
    assert first.group_tokens.std().item() == pytest.approx(0.02, rel=0.1)
    assert not second.group_tokens.any()
    assert first.blocks[0].attn.qkv.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert not first.blocks[0].attn.qkv.bias.any()
    assert model.pos_embed.std().item() == pytest.approx(0.02, rel=0.05)


def test_temperatures_start_at_007_and_are_clamped_at_100():
    with torch.device("cpu"):
        model = build_model(with_stages(RELEASE, Stage(1)))
    assert temperature(model.logit_scale).item() == pytest.approx(1 / 0.07)
    assert temperature(model.multi_label_logit_scale).item() == pytest.approx(1 / 0.07)
    assert temperature(torch.tensor(9.0)).item() == 100


def test_embeddings_are_unit_vectors():
    config = ModelConfig(ImageEncoderConfig(32, 8, 32, 2, stages=(Stage(1, 4, 4),)), embed_dim=16, projector_dim=32)
    model = build_model(config).eval()
    features = model.image_encoder(torch.randn(2, 3, 32, 32))
    for embedding in (
        model.embed_image_features(features.pooled),
        model.embed_image_features(features.segments),
        model.encode_text(torch.tensor([[1, 9, 49407], [1, 49407, 0]])),
    ):
        torch.testing.assert_close(embedding.norm(dim=-1), torch.ones(embedding.shape[:-1]))


def test_projectors_treat_segments_like_pooled_features_at_test_time():
    projector = build_model(replace(RELEASE, projector_dim=64)).eval().image_projector
    segments = torch.randn(2, 8, 384)
    torch.testing.assert_close(projector(segments)[1, 3:4], projector(segments[1, 3:4]), atol=1e-5, rtol=1e-5)
