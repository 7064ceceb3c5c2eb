"""Seconds per photo of `Segmenter` beside the straightforward way, on the same photos in the same run.

GroupViT-S with random weights, PASCAL VOC's twenty labels, the windows of the published evaluation.
"""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from benchmarks import straightforward
from benchmarks.timing import Clock, Rows, alternate, versus, worthwhile
from PIL import Image

from groupvit.evaluation.datasets import CLASSES
from groupvit.models import RELEASE, build_model
from groupvit.segmentation import Segmenter, View
from groupvit.segmentation.segmenter import Precision

LABELS: list[str] = CLASSES["names"]["voc"]
WINDOW = 448
STRIDE = 224

Maps = list[np.ndarray]
Way = Callable[[Sequence[Image.Image]], Maps]


def ways() -> dict[str, Way]:
    """What is compared: the first is the yardstick, the last the default of `groupvit evaluate`."""
    torch.manual_seed(0)
    model = build_model(RELEASE).eval()

    def first(photos: Sequence[Image.Image]) -> Maps:
        return [straightforward.segment(model, photo, LABELS, window=WINDOW, stride=STRIDE) for photo in photos]

    def ours(precision: Precision) -> Way:
        segmenter = Segmenter(model, RELEASE, device="cpu", precision=precision)
        view = View(short_side=WINDOW, window=WINDOW, stride=STRIDE)
        return lambda photos: [result.label_map for result in segmenter.segment(list(photos), LABELS, view)]

    return {"straightforward": first, "ours, float32": ours("fp32"), "ours, bfloat16": ours("bf16")}


def rows(photos: Sequence[Image.Image], rounds: int, clock: Clock) -> Rows:
    """A few photos again and again, each way a call for all of them, for medians and their spread."""
    compared = worthwhile(ways())
    calls = {name: partial(way, photos) for name, way in compared.items()}
    seconds, maps, table = alternate(calls, rounds, clock), {name: call() for name, call in calls.items()}, []
    yardstick, *_ = compared
    for name in compared:
        equal = np.mean([(a == b).mean() for a, b in zip(maps[name], maps[yardstick], strict=True)])
        cells = versus({way: [each / len(photos) for each in own] for way, own in seconds.items()}, name, yardstick)
        table.append({"way": name, **cells, "% equal pixels": f"{100 * equal:.3f}"})
    return table
