"""`Segmenter.segment` on one photo, end to end, beside `transformers` used as well as one can.

GroupViT-S with random weights. The photo is a square, so that both see it whole in 224 x 224 pixels. A first call has
labels that were not seen before; a repeated one has their embeddings. Their tokens are padded to 77 or, as another
peer, to the longest label.
"""

import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import skimage
import torch
from benchmarks import peer
from benchmarks.timing import Clock, Rows, alternate, bfloat16_pays, versus, worthwhile
from PIL import Image
from torch import Tensor

from groupvit.evaluation.datasets import CLASSES
from groupvit.models import RELEASE, GroupViT, build_model, normalize
from groupvit.segmentation import Segmentation, Segmenter
from groupvit.segmentation.segmenter import Precision
from groupvit.text.imagenet import imagenet_names
from groupvit.text.templates import SIMPLE_TEMPLATE
from groupvit.text.tokenizer import Tokenizer

SIDE = RELEASE.image.image_size
PEER = "transformers"
LABELS = (20, 150)


def labels_of(count: int) -> list[str]:
    """VOC's twenty classes, or else the first names of ImageNet's."""
    return CLASSES["names"]["voc"] if count == 20 else list(dict.fromkeys(imagenet_names()))[:count]


def their_texts(model: Any, labels: list[str], *, padded: bool) -> Tensor:
    tokens = Tokenizer()([SIMPLE_TEMPLATE.format(label) for label in labels])
    return peer.embed_texts(model, tokens if padded else tokens[:, : int(tokens.argmax(dim=1).max()) + 1])


def their_map(model: Any, see: Callable[[Tensor], Any], photo: Image.Image, texts: Tensor) -> Tensor:
    small = photo.resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    pixels = normalize(torch.from_numpy(np.array(small)).permute(2, 0, 1)[None])
    return peer.segment(model, see, pixels, texts, (photo.height, photo.width))


def first_calls(model: GroupViT, other: Any, photo: Image.Image, labels: list[str]) -> dict[str, Any]:
    """A new Segmenter knows no label."""
    see = peer.seeing(other)

    def theirs(padded: bool) -> Tensor:
        return their_map(other, see, photo, their_texts(other, labels, padded=padded))

    def new(precision: Precision) -> Segmentation:
        return Segmenter(model, RELEASE, device="cpu", precision=precision).segment(photo, labels)

    return {
        PEER: partial(theirs, True),
        f"{PEER}, padded to the longest": partial(theirs, False),
        "ours, float32": partial(new, "fp32"),
        "ours, bfloat16": partial(new, "bf16"),
    }


def repeated_calls(model: GroupViT, other: Any, photo: Image.Image, labels: list[str], folder: Path) -> dict[str, Any]:
    float32 = Segmenter(model, RELEASE, device="cpu", precision="fp32")
    bfloat16 = Segmenter(model, RELEASE, device="cpu", precision="bf16")
    fast = bfloat16_pays()
    engine = Segmenter(model, RELEASE, precision="bf16" if fast else "fp32", engine="openvino")
    theirs = partial(their_map, other, photo=photo, texts=their_texts(other, labels, padded=True))
    see = peer.seeing(other)

    def theirs_bfloat16() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return theirs(see)

    in_openvino = f"OpenVINO, {'bfloat16' if fast else 'float32'}"
    return {
        PEER: partial(theirs, see),
        f"{PEER}, bfloat16": theirs_bfloat16,
        f"{PEER}, {in_openvino}": partial(theirs, peer.seeing_in_openvino(other, folder, bfloat16=fast)),
        "ours, float32": partial(float32.segment, photo, labels),
        "ours, bfloat16": partial(bfloat16.segment, photo, labels),
        f"ours, {in_openvino}": partial(engine.segment, photo, labels),
    }


def rows(rounds: int, clock: Clock) -> Rows:
    torch.manual_seed(0)
    model = build_model(RELEASE).eval()
    other, photo, table = peer.port(model, RELEASE), Image.fromarray(skimage.data.astronaut()), []
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, {"XDG_CACHE_HOME": folder}):
        repeated = partial(repeated_calls, folder=Path(folder))
        for count in LABELS:
            for call, calls in (("first", first_calls), ("repeated", repeated)):
                with torch.inference_mode():
                    ways = worthwhile(calls(model, other, photo, labels_of(count)))
                    seconds = alternate(ways, rounds, clock)
                named = {"labels": str(count), "call": call}
                table += [{**named, "way": name, **versus(seconds, name, PEER)} for name in seconds]
    return table
