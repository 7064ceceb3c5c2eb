"""Seconds per photo of `Segmenter` beside the straightforward way, on the same photos in the same run.

    python -m benchmarks.segmentation --photos FOLDER --count 40

GroupViT-S with random weights, PASCAL VOC's twenty labels, the windows of the published evaluation. The ways take
turns, a few photos each, so that what else the machine does meets all of them; on a busy one CPU time is steadier.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import tyro
from benchmarks import straightforward
from benchmarks.timing import Clock, Rows, alternate, versus
from experiments.command import errors_in_one_line
from experiments.record import commit, print_rows, record_table
from PIL import Image

from groupvit.errors import InputError
from groupvit.evaluation.datasets import CLASSES
from groupvit.models import RELEASE, build_model
from groupvit.photos import load_rgb
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


@dataclass
class Measured:
    """A way's seconds, by the clock and of the processor, and how many pixels it names as the first way does."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    equal: int = 0


def measure(compared: dict[str, Way], photos: Sequence[Image.Image], turn: int) -> dict[str, Measured]:
    """The ways take turns of so many photos, until each has segmented all."""
    measured = {name: Measured() for name in compared}
    for start in range(0, len(photos), turn):
        reference: Maps = []
        for name, way in compared.items():
            own = measured[name]
            clock, processor = time.perf_counter(), time.process_time()
            maps = way(photos[start : start + turn])
            own.seconds += time.perf_counter() - clock
            own.cpu_seconds += time.process_time() - processor
            reference = reference or maps
            own.equal += sum(int((a == b).sum()) for a, b in zip(maps, reference, strict=True))
    return measured


def rows(photos: Sequence[Image.Image], rounds: int, clock: Clock) -> Rows:
    """A few photos again and again, each way a call for all of them, for medians and their spread."""
    compared = ways()
    calls = {name: partial(way, photos) for name, way in compared.items()}
    seconds, maps, table = alternate(calls, rounds, clock), {name: call() for name, call in calls.items()}, []
    yardstick, *_ = compared
    for name in compared:
        equal = np.mean([(a == b).mean() for a, b in zip(maps[name], maps[yardstick], strict=True)])
        cells = versus({way: [each / len(photos) for each in own] for way, own in seconds.items()}, name, yardstick)
        table.append({"way": name, **cells, "% equal pixels": f"{100 * equal:.3f}"})
    return table


def main(photos: Path, count: int = 40, turn: int = 4, threads: int = 2, record: bool = False) -> None:
    """Print the table.

    Args:
        photos: Folder of photos, such as VOCdevkit/VOC2012/JPEGImages; taken in the order of their names.
        count: Photos to time.
        turn: Photos a way segments before the next one's turn.
        threads: Of PyTorch.
        record: Write the table into docs/RESULTS.md and docs/results.json.
    """
    began = commit()
    torch.set_num_threads(threads)
    files = sorted(photos.glob("*.jpg"))[:count]
    if not files:
        raise InputError(f"{photos} has no .jpg files")
    images = [load_rgb(file, str(file)) for file in files]
    compared = ways()
    for way in compared.values():
        way(images[:1])  # the first call allocates
    results = measure(compared, images, turn)
    pixels = sum(image.width * image.height for image in images)
    yardstick = results["straightforward"]
    rows = [
        {
            f"{len(images)} photos, {threads} threads": name,
            "s per photo": f"{own.seconds / len(images):.3f}",
            "% of the time": f"{100 * own.seconds / yardstick.seconds:.1f}",
            "% of the CPU time": f"{100 * own.cpu_seconds / yardstick.cpu_seconds:.1f}",
            "% equal pixels": f"{100 * own.equal / pixels:.3f}",
        }
        for name, own in results.items()
    ]
    print_rows(rows)
    if record:
        record_table("RESULTS.md", "segmentation", rows, began)


if __name__ == "__main__":
    with errors_in_one_line():
        tyro.cli(main)
