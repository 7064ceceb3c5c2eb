"""Windows over a resized photo: where they lie, and how the scores of all of them become one map."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt
from torch import Tensor

_NO_REGION = 255
_LONGEST = 2048 / 448  # the published evaluation's bound on the long side, in short sides


@dataclass(frozen=True, eq=False)
class Window:
    """One encoded part of a photo: which patches each group owns, stage by stage, and how labels fit final segments.

    `regions` are the indices of the given regions that the window shows, `region_scores` how labels fit them, stage by
    stage, when that grouping merges them instead of its groups (see `Segmenter.segment`).
    """

    top: int
    left: int
    height: int
    width: int
    grid: tuple[int, int]
    groups: tuple[Float[Tensor, "_ rows columns"], ...]
    scores: Float[Tensor, "segments labels"]
    regions: tuple[int, ...] = ()
    region_scores: tuple[Float[Tensor, "regions words"], ...] = ()


def resized(size: tuple[int, int], short_side: int) -> tuple[int, int]:
    """Height and width at which a photo of (width, height) is encoded; its shape is kept."""
    scale = min(short_side / min(size), _LONGEST * short_side / max(size))
    width, height = (max(1, int(side * scale + 0.5)) for side in size)
    return height, width


def plan(
    sizes: Iterable[tuple[int, int]], window: int | None, stride: int | None
) -> Iterator[tuple[int, tuple[int, int, int, int]]]:
    """Photos' indices and the places of their windows, photos of one size together; no window: the whole photo."""
    step = stride or max(1, (window or 2) // 2)
    for photo, (height, width) in sorted(enumerate(sizes), key=lambda item: item[1]):
        for top in _starts(height, window or height, step):
            for left in _starts(width, window or width, step):
                yield photo, (top, left, min(window or height, height), min(window or width, width))


def _starts(length: int, window: int, stride: int) -> list[int]:
    """Where windows begin along one side; the last is flush with the border."""
    last = max(length - window, 0)
    return [*range(0, last, stride), last]


def covered(place: tuple[int, int, int, int], step: tuple[float, float]) -> tuple[slice, slice]:
    """The part of the photo that a window covers; `step` is the resized photo's pixels per pixel of the photo."""
    top, left, height, width = place
    ends = ((top, height, step[0]), (left, width, step[1]))
    rows, columns = (slice(round(start / step), round((start + size) / step)) for start, size, step in ends)
    return rows, columns


def patch_shares(
    regions: UInt[np.ndarray, "height width"], size: tuple[int, int], patch: int
) -> tuple[tuple[int, ...], Float[Tensor, "regions patches"]]:
    """The regions of a part of a photo, by index (255 is none), and the share of each patch that lies in each.

    `size` is that of the part as it was encoded, which is padded to whole patches.
    """
    found = [int(index) for index in np.unique(regions) if index != _NO_REGION]
    if not found:
        return (), torch.empty(0, 0)
    masks = (torch.from_numpy(regions == index)[None, None].float() for index in found)
    shares = torch.cat([F.interpolate(mask, size, mode="area") for mask in masks])
    shares = F.avg_pool2d(F.pad(shares, (0, -size[1] % patch, 0, -size[0] % patch)), patch)
    return tuple(found), shares.flatten(1)


def mean_scores(windows: Sequence[Window], size: tuple[int, int], patch: int) -> Float[Tensor, "labels height width"]:
    """Label scores at every pixel of the resized photo, averaged where windows overlap."""
    if len(windows) == 1:
        return _pixel_scores(windows[0], patch)
    total = windows[0].scores.new_zeros(windows[0].scores.shape[-1], *size)
    count = total.new_zeros(size)
    for w in windows:
        inside = (slice(w.top, w.top + w.height), slice(w.left, w.left + w.width))
        total[:, *inside] += _pixel_scores(w, patch)
        count[inside] += 1
    return total.div_(count)


def _pixel_scores(w: Window, patch: int) -> Float[Tensor, "labels height width"]:
    """Each pixel has the scores of the final group that owns it; without groups, patches' scores are interpolated."""
    labels = w.scores.shape[-1]
    patches = w.groups[-1] if w.groups else w.scores.T.reshape(labels, *w.grid)
    pixels = F.interpolate(patches[None], scale_factor=patch, mode="bilinear", align_corners=False)[0]
    pixels = pixels[:, : w.height, : w.width]
    return w.scores.T[:, pixels.max(dim=0).indices] if w.groups else pixels  # on a CPU five times faster than argmax
