"""`groupvit segment FOLDER`, from files to files, beside the image encoder alone: the default model, photos of VGA."""

import itertools
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from benchmarks.startup import launch
from benchmarks.timing import Clock, Rows, alternate
from PIL import Image

import groupvit
from groupvit.segmentation.windows import resized

SIZE = (640, 480)
BATCH = 4
COUNTS = (40, 200)
_CODE = """
from pathlib import Path; from groupvit.cli.segment import segment; from benchmarks.timing import peak_memory
segment(({!r},), labels=("person", "dog", "car", "grass", "sky"), out=Path({!r}))
print(peak_memory())
"""


def command(photos: Sequence[Image.Image], count: int, folder: Path) -> tuple[float, int]:
    """Seconds of the command in a process of its own, and its peak memory in bytes."""
    given = folder / f"{count}"
    given.mkdir()
    for i, photo in zip(range(count), itertools.cycle(photos)):
        photo.resize(SIZE).save(given / f"{i}.jpg", quality=90)
    seconds, _, printed = launch(["-c", _CODE.format(str(given), str(folder / "out"))])
    return seconds, int(printed.split()[-1])


def rows(photos: Sequence[Image.Image], rounds: int, clock: Clock) -> Rows:
    """More photos are compared with fewer, which leaves out the command's start."""
    segmenter = groupvit.load("photos-trunk")
    encoder = segmenter.model.image_encoder
    images = torch.randn(BATCH, 3, *resized(SIZE, segmenter.config.image.short_side))
    with segmenter.precise():
        seconds = alternate({"": lambda: list(encoder.regrouped(segmenter.encoder(images)))}, rounds, clock)[""]
    with tempfile.TemporaryDirectory() as folder:
        (few, _), (many, peak) = (command(photos, count, Path(folder)) for count in COUNTS)
    alone, spent = statistics.median(seconds) / BATCH, (many - few) / (COUNTS[1] - COUNTS[0])
    name = f"image encoder alone, {BATCH} at once, {segmenter.engine}, {segmenter.precision}"
    return [_row(name, alone, alone, ""), _row("groupvit segment, JPEG to PNG", spent, alone, f"{peak / 1e6:,.0f}")]


def _row(way: str, seconds: float, alone: float, peak: str) -> dict[str, str]:
    cells = {"ms a photo": f"{1000 * seconds:.1f}", "photos/s": f"{1 / seconds:.1f}"}
    return {"way": way, **cells, "% of the encoder's rate": f"{100 * alone / seconds:.0f}", "peak memory, MB": peak}
