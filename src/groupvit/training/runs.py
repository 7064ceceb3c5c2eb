"""The named runs: every number of a training, in one place."""

from dataclasses import dataclass, replace
from typing import Literal

from groupvit.errors import InputError
from groupvit.models import ImageEncoderConfig, ModelConfig, Stage, TextEncoderConfig
from groupvit.text.nouns import Style
from groupvit.training.losses import Form


@dataclass(frozen=True)
class Run:
    """What a training is made of besides its data folder and its seed.

    `train` and `held_out` are patterns of shards inside the data folder (`held_out` may be a folder with masks).
    `prompts` is K of the multi-label loss (Eq. 7; 0 turns it off). `segment_weight` and `patch_weight` weigh the noun
    loss over segments, and over patches as segments of their own, for the nouns that at least `min_count` photos have.
    Rates are per step; `warmup` and `steps` count optimiser steps. `crop` is the share of a photo's area.
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
    patch_weight: float = 0.0
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
            token_mixer=False,
            pre_assign_attention=False,
            group_residual=False,
        ),
        text=TextEncoderConfig(width=dim, heads=dim // 32, layers=text_layers, context_length=32),
        embed_dim=128,
        projector_dim=512,
        projector_norm="batch",
        multi_label_scale=False,
        segment_loss=True,
    )


SCENES = Run(
    model=_small(64, 8, 128, (Stage(3, 16, 16),), text_layers=2),
    train="train/*.tar",
    held_out="eval",
    steps=2400,
    batch_size=32,
    lr=5e-4,
    warmup=200,
    crop=(0.6, 1.0),
    caption_weight=0.1,
    segment_weight=0.5,
    patch_weight=0.5,
    evaluate_every=650,
    save_every=650,
)

# The published recipe, options and losses untouched, on a model of the size of `scenes` and as many pictures: only the
# numbers of layers, tokens and photos are scaled down.
SCENES_RELEASE = Run(
    model=ModelConfig(
        image=ImageEncoderConfig(
            image_size=64, patch_size=8, dim=128, heads=4, stages=(Stage(2, 16, 16), Stage(1, 8, 8), Stage(1))
        ),
        text=TextEncoderConfig(width=128, heads=4, layers=2),
        embed_dim=128,
        projector_dim=512,
    ),
    train="train/*.tar",
    held_out="eval",
    steps=600,
    batch_size=128,
    lr=1.6e-3,
    lr_end=4e-5,
    warmup=40,
    prompts=3,
    noun_style="release",
)

FLICKR8K = Run(
    model=_small(96, 16, 192, (Stage(4, 16, 8),), text_layers=3),
    train="flickr8k-train-*.tar",
    held_out="flickr8k-test-*.tar",
    steps=800,
    batch_size=256,
    warmup=100,
    weight_decay=0.1,
    crop=(0.4, 1.0),
    caption_weight=1.0,
    segment_weight=0.1,
    patch_weight=0.1,
    min_count=20,
    evaluate_every=100,
    save_every=100,
)

RUNS: dict[str, Run] = {
    "scenes": SCENES,
    "scenes-release": SCENES_RELEASE,
    "scenes-long": replace(SCENES, steps=14_000, lr=1e-3),
    "flickr8k": FLICKR8K,
    "debug": replace(SCENES, steps=10, warmup=2, batch_size=16, evaluate_every=10, min_count=2),
}
"""All but `flickr8k` train on the folder that `groupvit data scenes` writes."""


def get_run(name: str) -> Run:
    """The run of that name; an unknown name is an `InputError` that lists the known ones."""
    if name not in RUNS:
        raise InputError(f"no run is called {name!r}; there are: {', '.join(RUNS)}")
    return RUNS[name]
