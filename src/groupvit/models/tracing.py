"""Modules as ONNX graphs, for tensors of any size."""

import io
import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

OPSET = 18

EXAMPLE = (2, 3, 240, 320)
"""Images to trace with. Of a square, learned positions could be traced without being resampled."""


def onnx_runtime() -> Any:
    """Return ONNX Runtime, without its telemetry, which gives this device an id and tells Microsoft of sessions."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    return onnxruntime


def onnx_graph(
    module: nn.Module, examples: Mapping[str, Tensor], outputs: Sequence[str], axes: Mapping[str, Sequence[str | None]]
) -> bytes:
    """Return the module as an ONNX model; `axes` names those of any length, for inputs and where outputs have them."""
    file: Any = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # shapes that Python compares; the tests run other ones
        torch.onnx.export(
            module,
            tuple(examples.values()),
            file,
            dynamo=False,  # the other exporter simplifies formulas of sizes, and takes minutes for a trunk's
            opset_version=OPSET,
            training=torch.onnx.TrainingMode.PRESERVE,  # batch norms stay: float16 weights remain what they were
            input_names=list(examples),
            output_names=list(outputs),
            dynamic_axes={name: {i: a for i, a in enumerate(named) if a} for name, named in axes.items()},
        )
    return file.getvalue()
