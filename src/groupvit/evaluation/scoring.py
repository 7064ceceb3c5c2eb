"""From label maps to pixel counts."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from groupvit.evaluation.counts import PhotoScores, StageScores
from groupvit.evaluation.datasets import MaskedPhoto
from groupvit.evaluation.metrics import (
    IndexMap,
    adjusted_rand_index,
    boundary_areas,
    confusion_matrix,
    contingency,
    oracle_matrix,
    sparse,
)
from groupvit.evaluation.naming import class_indices
from groupvit.segmentation import Segmenter, View, parse_labels

_CHUNK = 64


@dataclass(frozen=True)
class Scores:
    """Confusion matrices: `named` by the model, `oracle` with its last groups called by the best true class."""

    named: Int[np.ndarray, "classes classes"]
    oracle: Int[np.ndarray, "classes classes"]


def score(
    segmenter: Segmenter, photos: Sequence[MaskedPhoto], labels: Sequence[str], view: View | None = None
) -> Scores:
    """Segment the photos and count; `labels` stand in the order of the masks' indices."""
    view = view or View(background=None)
    named = np.zeros((len(labels), len(labels)), dtype=np.int64)
    oracle = np.zeros_like(named)
    classes = [label.name for text in labels for label in parse_labels([text])]
    for start in range(0, len(photos), _CHUNK):
        chunk = photos[start : start + _CHUNK]
        results = segmenter.segment([photo.image for photo in chunk], labels, view, batch_size=_CHUNK)
        for photo, result in zip(chunk, results, strict=True):
            named += confusion_matrix(photo.mask, class_indices(result, classes)[result.label_map], len(labels))
            if result.groups:
                oracle += oracle_matrix(contingency(result.groups[-1], photo.mask, len(labels)))
    return Scores(named, oracle)


def score_prediction(
    photo: MaskedPhoto, prediction: IndexMap, classes: int, groups: Sequence[IndexMap] = ()
) -> PhotoScores:
    """Return one photo's counts for a map of class indices; `groups` are index maps, by stage, without names."""
    near = boundary_areas(photo.mask, prediction, classes)
    present = np.flatnonzero(near.sum(axis=1))
    return PhotoScores(
        name=photo.name,
        digest=photo.digest,
        pixels=photo.mask.size,
        matrix=sparse(confusion_matrix(photo.mask, prediction, classes)),
        boundary=np.concatenate([present[:, None], near[present]], axis=1),
        stages=tuple(stage_scores([contingency(stage, photo.mask, classes)]) for stage in groups),
    )


def stage_scores(tables: Sequence[np.ndarray]) -> StageScores:
    """Return one stage's scores over several windows, whose groups are apart: Rand indices are averaged by pixels."""
    pixels = np.array([table.sum() for table in tables])
    agreement = np.array([adjusted_rand_index(table) for table in tables])
    oracle = sparse(np.sum([oracle_matrix(table) for table in tables], axis=0))
    groups = sum(int(table.any(axis=1).sum()) for table in tables)
    ari = float(np.average(agreement, weights=pixels)) if pixels.any() else None
    return StageScores(ari, oracle, groups)
