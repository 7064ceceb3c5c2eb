"""Pictures of an evaluation: photos beside groups, prediction and truth (Figs. 5 and 6), bars, confusion."""

import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int
from PIL import Image

from groupvit.errors import InputError, input_error
from groupvit.evaluation.datasets import Dataset, MaskedPhoto
from groupvit.evaluation.metrics import IGNORE, IndexMap, area_iou, iou, mean_known
from groupvit.evaluation.naming import class_indices
from groupvit.evaluation.protocols import Protocol
from groupvit.evaluation.results import Result
from groupvit.evaluation.thresholds import halves
from groupvit.files import refuse_remote, write_picture
from groupvit.segmentation import drawing
from groupvit.segmentation.segmenter import Segmenter

_WHOLE = 10**6  # pixels of a window that no photo fills
_WRITTEN = 21  # classes: in a larger matrix the numbers could not be read


def row(photo: MaskedPhoto, groups: Sequence[IndexMap], prediction: IndexMap, classes: Sequence[str]) -> Image.Image:
    """Draw one row of Figure 6: photo, groups of each stage, prediction and truth, a class in one colour in both."""
    names = (*classes, "not labelled")
    truth = np.where(photo.mask == IGNORE, len(classes), photo.mask).astype(np.uint16)
    pictures = {
        f"photo {photo.name}": photo.image,
        **{f"groups, stage {i}": drawing.groups(photo.image, stage) for i, stage in enumerate(groups, start=1)},
        "prediction": drawing.overlay(photo.image, prediction, names),
        "truth": drawing.overlay(photo.image, truth, names),
    }
    return drawing.panel(list(pictures.values()), list(pictures))


def grid(rows: Iterable[Image.Image], width: int = 1600) -> Image.Image:
    """Put rows below each other at one width, each shrunk before the next is made: rows of large photos are large."""

    def shrunk(image: Image.Image) -> Image.Image:
        return image.resize((width, max(1, image.height * width // image.width)), Image.Resampling.LANCZOS)

    return Image.fromarray(np.concatenate([np.asarray(image) for image in map(shrunk, rows)]))


def extremes(result: Result, count: int) -> tuple[list[int], list[int]]:
    """Return the indices of the best photos, best first, and of the worst, worst first, by IoU within a photo.

    A class counts in a photo if it is there or predicted. Photos without labelled pixels are left out.
    """
    scores = mean_known(area_iou(result.photo_areas))
    ranked = [int(i) for i in np.argsort(-scores, kind="stable") if not np.isnan(scores[i])]
    return ranked[:count], ranked[::-1][:count]


def make_folder(out: Path) -> None:
    """Make a folder for pictures, before anything is evaluated."""
    refuse_remote(out)
    if not find_spec("matplotlib"):
        raise InputError("charts need matplotlib: pip install matplotlib")
    with input_error(f"{out} cannot be a folder of pictures, choose another", OSError):
        out.mkdir(parents=True, exist_ok=True)


def draw(result: Result, row_of: Callable[[int], Image.Image], out: Path, count: int = 4) -> list[Path]:
    """Write best.png and worst.png (of rows of photos), iou.png and confusion.png; none without labelled pixels."""
    make_folder(out)
    classes, matrix = result.classes, result.matrix
    title = f"{result.benchmark}, {len(result.photos)} photos"
    pictures: dict[str, Image.Image] = {}
    if matrix.any():
        pictures = {"iou": iou_bars(matrix, classes, title), "confusion": confusion(matrix, classes, title)}
    for kind, chosen in zip(("best", "worst"), extremes(result, count), strict=True):
        if chosen:
            pictures[kind] = grid(map(row_of, chosen))
    for name, picture in pictures.items():
        write_picture(out / f"{name}.png", picture)
    return [out / f"{name}.png" for name in pictures]


def rows_of(result: Result, segmenter: Segmenter, dataset: Dataset, protocol: Protocol) -> Callable[[int], Image.Image]:
    """Return what draws the row of a photo of the evaluation, given its index.

    Groups are those of the whole photo in one window, whatever windows the prediction was averaged over.
    """
    view = protocol.view_of(segmenter.config, dataset)
    labels = segmenter.labels_of(protocol.labels(dataset), view)
    half_of = halves(result.names)

    def row_of(index: int) -> Image.Image:
        photo, seen = dataset[index], view
        if result.thresholds:  # of one threshold both halves have the same
            seen = replace(view, background=result.thresholds[-half_of[index]])
        segmented = segmenter.segment(photo.image, labels, seen)
        groups = segmented.groups
        if not groups:
            groups = segmenter.segment(photo.image, labels, short_side=view.short_side, window=_WHOLE).groups
        return row(photo, groups, class_indices(segmented, dataset.classes)[segmented.label_map], dataset.classes)

    return row_of


def iou_bars(matrix: Int[np.ndarray, "classes classes"], classes: Sequence[str], title: str) -> Image.Image:
    """Draw the IoU of each class, the best on top, and their mean as a line; absent classes are left out."""
    values = iou(matrix)
    order = [int(i) for i in np.argsort(values) if not np.isnan(values[i])]
    figure, axes = _figure(7.0, 1.2 + 0.22 * len(order))
    bars = axes.barh([classes[i] for i in order], values[order])
    axes.bar_label(bars, fmt="%.1f", padding=2, fontsize=8)
    axes.axvline(float(np.nanmean(values)), color="black", linestyle="--", linewidth=1)
    axes.set(xlim=(0, 105), xlabel="IoU in %", title=f"{title}: mean {np.nanmean(values):.1f}")
    axes.margins(y=0.01)
    return _drawn(figure)


def confusion(matrix: Int[np.ndarray, "classes classes"], classes: Sequence[str], title: str) -> Image.Image:
    """Draw the names (columns) of each true class's pixels (rows), in percent; absent classes are left out."""
    there = matrix.sum(axis=1) > 0
    shares = 100 * matrix[there] / matrix[there].sum(axis=1, keepdims=True)
    side = 2 + 0.34 * len(classes)
    figure, axes = _figure(side + 1, 1.5 + 0.34 * max(4, there.sum()))
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=100, aspect="auto")
    axes.set_xticks(range(len(classes)), classes, rotation=90)
    axes.set_yticks(range(int(there.sum())), [name for name, known in zip(classes, there, strict=True) if known])
    axes.set(xlabel="called", ylabel="truly", title=f"{title}: % of each true class")
    if len(classes) <= _WRITTEN:
        for (row, column), share in np.ndenumerate(shares):
            colour = "white" if share > 60 else "black"
            axes.text(column, row, f"{share:.0f}", ha="center", va="center", fontsize=7, color=colour)
    return _drawn(figure)


def _figure(width: float, height: float) -> tuple[Any, Any]:
    """Make an empty figure, in inches, without matplotlib's global state."""
    from matplotlib.figure import Figure

    figure = Figure((width, height), dpi=120, layout="constrained")
    return figure, figure.subplots()


def _drawn(figure: Any) -> Image.Image:
    file = io.BytesIO()
    figure.savefig(file)
    return Image.open(file).convert("RGB")
