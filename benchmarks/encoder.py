"""The image encoder beside that of `transformers`: GroupViT-S, random weights, noise for photos."""

import statistics
from functools import partial
from typing import Any

import torch
from benchmarks import peer
from benchmarks.peak import flops, matrix_rates
from benchmarks.timing import Clock, Rows, alternate, versus, worthwhile
from torch import Tensor

from groupvit.models import RELEASE, GroupViT, build_model

SHAPES = ((1, 224), (8, 224), (32, 224), (1, 448), (8, 448))
"""Images at once, and their side."""
OURS = {"ours, float32": torch.float32, "ours, bfloat16": torch.bfloat16}
PEER = "transformers, float32"
THEIRS = {PEER: torch.float32, "transformers, bfloat16": torch.bfloat16}


def ours(model: GroupViT, images: Tensor, dtype: torch.dtype) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        return model.image_encoder(images).pooled


def theirs(model: Any, images: Tensor, dtype: torch.dtype) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        return model.vision_model(images, return_dict=True).pooler_output


def agreement(a: Tensor, b: Tensor, dtype: torch.dtype) -> str:
    if dtype == torch.bfloat16:
        return f"cosine {torch.cosine_similarity(a.float(), b).min():.4f}"
    return f"difference {(a - b).abs().max():.0e}"


def rows(rounds: int, clock: Clock, shapes: tuple[tuple[int, int], ...] = SHAPES) -> Rows:
    torch.manual_seed(0)
    model = build_model(RELEASE).eval()
    other, rates, table = peer.port(model, RELEASE), matrix_rates(clock), []
    for batch, side in shapes:
        images = torch.randn(batch, 3, side, side)
        ways = {name: partial(ours, model, images, dtype) for name, dtype in OURS.items()}
        if side == RELEASE.image.image_size:  # the only one that theirs takes
            ways = {name: partial(theirs, other, images, dtype) for name, dtype in THEIRS.items()} | ways
        ways = worthwhile(ways)
        with torch.no_grad():
            work = flops(ways["ours, float32"])
        with torch.inference_mode():
            outputs = {name: way() for name, way in ways.items()}
            seconds = alternate(ways, rounds, clock)
        for name in ways:
            dtype, first = (OURS | THEIRS)[name], next(iter(outputs))
            rate = work / statistics.median(seconds[name])
            table.append(
                {
                    "images": f"{batch} of {side} px",
                    "way": name,
                    **versus(seconds, name, PEER),
                    "% of peak": f"{100 * rate / rates[dtype]:.0f}",
                    "to the first way": agreement(outputs[name], outputs[first], dtype) if name != first else "",
                }
            )
    return table
