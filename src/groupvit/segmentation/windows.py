"""Windows over a resized photo: where they lie, and how the scores of all of them become one map."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt
from torch import Tensor

_NO_REGION = 255
_LONGEST = 2048 / 448  # the published evaluation's bound on the long side, in short sides


@dataclass(frozen=True, eq=False)
class Window:
    """One encoded part of a photo: which patches each group owns, stage by stage, and how labels fit final segments.

    `regions` are the indices of the given regions that the window shows, `region_scores` how labels fit them, stage by
    stage, when that grouping merges them instead of its groups (see `Segmenter.segment`). `others` are the maps and
    scores of other numbers of groups.
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
    others: tuple[tuple[Float[Tensor, "_ rows columns"], Float[Tensor, "_ labels"]], ...] = ()

    @property
    def finals(self) -> tuple[tuple[Float[Tensor, "_ rows columns"], Float[Tensor, "_ labels"]], ...]:
        """Maps of final groups and how labels fit them; a pixel averages the scores of all groups that own it."""
        return ((self.groups[-1], self.scores), *self.others)

    @property
    def inside(self) -> tuple[slice, slice]:
        """Its pixels in the resized photo."""
        return slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)


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
    """Label scores of a model without groups at every pixel of the resized photo, averaged where windows overlap."""
    if len(windows) == 1:
        return _enlarged(windows[0].scores.T.unflatten(1, windows[0].grid), windows[0], patch)
    total = windows[0].scores.new_zeros(windows[0].scores.shape[-1], *size)
    count = total.new_zeros(size)
    for w in windows:
        total[:, *w.inside] += _enlarged(w.scores.T.unflatten(1, w.grid), w, patch)
        count[w.inside] += 1
    return total.div_(count)


def shared_scores(
    windows: Sequence[Window], size: tuple[int, int], patch: int
) -> tuple[Float[Tensor, "rows labels"], Int[Tensor, "height width"]]:
    """Label scores at every pixel of the resized photo, averaged where windows overlap: a table, and each one's row.

    A pixel has the scores of the final groups that own it (`Window.finals`). Pixels of the same groups share a row, and
    unless windows are many there are far fewer rows than pixels.
    """
    total = windows[0].scores.new_zeros(1, windows[0].scores.shape[-1])
    count, rows = total.new_zeros(1), torch.zeros(size, dtype=torch.long, device=total.device)
    largest = 2**12
    for w, (owners, scores) in ((window, final) for window in windows for final in window.finals):
        if len(total) > largest:  # most rows have no pixel any more
            used, rows = rows.unique(return_inverse=True)
            total, count, largest = total[used], count[used], max(largest, 2 * len(used))
        groups = len(scores)
        # On a CPU max is five times faster than argmax.
        pairs = rows[w.inside] * groups + _enlarged(owners, w, patch).max(dim=0).indices
        found = torch.bincount(pairs.flatten(), minlength=len(total) * groups) > 0
        rows[w.inside] = len(total) + (found.cumsum(dim=0) - 1)[pairs]
        pair = found.nonzero()[:, 0]
        total = torch.cat([total, total[pair // groups] + scores[pair % groups]])
        count = torch.cat([count, count[pair // groups] + 1])
    return total / count.clamp(min=1)[:, None], rows


def _enlarged(
    patches: Float[Tensor, "channels rows columns"], w: Window, patch: int
) -> Float[Tensor, "channels height width"]:
    pixels = F.interpolate(patches[None], scale_factor=patch, mode="bilinear", align_corners=False)[0]
    return pixels[:, : w.height, : w.width]
