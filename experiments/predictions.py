"""Score predictions that are not a model's: trivial ones, and those that know something of the truth."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from groupvit.evaluation.datasets import Dataset, MaskedPhoto
from groupvit.evaluation.metrics import IndexMap
from groupvit.evaluation.results import Result
from groupvit.evaluation.scoring import score_prediction


def evaluate_predictions(
    dataset: Dataset,
    predict: Callable[[MaskedPhoto], IndexMap | tuple[IndexMap, Sequence[IndexMap]]],
    name: str,
    settings: Mapping[str, Any] | None = None,
) -> Result:
    """Return the result of anything else: `predict` gives a photo's map of class indices, and groups if it has some."""
    photos = []
    for photo in dataset:
        predicted = predict(photo)
        prediction, groups = predicted if isinstance(predicted, tuple) else (predicted, ())
        photos.append(score_prediction(photo, prediction, len(dataset.classes), groups))
    return Result(
        benchmark=dataset.benchmark,
        classes=dataset.classes,
        protocol=dict(settings or {}),
        model={"source": name},
        photos=tuple(photos),
    )
