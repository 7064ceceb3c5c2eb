"""Baselines: trivial predictions, and a plain ViT whose patches are grouped afterwards (Table 4).

A model that does not beat the trivial ones has not segmented anything.
"""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from groupvit.errors import InputError
from groupvit.evaluation.classification import similarities
from groupvit.evaluation.datasets import Dataset, MaskedPhoto
from groupvit.evaluation.metrics import IndexMap
from groupvit.evaluation.protocols import Protocol
from groupvit.evaluation.results import PhotoScores, Result, difference
from groupvit.evaluation.scoring import score_prediction
from groupvit.models import Assignment, ImageFeatures, Ungrouped
from groupvit.segmentation.labels import BACKGROUND, Label
from groupvit.segmentation.segmenter import Segmenter
from groupvit.text.templates import SIMPLE_TEMPLATE

Predict = Callable[[MaskedPhoto], IndexMap]

Clustering = Literal["pixel-wise", "k-means", "mean-shift", "spectral"]
CLUSTERINGS: tuple[Clustering, ...] = get_args(Clustering)

_AXES = 0.65  # of the sides, a third of the photo; with the true labels this is about best on VOC and Pets


def ellipse(height: int, width: int) -> Bool[np.ndarray, "height width"]:
    """Return the inside of an ellipse in the middle, 0.65 of the photo's sides long."""
    rows, columns = np.ogrid[:height, :width]
    down, along = ((2 * index + 1) / side - 1 for index, side in ((rows, height), (columns, width)))
    return down**2 + along**2 <= _AXES**2


def trivial_baselines(
    segmenter: Segmenter, dataset: Dataset, labels: Sequence[Label], templates: Sequence[str] = (SIMPLE_TEMPLATE,)
) -> dict[str, Predict]:
    """Return the trivial baselines of a benchmark, by the names that tables give them.

    "own label" is what the model calls the photo's middle square (§3.1's pooled feature), among the classes that are
    no background; `labels` are the protocol's. Where a benchmark has no background, the runner-up fills the place
    outside of the ellipse, and no baseline is all background.
    """
    named = [label for label in labels if label.name.lower() != BACKGROUND]
    classes = [dataset.classes.index(label.name) for label in named]
    words, lengths = [word for label in named for word in label.words], [len(label.words) for label in named]
    best_two: dict[str, tuple[int, int]] = {}

    def asked(photo: MaskedPhoto) -> tuple[int, int]:
        if photo.name not in best_two:
            cosines = similarities(segmenter, [photo.image], words, templates)[0]
            # Of a label's several words the best one counts, as for segments.
            scores = torch.stack([of_label.max() for of_label in cosines.split(lengths)])
            best, second, *_ = [*scores.argsort(descending=True, stable=True).tolist(), 0]
            best_two[photo.name] = classes[best], classes[second]
        return best_two[photo.name]

    def one_segment(photo: MaskedPhoto) -> IndexMap:
        return np.full_like(photo.mask, asked(photo)[0])

    def centred_ellipse(photo: MaskedPhoto) -> IndexMap:
        best, second = asked(photo)
        outside = 0 if dataset.has_background else second
        return np.where(ellipse(*photo.mask.shape), best, outside).astype(photo.mask.dtype)

    baselines: dict[str, Predict] = {
        "one segment, own label": one_segment,
        "centred ellipse, own label": centred_ellipse,
    }
    return (
        {"all background": lambda photo: np.zeros_like(photo.mask), **baselines}
        if dataset.has_background
        else baselines
    )


def score_baselines(
    result: Result,
    segmenter: Segmenter,
    dataset: Dataset,
    protocol: Protocol,
    advance: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Return each trivial baseline's mean IoU, and by how much the model's `result` is above it, with the interval.

    `advance` is called after each photo.
    """
    named = trivial_baselines(segmenter, dataset, protocol.labels(dataset), protocol.view.templates)
    scored: dict[str, list[PhotoScores]] = {name: [] for name in named}
    for photo in dataset:
        for name, predict in named.items():
            scored[name].append(score_prediction(photo, predict(photo), len(dataset.classes)))
        advance()
    gains = {name: difference(result, replace(result, photos=tuple(photos))) for name, photos in scored.items()}
    return {name: gain | {"miou": gain["miou"][1]} for name, gain in gains.items()}


def clustered(segmenter: Segmenter, method: Clustering, groups: int = 8) -> Segmenter:
    """Return a segmenter that groups the output features of a plain ViT without learning, window by window (Table 4).

    A cluster's mean feature takes the place of a segment, so all that follows, words, windows and thresholds, is what
    it is for GroupViT. "pixel-wise" has no groups: the patches' scores are interpolated. Mean-shift finds the number of
    groups itself; its bandwidth lets a patch have 1/`groups` of the patches for neighbours.

    Raises `InputError` for a model with group tokens.
    """
    if any(stage.groups for stage in segmenter.config.image.stages):
        raise InputError("clustering is for a plain ViT, and this model has group tokens: give one stage without any")
    model = deepcopy(segmenter.model)
    if method != "pixel-wise":

        def regroup(_: nn.Module, __: object, features: ImageFeatures) -> ImageFeatures:
            return _grouped(features, [cluster(patches, method, groups) for patches in features.segments])

        model.image_encoder.register_forward_hook(regroup)
    return Segmenter(model, segmenter.config, device=segmenter.device, precision=segmenter.precision)


def cluster(patches: Float[Tensor, "patches dim"], method: Clustering, groups: int = 8) -> Int[np.ndarray, " patches"]:
    """Return the cluster of each patch, by scikit-learn; always the same for the same features."""
    from sklearn.cluster import KMeans, MeanShift, SpectralClustering, estimate_bandwidth
    from sklearn.metrics import pairwise_distances

    features = patches.double().cpu().numpy()
    distinct, same = np.unique(features, axis=0, return_inverse=True)
    if len(distinct) <= groups or method == "pixel-wise":
        return same
    if method == "k-means":
        best_of: Any = 10  # scikit-learn annotates its strings only
        return KMeans(groups, n_init=best_of, random_state=0).fit_predict(features)
    if method == "mean-shift":
        bandwidth = estimate_bandwidth(features, quantile=1 / groups)
        return MeanShift(bandwidth=max(bandwidth, 1e-6)).fit_predict(features)
    distances = pairwise_distances(features, metric="sqeuclidean")
    affinity = np.exp(-distances / distances.mean())
    return SpectralClustering(groups, affinity="precomputed", random_state=0).fit_predict(affinity)


def _grouped(features: ImageFeatures, clusters: Sequence[Int[np.ndarray, " patches"]]) -> ImageFeatures:
    """Return the features as if one grouping had merged each cluster into its mean; missing ones repeat the first."""
    joined = torch.as_tensor(np.stack(clusters), device=features.segments.device).long()
    hard = F.one_hot(joined).transpose(1, 2).float()
    means = hard @ features.segments.float() / hard.sum(dim=2, keepdim=True).clamp(min=1)
    means = torch.where(hard.sum(dim=2, keepdim=True) > 0, means, means[:, :1])  # or an empty one would have scores
    segments = means.to(features.segments.dtype)
    before = Ungrouped(features.segments, features.segments[:, :0])
    return replace(features, segments=segments, ungrouped=(before,), assignments=(Assignment(hard, hard),))
