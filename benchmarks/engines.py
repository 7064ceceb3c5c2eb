"""The image encoder in each engine: GroupViT-S at random weights, that of `transformers`, and the default model."""

import os
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from benchmarks import peer
from benchmarks.timing import Clock, Rows, alternate, times_faster, worthwhile
from torch import Tensor

import groupvit
from groupvit.models import RELEASE, GroupViT, build_model
from groupvit.segmentation.engine import Engine, encoder_in

SHAPES = ((8, 224), (32, 224))
PRECISIONS = {"float32": False, "bfloat16": True}
PYTORCH = "PyTorch"


def _autocast(encode: Callable[[Tensor], Any], images: Tensor, bfloat16: bool) -> Any:
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        return encode(images)


def ours(model: GroupViT, images: Tensor, name: str = "ours") -> dict[str, Callable[[], Any]]:
    """Return the ways of our encoder; ONNX Runtime computes in float32 only."""
    engines: dict[str, Engine] = {PYTORCH: "torch", "OpenVINO": "openvino", "ONNX Runtime": "onnxruntime"}
    encoders = {label: encoder_in(engine, model.image_encoder) for label, engine in engines.items()}
    return {
        f"{name}, {label}, {precision}": partial(_autocast, encoder, images, bfloat16)
        for label, encoder in encoders.items()
        for precision, bfloat16 in PRECISIONS.items()
        if not (bfloat16 and label == "ONNX Runtime")
    }


def theirs(model: Any, images: Tensor, folder: Path) -> dict[str, Callable[[], Any]]:
    """Return the ways of the encoder of `transformers`, which takes squares of 224 px only."""
    found: dict[str, Callable[[], Any]] = {}
    for precision, bfloat16 in PRECISIONS.items():
        compiled = peer.seeing_in_openvino(model, folder, bfloat16=bfloat16)
        found[f"transformers, {PYTORCH}, {precision}"] = partial(_autocast, peer.seeing(model), images, bfloat16)
        found[f"transformers, OpenVINO, {precision}"] = partial(compiled, images)
    return found


def rows(rounds: int, clock: Clock) -> Rows:
    """The peer is the faster of our two ways in PyTorch."""
    torch.manual_seed(0)
    release, bundled, table = build_model(RELEASE).eval(), groupvit.load("photos-trunk", engine="torch").model, []
    other = peer.port(release, RELEASE)
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, {"XDG_CACHE_HOME": folder}):
        for batch, side in (*SHAPES, (4, 448)):
            images = torch.randn(batch, 3, side, side)
            if side == RELEASE.image.image_size:
                ways = ours(release, images) | theirs(other, images, Path(folder))
            else:
                ways = ours(bundled, images, "photos-trunk")
            with torch.inference_mode():
                seconds = alternate(worthwhile(ways), rounds, clock)
            table += _rows(f"{batch} of {side} px", seconds)
    return table


def _rows(images: str, seconds: dict[str, list[float]]) -> Rows:
    own = [name for name in seconds if PYTORCH in name and not name.startswith("transformers")]
    best = min(own, key=lambda name: statistics.median(seconds[name]))
    found = []
    for name, spent in seconds.items():
        ratio, low, high = times_faster(spent, seconds[best])
        cells = {"times ours in PyTorch": f"{ratio:.2f}", "quartiles": f"{low:.2f} to {high:.2f}"}
        found.append({"images": images, "way": name, "ms": f"{1000 * statistics.median(spent):,.1f}", **cells})
    return found
