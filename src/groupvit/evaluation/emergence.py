"""Segments as they emerge: the groups of the same four photos every some steps of a training."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont, ImageOps

from groupvit.data.shards import find_shards, read_image, scan_shard
from groupvit.data.storage import File, stamp
from groupvit.errors import InputError
from groupvit.evaluation.datasets import MaskFolder
from groupvit.files import write_picture
from groupvit.models import GroupViT, ModelConfig
from groupvit.photos import load_rgb
from groupvit.segmentation import drawing
from groupvit.segmentation.segmenter import Segmenter

_COLUMNS = 200  # more make a strip that no viewer opens
_PHOTOS, _SIDE, _GAP, _TITLE = 4, 96, 4, 18  # pixels


@dataclass(frozen=True)
class Emergence:
    """The strip in `file`: a column of photos, then one of their final groups for each `every` steps.

    A group token has one colour in all photos and steps. The same step drawn again, after a resume, replaces its column
    and those behind it.
    """

    config: ModelConfig
    photos: Sequence[Image.Image]
    file: Path
    every: int
    steps: int

    def __post_init__(self):
        if self.every < (least := max(1, -(-self.steps // _COLUMNS))):
            raise InputError(f"--pictures of {self.steps} steps are at least {least} steps apart")
        grouping = [stage for stage in self.config.image.stages if stage.groups]
        if not grouping or grouping[-1].seeded:
            raise InputError("this run learns no groups of which segments could emerge: leave out --pictures")

    def __call__(self, model: GroupViT, step: int) -> UInt8[np.ndarray, "height width 3"] | None:
        """Draw a column and return it, if it is its step's turn."""
        if step % self.every and step != self.steps:
            return None
        training = model.training
        segmenter = Segmenter(model, self.config, device=model.logit_scale.device, precision="fp32")
        with warnings.catch_warnings(action="ignore"):  # a word that this model never saw names no group here
            results = segmenter.segment(self.photos, ["photo"], background=None)
        model.train(training)
        column = _column([drawing.groups(result.image, result.groups[-1]) for result in results], f"step {step}")
        strip = _column(self.photos, "photos")
        with suppress(InputError):
            strip = load_rgb(self.file, str(self.file)) if step else strip
        left = (-(-step // self.every) + 1) * (_SIDE + _GAP)
        canvas = Image.new("RGB", (left + _SIDE, column.height), "white")
        canvas.paste(strip.crop((0, 0, min(left, strip.width), column.height)))
        canvas.paste(column, (left, 0))
        write_picture(self.file, canvas)
        return np.asarray(column)


def _column(pictures: Sequence[Image.Image], title: str) -> Image.Image:
    column = Image.new("RGB", (_SIDE, _TITLE + len(pictures) * (_SIDE + _GAP) - _GAP), "white")
    ImageDraw.Draw(column).text((2, _TITLE / 2), title, "black", ImageFont.load_default(12), anchor="lm")
    for i, picture in enumerate(pictures):
        column.paste(picture.resize((_SIDE, _SIDE)), (0, _TITLE + i * (_SIDE + _GAP)))
    return column


def photos_to_watch(data: str, held_out: str, train: str) -> list[Image.Image]:
    """Return four photos as squares: held-out ones (of a folder with masks or of shards), else some of the training."""
    folder = Path(data) / held_out
    if held_out and folder.suffix != ".tar":
        photos: Iterator[Image.Image] = (photo.image for photo in MaskFolder.open(folder).first(_PHOTOS))
    else:
        photos = _of_shards(find_shards(held_out or train, below=data))
    squares = [ImageOps.fit(photo, (2 * _SIDE, 2 * _SIDE)) for photo in islice(photos, _PHOTOS)]
    if not squares:
        raise InputError(f"{data} has no photo that can be read: leave out --pictures")
    return squares


def _of_shards(shards: Sequence[File]) -> Iterator[Image.Image]:
    for shard in shards:
        now = stamp(shard)
        for row in scan_shard(shard)[0]:
            with suppress(InputError):  # a training counts it, and what the scan left out
                yield load_rgb(read_image(shard, row, now), row.key)
