"""The network: pure modules without files, ground truth or process groups."""

from groupvit.models.config import (
    PAPER,
    RELEASE,
    ImageEncoderConfig,
    ModelConfig,
    Stage,
    TextEncoderConfig,
    with_stages,
)
from groupvit.models.dual_encoder import SEGMENT_LOGIT_BIAS, GroupViT, build_model, temperature, weights_digest
from groupvit.models.grouping import Assignment
from groupvit.models.image_encoder import ImageFeatures, Ungrouped
from groupvit.models.preprocessing import IMAGENET_MEAN, IMAGENET_STD, normalize

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "PAPER",
    "RELEASE",
    "SEGMENT_LOGIT_BIAS",
    "Assignment",
    "GroupViT",
    "ImageEncoderConfig",
    "ImageFeatures",
    "ModelConfig",
    "Stage",
    "TextEncoderConfig",
    "Ungrouped",
    "build_model",
    "normalize",
    "temperature",
    "weights_digest",
    "with_stages",
]
