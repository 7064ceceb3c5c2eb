"""Scores of a model while it is trained."""

import math
from collections.abc import Callable
from pathlib import Path

from groupvit.errors import InputError, input_error
from groupvit.evaluation.datasets import MaskFolder
from groupvit.evaluation.metrics import mean_iou
from groupvit.evaluation.retrieval import Retrieval
from groupvit.evaluation.scoring import score
from groupvit.models import GroupViT, ModelConfig
from groupvit.segmentation.labels import parse_labels
from groupvit.segmentation.segmenter import Segmenter

Evaluate = Callable[[GroupViT], dict[str, float]]


def evaluation_of(config: ModelConfig, data: Path, held_out: str) -> Evaluate:
    """Return what measures a model: mean IoU if `held_out` in `data` is a folder with masks, retrieval of shards."""
    if held_out.endswith(".tar"):
        return Retrieval(held_out, config, data)
    photos = MaskFolder.open(data / held_out)
    with input_error(str(data / held_out), InputError):  # no threshold here, so no bare background either
        parse_labels(photos.labels)
    if not (read := list(photos)):
        raise InputError(f"{data / held_out} has no photos to score")

    def evaluate(model: GroupViT) -> dict[str, float]:
        segmenter = Segmenter(model, config, device=model.logit_scale.device, precision="fp32")
        scores = score(segmenter, read, photos.labels)
        values = {"miou": mean_iou(scores.named), "oracle_miou": mean_iou(scores.oracle)}
        return {name: value for name, value in values.items() if not math.isnan(value)}  # a plain ViT has no groups

    return evaluate
