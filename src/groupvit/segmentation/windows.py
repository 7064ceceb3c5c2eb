"""Windows over a resized photo: where they lie, and how the scores of all of them become one map."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

_LONGEST = 2048 / 448  # the published evaluation's bound on the long side, in short sides


@dataclass(frozen=True, eq=False)
class Window:
    """One encoded part of a photo: which patches each group owns, stage by stage, and how labels fit final segments."""

    top: int
    left: int
    height: int
    width: int
    grid: tuple[int, int]
    groups: tuple[Float[Tensor, "_ rows columns"], ...]
    scores: Float[Tensor, "segments labels"]


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
