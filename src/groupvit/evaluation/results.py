"""Result files: every photo's pixel counts and what made them, from which all numbers can be computed again."""

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from jaxtyping import Int

from groupvit import __version__
from groupvit.errors import InputError, input_error
from groupvit.evaluation import metrics
from groupvit.evaluation.datasets import Dataset
from groupvit.evaluation.metrics import IGNORE, Matrix, dense, resampled_means
from groupvit.evaluation.scoring import PhotoScores, plain
from groupvit.files import refuse_pointer, write_atomically
from groupvit.segmentation.labels import BACKGROUND

SIZES = {"small": (0.0, 0.02), "medium": (0.02, 0.15), "large": (0.15, 1.01)}
"""Shares of a photo that a class covers in it, from and below."""
_FORMAT = 3
MALFORMED = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)
"""What reading a document of another shape raises."""
_HEAD = ("benchmark", "classes", "protocol", "model", "thresholds", "versions", "floors")


@dataclass(frozen=True, eq=False)
class Result:
    """An evaluation: which benchmark, model, protocol and versions, and every photo's counts.

    `thresholds` are the background's, one for each half of the photos if they were chosen on the other half. `floors`
    has the mean IoU of each baseline and the difference to it (`difference`).
    """

    benchmark: str
    classes: tuple[str, ...]
    protocol: Mapping[str, Any]
    model: Mapping[str, Any]
    thresholds: tuple[float, ...] = ()
    photos: tuple[PhotoScores, ...] = ()
    floors: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=lambda: versions())

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the photos."""
        return tuple(photo.name for photo in self.photos)

    def identity(self, names: Sequence[str] | None = None) -> dict[str, Any]:
        """Return what is evaluated, as plain values: two runs with the same identity give the same counts."""
        document = {
            "format": _FORMAT,
            "benchmark": self.benchmark,
            "classes": self.classes,
            "protocol": self.protocol,
            "model": {key: self.model.get(key) for key in ("sha256", "config", "precision")}
            | {"engine": self.model.get("engine", "torch")},
            "list of photos": _digest(self.names if names is None else names),
        }
        return json.loads(json.dumps(document))

    @cached_property
    def matrix(self) -> Matrix:
        """Confusion matrix of the whole data set."""
        return dense([photo.matrix for photo in self.photos], len(self.classes))

    @cached_property
    def photo_areas(self) -> Int[np.ndarray, "photos classes 3"]:
        """Intersection, truth and prediction of each class in each photo."""
        matrices = (dense([photo.matrix], len(self.classes)) for photo in self.photos)
        return np.array([metrics.areas(matrix) for matrix in matrices], np.int64).reshape(-1, len(self.classes), 3)

    @property
    def boundary_areas(self) -> Int[np.ndarray, "classes 3"]:
        """Intersection, truth and prediction of each class near boundaries, in the whole data set."""
        total = np.zeros((len(self.classes), 3), np.int64)
        for photo in self.photos:
            np.add.at(total, photo.boundary[:, 0], photo.boundary[:, 1:])
        return total

    def interval(self) -> tuple[float, float] | None:
        """Return the mean IoU's 95 % interval over photos drawn again (`resampled_means`); None below two photos."""
        return metrics.interval(resampled_means(self.photo_areas)) if len(self.photos) > 1 else None

    def iou_by_size(self) -> dict[str, float]:
        """Return mean IoU by `SIZES`: a class counts in photos where its share is within; background does not."""
        counted = self.photo_areas[:, int(self.classes[0].lower() == BACKGROUND) :]
        share = counted[:, :, 1] / np.array([[photo.pixels] for photo in self.photos])
        means = {}
        for size, (low, high) in SIZES.items():
            inside = (share > 0) & (share >= low) & (share < high)
            means[size] = float(metrics.mean_known(metrics.area_iou((counted * inside[..., None]).sum(axis=0))))
        return means

    def grouping(self) -> list[dict[str, float]]:
        """Return for each stage groups and adjusted Rand index (means of photos), purity, mean IoU with best names."""
        stages = []
        for stage in zip(*(photo.stages for photo in self.photos), strict=True):
            oracle = dense([photo.oracle for photo in stage], len(self.classes))
            known = [(photo.ari, photo.groups) for photo in stage if photo.ari is not None]
            ari, groups = np.mean(known, axis=0).tolist() if known else (np.nan, np.nan)
            purity, miou = metrics.pixel_accuracy(oracle), metrics.mean_iou(oracle)
            stages.append({"groups": groups, "adjusted_rand_index": ari, "purity": purity, "oracle_miou": miou})
        return stages

    def naming(self) -> list[dict[str, int | float]]:
        """Return for each stage the percentage of true regions, and of their pixels, that get their class's name."""
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
        """Return all numbers, in percent but for the Rand index; None where there is nothing to count."""
        near, called = metrics.area_iou(self.boundary_areas), metrics.accuracy(self.matrix)
        rows = zip(self.classes, metrics.iou(self.matrix), called, near, strict=True)
        return plain(
            {
                "miou": metrics.mean_iou(self.matrix),
                "interval": self.interval(),
                "pixel_accuracy": metrics.pixel_accuracy(self.matrix),
                "mean_accuracy": metrics.mean_known(called),
                "boundary_miou": metrics.mean_known(near),
                "errors": metrics.error_split(self.matrix) if self.classes[0].lower() == BACKGROUND else {},
                "by_size": self.iou_by_size(),
                "grouping": self.grouping(),
                "naming": self.naming(),
                "classes": {
                    name: {"iou": iou, "accuracy": accuracy, "boundary_iou": edge} for name, iou, accuracy, edge in rows
                },
            }
        )

    def save(self, path: Path | str) -> None:
        """Write the file, a photo to a line; one that may be there is replaced."""
        fields = plain({name: getattr(self, name) for name in _HEAD})
        data = {"photos": len(self.photos), "sha256": _digest(sorted(f"{p.name} {p.digest}" for p in self.photos))}
        head = {"format": _FORMAT, **fields, "data": data, "metrics": self.metrics()}
        lines = ",\n".join(json.dumps(photo.to_dict(), separators=(",", ":")) for photo in self.photos)
        text = f'{json.dumps(head, indent=1)[:-2]},\n "photos": [\n{lines}\n]}}\n'
        write_atomically(Path(path), text.encode())

    def check(self) -> None:
        """Raise one of `MALFORMED` for values that no evaluation writes."""
        count = len(self.classes)
        if not isinstance(self.protocol.get("name", ""), str) or not isinstance(self.model, dict):
            raise ValueError("its protocol or model has no fields")
        for floor in self.floors.values():
            ends = (0, 0) if floor["interval"] is None else floor["interval"]
            numbers = [*ends, floor["miou"], floor["difference"]]
            if len(numbers) != 4 or None in ends or not all(isinstance(n, int | float | None) for n in numbers):
                raise ValueError("its baselines are no numbers")
        if not 0 < count <= IGNORE or not all(isinstance(name, str) for name in self.classes):
            raise ValueError(f"its classes are not up to {IGNORE} names")
        if not self.photos:
            raise ValueError("it has no photos")
        for photo in self.photos:
            entries = [photo.matrix[:, :2], photo.boundary[:, :1], *(stage.oracle[:, :2] for stage in photo.stages)]
            if any(each.size and not 0 <= each.min() <= each.max() < count for each in entries) or photo.pixels < 1:
                raise ValueError(f"photo {photo.name} has pixels of no class")
            if len(photo.stages) != len(self.photos[0].stages):
                raise ValueError(f"photo {photo.name} has {len(photo.stages)} stages")
            if (photo.pending is None) != (self.photos[0].pending is None):
                raise ValueError(f"photo {photo.name} has a threshold, and others have none")
        if len({photo.naming.shape[1] for photo in self.photos if len(photo.naming)}) > 1:
            raise ValueError("its photos are named in different stages")

    @classmethod
    def load(cls, path: Path | str) -> "Result":
        """Read what `save` wrote."""
        path = Path(path)
        with input_error(f"{path} cannot be read", OSError):
            refuse_pointer(path)
            data = path.read_bytes()
        try:
            values = json.loads(data)
            if values["format"] != _FORMAT:
                raise ValueError(f"format {values['format']}, this groupvit reads {_FORMAT}")
            fields = {name: values[name] for name in _HEAD}
            fields |= {"classes": tuple(values["classes"]), "thresholds": tuple(map(float, values["thresholds"]))}
            result = cls(**fields, photos=tuple(map(PhotoScores.from_dict, values["photos"])))
            result.check()
            return result
        except MALFORMED as error:
            raise InputError(f"{path} is no result of an evaluation ({type(error).__name__}: {error})") from error


def _digest(lines: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode(errors="surrogatepass")).hexdigest()


def versions() -> dict[str, str]:
    """Return the versions of what counted."""
    packages = {"torch": torch.__version__, "numpy": np.__version__, "pillow": PIL.__version__}
    return {"python": platform.python_version(), "groupvit": __version__, **packages}


def load_comparable(path: Path, ours: Dataset | Result, first: Path) -> Result:
    """Read another result; an `InputError` if it cannot be compared with `ours`, which is or will be in `first`."""
    theirs = Result.load(path)
    if theirs.benchmark != ours.benchmark:
        raise InputError(f"{path} is of {theirs.benchmark}, {first} of {ours.benchmark}: compare one benchmark")
    if theirs.classes != ours.classes:
        one, other = next(
            pair for pair in zip_longest(theirs.classes, ours.classes, fillvalue="no more") if pair[0] != pair[1]
        )
        raise InputError(f"{path} has other classes than {first} ({one} there, {other} here): compare one benchmark")
    if theirs.names != ours.names:
        sizes = f"{len(theirs.names)} and {len(ours.names)} photos"
        raise InputError(f"{path} is of other photos or masks than {first} ({sizes})")
    return theirs


def compare(first: Path, second: Path) -> dict[str, Any]:
    """Return the `difference` of two result files; an `InputError` says why they cannot be compared."""
    ours = Result.load(first)
    theirs = load_comparable(second, ours, first)
    if [photo.digest for photo in ours.photos] != [photo.digest for photo in theirs.photos]:
        raise InputError(f"{second} is of other photos or masks than {first}, under the same names")
    return difference(ours, theirs)


def difference(ours: Result, theirs: Result) -> dict[str, Any]:
    """Return the mean IoU of two results on the same photos, and the 95 % interval of their difference.

    The same photos are drawn for both, so that a hard photo counts against neither. With one photo the
    interval is None.
    """
    if [(photo.name, photo.digest) for photo in ours.photos] != [(photo.name, photo.digest) for photo in theirs.photos]:
        raise InputError("only results on the same photos and masks, in one order, have a difference")
    draws = resampled_means(ours.photo_areas) - resampled_means(theirs.photo_areas)
    means = metrics.mean_iou(ours.matrix), metrics.mean_iou(theirs.matrix)
    return {
        "miou": list(means),
        "difference": means[0] - means[1],
        "interval": metrics.interval(draws) if len(ours.photos) > 1 else None,
    }
