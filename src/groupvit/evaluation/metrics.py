"""Intersection over union from one confusion matrix over a whole data set."""

import numpy as np
from jaxtyping import Float, Int, UInt

IGNORE = 255

IndexMap = UInt[np.ndarray, "height width"]


def confusion_matrix(truth: IndexMap, prediction: IndexMap, classes: int) -> Int[np.ndarray, "classes classes"]:
    """Pixel counts, true class by row and predicted class by column; pixels whose truth is `IGNORE` do not count."""
    known = truth != IGNORE
    pairs = truth[known].astype(np.int64) * classes + prediction[known]
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def iou(matrix: Int[np.ndarray, "classes classes"]) -> Float[np.ndarray, " classes"]:
    """Intersection over union per class, in percent; NaN for a class that is neither there nor predicted."""
    hits = np.diag(matrix)
    union = matrix.sum(axis=0) + matrix.sum(axis=1) - hits
    return 100 * np.divide(hits, union, out=np.full(len(hits), np.nan), where=union > 0)


def mean_iou(matrix: Int[np.ndarray, "classes classes"]) -> float:
    """Mean over the classes that are there or predicted, in percent."""
    return float(np.nanmean(iou(matrix)))


def oracle_names(groups: IndexMap, truth: IndexMap, classes: int) -> IndexMap:
    """Each group's pixels called by the class that most of them truly are: what grouping alone is worth."""
    known = truth != IGNORE
    pairs = groups[known].astype(np.int64) * classes + truth[known]
    counts = np.bincount(pairs, minlength=(int(groups.max()) + 1) * classes).reshape(-1, classes)
    return counts.argmax(axis=1).astype(np.uint8)[groups]
