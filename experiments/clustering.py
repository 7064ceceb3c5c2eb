"""Patches grouped afterwards, by clustering (Table 4), and learned groups that clustering refines."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from groupvit.errors import InputError
from groupvit.models import Assignment, ImageFeatures, Ungrouped
from groupvit.models.grouping import AssignAttention, Exist, Groups, Segments, Shares, mean_of
from groupvit.segmentation.segmenter import Segmenter

Clustering = Literal["pixel-wise", "k-means", "mean-shift", "spectral"]
CLUSTERINGS: tuple[Clustering, ...] = get_args(Clustering)


def clustered(segmenter: Segmenter, method: Clustering, groups: int = 8) -> Segmenter:
    """Return a segmenter that groups the output features of a plain ViT without learning, window by window (Table 4).

    A cluster's mean feature takes the place of a segment, so all that follows, words, windows and thresholds, is what
    it is for GroupViT. "pixel-wise" has no groups: the patches' scores are interpolated. Mean-shift finds the number of
    groups itself; its bandwidth lets a patch have 1/`groups` of the patches for neighbours.

    Raises `InputError` for a model with group tokens.
    """
    if any(stage.has_grouping for stage in segmenter.config.image.stages):
        raise InputError("clustering is for a plain ViT, and this model has group tokens: give one stage without any")
    model = deepcopy(segmenter.model)
    if method != "pixel-wise":

        def regroup(_: nn.Module, __: object, features: ImageFeatures) -> ImageFeatures:
            return _grouped(features, [cluster(patches, method, groups) for patches in features.segments])

        model.image_encoder.register_forward_hook(regroup)
    return Segmenter(model, segmenter.config, device=segmenter.device, precision=segmenter.precision)


def refined(segmenter: Segmenter, rounds: int = 8) -> Segmenter:
    """Return a segmenter whose learned groups go on as k-means does, in the space in which segments choose them.

    In each round a group's query becomes the mean key of its segments, and each segment chooses again; a group without
    segments is out. Raises `InputError` for a model whose logits are no cosines.
    """
    model = deepcopy(segmenter.model)
    blocks = [module for module in model.image_encoder.modules() if isinstance(module, AssignAttention)]
    if not blocks or any(block.logits != "cosine" for block in blocks):
        raise InputError("only groups that are chosen by cosine logits can be refined")
    for block in blocks:
        block.similarity = partial(_similarity, block, block.similarity, rounds)
    return Segmenter(model, segmenter.config, device=segmenter.device, precision=segmenter.precision)


def _similarity(
    block: AssignAttention,
    learned: Callable[..., Shares],
    rounds: int,
    groups: Groups,
    segments: Segments,
    exist: Exist | None = None,
) -> Shares:
    logits, keys = learned(groups, segments, exist), block.k_proj(segments).float()
    keys = F.normalize(keys - mean_of(keys, exist), dim=-1)
    for _ in range(rounds):
        members = F.one_hot(logits.argmax(dim=1), logits.shape[1]).to(keys.dtype).transpose(1, 2)
        members = members if exist is None else members * exist[:, None]
        logits = F.normalize(members @ keys, dim=-1) @ keys.transpose(1, 2) * block.scale.exp().clamp(max=100)
        logits = logits.masked_fill(members.sum(dim=-1, keepdim=True) == 0, float("-inf"))
    return logits


def cluster(patches: Float[Tensor, "patches dim"], method: Clustering, groups: int = 8) -> Int[np.ndarray, " patches"]:
    """Return the cluster of each patch, by scikit-learn; always the same for the same features."""
    from sklearn.cluster import KMeans, MeanShift, SpectralClustering, estimate_bandwidth
    from sklearn.metrics import pairwise_distances

    features = patches.double().cpu().numpy()
    distinct, same = np.unique(features, axis=0, return_inverse=True)
    if len(distinct) <= groups:
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
