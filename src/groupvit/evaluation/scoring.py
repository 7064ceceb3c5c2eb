"""A model's confusion matrices on photos with masks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Unpack

import numpy as np
from jaxtyping import Int

from groupvit.evaluation.datasets import MaskedPhoto
from groupvit.evaluation.metrics import confusion_matrix, oracle_names
from groupvit.segmentation.segmenter import Options, Segmenter

_CHUNK = 64


@dataclass(frozen=True)
class Scores:
    """Confusion matrices: `named` by the model, `oracle` with its last groups called by the best true class."""

    named: Int[np.ndarray, "classes classes"]
    oracle: Int[np.ndarray, "classes classes"]


def score(
    segmenter: Segmenter, photos: Sequence[MaskedPhoto], labels: Sequence[str], **options: Unpack[Options]
) -> Scores:
    """Segment the photos and count; `labels` stand in the order of the masks' indices."""
    settings: Options = {"batch_size": _CHUNK, **options}
    named = np.zeros((len(labels), len(labels)), dtype=np.int64)
    oracle = np.zeros_like(named)
    for start in range(0, len(photos), _CHUNK):
        chunk = photos[start : start + _CHUNK]
        results = segmenter.segment([photo.image for photo in chunk], labels, **settings)
        for photo, result in zip(chunk, results, strict=True):
            named += confusion_matrix(photo.mask, result.label_map, len(labels))
            if result.groups:
                names = oracle_names(result.groups[-1], photo.mask, len(labels))
                oracle += confusion_matrix(photo.mask, names, len(labels))
    return Scores(named, oracle)
