"""What colour alone can tell: baselines of the scenes."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from groupvit.evaluation.datasets import MaskedPhoto
from groupvit.evaluation.metrics import IndexMap, contingency, oracle_matrix

_BITS = 4  # of a colour channel: 4,096 colours


def _colours(image: Image.Image) -> Int[np.ndarray, "height width"]:
    red, green, blue = np.moveaxis(np.asarray(image).astype(np.int64) >> (8 - _BITS), -1, 0)
    return (red << 2 * _BITS) | (green << _BITS) | blue


@dataclass(frozen=True)
class ColourTable:
    """Each colour's most likely class, counted with masks."""

    table: UInt8[np.ndarray, " colours"]

    @classmethod
    def fit(cls, photos: Iterable[MaskedPhoto], classes: int) -> "ColourTable":
        """Divide out how frequent classes are, so that rare ones are called; unseen colours get the commonest."""
        counts = np.zeros((1 << 3 * _BITS, classes))
        for photo in photos:
            np.add.at(counts, (_colours(photo.image), photo.mask), 1)
        table = (counts / counts.sum(axis=0).clip(min=1)).argmax(axis=1)
        unseen = counts.sum(axis=1) == 0
        return cls(np.where(unseen, counts.sum(axis=0).argmax(), table).astype(np.uint8))

    def __call__(self, image: Image.Image) -> IndexMap:
        return self.table[_colours(image)]


def colour_clusters(image: Image.Image, count: int) -> IndexMap:
    """Return k-means of a photo's RGB values."""
    from sklearn.cluster import KMeans

    pixels = np.asarray(image).reshape(-1, 3).astype(np.float32)
    clusters = KMeans(count, n_init="auto", random_state=0).fit_predict(pixels)
    return clusters.astype(np.uint8).reshape(image.size[::-1])


def score_colour_clusters(
    photos: Iterable[MaskedPhoto], count: int, classes: int
) -> Int[np.ndarray, "classes classes"]:
    """Return the confusion matrix of k-means clusters that are called by the best true class each."""
    tables = (contingency(colour_clusters(photo.image, count), photo.mask, classes) for photo in photos)
    return sum(map(oracle_matrix, tables), np.zeros((classes, classes), dtype=np.int64))
