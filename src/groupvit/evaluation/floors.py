"""Predictions that know nothing of where things are: a model that does not beat them has not segmented anything.

Each is a function from a photo to an index map, for `scoring.evaluate_predictions`.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from PIL import Image

from groupvit.evaluation.classification import similarities
from groupvit.evaluation.datasets import Dataset, MaskedPhoto
from groupvit.evaluation.metrics import IndexMap
from groupvit.evaluation.protocols import Protocol
from groupvit.evaluation.results import PhotoScores, Result, difference
from groupvit.evaluation.scoring import score_prediction
from groupvit.segmentation.labels import BACKGROUND, Label
from groupvit.segmentation.segmenter import Segmenter
from groupvit.text.templates import SIMPLE_TEMPLATE

Predict = Callable[[MaskedPhoto], IndexMap]

_AXES = 0.65  # of the sides, a third of the photo; with the true labels this is about best on VOC and Pets


def ellipse(height: int, width: int) -> Bool[np.ndarray, "height width"]:
    """Inside of an ellipse in the middle, 0.65 of the photo's sides long."""
    rows, columns = np.ogrid[:height, :width]
    down, along = ((2 * index + 1) / side - 1 for index, side in ((rows, height), (columns, width)))
    return down**2 + along**2 <= _AXES**2


def floors(
    segmenter: Segmenter, dataset: Dataset, labels: Sequence[Label], templates: Sequence[str] = (SIMPLE_TEMPLATE,)
) -> dict[str, Predict]:
    """The floors of a benchmark, by the names that tables give them.

    "own label" is what the model calls the photo's middle square (§3.1's pooled feature), among the classes that are
    no background; `labels` are the protocol's. Where a benchmark has no background, the runner-up fills the place
    outside of the ellipse, and there is no all-background floor.
    """
    own = _OwnLabels(segmenter, dataset, labels, templates)

    def one_segment(photo: MaskedPhoto) -> IndexMap:
        return np.full_like(photo.mask, own(photo)[0])

    def centred_ellipse(photo: MaskedPhoto) -> IndexMap:
        best, second = own(photo)
        outside = 0 if dataset.has_background else second
        return np.where(ellipse(*photo.mask.shape), best, outside).astype(photo.mask.dtype)

    named: dict[str, Predict] = {"one segment, own label": one_segment, "centred ellipse, own label": centred_ellipse}
    if dataset.has_background:
        named = {"all background": lambda photo: np.zeros_like(photo.mask), **named}
    return named


def score_floors(
    result: Result,
    segmenter: Segmenter,
    dataset: Dataset,
    protocol: Protocol,
    advance: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Each floor's mean IoU, and by how much the model's `result` is above it, with the paired interval.

    `advance` is called after each photo.
    """
    named = floors(segmenter, dataset, protocol.labels(dataset), protocol.templates)
    scored: dict[str, list[PhotoScores]] = {name: [] for name in named}
    for photo in dataset:
        for name, predict in named.items():
            scored[name].append(score_prediction(photo, predict(photo), len(dataset.classes)))
        advance()
    found = {name: difference(result, replace(result, photos=tuple(own))) for name, own in scored.items()}
    return {name: own | {"miou": own["miou"][1]} for name, own in found.items()}


class _OwnLabels:
    """The indices of the two classes that a model finds in the middle of a photo, background aside; asked once."""

    def __init__(self, segmenter: Segmenter, dataset: Dataset, labels: Sequence[Label], templates: Sequence[str]):
        self.segmenter = segmenter
        self.templates = templates
        named = [label for label in labels if label.name.lower() != BACKGROUND]
        self.classes = [dataset.classes.index(label.name) for label in named]
        self.words = [word for label in named for word in label.words]
        self.lengths = [len(label.words) for label in named]
        self.found: dict[str, tuple[int, int]] = {}

    def __call__(self, photo: MaskedPhoto) -> tuple[int, int]:
        if photo.name not in self.found:
            self.found[photo.name] = self._find(photo.image)
        return self.found[photo.name]

    def _find(self, image: Image.Image) -> tuple[int, int]:
        cosines = similarities(self.segmenter, [image], self.words, self.templates)[0]
        # Of a label's several words the best one counts, as for segments.
        scores = torch.stack([own.max() for own in cosines.split(self.lengths)])
        best, second, *_ = [*scores.argsort(descending=True, stable=True).tolist(), 0]
        return self.classes[best], self.classes[second]
