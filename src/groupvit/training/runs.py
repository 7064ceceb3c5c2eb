"""The named runs: every number of a training, in one place."""

from dataclasses import dataclass
from typing import Literal

from groupvit.errors import InputError
from groupvit.models import ImageEncoderConfig, ModelConfig, Stage, TextEncoderConfig
from groupvit.text.nouns import Style
from groupvit.training.losses import Form


@dataclass(frozen=True)
class Run:
    """What a training is made of besides its data folder and its seed.

    `train` and `held_out` are patterns of shards inside the data folder. `prompts` is K of the multi-label loss (Eq. 7;
    0 turns it off), `segment_weight` the weight of the segment-level noun loss over the nouns that at least `min_count`
    photos have. Rates are per step; `warmup` and `steps` count optimiser steps. `crop` is the share of a photo's area.
    """

    model: ModelConfig
    train: str
    steps: int
    batch_size: int
    held_out: str = ""
    lr: float = 1e-3
    lr_start: float = 4e-6
    lr_end: float = 1e-5
    warmup: int = 200
    weight_decay: float = 0.05
    clip_grad: float = 5.0
    crop: tuple[float, float] = (0.08, 1.0)
    caption_weight: float = 1.0
    loss_form: Form = "release"
    prompts: int = 0
    noun_style: Style = "paper"
    segment_weight: float = 0.0
    min_count: int = 10
    precision: Literal["bfloat16", "float32"] = "bfloat16"
    evaluate_every: int = 500
    save_every: int = 500


def _small(image_size: int, patch_size: int, dim: int, stages: tuple[Stage, ...], text_layers: int) -> ModelConfig:
    """What the small runs share: the options under which segments keep to their own pixels."""
    return ModelConfig(
        image=ImageEncoderConfig(
            image_size=image_size,
            patch_size=patch_size,
            dim=dim,
            heads=dim // 32,
            stages=stages,
            drop_path=0.0,
            stem="conv",
            assign_logits="cosine",
            group_residual=False,
        ),
        text=TextEncoderConfig(width=dim, heads=dim // 32, layers=text_layers, context_length=32),
        embed_dim=128,
        projector_dim=512,
        projector_norm="layer",
        multi_label_scale=False,
        segment_loss=True,
    )


SCENES = Run(
    model=_small(64, 8, 128, (Stage(3, 16, 8),), text_layers=2),
    train="train/*.tar",
    held_out="eval",
    steps=600,
    batch_size=128,
    crop=(0.5, 1.0),
    caption_weight=0.3,
    segment_weight=1.0,
)

RUNS: dict[str, Run] = {
    "scenes": SCENES,
}


def get_run(name: str) -> Run:
    """The run of that name; an unknown name is an `InputError` that lists the known ones."""
    if name not in RUNS:
        raise InputError(f"no run is called {name!r}; there are: {', '.join(RUNS)}")
    return RUNS[name]
