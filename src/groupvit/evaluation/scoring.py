"""From photos to counts: a model under a protocol, or any other predictions."""

import base64
import hashlib
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, Unpack

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image

from groupvit.errors import InputError
from groupvit.evaluation.datasets import Dataset, MaskedPhoto
from groupvit.evaluation.metrics import (
    IGNORE,
    IndexMap,
    Matrix,
    adjusted_rand_index,
    boundary_areas,
    confusion_matrix,
    contingency,
    mean_iou,
    oracle_matrix,
    oracle_names,
)
from groupvit.evaluation.protocols import Protocol
from groupvit.evaluation.results import PhotoScores, Result, StageScores, sparse
from groupvit.machine import has_bfloat16
from groupvit.segmentation import Segmentation
from groupvit.segmentation.labels import BACKGROUND, parse_labels
from groupvit.segmentation.segmenter import Options, Segmenter
from groupvit.segmentation.windows import covered

Precision = Literal["bf16", "fp32"]
"""Numbers of the image encoder."""

THRESHOLDS: Float[np.ndarray, " levels"] = np.concatenate([[0.0], 1 / (1 + np.exp(-np.linspace(-6, 6, 61)))])
"""What a background threshold is chosen from: none, and steps of 0.2 in logits."""

_CHUNK = 64
_PIXELS_AT_ONCE = 2**23


@dataclass(frozen=True)
class Scores:
    """Confusion matrices: `named` by the model, `oracle` with its last groups called by the best true class."""

    named: Int[np.ndarray, "classes classes"]
    oracle: Int[np.ndarray, "classes classes"]


def score(
    segmenter: Segmenter, photos: Sequence[MaskedPhoto], labels: Sequence[str], **options: Unpack[Options]
) -> Scores:
    """Segment the photos and count; `labels` stand in the order of the masks' indices."""
    settings: Options = {"batch_size": _CHUNK, "background": None, **options}
    named = np.zeros((len(labels), len(labels)), dtype=np.int64)
    oracle = np.zeros_like(named)
    classes = [label.name for text in labels for label in parse_labels([text])]
    for start in range(0, len(photos), _CHUNK):
        chunk = photos[start : start + _CHUNK]
        results = segmenter.segment([photo.image for photo in chunk], labels, **settings)
        for photo, result in zip(chunk, results, strict=True):
            named += confusion_matrix(photo.mask, class_indices(result, classes)[result.label_map], len(labels))
            if result.groups:
                names = oracle_names(result.groups[-1], photo.mask, len(labels))
                oracle += confusion_matrix(photo.mask, names, len(labels))
    return Scores(named, oracle)


def class_indices(result: Segmentation, classes: Sequence[str]) -> np.ndarray:
    """For each of a result's names the class index; the segmenter puts background first wherever it stood."""
    order = {name.lower(): index for index, name in enumerate(classes)}
    return np.array([order[name.lower()] for name in result.names], np.uint8)


def native_precision(segmenter: Segmenter) -> Precision:
    """bf16 where the model's device has it."""
    return "bf16" if has_bfloat16(segmenter.device) else "fp32"


def evaluate(
    segmenter: Segmenter,
    dataset: Dataset,
    protocol: Protocol,
    *,
    source: str = "",
    precision: Precision | None = None,
    batch_size: int = 8,
) -> Result:
    """A model on a benchmark."""
    precision = precision or native_precision(segmenter)
    photos = score_photos(segmenter, dataset, protocol, dataset.names, precision=precision, batch_size=batch_size)
    model = {"source": source, **describe(segmenter), "precision": precision}
    result = Result(dataset.benchmark, dataset.classes, protocol.record(segmenter.config, dataset), model)
    return conclude(result, list(photos), dataset, protocol)


def evaluate_given(
    segmenter: Segmenter,
    dataset: Dataset,
    protocol: Protocol,
    given: Literal["objects", "labels"],
    *,
    precision: Precision | None = None,
) -> Result:
    """A model on a benchmark when something of each photo's truth is given: no score, but where the errors are.

    Given the "objects", background pixels are right and each other pixel takes the best of the objects' labels. Given
    the "labels", those of the photo's own classes compete, and the background.
    """
    precision = precision or native_precision(segmenter)
    labels, options = protocol.labels(dataset), protocol.options(segmenter.config, dataset)
    photos = []
    for photo in dataset:
        own = {dataset.classes[index] for index in np.unique(photo.mask) if index != IGNORE}
        if given == "objects":
            wanted = [label for label in labels if label.name != BACKGROUND]
        else:
            wanted = [label for label in labels if label.name in {*own, BACKGROUND}]
        with torch.autocast(segmenter.device.type, torch.bfloat16, enabled=precision == "bf16"):
            result = segmenter.segment(photo.image, wanted or labels, **options)
        if given == "objects":
            prediction = class_indices(result, dataset.classes)[result.label_map]
            prediction = np.where(photo.mask == 0, 0, prediction).astype(np.uint8)
            photos.append(score_prediction(photo, prediction, len(dataset.classes)))
        else:
            photos.append(_count(photo, result, dataset, pending=protocol.calibrated(dataset)))
    settings = protocol.record(segmenter.config, dataset)
    result = Result(dataset.benchmark, dataset.classes, settings, {"source": f"{given} given"})
    return replace(result, photos=tuple(photos)) if given == "objects" else conclude(result, photos, dataset, protocol)


def conclude(result: Result, photos: Sequence[PhotoScores], dataset: Dataset, protocol: Protocol) -> Result:
    """The result with its photos, and with their thresholds where these are to be calibrated."""
    thresholds, settled = settle(photos, dataset, protocol)
    return replace(result, thresholds=thresholds, photos=settled)


def evaluate_predictions(
    dataset: Dataset,
    predict: Callable[[MaskedPhoto], IndexMap | tuple[IndexMap, Sequence[IndexMap]]],
    name: str,
    settings: Mapping[str, Any] | None = None,
) -> Result:
    """Anything else on a benchmark: `predict` gives a photo's map of class indices, and groups where it has some."""
    photos = []
    for photo in dataset:
        predicted = predict(photo)
        prediction, groups = predicted if isinstance(predicted, tuple) else (predicted, ())
        photos.append(score_prediction(photo, prediction, len(dataset.classes), groups))
    return Result(dataset.benchmark, dataset.classes, dict(settings or {}), {"source": name}, photos=tuple(photos))


def score_prediction(
    photo: MaskedPhoto, prediction: IndexMap, classes: int, groups: Sequence[IndexMap] = ()
) -> PhotoScores:
    """One photo's counts for a map of class indices; `groups` are index maps, stage by stage, without names."""
    near = boundary_areas(photo.mask, prediction, classes)
    present = np.flatnonzero(near.sum(axis=1))
    return PhotoScores(
        photo.name,
        photo.digest,
        photo.mask.size,
        sparse(confusion_matrix(photo.mask, prediction, classes)),
        np.concatenate([present[:, None], near[present]], axis=1),
        tuple(_stage([contingency(stage, photo.mask, classes)]) for stage in groups),
    )


def score_photos(
    segmenter: Segmenter,
    dataset: Dataset,
    protocol: Protocol,
    names: Sequence[str],
    *,
    precision: Precision,
    batch_size: int = 8,
) -> Iterator[PhotoScores]:
    """Photos' counts, in order; where the threshold is to be calibrated, `settle` makes the matrices."""
    labels = protocol.labels(dataset)
    options: Options = {**protocol.options(segmenter.config, dataset), "batch_size": batch_size}
    kind = segmenter.device.type
    for photos in _chunks(map(dataset.read, names), batch_size):
        with torch.autocast(kind, torch.bfloat16, enabled=precision == "bf16"):
            options["regions"] = [photo.mask for photo in photos]
            results = segmenter.segment([photo.image for photo in photos], labels, **options)
        for photo, result in zip(photos, results, strict=True):
            yield _count(photo, result, dataset, pending=protocol.calibrated(dataset))


def _chunks(photos: Iterable[MaskedPhoto], count: int) -> Iterator[list[MaskedPhoto]]:
    """Photos that are segmented together, so that windows of one size fill batches; of large photos fewer."""
    chunk: list[MaskedPhoto] = []
    for photo in photos:
        chunk.append(photo)
        if len(chunk) == count or sum(p.mask.size for p in chunk) >= _PIXELS_AT_ONCE:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _count(photo: MaskedPhoto, result: Segmentation, dataset: Dataset, *, pending: bool) -> PhotoScores:
    classes = len(dataset.classes)
    indices = class_indices(result, dataset.classes)
    prediction = indices[result.label_map]
    tables: list[list[np.ndarray]] = []
    for window in result.windows:
        place, groups = result.groups_of(window)
        tables.append([contingency(stage, photo.mask[place], classes) for stage in groups])
    split = {
        "stages": tuple(_stage(stage) for stage in zip(*tables, strict=True)),
        "naming": _naming(result, indices, photo, dataset),
    }
    if not pending:
        return replace(score_prediction(photo, prediction, classes), **split)
    none = np.zeros((0, 3), np.int64), np.zeros((0, 4), np.int64)
    held = _hold(photo, prediction, result.confidence, classes)
    return PhotoScores(photo.name, photo.digest, photo.mask.size, *none, **split, pending=held)


def _stage(tables: Sequence[np.ndarray]) -> StageScores:
    """Several windows' groups are apart: matrices and counts are added, Rand indices averaged by known pixels."""
    pixels = np.array([table.sum() for table in tables])
    agreement = np.array([adjusted_rand_index(table) for table in tables])
    oracle = sparse(np.sum([oracle_matrix(table) for table in tables], axis=0))
    groups = sum(int(table.any(axis=1).sum()) for table in tables)
    return StageScores(float(np.average(agreement, weights=pixels)) if pixels.any() else None, oracle, groups)


def _naming(
    result: Segmentation, indices: np.ndarray, photo: MaskedPhoto, dataset: Dataset
) -> Int[np.ndarray, "regions _"]:
    """The rows of `PhotoScores.naming`: a window's scores count by the region's pixels in it.

    Background neither is asked for nor answers.
    """
    windows = [window for window in result.windows if window.regions]
    if not windows:
        return np.zeros((0, 2), np.int64)
    labels = windows[0].region_scores[0].shape[1]
    scores = np.zeros((len(windows[0].region_scores), len(dataset.classes), labels))
    for window in windows:
        place = covered((window.top, window.left, window.height, window.width), result.step)
        own = np.bincount(photo.mask[place].ravel(), minlength=256)[[*window.regions]]
        for total, fit in zip(scores, window.region_scores, strict=True):
            total[[*window.regions]] += own[:, None] * fit.double().cpu().numpy()
    pixels = np.bincount(photo.mask.ravel(), minlength=256)[: len(dataset.classes)]
    columns = indices[len(indices) - labels :]  # a threshold's background has a name, but no scores
    scores[:, :, dataset.has_background & (columns == 0)] = -1
    asked = [c for c in np.flatnonzero(pixels) if not (dataset.has_background and c == 0)]
    called = columns[scores[:, asked].argmax(axis=2)].T
    return np.column_stack([asked, pixels[asked], called]).astype(np.int64)


def _hold(photo: MaskedPhoto, prediction: IndexMap, confidence: np.ndarray, classes: int) -> dict[str, Any]:
    """What a threshold is applied to later: pixels by true class, called class and level, and the maps."""
    levels = (np.searchsorted(THRESHOLDS, confidence, side="right") - 1).astype(np.uint8)
    shape = classes, classes, len(THRESHOLDS)
    cells = np.ravel_multi_index((photo.mask.clip(max=classes - 1), prediction, levels), shape)
    found, pixels = np.unique(cells[photo.mask != IGNORE], return_counts=True)
    rows = np.stack([*np.unravel_index(found, shape), pixels], axis=1)
    file = io.BytesIO()
    Image.fromarray(np.concatenate([prediction, levels])).save(file, "PNG")
    return {
        "levels": rows.tolist(),
        "maps": base64.b64encode(file.getvalue()).decode(),
    }


def settle(
    photos: Sequence[PhotoScores], dataset: Dataset, protocol: Protocol
) -> tuple[tuple[float, ...], tuple[PhotoScores, ...]]:
    """The background thresholds, and every photo's counts under them.

    Calibrated, the photos are halved by the hash of their names, and each half takes the threshold with the best mean
    IoU on the other.
    """
    fixed = protocol.threshold(dataset)
    if not protocol.calibrated(dataset):
        return () if fixed is None else (fixed,), tuple(photos)
    if len(photos) < 2:
        raise InputError(f"{dataset.root}: to calibrate a threshold on one half for the other takes two photos")
    order = sorted(range(len(photos)), key=lambda i: hashlib.sha256(photos[i].name.encode()).digest())
    halves = order[::2], order[1::2]
    levels = [_best_level([photos[i] for i in halves[1 - half]], len(dataset.classes)) for half in (0, 1)]
    level_of = {i: level for half, level in zip(halves, levels, strict=True) for i in half}
    settled = (_settle_photo(photo, dataset, level_of[i]) for i, photo in enumerate(photos))
    return tuple(float(THRESHOLDS[level]) for level in levels), tuple(settled)


def _best_level(photos: Sequence[PhotoScores], classes: int) -> int:
    matrices = np.zeros((len(THRESHOLDS), classes, classes), np.int64)  # of the pixels at each level of confidence
    for photo in photos:
        truth, called, level, pixels = np.array((photo.pending or {})["levels"], np.int64).reshape(-1, 4).T
        np.add.at(matrices, (level, truth, called), pixels)
    means = [mean_iou(_below(matrices, level)) for level in range(len(THRESHOLDS))]
    return int(np.argmax(means))


def _below(matrices: Int[np.ndarray, "levels classes classes"], level: int) -> Matrix:
    """The confusion matrix when what lies below a level is background."""
    matrix = matrices[level:].sum(axis=0)
    matrix[:, 0] += matrices[:level].sum(axis=(0, 2))
    return matrix


def _settle_photo(photo: PhotoScores, dataset: Dataset, level: int) -> PhotoScores:
    with Image.open(io.BytesIO(base64.b64decode((photo.pending or {})["maps"]))) as file:
        prediction, levels = np.split(np.asarray(file), 2)
    called = np.where(levels < level, 0, prediction)
    counted = score_prediction(unchanged(dataset, photo), called, len(dataset.classes))
    return replace(photo, matrix=counted.matrix, boundary=counted.boundary, pending=None)


def unchanged(dataset: Dataset, counted: PhotoScores) -> MaskedPhoto:
    """The photo, which must be the one that was counted."""
    photo = dataset.read(counted.name)
    if photo.digest != counted.digest:
        raise InputError(
            f"{dataset.root}: photo or mask {photo.name} is not the one that was counted: choose another --out"
        )
    return photo


def describe(segmenter: Segmenter) -> dict[str, Any]:
    """The model's configuration and size, and a hash of its tensors that no layout of files changes."""
    digest, model = hashlib.sha256(), segmenter.model
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    parameters = sum(p.numel() for p in model.parameters())
    return {"sha256": digest.hexdigest(), "parameters": parameters, "config": asdict(segmenter.config)}
