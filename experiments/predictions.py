"""Score predictions that are not a model's: trivial ones, and those that know something of the truth."""

from collections.abc import Callable

from groupvit.evaluation.datasets import Dataset, MaskedPhoto
from groupvit.evaluation.metrics import IndexMap
from groupvit.evaluation.results import Result
from groupvit.evaluation.scoring import score_prediction


def evaluate_predictions(dataset: Dataset, predict: Callable[[MaskedPhoto], IndexMap], name: str) -> Result:
    """Return the result of anything else: `predict` gives a photo's map of class indices."""
    photos = tuple(score_prediction(photo, predict(photo), len(dataset.classes)) for photo in dataset)
    return Result(dataset.benchmark, dataset.classes, {}, {"source": name}, photos=photos)
