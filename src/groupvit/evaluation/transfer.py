"""Transfer with masks on a benchmark (§4.3): its training photos, and the score of the classifier they make."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from groupvit.errors import InputError
from groupvit.evaluation.datasets import BENCHMARKS, SPLITS, Dataset, MaskedPhoto, MaskFolder
from groupvit.evaluation.metrics import IndexMap
from groupvit.evaluation.partial import PartialResult
from groupvit.evaluation.results import PhotoScores, Result
from groupvit.evaluation.scoring import score_prediction
from groupvit.evaluation.thresholds import unchanged
from groupvit.models.dense import DenseClassifier
from groupvit.progress import progress
from groupvit.segmentation.windows import resampled_argmax, resized


def open_training(evaluated: Dataset, split: str, **options: Any) -> Dataset:
    """Open the photos to fine-tune on: another list of the benchmark, or for a folder another folder of that kind.

    `options` are those of a folder. A photo that is evaluated, too, is an `InputError`.
    """
    if evaluated.benchmark == "folder":
        training = MaskFolder.open(Path(split), **options)
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
    leaked = [name for name in both if same or training.read(name).digest == evaluated.read(name).digest]
    if leaked:
        raise InputError(
            f"{leaked[0]} is among the photos to train on ({split}) and among those to evaluate ({len(leaked)} are): "
            "take them out of one list"
        )
    return training


def share_of(training: Dataset, percent: int | float, seed: int) -> Dataset:
    """Return so many percent of the photos, drawn by the seed, one at least; a smaller share is part of a larger."""
    if not 0 < percent <= 100:
        raise InputError(f"a share of the masks is above 0 and at most 100 percent, not {percent:g}")
    drawn = np.random.default_rng([seed, len(training)]).permutation(len(training))
    count = max(1, round(len(training) * percent / 100))
    return replace(training, names=tuple(training.names[i] for i in sorted(drawn[:count])))


@torch.inference_mode()
def predict(network: DenseClassifier, photo: MaskedPhoto, short_side: int) -> IndexMap:
    """Return the class of every pixel, for the whole photo at a short side of so many pixels."""
    height, width = resized(photo.image.size, short_side)
    image = np.array(photo.image.resize((width, height), Image.Resampling.BILINEAR))
    pixels = torch.from_numpy(image.transpose(2, 0, 1).copy())[None].to(next(network.parameters()).device)
    step = tuple(new / old / network.stride for new, old in zip((height, width), photo.mask.shape, strict=True))
    return resampled_argmax(network(pixels)[0], photo.mask.shape, (step[0], step[1]))[1].astype(np.uint8)


def score_into(
    out: Path,
    network: DenseClassifier,
    dataset: Dataset,
    protocol: Mapping[str, Any],
    model: Mapping[str, Any],
) -> Result:
    """Write a result file as `evaluate` does, or go on with one that was interrupted; a whole one of the same stays."""
    result = Result(dataset.benchmark, dataset.classes, protocol, model)
    if out.exists():
        if (held := Result.load(out)).identity() == result.identity(dataset.names):
            return held
        raise InputError(f"{out} holds another evaluation: choose another --out or delete it")
    with PartialResult(out, result.identity(dataset.names)) as partial:
        for name in partial.scores.keys() & set(dataset.names):
            unchanged(dataset, partial.scores[name])
        left = [name for name in dataset.names if name not in partial.scores]
        with progress("evaluating", len(left)) as advance:
            for photo in _scored(network, dataset, left, protocol["short_side"]):
                partial.add(photo)
                advance()
        result = replace(result, photos=tuple(partial.scores[name] for name in dataset.names))
        result.save(out)
        partial.remove()
    return result


def _scored(network: DenseClassifier, dataset: Dataset, names: list[str], short_side: int) -> Iterator[PhotoScores]:
    for name in names:
        photo = dataset.read(name)
        yield score_prediction(photo, predict(network, photo, short_side), len(dataset.classes))
