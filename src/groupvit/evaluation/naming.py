"""Naming by itself: what the true regions of a photo are called when the grouping is given them."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt, UInt8
from torch import Tensor

from groupvit.evaluation.datasets import Dataset, MaskedPhoto
from groupvit.evaluation.metrics import IGNORE
from groupvit.models import ImageFeatures
from groupvit.models.grouping import GroupingBlock
from groupvit.models.image_encoder import ImageEncoder
from groupvit.segmentation import Label, Segmentation, Segmenter
from groupvit.segmentation.windows import covered


def name_regions(
    segmenter: Segmenter,
    result: Segmentation,
    photo: MaskedPhoto,
    dataset: Dataset,
    labels: Sequence[Label],
    templates: Sequence[str],
) -> Int[np.ndarray, "regions _"]:
    """Return the rows of `PhotoScores.naming`: for each class that is there, what its region is called, by stage.

    `labels` are those that were looked for, and the result's windows hold their features. A window's scores count by
    the region's pixels in it. Background neither is asked for nor answers.
    """
    stages = max(1, sum(stage.has_grouping for stage in segmenter.config.image.stages))
    scores = np.zeros((stages, len(dataset.classes), len(labels)))
    for window in result.windows:
        part = photo.mask[covered(window.place, result.step)]
        indices, shares = patch_shares(part, (window.height, window.width), result.patch_size)
        if window.features is None or not indices:
            continue
        with segmenter.precise():
            shares, encoder = shares.to(segmenter.device), segmenter.model.image_encoder
            segments = [segments_of(encoder, window.features, shares, stage) for stage in range(stages)]
            fits = segmenter.label_scores(torch.stack(segments), labels, templates).double().cpu().numpy()
        scores[:, [*indices]] += np.bincount(part.ravel(), minlength=256)[[*indices], None] * fits
    if not scores.any():
        return np.zeros((0, 2), np.int64)
    pixels = np.bincount(photo.mask.ravel(), minlength=256)[: len(dataset.classes)]
    columns = class_indices(result, dataset.classes)[-len(labels) :]  # a threshold's background has no scores
    scores[:, :, dataset.has_background & (columns == 0)] = -1
    asked = [c for c in np.flatnonzero(pixels) if not (dataset.has_background and c == 0)]
    called = columns[scores[:, asked].argmax(axis=2)].T
    return np.column_stack([asked, pixels[asked], called]).astype(np.int64)


def class_indices(result: Segmentation, classes: Sequence[str]) -> UInt8[np.ndarray, " names"]:
    """Return the class index of each of a result's names; the segmenter puts background first wherever it stood."""
    order = {name.lower(): index for index, name in enumerate(classes)}
    return np.array([order[name.lower()] for name in result.names], np.uint8)


def patch_shares(
    regions: UInt[np.ndarray, "height width"], size: tuple[int, int], patch: int
) -> tuple[tuple[int, ...], Float[Tensor, "regions patches"]]:
    """Return the regions in a part of a photo, by index, and the share of each patch that lies in each.

    `size` is that of the part as it was encoded, padded to whole patches.
    """
    indices = [int(index) for index in np.unique(regions) if index != IGNORE]
    if not indices:
        return (), torch.empty(0, 0)
    masks = (torch.from_numpy(regions == index)[None, None].float() for index in indices)
    shares = torch.cat([F.interpolate(mask, size, mode="area") for mask in masks])
    shares = F.avg_pool2d(F.pad(shares, (0, -size[1] % patch, 0, -size[0] % patch)), patch)
    return tuple(indices), shares.flatten(1)


def segments_of(
    encoder: ImageEncoder, features: ImageFeatures, regions: Float[Tensor, "regions patches"], stage: int = 0
) -> Float[Tensor, "regions dim"]:
    """Return the final segments of one image if a grouping stage merged the given regions instead of its own groups.

    `regions` is the share of each patch, 0 to 1, that lies in each region; none may be empty. Later stages keep the
    regions apart. Without groups (a plain ViT, or one clustered afterwards) a region is the mean of its patches.
    """
    stages = encoder.grouping_stages()
    grouping = [module for module in stages if module.grouping is not None or module.seeded is not None]
    if not grouping:
        patches = features.ungrouped[-1].segments if features.ungrouped else features.segments
        return (regions / regions.sum(dim=1, keepdim=True)).to(patches.dtype) @ patches[0]
    regions = regions.to(features.assignments[0].hard.dtype)
    if stage:  # segments without patches lie in no region
        owned = features.groups(stage - 1, hard=True)[0].flatten(1)
        regions = regions @ owned.T / owned.sum(dim=1).clamp(min=1)
    segments, tokens = features.ungrouped[stage].segments, features.ungrouped[stage].group_tokens
    for module in stages[stages.index(grouping[stage]) :]:
        if module is not grouping[stage]:
            segments, tokens = module(segments, tokens, None)
            regions = torch.eye(len(regions), dtype=regions.dtype, device=regions.device)
        if module.seeded is not None:
            shares = regions / regions.sum(dim=1, keepdim=True)
            segments = shares[None].to(segments.dtype) @ segments
        elif module.grouping is not None and tokens is not None:
            segments = merge_regions(module.grouping, tokens, segments, regions[None])
    return encoder.norm(segments)[0]


def merge_regions(
    block: GroupingBlock,
    group_tokens: Float[Tensor, "batch tokens dim"],
    segments: Float[Tensor, "batch segments dim"],
    regions: Float[Tensor, "batch regions segments"],
) -> Float[Tensor, "batch regions dim"]:
    """Return what a grouping block makes of regions; each has some share, 0 to 1, of every segment.

    The residual is that of the groups which the region's segments join, in proportion.
    """
    groups, segments = block.prepare(group_tokens, segments)
    merged = block.assign.merge(regions, segments)
    if block.group_residual:
        _, assignment = block.assign(groups, segments, None)
        joined = regions @ assignment.hard.mT
        joined = joined / joined.sum(dim=-1, keepdim=True)
        merged = merged + joined.to(groups.dtype) @ groups
    return block.mix_channels(merged)
