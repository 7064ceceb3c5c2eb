"""Background thresholds: chosen on one half of the photos for the other."""

import base64
import hashlib
import io
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from PIL import Image

from groupvit.errors import InputError
from groupvit.evaluation.datasets import Dataset, MaskedPhoto
from groupvit.evaluation.metrics import IGNORE, IndexMap, Matrix, mean_iou
from groupvit.evaluation.protocols import Protocol
from groupvit.evaluation.results import PhotoScores
from groupvit.evaluation.scoring import score_prediction
from groupvit.files import MAX_PIXELS, png
from groupvit.photos import naming

THRESHOLDS: Float[np.ndarray, " levels"] = np.concatenate([[0.0], 1 / (1 + np.exp(-np.linspace(-6, 6, 61)))])
"""Candidates for a threshold: none, and steps of 0.2 in logits."""


def pending_counts(photo: MaskedPhoto, prediction: IndexMap, confidence: np.ndarray, classes: int) -> dict[str, Any]:
    """Return what a threshold is applied to later: pixels by true class, called class and level, and the maps."""
    levels = (np.searchsorted(THRESHOLDS, confidence, side="right") - 1).astype(np.uint8)
    shape = classes, classes, len(THRESHOLDS)
    cells = np.ravel_multi_index((photo.mask.clip(max=classes - 1), prediction, levels), shape)
    counted, pixels = np.unique(cells[photo.mask != IGNORE], return_counts=True)
    rows = np.stack([*np.unravel_index(counted, shape), pixels], axis=1)
    maps = png(Image.fromarray(np.concatenate([prediction, levels])))
    return {"levels": rows.tolist(), "maps": base64.b64encode(maps).decode()}


def settle(
    photos: Sequence[PhotoScores], dataset: Dataset, protocol: Protocol
) -> tuple[tuple[float, ...], tuple[PhotoScores, ...]]:
    """Return the background thresholds, and every photo's counts under them.

    Calibrated, the photos are halved by the hash of their names, and each half takes the threshold with the best mean
    IoU on the other.
    """
    fixed = protocol.threshold(dataset)
    if not protocol.calibrated(dataset):
        return () if fixed is None else (fixed,), tuple(photos)
    half_of = halves([photo.name for photo in photos])
    others = ([photo for photo, own in zip(photos, half_of, strict=True) if own != half] for half in (0, 1))
    levels = [_best_level(each, len(dataset.classes)) for each in others]
    settled = (_settle_photo(photo, dataset, levels[half]) for photo, half in zip(photos, half_of, strict=True))
    return tuple(float(THRESHOLDS[level]) for level in levels), tuple(settled)


def halves(names: Sequence[str]) -> list[int]:
    """Return in which half each photo is, 0 or 1: they are dealt out in the order of their names' hashes."""
    order = sorted(names, key=lambda name: hashlib.sha256(name.encode(errors="surrogatepass")).digest())
    second = set(order[1::2])
    return [int(name in second) for name in names]


def _best_level(photos: Sequence[PhotoScores], classes: int) -> int:
    matrices = np.zeros((len(THRESHOLDS), classes, classes), np.int64)  # of the pixels at each level of confidence
    for photo in photos:
        truth, called, level, pixels = np.array((photo.pending or {})["levels"], np.int64).reshape(-1, 4).T
        np.add.at(matrices, (level, truth, called), pixels)
    means = [mean_iou(_below(matrices, level)) for level in range(len(THRESHOLDS))]
    return int(np.argmax(means))


def _below(matrices: Int[np.ndarray, "levels classes classes"], level: int) -> Matrix:
    """Return the confusion matrix if everything below a level is background."""
    matrix = matrices[level:].sum(axis=0)
    matrix[:, 0] += matrices[:level].sum(axis=(0, 2))
    return matrix


def _settle_photo(photo: PhotoScores, dataset: Dataset, level: int) -> PhotoScores:
    maps = io.BytesIO(base64.b64decode((photo.pending or {})["maps"]))
    with naming(photo.name, 2 * MAX_PIXELS), Image.open(maps) as file:
        prediction, levels = np.split(np.asarray(file), 2)
    called = np.where(levels < level, 0, prediction)
    counted = score_prediction(unchanged(dataset, photo), called, len(dataset.classes))
    return replace(photo, matrix=counted.matrix, boundary=counted.boundary, pending=None)


def unchanged(dataset: Dataset, counted: PhotoScores) -> MaskedPhoto:
    """Return the photo; an `InputError` if it is not the one that was counted."""
    photo = dataset.read(counted.name)
    if photo.digest != counted.digest:
        raise InputError(
            f"{dataset.root}: photo or mask {photo.name} is not the one that was counted: choose another --out"
        )
    return photo
