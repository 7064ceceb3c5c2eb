"""A model on a benchmark when something of each photo's truth is given."""

from dataclasses import replace
from typing import Literal

import numpy as np

from groupvit.evaluation.benchmark import conclude, count_photo
from groupvit.evaluation.datasets import Dataset
from groupvit.evaluation.metrics import IGNORE
from groupvit.evaluation.naming import class_indices
from groupvit.evaluation.protocols import Protocol
from groupvit.evaluation.results import Result
from groupvit.evaluation.scoring import score_prediction
from groupvit.segmentation import BACKGROUND, Segmenter


def evaluate_given(
    segmenter: Segmenter, dataset: Dataset, protocol: Protocol, given: Literal["objects", "labels"]
) -> Result:
    """Return a model's result when something of each photo's truth is given: no score, but where the errors are.

    Given the "objects", background pixels are right and each other pixel takes the best of the objects' labels. Given
    the "labels", those of the photo's own classes compete, and the background.
    """
    labels, view = protocol.labels(dataset), protocol.view_of(segmenter.config, dataset)
    photos = []
    for photo in dataset:
        present = {dataset.classes[index] for index in np.unique(photo.mask) if index != IGNORE}
        if given == "objects":
            wanted = [label for label in labels if label.name != BACKGROUND]
        else:
            wanted = [label for label in labels if label.name in {*present, BACKGROUND}]
        result = segmenter.segment(photo.image, wanted or labels, view)
        if given == "objects":
            prediction = class_indices(result, dataset.classes)[result.label_map]
            prediction = np.where(photo.mask == 0, 0, prediction).astype(np.uint8)
            photos.append(score_prediction(photo, prediction, len(dataset.classes)))
        else:
            photos.append(count_photo(photo, result, dataset, pending=protocol.calibrated(dataset)))
    result = Result(
        benchmark=dataset.benchmark,
        classes=dataset.classes,
        protocol=protocol.record(segmenter.config, dataset),
        model={"source": f"{given} given"},
    )
    return replace(result, photos=tuple(photos)) if given == "objects" else conclude(result, photos, dataset, protocol)
