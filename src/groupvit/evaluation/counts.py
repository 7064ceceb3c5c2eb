"""One photo's counts, as result files have them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Int

from groupvit.evaluation.metrics import Counts


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
    return np.array(values, np.int64).reshape(-1, columns)


def plain(value: Any) -> Any:
    """Return values for JSON, which knows neither arrays nor NaN."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and np.isnan(value) else value
