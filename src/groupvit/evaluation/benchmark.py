"""A model on a whole benchmark."""

import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from groupvit import __version__
from groupvit.data.workers import launched
from groupvit.errors import InputError, input_error
from groupvit.evaluation.baselines import score_baselines
from groupvit.evaluation.datasets import Dataset, MaskedPhoto
from groupvit.evaluation.metrics import contingency
from groupvit.evaluation.naming import class_indices, name_regions
from groupvit.evaluation.partial import PartialResult
from groupvit.evaluation.protocols import Protocol
from groupvit.evaluation.results import MALFORMED, PhotoScores, Result, versions
from groupvit.evaluation.scoring import chunks, score_prediction, stage_scores
from groupvit.evaluation.thresholds import pending_counts, settle, unchanged
from groupvit.evaluation.whole_photos import ClassFolder, Retrieval, classify
from groupvit.files import refuse_remote, write_atomically
from groupvit.models import weights_digest
from groupvit.progress import progress
from groupvit.segmentation import Segmentation, Segmenter


def evaluate(
    segmenter: Segmenter, dataset: Dataset, protocol: Protocol, *, source: str = "", batch_size: int = 8
) -> Result:
    """Return a model's result on a benchmark."""
    photos = list(score_photos(segmenter, dataset, protocol, dataset.names, batch_size=batch_size))
    return conclude(started(segmenter, dataset, protocol, source), photos, dataset, protocol)


def score_photos(
    segmenter: Segmenter, dataset: Dataset, protocol: Protocol, names: Sequence[str], *, batch_size: int = 8
) -> Iterator[PhotoScores]:
    """Yield photos' counts, in order; where the threshold is to be calibrated, `settle` completes them."""
    view, pending = protocol.view_of(segmenter.config, dataset), protocol.calibrated(dataset)
    labels = segmenter.labels_of(protocol.labels(dataset), view)
    for photos in chunks(map(dataset.read, names), batch_size):
        images = [photo.image for photo in photos]
        results = segmenter.segment(images, labels, view, batch_size=batch_size, keep_features=True)
        for photo, result in zip(photos, results, strict=True):
            counted = count_photo(photo, result, dataset, pending=pending)
            yield replace(counted, naming=name_regions(segmenter, result, photo, dataset, labels, view.templates))


def count_photo(photo: MaskedPhoto, result: Segmentation, dataset: Dataset, *, pending: bool) -> PhotoScores:
    """Return a segmented photo's counts, or what is needed to complete them when the threshold is known."""
    classes = len(dataset.classes)
    prediction = class_indices(result, dataset.classes)[result.label_map]
    tables: list[list[np.ndarray]] = []
    for window in result.windows:
        place, groups = result.groups_of(window)
        tables.append([contingency(stage, photo.mask[place], classes) for stage in groups])
    stages = tuple(stage_scores(stage) for stage in zip(*tables, strict=True))
    if not pending:
        return replace(score_prediction(photo, prediction, classes), stages=stages)
    later = pending_counts(photo, prediction, result.confidence, classes)
    return PhotoScores(photo.name, photo.digest, photo.mask.size, stages=stages, pending=later)


def started(segmenter: Segmenter, dataset: Dataset, protocol: Protocol, source: str) -> Result:
    """Return a result that has no photos yet; its protocol has the words that this model looks for."""
    record = protocol.record(segmenter.config, dataset)
    used = segmenter.labels_of(protocol.labels(dataset), protocol.view_of(segmenter.config, dataset))
    record["words"] = {label.name: list(label.words) for label in used}
    return Result(dataset.benchmark, dataset.classes, record, describe(segmenter, source))


def conclude(result: Result, photos: Sequence[PhotoScores], dataset: Dataset, protocol: Protocol) -> Result:
    """Return the result with its photos, and with their thresholds where these are to be calibrated."""
    thresholds, settled = settle(photos, dataset, protocol)
    return replace(result, thresholds=thresholds, photos=settled)


def describe(segmenter: Segmenter, source: str) -> dict[str, Any]:
    """Return where a model comes from, its configuration and size, and a hash that no layout of files changes."""
    return describe_weights(segmenter.model, source) | {
        "config": asdict(segmenter.config),
        "precision": segmenter.precision,
        "engine": segmenter.engine,
    }


def describe_weights(model: nn.Module, source: str) -> dict[str, Any]:
    """Return where weights come from, their number and a hash of them."""
    count = sum(parameter.numel() for parameter in model.parameters())
    return {"source": source, "sha256": weights_digest(model), "parameters": count}


def processes() -> tuple[int, int]:
    """Return this process's rank and how many torchrun started, each with a GPU of its own where there are some."""
    rank, count, local = launched()
    if torch.cuda.is_available():
        torch.cuda.set_device(local % torch.cuda.device_count())
    return rank, count


def evaluate_into(
    out: Path, segmenter: Segmenter, dataset: Dataset, protocol: Protocol, *, source: str, batch_size: int
) -> bool:
    """Evaluate into a result file (`count_into`), with trivial baselines; return True to the first process only."""
    result = started(segmenter, dataset, protocol, source)

    def finish(photos: Sequence[PhotoScores]) -> Result:
        whole = conclude(result, photos, dataset, protocol)
        with progress("baselines", len(dataset)) as advance:
            return replace(whole, floors=score_baselines(whole, segmenter, dataset, protocol, advance))

    count = partial(score_photos, segmenter, dataset, protocol, batch_size=batch_size)
    return count_into(out, result, dataset, count, finish, *processes())


def count_into(
    out: Path,
    result: Result,
    dataset: Dataset,
    count: Callable[[Sequence[str]], Iterable[PhotoScores]],
    finish: Callable[[Sequence[PhotoScores]], Result],
    rank: int = 0,
    processes: int = 1,
) -> bool:
    """Write a result file of photos that `count` scores, or go on with one; return True to the first process only.

    A file that is there already stays if it holds this very evaluation, and is an `InputError` if not.
    """
    identity = result.identity(dataset.names)
    if out.exists():
        held = Result.load(out)
        if held.identity() != identity:
            what = "model, protocol, classes, photos or precision"
            raise InputError(f"{out} holds another evaluation ({what}): choose another --out or delete it")
        for photo in held.photos if rank == 0 else ():
            unchanged(dataset, photo)
        return rank == 0
    identity |= {"groupvit": __version__}  # another one may count in another way
    # A photo that stopped an evaluation may be taken out of the list; several processes must have the same one.
    with PartialResult(out, identity, rank, free=("list of photos",) if processes == 1 else ()) as parts:
        if others := sorted(parts.scores.keys() - set(dataset.names)):
            told = f"{len(others)} photos that are not to be evaluated now, such as {others[0]}"
            raise InputError(f"{out}.part-{rank} has counts of {told}: delete it or choose another --out")
        _check_counts(result, list(parts.scores.values()), out)
        names = dataset.names[rank::processes]
        for name in parts.scores.keys() & set(names):
            unchanged(dataset, parts.scores[name])
        left = [name for name in names if name not in parts.scores]
        with progress("evaluating", len(left), shown=rank == 0) as advance:
            for photo in count(left):
                parts.add(photo)
                advance()
        if rank:
            return False
        parts.wait_for(dataset.names)
        photos = [parts.scores[name] for name in dataset.names]
        _check_counts(result, photos, out)
        finish(photos).save(out)
        parts.remove()
    return True


def _check_counts(result: Result, photos: Sequence[PhotoScores], out: Path) -> None:
    """Refuse counts that are not of this evaluation's classes and stages."""
    with input_error(f"a file {out}.part-* is damaged", *MALFORMED, advice="delete it, its photos are evaluated again"):
        if photos:
            replace(result, photos=tuple(photos)).check()


def evaluate_whole_photos(
    segmenter: Segmenter, benchmark: Literal["classification", "retrieval"], root: Path, out: Path, *, source: str
) -> dict[str, Any]:
    """Write and return zero-shot classification with CLIP's 7 and 80 templates, or retrieval, always in float32.

    A file that is there already is returned if it holds this very evaluation, and is an `InputError` if not.
    """
    refuse_remote(out)
    described, held = describe(segmenter, source) | {"precision": "fp32"}, {}
    other, advice = f"{out} is no {benchmark} of this model and these photos", "choose another --out or delete it"
    if out.exists():
        with input_error(other, OSError, *MALFORMED, advice=advice):
            held = json.loads(out.read_bytes())
            if (held["benchmark"], held["model"]["sha256"]) != (benchmark, described["sha256"]):
                raise ValueError("it holds another evaluation")
    with input_error(f"cannot write {out}", OSError):
        out.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out.parent).close()
    whole = Retrieval(root, segmenter.config) if benchmark == "retrieval" else ClassFolder.open(root)
    if held:
        with input_error(other, *MALFORMED, advice=advice):
            if held["data"] != {"photos": len(whole), "sha256": whole.digest}:
                raise ValueError("it holds another evaluation")
            return held | {"metrics": {str(name): float(value) for name, value in held["metrics"].items()}}
    metrics = whole(segmenter.model) if isinstance(whole, Retrieval) else classify(segmenter, whole)
    document: dict[str, Any] = {"benchmark": benchmark, "metrics": metrics, "versions": versions()}
    document["data"] = {"photos": len(whole), "sha256": whole.digest}
    document["model"] = described
    write_atomically(out, (json.dumps(document, indent=1) + "\n").encode())
    return document
