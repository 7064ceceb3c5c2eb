"""From label maps to pixel counts, and how result files have them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Int

from groupvit.evaluation.datasets import MaskedPhoto
from groupvit.evaluation.metrics import (
    Counts,
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
_PIXELS_AT_ONCE = 2**23


@dataclass(frozen=True)
class StageScores:
    """One stage's groups against a photo's true classes.

    `ari` is the adjusted Rand index (None without labelled pixels), `oracle` the confusion matrix of groups with their
    best names, `groups` the number of those with labelled pixels.
    """

    ari: float | None
    oracle: Counts
    groups: int


@dataclass(frozen=True, eq=False)
class PhotoScores:
    """One photo's counts.

    `pixels` is the photo's size. `boundary` has class, intersection, truth and prediction near boundaries. `naming` has
    a row for each class in the photo, background aside: the class, its pixels, and what each stage calls its region
    when it is given the true regions. `pending` holds what an unknown threshold will be applied to.
    """

    name: str
    digest: str
    pixels: int
    matrix: Counts = field(default_factory=lambda: np.zeros((0, 3), np.int64))
    boundary: Int[np.ndarray, "_ 4"] = field(default_factory=lambda: np.zeros((0, 4), np.int64))
    stages: tuple[StageScores, ...] = ()
    naming: Int[np.ndarray, "regions _"] = field(default_factory=lambda: np.zeros((0, 2), np.int64))
    pending: Mapping[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        values = plain(vars(self) | {"stages": [vars(stage) for stage in self.stages]})
        return {name: value for name, value in values.items() if name != "pending" or value is not None}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "PhotoScores":
        """Return the inverse of `to_dict`."""
        return cls(
            name=str(values["name"]),
            digest=str(values["digest"]),
            pixels=int(values["pixels"]),
            matrix=_rows(values["matrix"], 3),
            boundary=_rows(values["boundary"], 4),
            stages=tuple(
                StageScores(None if s["ari"] is None else float(s["ari"]), _rows(s["oracle"], 3), int(s["groups"]))
                for s in values["stages"]
            ),
            naming=_rows(values["naming"], len((values["naming"] or [(0, 0)])[0])),
            pending=values.get("pending"),
        )


def _rows(values: Sequence[Sequence[int]], columns: int) -> Int[np.ndarray, "_ _"]:
    rows = np.array(values).reshape(-1, columns)
    if rows.size and (rows.dtype.kind != "i" or rows.min() < 0):
        raise ValueError("its counts are no whole numbers")
    return rows.astype(np.int64)


def plain(value: Any) -> Any:
    """Return values for JSON, which knows neither arrays nor NaN."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and np.isnan(value) else value


def chunks(photos: Iterable[MaskedPhoto], count: int) -> Iterator[list[MaskedPhoto]]:
    """Yield photos that are segmented together, so that windows of one size fill batches; of large photos fewer."""
    chunk: list[MaskedPhoto] = []
    for photo in photos:
        chunk.append(photo)
        if len(chunk) == count or sum(p.mask.size for p in chunk) >= _PIXELS_AT_ONCE:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


@dataclass(frozen=True)
class Scores:
    """Confusion matrices: `named` by the model, `oracle` with its last groups called by the best true class."""

    named: Int[np.ndarray, "classes classes"]
    oracle: Int[np.ndarray, "classes classes"]


def score(
    segmenter: Segmenter, photos: Iterable[MaskedPhoto], labels: Sequence[str], view: View | None = None
) -> Scores:
    """Segment the photos and count; `labels` stand in the order of the masks' indices."""
    view = view or View(background=None)
    named = np.zeros((len(labels), len(labels)), dtype=np.int64)
    oracle = np.zeros_like(named)
    classes = [label.name for text in labels for label in parse_labels([text])]
    for chunk in chunks(photos, _CHUNK):
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
