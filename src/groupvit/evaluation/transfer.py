"""Transfer with masks on a benchmark (§4.3): its training photos, and the score of the classifier they make."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from groupvit.data.transforms import to_tensor
from groupvit.errors import InputError
from groupvit.evaluation.benchmark import count_into
from groupvit.evaluation.datasets import BENCHMARKS, SPLITS, Dataset, open_masks
from groupvit.evaluation.metrics import IGNORE, IndexMap
from groupvit.evaluation.results import PhotoScores, Result
from groupvit.evaluation.scoring import score_prediction
from groupvit.models.dense import DenseClassifier
from groupvit.segmentation.windows import resampled_argmax, resized


def open_training(evaluated: Dataset, split: str, **options: Any) -> Dataset:
    """Open the photos to fine-tune on: another list of the benchmark, or for a folder another folder of that kind.

    `options` are those of a folder. A photo that is evaluated, too, is an `InputError`.
    """
    if evaluated.benchmark == "folder":
        training = open_masks(Path(split), **options)
    elif evaluated.benchmark in SPLITS:
        training = BENCHMARKS[evaluated.benchmark](evaluated.root, split=split)
    else:
        raise InputError(f"{evaluated.benchmark} has no training photos: there are {', '.join(SPLITS)} and folder")
    if not training.names:
        raise InputError(f"{training.root} lists no photos for {split}")
    if training.classes != evaluated.classes:
        raise InputError(f"{training.root} has other classes than {evaluated.root}: both need the same classes.txt")
    both = sorted(set(training.names) & set(evaluated.names))
    same = training.root == evaluated.root
    leaked = [name for name in both if same or _pixels(training, name) == _pixels(evaluated, name)]
    if leaked:
        raise InputError(
            f"{leaked[0]} is among the photos to train on ({split}) and among those to evaluate ({len(leaked)} are): "
            "take them out of one list"
        )
    shown: set[int] = {IGNORE}
    for photo in training if len(training) >= 10 else ():  # fewer may be a trial
        if len(shown := shown.union(np.unique(photo.mask).tolist())) > 2:
            return training
    if len(shown) == 2:
        raise InputError(f"{training.root}: its masks show {training.classes[min(shown)]} alone: nothing to learn")
    return training


def _pixels(photos: Dataset, name: str) -> tuple[tuple[int, int], bytes]:
    image = photos.read(name).image
    return image.size, image.tobytes()


def share_of(training: Dataset, percent: int | float, seed: int) -> Dataset:
    """Return so many percent of the photos, drawn by the seed, one at least; a smaller share is part of a larger."""
    if not 0 < percent <= 100:
        raise InputError(f"a share of the masks is above 0 and at most 100 percent, not {percent:g}")
    drawn = np.random.default_rng([seed, len(training)]).permutation(len(training))
    count = max(1, round(len(training) * percent / 100))
    return replace(training, names=tuple(training.names[i] for i in sorted(drawn[:count])))


@torch.inference_mode()
def predict(network: DenseClassifier, photo: Image.Image, short_side: int) -> IndexMap:
    """Return the class of every pixel of an RGB photo, which the network sees whole, with so many pixels on a side."""
    height, width = resized(photo.size, short_side)
    pixels = to_tensor(photo.resize((width, height), Image.Resampling.BILINEAR))
    pixels = pixels[None].to(next(network.parameters()).device)
    step = (height / photo.height / network.stride, width / photo.width / network.stride)
    return resampled_argmax(network(pixels)[0], (photo.height, photo.width), step)[1].astype(np.uint8)


def score_into(
    out: Path, network: DenseClassifier, dataset: Dataset, protocol: Mapping[str, Any], model: Mapping[str, Any]
) -> Result:
    """Return the result, from a file that is written or gone on with as `evaluate` does."""

    def count(names: Sequence[str]) -> Iterator[PhotoScores]:
        for photo in map(dataset.read, names):
            yield score_prediction(photo, predict(network, photo.image, protocol["short_side"]), len(dataset.classes))

    result = Result(dataset.benchmark, dataset.classes, protocol, model)
    count_into(out, result, dataset, count, lambda photos: replace(result, photos=tuple(photos)))
    return Result.load(out)
