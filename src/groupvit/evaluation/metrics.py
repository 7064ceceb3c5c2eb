"""Numbers from pixel counts: intersection over union, accuracy, boundaries, agreement of groupings.

A data set has one confusion matrix, the sum of its photos'; IoU is a ratio of sums, as in the literature, and no mean
over photos. Means leave out classes that are neither there nor predicted; a class that is only predicted has 0.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int, UInt

IGNORE = 255

IndexMap = UInt[np.ndarray, "height width"]
Matrix = Int[np.ndarray, "classes classes"]
Counts = Int[np.ndarray, "_ 3"]
"""True class, predicted class and pixels: the entries of a confusion matrix that are not 0."""
Areas = Int[np.ndarray, "*photos classes 3"]
"""For each class the pixels of the intersection, the truth and the prediction."""


def confusion_matrix(truth: IndexMap, prediction: IndexMap, classes: int) -> Matrix:
    """Count pixels, true class by row and predicted class by column; pixels whose truth is `IGNORE` do not count."""
    known = truth != IGNORE
    pairs = truth[known].astype(np.int64) * classes + prediction[known]
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def sparse(matrix: Matrix) -> Counts:
    """Return the entries of a confusion matrix that are not 0."""
    rows, columns = np.nonzero(matrix)
    return np.stack([rows, columns, matrix[rows, columns]], axis=1)


def dense(counts: Sequence[Counts], classes: int) -> Matrix:
    """Add up sparse confusion matrices."""
    matrix = np.zeros((classes, classes), np.int64)
    if counts:
        rows, columns, pixels = np.concatenate(counts).T
        np.add.at(matrix, (rows, columns), pixels)
    return matrix


def areas(matrix: Int[np.ndarray, "*photos classes classes"]) -> Areas:
    """Return the areas of a confusion matrix, or of many."""
    return np.stack([np.diagonal(matrix, axis1=-2, axis2=-1), matrix.sum(axis=-1), matrix.sum(axis=-2)], axis=-1)


def area_iou(areas: Areas) -> Float[np.ndarray, "*photos classes"]:
    """Return IoU per class, in percent; NaN for a class that is neither there nor predicted."""
    hits, union = areas[..., 0], areas[..., 1] + areas[..., 2] - areas[..., 0]
    return 100 * np.divide(hits, union, out=np.full(hits.shape, np.nan), where=union > 0)


def iou(matrix: Matrix) -> Float[np.ndarray, " classes"]:
    """Return IoU per class, in percent; NaN for a class that is neither there nor predicted."""
    return area_iou(areas(matrix))


def mean_iou(matrix: Matrix) -> float:
    """Return the mean IoU over the classes that are there or predicted, in percent."""
    return float(mean_known(iou(matrix)))


def mean_known(values: Float[np.ndarray, "*rows classes"]) -> Float[np.ndarray, "*rows"]:
    """Return the mean over classes that are not NaN; NaN if all are."""
    known = ~np.isnan(values)
    count = known.sum(axis=-1)
    return np.where(count > 0, np.where(known, values, 0).sum(axis=-1) / count.clip(min=1), np.nan)


def accuracy(matrix: Matrix) -> Float[np.ndarray, " classes"]:
    """Return the share of each class's pixels that get its name, in percent; NaN for a class that is not there."""
    truth = matrix.sum(axis=1)
    return 100 * np.divide(np.diag(matrix), truth, out=np.full(len(truth), np.nan), where=truth > 0)


def pixel_accuracy(matrix: Matrix) -> float:
    """Return the share of pixels that get their class's name, in percent; NaN without any."""
    return float(100 * np.trace(matrix) / matrix.sum()) if matrix.any() else np.nan


def error_split(matrix: Matrix) -> dict[str, float]:
    """Split the known pixels into right ones and kinds of error, in percent; the first class is background."""
    objects, total = matrix[1:, 1:], matrix.sum()
    pixels = {
        "right": np.trace(matrix),
        "background called an object": matrix[0, 1:].sum(),
        "object called background": matrix[1:, 0].sum(),
        "one object called another": objects.sum() - np.trace(objects),
    }
    return {name: float(100 * count / total) if total else np.nan for name, count in pixels.items()}


def boundary_areas(truth: IndexMap, prediction: IndexMap, classes: int, ratio: float = 0.02) -> Areas:
    """Return areas within a distance of each region's boundary (Cheng et al., "Boundary IoU", CVPR 2021).

    The distance is `ratio` of the photo's diagonal, in steps of 3 x 3 erosion. The photo's border is a boundary too.
    Pixels ignored in the truth are ignored in both maps, so that both have the same border to them.
    """
    distance = max(1, round(ratio * float(np.hypot(*truth.shape))))
    seen = np.where(truth == IGNORE, IGNORE, prediction)
    near_true, near_seen = _near_boundary(truth, distance), _near_boundary(seen, distance)
    hits = truth[near_true & near_seen & (truth == seen)]
    counted = (hits, truth[near_true], seen[near_seen])
    return np.stack([np.bincount(values, minlength=256)[:classes] for values in counted], axis=-1)


def _near_boundary(index_map: IndexMap, distance: int) -> Bool[np.ndarray, "height width"]:
    """Mark pixels whose square of 2 `distance` + 1 pixels a side leaves the map or has two values.

    A square has one value if no two neighbours in it differ; sums over rectangles count the differences.
    """
    height, width = index_map.shape
    near = np.ones((height, width), bool)
    if min(height, width) <= 2 * distance:
        return near
    down = _rectangle_sums(index_map[1:] != index_map[:-1], 2 * distance, 2 * distance + 1)
    along = _rectangle_sums(index_map[:, 1:] != index_map[:, :-1], 2 * distance + 1, 2 * distance)
    near[distance : height - distance, distance : width - distance] = (down + along) > 0
    return near


def _rectangle_sums(values: Bool[np.ndarray, "height width"], rows: int, columns: int) -> Int[np.ndarray, "tops lefts"]:
    sums = np.pad(values, ((1, 0), (1, 0))).cumsum(axis=0, dtype=np.int32).cumsum(axis=1, dtype=np.int32)
    return sums[rows:, columns:] - sums[:-rows, columns:] - sums[rows:, :-columns] + sums[:-rows, :-columns]


def contingency(groups: IndexMap, truth: IndexMap, classes: int) -> Int[np.ndarray, "groups classes"]:
    """Count the known pixels of each group by true class."""
    known = truth != IGNORE
    pairs = groups[known].astype(np.int64) * classes + truth[known]
    return np.bincount(pairs, minlength=(int(groups.max(initial=0)) + 1) * classes).reshape(-1, classes)


def adjusted_rand_index(table: Int[np.ndarray, "groups classes"]) -> float:
    """Return the agreement of two partitions beyond chance (Hubert and Arabie, 1985); 1 if they are equal."""

    def pairs(counts: np.ndarray | np.integer) -> float:
        return float((counts * (counts - 1.0)).sum() / 2)

    together, rows, columns = pairs(table), pairs(table.sum(axis=1)), pairs(table.sum(axis=0))
    expected = rows * columns / max(pairs(table.sum()), 1)
    largest = (rows + columns) / 2
    return 1.0 if largest == expected else (together - expected) / (largest - expected)


def oracle_matrix(table: Int[np.ndarray, "groups classes"]) -> Matrix:
    """Return the confusion matrix of groups with their best names; its pixel accuracy is their purity."""
    names = np.eye(table.shape[1], dtype=table.dtype)[table.argmax(axis=1)]
    return table.T @ names


def resampled_means(areas: Areas, seed: int = 0, resamples: int = 1000) -> Float[np.ndarray, " resamples"]:
    """Return mean IoUs of photos drawn with replacement, all over the classes of the whole set.

    A class of which no pixel is drawn keeps its IoU of the whole set.
    """
    drawn = np.random.default_rng(seed).multinomial(len(areas), np.full(len(areas), 1 / len(areas)), resamples)
    sums = np.tensordot(drawn.astype(np.float64), areas.astype(np.float64), axes=1)
    values = area_iou(np.rint(sums).astype(np.int64))
    return mean_known(np.where(np.isnan(values), area_iou(areas.sum(axis=0)), values))


def interval(draws: Float[np.ndarray, " resamples"]) -> tuple[float, float] | None:
    """Return the 95 % interval of draws, or None if they are NaN."""
    low, high = np.percentile(draws, [2.5, 97.5])
    return None if np.isnan(low) else (float(low), float(high))
