"""Our model against `transformers`' independent implementation, at random weights."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from groupvit.checkpoints import transformers as layout
from groupvit.models import (
    RELEASE,
    GroupViT,
    ImageEncoderConfig,
    ModelConfig,
    Stage,
    TextEncoderConfig,
    build_model,
    temperature,
)

from_pretrained: Any = transformers.GroupViTModel.from_pretrained
SMALL = replace(
    RELEASE,
    image=ImageEncoderConfig(
        image_size=64, patch_size=8, dim=64, heads=2, stages=(Stage(2, 8, 8), Stage(1, 4, 3), Stage(1)), assign_eps=0.5
    ),
    text=TextEncoderConfig(width=32, heads=2, layers=2, context_length=12, vocab_size=100),
    embed_dim=24,
    projector_dim=48,
)
ONE_STAGE = replace(SMALL, image=replace(SMALL.image, stages=(Stage(2, 8, 3), Stage(2))))
PLAIN = replace(SMALL, image=replace(SMALL.image, stages=(Stage(3),)))
CONFIGS = {"small": SMALL, "1-stage": ONE_STAGE, "plain ViT": PLAIN, "ViT-S": RELEASE}


def randomise(model: GroupViT) -> GroupViT:
    """Every weight and statistic away from its initial value, at a scale that keeps activations near one."""
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 2)
            elif name.endswith("logit_scale"):
                tensor.uniform_(2, 4)
            elif tensor.is_floating_point():
                norm = tensor.ndim == 1 and name.endswith("weight")
                fan_in = tensor[0].numel() if name.endswith("weight") and tensor.ndim > 1 else 9
                tensor.normal_(1.0 if norm else 0.0, fan_in**-0.5)
    return model


@dataclass(frozen=True)
class Outputs:
    image: Tensor
    text: Tensor
    logits: Tensor
    soft: tuple[Tensor, ...]


def inputs(config: ModelConfig, dtype: torch.dtype, count: int = 8) -> tuple[Tensor, Tensor]:
    images = torch.randn(count, 3, config.image.image_size, config.image.image_size, dtype=dtype)
    length, end = config.text.context_length, config.text.vocab_size - 1
    tokens = torch.randint(1, end - 1, (count, length))
    for row, position in zip(tokens, torch.randint(1, length, (count,)), strict=True):
        row[position] = end
        row[position + 1 :] = 0
    return images, tokens


@torch.no_grad()
def ours(model: GroupViT, images: Tensor, tokens: Tensor) -> Outputs:
    features = model.image_encoder(images)
    image, text = model.embed_image_features(features.pooled), model.encode_text(tokens)
    soft = tuple(assignment.soft for assignment in features.assignments)
    return Outputs(image, text, temperature(model.logit_scale) * image @ text.T, soft)


@torch.no_grad()
def theirs(model: Any, images: Tensor, tokens: Tensor) -> Outputs:
    out = model(input_ids=tokens, pixel_values=images, output_attentions=True)
    return Outputs(out.image_embeds, out.text_embeds, out.logits_per_image, out.vision_model_output.attentions)


def port(config: ModelConfig, folder: Path) -> tuple[GroupViT, Any]:
    model = randomise(build_model(config)).eval()
    layout.save(folder, model, config)
    other, info = from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    return model, other.eval()


@pytest.mark.parametrize("name", CONFIGS)
def test_float64_equals_the_port_to_nine_digits(name: str, tmp_path: Path) -> None:
    config = CONFIGS[name]
    model, other = (each.double() for each in port(config, tmp_path))
    batch = inputs(config, torch.float64)
    a, b = ours(model, *batch), theirs(other, *batch)
    assert len(a.soft) == len(b.soft) == sum(stage.group_tokens > 0 for stage in config.image.stages)
    pairs = {"image": (a.image, b.image), "text": (a.text, b.text), "logits": (a.logits, b.logits)}
    pairs |= {f"soft maps {i}": pair for i, pair in enumerate(zip(a.soft, b.soft, strict=True))}
    errors = {what: float((x - y).abs().max()) for what, (x, y) in pairs.items()}
    print(f"\n{name}, float64:", {what: f"{error:.1e}" for what, error in errors.items()})
    assert a.logits.std() > 0.1  # the inputs matter, so equality says something
    assert max(errors.values()) < 1e-9


@pytest.mark.parametrize("name", CONFIGS)
def test_float32_equals_the_port_where_no_assignment_flips(name: str, tmp_path: Path) -> None:
    config = CONFIGS[name]
    model, other = port(config, tmp_path)
    images, tokens = inputs(config, torch.float32)
    a, b = ours(model, images, tokens), theirs(other, images, tokens)
    flips = [(x.argmax(1) != y.argmax(1)).flatten(1) for x, y in zip(a.soft, b.soft, strict=True)]
    flips = torch.cat([*flips, torch.zeros(len(images), 1, dtype=torch.bool)], dim=1)
    same = ~flips.any(dim=1)
    pairs = [(a.image[same], b.image[same]), (a.text, b.text)]
    pairs += [(x[same], y[same]) for x, y in zip(a.soft, b.soft, strict=True)]
    error = max(float((x - y).abs().max()) for x, y in pairs)
    print(
        f"\n{name}, float32: {error:.1e} over {int(same.sum())} of {len(same)} images, {flips.float().mean():.3%} flips"
    )
    assert same.sum() >= 6
    assert flips.float().mean() <= 1e-3
    assert error < 1e-5


def test_the_second_temperature_survives_the_port_and_scales_the_same_cosines(tmp_path: Path) -> None:
    model, other = port(SMALL, tmp_path)
    back, _ = layout.load(tmp_path)
    assert torch.equal(back.multi_label_logit_scale, model.multi_label_logit_scale)
    assert not torch.equal(model.multi_label_logit_scale, model.logit_scale)
    model, other, batch = model.double(), other.double(), inputs(SMALL, torch.float64)
    a, b = ours(model, *batch), theirs(other, *batch)
    cosines = b.logits / other.logit_scale.exp()
    second = temperature(model.multi_label_logit_scale)
    assert torch.allclose(second * a.image @ a.text.T, second * cosines, rtol=0, atol=1e-9)


@pytest.mark.parametrize("size", [(448, 672), (333, 500)])
def test_other_sizes_than_the_port_s_run(size: tuple[int, int]) -> None:
    model = randomise(build_model(RELEASE)).eval()
    with torch.no_grad():
        features = model.image_encoder(torch.randn(1, 3, *size))
    grid = (-(-size[0] // 16), -(-size[1] // 16))
    assert features.grid == grid
    assert features.assignments[0].soft.shape == (1, 64, grid[0] * grid[1])
    assert features.groups().isfinite().all()
