"""`groupvit segment FOLDER`, from files to files, beside the image encoder alone: the default model, photos of VGA."""

import itertools
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from benchmarks.startup import launch
from benchmarks.timing import Clock, Rows, alternate
from PIL import Image

import groupvit
from groupvit.segmentation.windows import resized

SIZE = (640, 480)
BATCH = 2
COUNTS = (40, 200)
_TIMES = 3
_CODE = """
import torch; torch.set_num_threads({})
from pathlib import Path; from groupvit.cli.segment import segment; from groupvit.machine import peak_memory
segment(({!r},), labels=("person", "dog", "car", "grass", "sky"), out=Path({!r}))
print(peak_memory())
"""


def write(photos: Sequence[Image.Image], count: int, folder: Path) -> Path:
    """Write so many photos."""
    folder.mkdir()
    for i, photo in zip(range(count), itertools.cycle(photos)):
        photo.resize(SIZE).save(folder / f"{i}.jpg", quality=90)
    return folder


def command(photos: Path, clock: Clock) -> tuple[float, int]:
    """Seconds of the command in a process of its own, the processor's if the clock is, and its peak memory in bytes."""
    code = _CODE.format(torch.get_num_threads(), str(photos), f"{photos}-out")
    seconds, processor, printed = launch(["-c", code])
    return (processor if clock is time.process_time else seconds), int(printed.split()[-1])


def rows(photos: Sequence[Image.Image], rounds: int, clock: Clock) -> Rows:
    """More photos are compared with fewer, which leaves out the command's start."""
    segmenter = groupvit.load("photos-trunk")
    encoder = segmenter.model.image_encoder
    images = torch.randn(BATCH, 3, *resized(SIZE, segmenter.config.image.short_side))
    with segmenter.precise():
        seconds = alternate({"": lambda: list(encoder.regrouped(segmenter.encoder(images)))}, rounds, clock)[""]
    with tempfile.TemporaryDirectory() as folder:
        given = [write(photos, count, Path(folder) / str(count)) for count in COUNTS]
        times = [[command(each, clock) for each in given] for _ in range(_TIMES)]
    peak = max(bytes_ for each in times for _, bytes_ in each)
    few, many = (statistics.median(seconds for seconds, _ in column) for column in zip(*times, strict=True))
    alone, spent = statistics.median(seconds) / BATCH, (many - few) / (COUNTS[1] - COUNTS[0])
    name = f"image encoder alone, {BATCH} at once, {segmenter.engine}, {segmenter.precision}"
    command_row = _row("groupvit segment, from files to files", spent, alone, f"{peak / 1e6:,.0f}")
    return [_row(name, alone, alone, ""), command_row]


def _row(way: str, seconds: float, alone: float, peak: str) -> dict[str, str]:
    cells = {"ms a photo": f"{1000 * seconds:.1f}", "photos/s": f"{1 / seconds:.1f}"}
    return {"way": way, **cells, "% of the encoder's rate": f"{100 * alone / seconds:.0f}", "peak memory, MB": peak}
