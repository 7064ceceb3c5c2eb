"""How time and memory grow: GroupViT-S in float32, each size in a process of its own.

    python -m benchmarks.growth batch 16

prints seconds of the processor, and the bytes that one call holds at its peak beyond those of the loaded model.
"""

import math
import statistics
import time
from collections.abc import Callable
from typing import Annotated, Literal

import numpy as np
import torch
import tyro
from benchmarks.one_photo import labels_of
from benchmarks.startup import launch
from benchmarks.timing import Rows, exponent
from PIL import Image

from groupvit.machine import keep_freed_memory, peak_memory
from groupvit.models import RELEASE, Stage, build_model, with_stages
from groupvit.segmentation import Segmenter

What = Literal["side", "batch", "groups", "labels", "windows"]
SIZES: dict[What, tuple[int, ...]] = {
    "side": (224, 448, 672, 896),
    "batch": (1, 2, 4, 8, 16),
    "groups": (16, 32, 64, 128, 256),
    "labels": (10, 30, 100, 300, 990),
    "windows": (6, 15, 30, 63),
}
NAMES: dict[What, str] = {
    "side": "image encoder: image side, px",
    "batch": "image encoder: images at once, 224 px",
    "groups": "image encoder: groups of the first stage, 224 px",
    "labels": "first call of `segment`: labels",
    "windows": "`segment`, 20 labels: windows of 448 px (63 are 12.6 megapixels)",
}
_WINDOW = 448


def work(what: What, size: int) -> Callable[[], object]:
    """The call to measure, its inputs made."""
    stages = (Stage(6, size, size), Stage(3, 8, 8), Stage(3)) if what == "groups" else RELEASE.image.stages
    config = with_stages(RELEASE, *stages)
    model = build_model(config).eval()
    if what in ("labels", "windows"):
        windows = size if what == "windows" else 1
        rows = max(rows for rows in range(1, math.isqrt(windows) + 1) if windows % rows == 0)
        shape = (rows * _WINDOW, windows // rows * _WINDOW, 3)
        photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))
        if what == "labels":
            return lambda: Segmenter(model, config, device="cpu", precision="fp32").segment(photo, labels_of(size))
        segmenter = Segmenter(model, config, device="cpu", precision="fp32")
        return lambda: segmenter.segment(photo, labels_of(20), short_side=shape[0], window=_WINDOW, stride=_WINDOW)
    side = size if what == "side" else 224
    images = torch.randn(size if what == "batch" else 1, 3, side, side)
    return lambda: model.image_encoder(images)


def measure(what: What, size: int) -> tuple[float, int]:
    """Seconds of the processor, the median of three calls of less than five seconds after a first one; bytes."""
    keep_freed_memory()
    call, seconds = work(what, size), []
    rest = peak_memory()
    with torch.inference_mode():
        call()
        while len(seconds) < 3 and sum(seconds) < 5:
            start = time.process_time()
            call()
            seconds.append(time.process_time() - start)
    return statistics.median(seconds), max(1, peak_memory() - rest)


def rows() -> Rows:
    table = []
    for what, sizes in SIZES.items():
        printed = [
            launch(["-m", "benchmarks.growth", what, str(size), "--threads", str(torch.get_num_threads())])[2]
            for size in sizes
        ]
        seconds, memory = zip(*(map(float, text.split()) for text in printed), strict=True)
        table.append(
            {
                "what grows": NAMES[what],
                "sizes": ", ".join(map(str, sizes)),
                "s of the processor": ", ".join(f"{each:.2f}" for each in seconds),
                "exponent of time": f"{exponent(sizes, seconds):.2f}",
                "MB": ", ".join(f"{each / 1e6:,.0f}" for each in memory),
                "exponent of memory": f"{exponent(sizes, memory):.2f}",
            }
        )
    return table


def main(
    what: Annotated[What, tyro.conf.Positional], size: Annotated[int, tyro.conf.Positional], threads: int = 1
) -> None:
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    print(*measure(what, size))


if __name__ == "__main__":
    tyro.cli(main)
