"""Windows over a resized photo: where they lie, and how their scores become one map at the photo's size."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from groupvit.models import ImageFeatures

_LONGEST = 2048 / 448  # the published evaluation's bound on the long side, in short sides


@dataclass(frozen=True, eq=False)
class Window:
    """One encoded part of a photo: which patches each group owns, stage by stage, and how labels fit final segments.

    `others` are the maps and scores of other numbers of groups. `features` are the image encoder's, where they are kept
    (`Segmenter.segment`).
    """

    top: int
    left: int
    height: int
    width: int
    grid: tuple[int, int]
    groups: tuple[Float[Tensor, "_ rows columns"], ...]
    scores: Float[Tensor, "segments labels"]
    others: tuple[tuple[Float[Tensor, "_ rows columns"], Float[Tensor, "_ labels"]], ...] = ()
    features: ImageFeatures | None = None

    @property
    def finals(self) -> tuple[tuple[Float[Tensor, "_ rows columns"], Float[Tensor, "_ labels"]], ...]:
        """Maps of final groups and how labels fit them; a pixel averages the scores of all groups that own it."""
        return ((self.groups[-1], self.scores), *self.others)

    @property
    def place(self) -> tuple[int, int, int, int]:
        """Top, left, height and width."""
        return self.top, self.left, self.height, self.width

    @property
    def inside(self) -> tuple[slice, slice]:
        """Its pixels in the resized photo."""
        return slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)


def resized(size: tuple[int, int], short_side: int) -> tuple[int, int]:
    """Return height and width at which a photo of (width, height) is encoded."""
    scale = min(short_side / min(size), _LONGEST * short_side / max(size))
    width, height = (max(1, int(side * scale + 0.5)) for side in size)
    return height, width


def plan(
    sizes: Iterable[tuple[int, int]], window: int | None, stride: int | None
) -> Iterator[tuple[int, tuple[int, int, int, int]]]:
    """Yield photos' indices and the places of their windows, photos of one size together."""
    step = stride or max(1, (window or 2) // 2)
    for photo, (height, width) in sorted(enumerate(sizes), key=lambda item: item[1]):
        for top in _starts(height, window or height, step):
            for left in _starts(width, window or width, step):
                yield photo, (top, left, min(window or height, height), min(window or width, width))


def _starts(length: int, window: int, stride: int) -> list[int]:
    """Return where windows begin along one side; the last is flush with the border."""
    last = max(length - window, 0)
    return [*range(0, last, stride), last]


def covered(place: tuple[int, int, int, int], step: tuple[float, float]) -> tuple[slice, slice]:
    """Return the part of the photo that a window covers; `step` is resized pixels per pixel of the photo."""
    top, left, height, width = place
    ends = ((top, height, step[0]), (left, width, step[1]))
    rows, columns = (slice(round(start / step), round((start + size) / step)) for start, size, step in ends)
    return rows, columns


def mean_scores(windows: Sequence[Window], size: tuple[int, int], patch: int) -> Float[Tensor, "labels height width"]:
    """Return label scores of a model without groups at every pixel of the resized photo, averaged over windows."""
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
    """Return label scores at every pixel of the resized photo, averaged over windows: a table, and each pixel's row.

    A pixel has the scores of the final groups that own it (`Window.finals`). Pixels of the same groups share a row, and
    unless windows are many there are far fewer rows than pixels.
    """
    total = windows[0].scores.new_zeros(1, windows[0].scores.shape[-1])
    count, rows = total.new_zeros(1), torch.zeros(size, dtype=torch.long, device=total.device)
    largest = 2**12
    for w, (owners, scores) in ((window, final) for window in windows for final in window.finals):
        if len(total) > largest:  # most rows have no pixel any more
            used = torch.bincount(rows.flatten(), minlength=len(total)) > 0
            rows = (used.cumsum(dim=0) - 1)[rows]
            total, count, largest = total[used], count[used], max(largest, 2 * int(used.sum()))
        groups = len(scores)
        pairs = rows[w.inside] * groups + enlarged_argmax(owners, patch)[: w.height, : w.width]
        occurring = torch.bincount(pairs.flatten(), minlength=len(total) * groups) > 0
        rows[w.inside] = len(total) + (occurring.cumsum(dim=0) - 1)[pairs]
        pair = occurring.nonzero()[:, 0]
        total = torch.cat([total, total[pair // groups] + scores[pair % groups]])
        count = torch.cat([count, count[pair // groups] + 1])
    return total / count.clamp(min=1)[:, None], rows


def enlarged_argmax(maps: Float[Tensor, "channels rows columns"], scale: int) -> Int[Tensor, "height width"]:
    """Return the largest channel after bilinear enlargement by a whole number.

    Between four cells of the same largest channel it is largest, too, so only the pixels between others are computed.
    """
    padded = F.pad(maps[None], (1, 1, 1, 1), mode="replicate")[0].permute(1, 2, 0)
    winners = padded.max(dim=-1).indices  # on a CPU max is five times faster than argmax
    corners = [(slice(y, y - 1 or None), slice(x, x - 1 or None)) for y in (0, 1) for x in (0, 1)]
    first, *others = (winners[corner] for corner in corners)
    differ = torch.stack([first != other for other in others]).any(dim=0)
    second = (torch.arange(scale).to(maps) + scale // 2 + 0.5) / scale - 0.5
    down, along = torch.stack([1 - second, second])[:, None, :, None], torch.stack([1 - second, second])[:, None]
    weights = (down * along).flatten(2).flatten(0, 1).T
    pixels = first[..., None].repeat(1, 1, scale * scale)
    for squares in differ.nonzero().split(max(1, _at_once(maps) // (scale * scale * len(maps)))):
        y, x = squares.T
        values = torch.stack([padded[corner][y, x] for corner in corners], dim=1)
        pixels[y, x] = (weights @ values).max(dim=-1).indices
    start, (rows, columns) = scale - scale // 2, maps.shape[1:]
    tiles = pixels.unflatten(-1, (scale, scale)).permute(0, 2, 1, 3).flatten(2).flatten(0, 1)
    return tiles[start : start + rows * scale, start : start + columns * scale]


def _enlarged(
    patches: Float[Tensor, "channels rows columns"], w: Window, patch: int
) -> Float[Tensor, "channels height width"]:
    pixels = F.interpolate(patches[None], scale_factor=patch, mode="bilinear", align_corners=False)[0]
    return pixels[:, : w.height, : w.width]


def resampled_argmax(
    maps: Float[Tensor, "channels rows columns"], size: tuple[int, ...], step: tuple[float, float]
) -> tuple[Float[np.ndarray, "height width"], Int[np.ndarray, "height width"]]:
    """Return the largest channel, value and index, after bilinear resampling to `size` pixels `step` cells apart.

    Works in strips of rows: all channels of a large photo would not fit into memory.
    """
    top, bottom, down = _taps(size[0], step[0], maps.shape[1], maps)
    left, right, along = _taps(size[1], step[1], maps.shape[2], maps)
    best, index = np.empty(size, maps.new_zeros(()).cpu().numpy().dtype), np.empty(size, np.int32)
    rows = max(1, _at_once(maps) // max(1, len(maps) * size[1]))  # a window may cover no pixel of a tiny photo
    for start in range(0, size[0], rows):
        strip = slice(start, start + rows)
        first, last = int(top[start]), int(bottom[strip][-1]) + 1
        wide = torch.lerp(maps[:, first:last, left], maps[:, first:last, right], along)
        above, below = wide.index_select(1, top[strip] - first), wide.index_select(1, bottom[strip] - first)
        pixels = torch.lerp(above, below, down[strip, None])
        values, channels = pixels.max(dim=0)
        best[strip], index[strip] = values.cpu().numpy(), channels.cpu().numpy()
    return best, index


def resampled_rows(
    scores: Float[Tensor, "table labels"],
    rows: Int[Tensor, "down across"],
    size: tuple[int, ...],
    step: tuple[float, float],
) -> tuple[Float[np.ndarray, "height width"], Int[np.ndarray, "height width"]]:
    """Return `resampled_argmax` of the maps scores[rows], comparing channels only where neighbours' rows differ."""
    top, bottom, down = _taps(size[0], step[0], rows.shape[0], scores)
    left, right, along = _taps(size[1], step[1], rows.shape[1], scores)
    mixed = torch.zeros_like(rows, dtype=torch.bool)
    mixed[:-1] |= rows[:-1] != rows[1:]
    mixed[:, :-1] |= rows[:, :-1] != rows[:, 1:]
    mixed[:-1, :-1] |= rows[:-1, :-1] != rows[1:, 1:]
    maps = (*(of_row[rows] for of_row in scores.max(dim=1)), mixed)
    best, index = np.empty(size, scores.new_zeros(()).cpu().numpy().dtype), np.empty(size, np.int32)
    for start in range(0, size[0], count := max(1, _at_once(scores) // max(1, size[1]))):
        strip = slice(start, start + count)
        highest, winner, differ = (each.index_select(0, top[strip]).index_select(1, left) for each in maps)
        for pixels in differ.nonzero().split(max(1, _at_once(scores) // (4 * scores.shape[1]))):
            y, x = pixels.T
            above, below = (
                torch.lerp(scores[rows[ys, left[x]]], scores[rows[ys, right[x]]], along[x, None])
                for ys in (top[strip][y], bottom[strip][y])
            )
            highest[y, x], winner[y, x] = torch.lerp(above, below, down[strip][y, None]).max(dim=1)
        best[strip], index[strip] = highest.cpu().numpy(), winner.cpu().numpy()
    return best, index


def _at_once(like: Tensor) -> int:
    """Return how many values are resampled at once; on a CPU they stay in the cache."""
    return 2**19 if like.device.type == "cpu" else 2**22


def _taps(
    count: int, step: float, cells: int, like: Tensor
) -> tuple[Int[Tensor, " count"], Int[Tensor, " count"], Float[Tensor, " count"]]:
    """Return for each output pixel the two nearest cells, and the second one's weight."""
    position = ((torch.arange(count, dtype=torch.float64) + 0.5) * step - 0.5).clamp(0, cells - 1)
    low = position.floor().long()
    return low.to(like.device), (low + 1).clamp(max=cells - 1).to(like.device), (position - low).to(like)
