"""A training as it goes: its scores, and the segments of the same four photos every some steps."""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont, ImageOps

from groupvit.data.shards import find_shards, read_image, scan_shard
from groupvit.data.storage import File, stamp
from groupvit.errors import InputError, input_error
from groupvit.evaluation.datasets import open_masks
from groupvit.evaluation.metrics import mean_iou
from groupvit.evaluation.scoring import score
from groupvit.evaluation.whole_photos import Retrieval
from groupvit.files import write_picture
from groupvit.models import GroupViT, ModelConfig
from groupvit.photos import load_rgb
from groupvit.segmentation import drawing
from groupvit.segmentation.labels import Label, parse_labels
from groupvit.segmentation.segmenter import Segmenter
from groupvit.text.nouns import nouns_of_photo

Evaluate = Callable[[GroupViT], dict[str, float]]

_COLUMNS = 200  # more make a strip that no viewer opens
_PHOTOS, _SIDE, _GAP, _TITLE = 4, 96, 4, 18  # pixels


def evaluation_of(config: ModelConfig, data: Path, held_out: str) -> Evaluate:
    """Return what measures a model: mean IoU if `held_out` in `data` is a folder with masks, retrieval of shards."""
    if held_out.endswith(".tar"):
        return Retrieval(held_out, config, data)
    if not (data / held_out).exists():
        raise InputError(f'{data / held_out}: no such folder of held-out photos; name one, or none: --held-out ""')
    photos = open_masks(data / held_out)
    with input_error(str(data / held_out), InputError):  # no threshold here, so no bare background either
        parse_labels(photos.labels)
    if not len(photos):
        raise InputError(f"{data / held_out} has no photos to score")
    for _ in photos:  # what cannot be read is told now; all of them might not fit into memory
        pass

    def evaluate(model: GroupViT) -> dict[str, float]:
        segmenter = Segmenter(model, config, device=model.logit_scale.device, precision="fp32")
        scores = score(segmenter, photos, photos.labels)
        values = {"miou": mean_iou(scores.named), "oracle_miou": mean_iou(scores.oracle)}
        return {name: value for name, value in values.items() if not math.isnan(value)}  # a plain ViT has no groups

    return evaluate


@dataclass(frozen=True)
class Emergence:
    """The strip in `file`: a column of photos, then one of their segments for each `every` steps.

    A colour is a final group token, the same in all photos and steps. Where no tokens are learned, it is the one of the
    `labels` that fits best. The same step drawn again, after a resume, replaces its column and those behind it.
    """

    config: ModelConfig
    photos: Sequence[Image.Image]
    labels: Sequence[Label]
    file: Path
    every: int
    steps: int

    def __post_init__(self):
        if self.every < (least := max(1, -(-self.steps // _COLUMNS))):
            raise InputError(f"--pictures of {self.steps} steps are at least {least} steps apart")

    def __call__(self, model: GroupViT, step: int) -> UInt8[np.ndarray, "height width 3"] | None:
        """Draw a column and return it, if it is its step's turn."""
        if step % self.every and step != self.steps:
            return None
        training = model.training
        segmenter = Segmenter(model, self.config, device=model.logit_scale.device, precision="fp32")
        with warnings.catch_warnings(action="ignore"):  # of words that this model never saw
            results = segmenter.segment(self.photos, self.labels, background=None)
        model.train(training)
        grouping = [stage for stage in self.config.image.stages if stage.has_grouping]
        learned = bool(grouping) and not grouping[-1].seeded
        segments = [(result.image, result.groups[-1] if learned else result.label_map) for result in results]
        column = _column([drawing.groups(*pair) for pair in segments], f"step {step}")
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


def photos_to_watch(data: str, held_out: str, train: str) -> tuple[list[Image.Image], tuple[Label, ...]]:
    """Return four photos as squares, and words for them: a folder's labels, or the nouns of their captions.

    They are held-out ones, of a folder with masks or of shards; without any, some of the training.
    """
    folder = Path(data) / held_out
    if held_out and folder.suffix != ".tar":
        dataset = open_masks(folder).limited(_PHOTOS)
        photos, labels = [photo.image for photo in dataset], parse_labels(dataset.labels)
    else:
        found = list(islice(_of_shards(find_shards(held_out or train, below=data)), _PHOTOS))
        photos, nouns = [photo for photo, _ in found], nouns_of_photo([text for _, texts in found for text in texts])
        labels = tuple(Label(noun, (noun,)) for noun in sorted(nouns) or ["photo"])
    if not photos:
        raise InputError(f"{data} has no photo that can be read: leave out --pictures")
    return [ImageOps.fit(photo, (2 * _SIDE, 2 * _SIDE)) for photo in photos], labels


def _of_shards(shards: Sequence[File]) -> Iterator[tuple[Image.Image, tuple[str, ...]]]:
    for shard in shards:
        now = stamp(shard)
        for row in scan_shard(shard)[0]:
            with suppress(InputError):  # a training counts it, and what the scan left out
                yield load_rgb(read_image(shard, row, now), row.key), row.captions
