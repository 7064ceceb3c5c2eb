"""Result files: every photo's pixel counts, and what they were counted with, so that all numbers can be made again."""

import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from groupvit.errors import InputError
from groupvit.evaluation import metrics
from groupvit.evaluation.metrics import Areas, Matrix
from groupvit.files import write_atomically
from groupvit.segmentation.labels import BACKGROUND

SIZES = {"small": (0.0, 0.02), "medium": (0.02, 0.15), "large": (0.15, 1.01)}
"""Shares of a photo that a class covers in it, from and below."""
RESAMPLES = 1000
_FORMAT = 3

Counts = Int[np.ndarray, "_ 3"]
"""True class, predicted class and pixels: the entries of a confusion matrix that are not 0."""


@dataclass(frozen=True)
class StageScores:
    """One stage's groups against the true classes of a photo: adjusted Rand index (None for a photo without labelled
    pixels), groups with their best names, and how many groups have labelled pixels."""

    ari: float | None
    oracle: Counts
    groups: int


@dataclass(frozen=True, eq=False)
class PhotoScores:
    """One photo's counts.

    `pixels` is the photo's size, `boundary` has class, intersection, truth and prediction near boundaries, `stages` is
    the grouping, `naming` has for each class that is there, background aside, the class, its pixels, and, stage by
    stage, what its region is called when that grouping is given the true regions. `pending` holds what a threshold that
    is not known yet will be applied to.
    """

    name: str
    digest: str
    pixels: int
    matrix: Counts
    boundary: Int[np.ndarray, "_ 4"]
    stages: tuple[StageScores, ...] = ()
    naming: Int[np.ndarray, "regions _"] = field(default_factory=lambda: np.zeros((0, 2), np.int64))
    pending: Mapping[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        values: dict[str, Any] = {
            "name": self.name,
            "digest": self.digest,
            "pixels": self.pixels,
            "matrix": self.matrix.tolist(),
            "boundary": self.boundary.tolist(),
            "stages": [{"ari": s.ari, "oracle": s.oracle.tolist(), "groups": s.groups} for s in self.stages],
            "naming": self.naming.tolist(),
        }
        return values if self.pending is None else values | {"pending": dict(self.pending)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "PhotoScores":
        """Inverse of `to_dict`."""
        stages = tuple(StageScores(s["ari"], _rows(s["oracle"], 3), int(s["groups"])) for s in values["stages"])
        naming = np.array(values["naming"] or np.zeros((0, 2)), np.int64)
        counts = _rows(values["matrix"], 3), _rows(values["boundary"], 4), stages, naming
        return cls(str(values["name"]), str(values["digest"]), int(values["pixels"]), *counts, values.get("pending"))


def _rows(values: Sequence[Sequence[int]], columns: int) -> Int[np.ndarray, "_ _"]:
    return np.array(values, np.int64).reshape(-1, columns)


def sparse(matrix: Matrix) -> Counts:
    """The entries of a confusion matrix that are not 0."""
    rows, columns = np.nonzero(matrix)
    return np.stack([rows, columns, matrix[rows, columns]], axis=1)


def dense(counts: Sequence[Counts], classes: int) -> Matrix:
    """The sum of sparse confusion matrices."""
    matrix = np.zeros((classes, classes), np.int64)
    if counts:
        rows, columns, pixels = np.concatenate(counts).T
        np.add.at(matrix, (rows, columns), pixels)
    return matrix


@dataclass(frozen=True, eq=False)
class Result:
    """An evaluation: which benchmark, model, protocol and versions, and every photo's counts.

    `thresholds` are the background's: those of the two halves of the photos where they were found on the other half.
    `floors` are mean IoUs that know nothing of where things are, and this one's difference to each (`difference`).
    """

    benchmark: str
    classes: tuple[str, ...]
    protocol: Mapping[str, Any]
    model: Mapping[str, Any]
    thresholds: tuple[float, ...] = ()
    photos: tuple[PhotoScores, ...] = ()
    floors: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=lambda: versions())

    def identity(self, names: Sequence[str] | None = None) -> dict[str, Any]:
        """What is evaluated, as plain values: two runs with the same identity give the same counts."""
        photos = [photo.name for photo in self.photos] if names is None else names
        return json.loads(
            json.dumps(
                {
                    "format": _FORMAT,
                    "benchmark": self.benchmark,
                    "classes": self.classes,
                    "protocol": self.protocol,
                    "model": {key: self.model.get(key) for key in ("sha256", "config", "precision")},
                    "list of photos": _digest(photos),
                }
            )
        )

    @cached_property
    def matrix(self) -> Matrix:
        """The confusion matrix of the whole data set."""
        return dense([photo.matrix for photo in self.photos], len(self.classes))

    @cached_property
    def photo_areas(self) -> Int[np.ndarray, "photos classes 3"]:
        """Intersection, truth and prediction of each class in each photo."""
        stacked = np.zeros((len(self.photos), len(self.classes), 3), np.int64)
        for own, photo in zip(stacked, self.photos, strict=True):
            rows, columns, pixels = photo.matrix.T
            same = rows == columns
            for part, entries in enumerate((rows[same], rows, columns)):
                np.add.at(own[:, part], entries, pixels[same] if part == 0 else pixels)
        return stacked

    @property
    def boundary_areas(self) -> Int[np.ndarray, "classes 3"]:
        """Intersection, truth and prediction of each class near boundaries, in the whole data set."""
        total = np.zeros((len(self.classes), 3), np.int64)
        for photo in self.photos:
            np.add.at(total, photo.boundary[:, 0], photo.boundary[:, 1:])
        return total

    def interval(self) -> tuple[float, float] | None:
        """95 % interval of the mean IoU over photos drawn again (see `resampled_means`); None below two photos."""
        return _middle(resampled_means(self.photo_areas)) if len(self.photos) > 1 else None

    def iou_by_size(self) -> dict[str, float]:
        """Mean IoU of classes counted only in photos where they cover a share within `SIZES`, without background."""
        counted = self.photo_areas[:, int(self.classes[0].lower() == BACKGROUND) :]
        share = counted[:, :, 1] / np.array([[photo.pixels] for photo in self.photos])
        means = {}
        for size, (low, high) in SIZES.items():
            inside = (share > 0) & (share >= low) & (share < high)
            means[size] = float(metrics.mean_known(metrics.area_iou((counted * inside[..., None]).sum(axis=0))))
        return means

    def grouping(self) -> list[dict[str, float]]:
        """Stage by stage: groups in a photo and adjusted Rand index (means), purity, mean IoU with the best names."""
        stages = []
        for stage in zip(*(photo.stages for photo in self.photos), strict=True):
            oracle = dense([photo.oracle for photo in stage], len(self.classes))
            known = [(photo.ari, photo.groups) for photo in stage if photo.ari is not None]
            ari, groups = np.mean(known, axis=0).tolist() if known else (np.nan, np.nan)
            purity, miou = metrics.pixel_accuracy(oracle), metrics.mean_iou(oracle)
            stages.append({"groups": groups, "adjusted_rand_index": ari, "purity": purity, "oracle_miou": miou})
        return stages

    def naming(self) -> list[dict[str, int | float]]:
        """Stage by stage, in percent of regions and of pixels, how many of the true regions, background aside, are
        called what they are when that grouping is given them."""
        known = [photo.naming for photo in self.photos if photo.naming.shape[1] > 2]
        true, pixels, *stages = np.concatenate(known).T if known else np.zeros((2, 0), np.int64)
        return [
            {
                "regions": len(true),
                "accuracy": float(100 * (called == true).mean()),
                "pixel_accuracy": float(100 * pixels[called == true].sum() / pixels.sum()),
            }
            for called in stages
            if len(true)
        ]

    def metrics(self) -> dict[str, Any]:
        """All numbers, in percent but for the Rand index; None for what there is nothing to count."""
        values, near = metrics.iou(self.matrix), metrics.area_iou(self.boundary_areas)
        called = metrics.accuracy(self.matrix)
        rows = zip(self.classes, values, called, near, strict=True)
        return _plain(
            {
                "miou": metrics.mean_iou(self.matrix),
                "interval": self.interval(),
                "pixel_accuracy": metrics.pixel_accuracy(self.matrix),
                "mean_accuracy": float(metrics.mean_known(called)),
                "boundary_miou": float(metrics.mean_known(near)),
                "errors": metrics.error_split(self.matrix) if self.classes[0].lower() == BACKGROUND else {},
                "by_size": self.iou_by_size(),
                "grouping": self.grouping(),
                "naming": self.naming(),
                "classes": {
                    name: {"iou": own, "accuracy": right, "boundary_iou": edge} for name, own, right, edge in rows
                },
            }
        )

    @property
    def data(self) -> dict[str, Any]:
        """How many photos, and a hash of their names, files and masks."""
        return {"photos": len(self.photos), "sha256": _digest(sorted(f"{p.name} {p.digest}" for p in self.photos))}

    def save(self, path: Path) -> None:
        """Writes the file, a photo to a line, in place of one that may be there once it is whole."""
        head = {
            "format": _FORMAT,
            "benchmark": self.benchmark,
            "classes": list(self.classes),
            "protocol": self.protocol,
            "model": self.model,
            "data": self.data,
            "thresholds": list(self.thresholds),
            "versions": self.versions,
            "metrics": self.metrics(),
            "floors": _plain(self.floors),
        }
        lines = ",\n".join(json.dumps(photo.to_dict(), separators=(",", ":")) for photo in self.photos)
        text = f'{json.dumps(head, indent=1)[:-2]},\n "photos": [\n{lines}\n]}}\n'
        write_atomically(path, text.encode())

    @classmethod
    def load(cls, path: Path) -> "Result":
        """What `save` wrote."""
        try:
            values = json.loads(path.read_bytes())
            if values["format"] != _FORMAT:
                raise ValueError(f"format {values['format']}, this groupvit reads {_FORMAT}")
            return cls(
                values["benchmark"],
                tuple(values["classes"]),
                values["protocol"],
                values["model"],
                tuple(values["thresholds"]),
                tuple(PhotoScores.from_dict(photo) for photo in values["photos"]),
                values["floors"],
                values["versions"],
            )
        except OSError as error:
            raise InputError(f"{path} cannot be read ({error.strerror})") from error
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} is no result of an evaluation ({type(error).__name__}: {error})") from error


def _digest(lines: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def versions() -> dict[str, str]:
    """What counted."""
    import PIL
    import torch

    try:
        own = importlib.metadata.version("groupvit")
    except importlib.metadata.PackageNotFoundError:  # run from a source tree
        own = "unknown"
    names = {"groupvit": own, "torch": torch.__version__, "numpy": np.__version__}
    return {**names, "pillow": PIL.__version__, "python": platform.python_version()}


def resampled_means(areas: Areas, seed: int = 0, resamples: int = RESAMPLES) -> Float[np.ndarray, " resamples"]:
    """Mean IoU of photos drawn with replacement, over the classes that are there or predicted in the whole set.

    A class of which no pixel is drawn keeps its IoU of the whole set, so that each draw is a mean of the same classes.
    """
    drawn = np.random.default_rng(seed).multinomial(len(areas), np.full(len(areas), 1 / len(areas)), resamples)
    sums = np.tensordot(drawn.astype(np.float64), areas.astype(np.float64), axes=1)
    values = metrics.area_iou(np.rint(sums).astype(np.int64))
    return metrics.mean_known(np.where(np.isnan(values), metrics.area_iou(areas.sum(axis=0)), values))


def compare(first: Path, second: Path) -> dict[str, Any]:
    """The mean IoU of two result files on the same photos, and the 95 % interval of their difference.

    See `difference`. An `InputError` says what keeps them from being compared.
    """
    ours, theirs = Result.load(first), Result.load(second)
    if ours.classes != theirs.classes or ours.benchmark != theirs.benchmark:
        raise InputError(f"{second} is of {theirs.benchmark}, {first} of {ours.benchmark}: compare one benchmark")
    if [(p.name, p.digest) for p in ours.photos] != [(p.name, p.digest) for p in theirs.photos]:
        raise InputError(
            f"{second} is of other photos or masks than {first} ({len(theirs.photos)} and {len(ours.photos)} photos)"
        )
    return difference(ours, theirs)


def difference(ours: Result, theirs: Result) -> dict[str, Any]:
    """The mean IoU of two results on the same photos, and the 95 % interval of their difference (None: one photo).

    Photos are drawn for both at once, so that what makes a photo hard counts in neither's favour. `first_is_better` is
    the share of draws in which the first one's mean is higher.
    """
    draws = resampled_means(ours.photo_areas) - resampled_means(theirs.photo_areas)
    means = metrics.mean_iou(ours.matrix), metrics.mean_iou(theirs.matrix)
    return {
        "miou": list(means),
        "difference": means[0] - means[1],
        "interval": _middle(draws) if len(ours.photos) > 1 else None,
        "first_is_better": float((draws > 0).mean()),
    }


def _middle(draws: Float[np.ndarray, " resamples"]) -> tuple[float, float] | None:
    """Where 95 % of draws lie; None where they are of nothing."""
    low, high = np.percentile(draws, [2.5, 97.5])
    return None if np.isnan(low) else (float(low), float(high))


def _plain(value: Any) -> Any:
    """Values for JSON, which knows no NaN."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float | np.floating):
        return None if np.isnan(value) else float(value)
    return value
