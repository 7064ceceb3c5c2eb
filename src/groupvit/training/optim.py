"""AdamW's parameter groups and the learning-rate schedule (§4.1)."""

import math
from typing import Any

from torch import nn

NO_DECAY = ("pos_embed", "group_tokens")


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay is for matrices and word vectors, not for positions, group tokens, scales, norms and biases."""
    decayed, kept = [], []
    for name, parameter in model.named_parameters():
        keep = parameter.ndim < 2 or name.split(".")[-1] in NO_DECAY
        (kept if keep else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]


def learning_rate(
    step: int, *, steps: int, warmup: int, peak: float, start: float, end: float, warmup_prefix: bool = True
) -> float:
    """Linear from `start` to `peak` over `warmup` steps, then a cosine to `end` at step `steps`.

    With `warmup_prefix` the cosine starts at the peak where the warm-up ends; without (the release) it has been falling
    since step 0, and the rate drops onto it.
    """
    if step < warmup:
        return start + (peak - start) * step / warmup
    first = warmup if warmup_prefix else 0
    progress = (step - first) / max(1, steps - first)
    return end + (peak - end) * (1 + math.cos(math.pi * progress)) / 2
