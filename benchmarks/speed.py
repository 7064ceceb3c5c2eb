"""Speed, beside `transformers` and beside the straightforward way, taking turns in one process.

    python -m benchmarks.speed [--parts encoder growth] [--record]

All of it takes eight minutes on two idle cores. Nothing is downloaded. Photos and captions are those of the
folder GROUPVIT_DATA where there is one; else photographs of scikit-image, and scenes with their captions.
"""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal, get_args

import skimage
import torch
import tyro
from benchmarks import encoder, engines, folder, growth, loader, one_photo, segmentation, startup, training_step
from benchmarks.timing import Clock, Rows
from experiments.record import commit, report_table
from PIL import Image

from groupvit.data.shards import find_shards
from groupvit.machine import keep_freed_memory
from groupvit.photos import load_rgb

DATA = Path(os.environ.get("GROUPVIT_DATA", "data"))
PHOTOS = 4
Part = Literal["startup", "encoder", "engines", "segment", "folder", "step", "evaluation", "loader", "growth"]


def evaluated_photos() -> list[Image.Image]:
    files = sorted((DATA / "eval/voc/VOCdevkit/VOC2012/JPEGImages").glob("*.jpg"))[:PHOTOS]
    if files:
        return [load_rgb(file, str(file)) for file in files]
    return [Image.fromarray(getattr(skimage.data, name)()) for name in ("astronaut", "chelsea", "coffee", "rocket")]


def loaded(rounds: int) -> Rows:
    """The loader's own table from fewer photos; `benchmarks.loader` has the whole one."""
    if not (DATA / "captions").is_dir():
        return [{"loader": "no shards here: GROUPVIT_DATA is the folder of captions/"}]
    return loader.measure(find_shards(str(DATA / "captions" / "flickr8k-test-*.tar")), 224, 64, rounds)


def measurements(rounds: int, clock: Clock) -> dict[Part, Callable[[], Rows]]:
    """By name; those whose calls take seconds have fewer rounds."""
    few = max(2, rounds // 2)
    return {
        "startup": lambda: startup.rows(rounds),
        "encoder": lambda: encoder.rows(rounds, clock),
        "engines": lambda: engines.rows(few, clock),
        "segment": lambda: one_photo.rows(rounds, clock),
        "folder": lambda: folder.rows(evaluated_photos(), rounds, clock),
        "step": lambda: training_step.rows(few, clock, DATA),
        "evaluation": lambda: segmentation.rows(evaluated_photos(), few, clock),
        "loader": lambda: loaded(rounds),
        "growth": growth.rows,
    }


def main(
    parts: tuple[Part, ...] = get_args(Part),
    rounds: int = 7,
    threads: int | None = None,
    busy: bool = False,
    record: bool = False,
) -> None:
    """Print the tables.

    Args:
        parts: Tables to measure.
        rounds: Calls of each way.
        threads: Of PyTorch; by default one for each core.
        busy: Count the processor's time, not that of the clock: on a machine that does other things too.
        record: Write the tables to docs/RESULTS.md and docs/results.json.
    """
    began = commit() if record else ""
    keep_freed_memory()  # as `groupvit` does; everything in this process gains, the peer included
    torch.set_num_threads(threads or torch.get_num_threads())
    of_part = measurements(rounds, time.process_time if busy else time.perf_counter)
    for part in parts:
        start, rows = time.perf_counter(), of_part[part]()
        print(f"{part}: {time.perf_counter() - start:.0f} s", file=sys.stderr)
        report_table("RESULTS.md", f"speed_{part}", rows, began)


if __name__ == "__main__":
    tyro.cli(main)
