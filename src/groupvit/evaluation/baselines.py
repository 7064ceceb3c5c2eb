"""Trivial predictions: a model that does not beat them has not segmented anything."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool

from groupvit.evaluation.datasets import Dataset, MaskedPhoto
from groupvit.evaluation.metrics import IndexMap
from groupvit.evaluation.protocols import Protocol
from groupvit.evaluation.results import PhotoScores, Result, difference
from groupvit.evaluation.scoring import score_prediction
from groupvit.evaluation.whole_photos import embed_photos, similarities
from groupvit.segmentation.labels import BACKGROUND, Label
from groupvit.segmentation.segmenter import Segmenter
from groupvit.text.templates import SIMPLE_TEMPLATE

Predict = Callable[[MaskedPhoto], IndexMap]

_AXES = 0.65  # of the sides, a third of the photo; with the true labels this is about best on VOC and Pets


def ellipse(height: int, width: int) -> Bool[np.ndarray, "height width"]:
    """Return the inside of an ellipse in the middle, 0.65 of the photo's sides long."""
    rows, columns = np.ogrid[:height, :width]
    down, along = ((2 * index + 1) / side - 1 for index, side in ((rows, height), (columns, width)))
    return down**2 + along**2 <= _AXES**2


def trivial_baselines(
    segmenter: Segmenter, dataset: Dataset, labels: Sequence[Label], templates: Sequence[str] = (SIMPLE_TEMPLATE,)
) -> dict[str, Predict]:
    """Return the trivial baselines of a benchmark, by the names that tables give them.

    "own label" is what the model calls the photo's middle square (§3.1's pooled feature), among the classes that are
    no background; `labels` are the protocol's. Where a benchmark has no background, the runner-up fills the place
    outside of the ellipse, and no baseline is all background.
    """
    named = [label for label in segmenter.words.without_strangers(labels) if label.name.lower() != BACKGROUND]
    classes = [dataset.classes.index(label.name) for label in named]
    words, lengths = [word for label in named for word in label.words], [len(label.words) for label in named]
    best_two: dict[str, tuple[int, int]] = {}

    def asked(photo: MaskedPhoto) -> tuple[int, int]:
        if photo.name not in best_two:
            cosines = similarities(segmenter, embed_photos(segmenter, [photo.image]), words, templates)[0]
            # Of a label's several words the best one counts, as for segments.
            scores = torch.stack([of_label.max() for of_label in cosines.split(lengths)])
            best, second, *_ = [*scores.argsort(descending=True, stable=True).tolist(), 0]
            best_two[photo.name] = classes[best], classes[second]
        return best_two[photo.name]

    def one_segment(photo: MaskedPhoto) -> IndexMap:
        return np.full_like(photo.mask, asked(photo)[0])

    def centred_ellipse(photo: MaskedPhoto) -> IndexMap:
        best, second = asked(photo)
        outside = 0 if dataset.has_background else second
        return np.where(ellipse(*photo.mask.shape), best, outside).astype(photo.mask.dtype)

    baselines: dict[str, Predict] = {"all background": lambda photo: np.zeros_like(photo.mask)}
    own = {"one segment, own label": one_segment, "centred ellipse, own label": centred_ellipse}
    return baselines | own if dataset.has_background else own


def score_baselines(
    result: Result, segmenter: Segmenter, dataset: Dataset, protocol: Protocol, advance: Callable[[], None]
) -> dict[str, Any]:
    """Return each trivial baseline's mean IoU, and by how much the model's `result` is above it, with the interval.

    `advance` is called after each photo.
    """
    named = trivial_baselines(segmenter, dataset, protocol.labels(dataset), protocol.view.templates)
    scored: dict[str, list[PhotoScores]] = {name: [] for name in named}
    for photo in dataset:
        for name, predict in named.items():
            scored[name].append(score_prediction(photo, predict(photo), len(dataset.classes)))
        advance()
    gains = {name: difference(result, replace(result, photos=tuple(photos))) for name, photos in scored.items()}
    return {name: gain | {"miou": gain["miou"][1]} for name, gain in gains.items()}
