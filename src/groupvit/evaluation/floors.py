"""Predictions that know nothing of where things are: a model that does not beat them has not segmented anything.

Each is a function from a photo to an index map, for `scoring.evaluate_predictions`.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Bool
from PIL import Image

from groupvit.evaluation.classification import similarities
from groupvit.evaluation.datasets import Dataset, MaskedPhoto
from groupvit.evaluation.metrics import IndexMap
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

    "own label" is what the model calls the whole photo (§3.1's pooled feature), among the classes that are no
    background; `labels` are the protocol's. Where a benchmark has no background, the runner-up fills the place outside
    of the ellipse, and there is no all-background floor.
    """
    own = _OwnLabels(segmenter, dataset, labels, templates)

    def one_segment(photo: MaskedPhoto) -> IndexMap:
        return np.full_like(photo.mask, own(photo.image)[0])

    def centred_ellipse(photo: MaskedPhoto) -> IndexMap:
        best, second = own(photo.image)
        outside = 0 if dataset.has_background else second
        return np.where(ellipse(*photo.mask.shape), best, outside).astype(photo.mask.dtype)

    named: dict[str, Predict] = {"one segment, own label": one_segment, "centred ellipse, own label": centred_ellipse}
    if dataset.has_background:
        named = {"all background": lambda photo: np.zeros_like(photo.mask), **named}
    return named


class _OwnLabels:
    """The indices of the two classes that a model finds in a whole photo, background aside."""

    def __init__(self, segmenter: Segmenter, dataset: Dataset, labels: Sequence[Label], templates: Sequence[str]):
        self.segmenter = segmenter
        self.templates = templates
        named = [label for label in labels if label.name.lower() != BACKGROUND]
        self.classes = [dataset.classes.index(label.name) for label in named]
        self.words = [word for label in named for word in label.words]
        self.lengths = [len(label.words) for label in named]

    def __call__(self, image: Image.Image) -> tuple[int, int]:
        cosines = similarities(self.segmenter, [image], self.words, self.templates)[0]
        # Of a label's several words the best one counts, as for segments.
        scores = torch.stack([own.max() for own in cosines.split(self.lengths)])
        best, second, *_ = [*scores.argsort(descending=True, stable=True).tolist(), 0]
        return self.classes[best], self.classes[second]
