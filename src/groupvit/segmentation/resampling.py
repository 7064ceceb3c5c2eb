"""From coarse maps to decisions at a photo's size, without all channels of a large photo in memory."""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

_STRIP = 2**22  # values that are resampled at once: 16 MB in float32


def resampled_argmax(
    maps: Float[Tensor, "channels rows columns"], size: tuple[int, ...], step: tuple[float, float]
) -> tuple[Float[np.ndarray, "height width"], Int[np.ndarray, "height width"]]:
    """The largest channel, value and index, after bilinear resampling to `size` pixels that lie `step` cells apart.

    Like `F.interpolate`, but in strips of rows: all channels of a large photo would not fit into memory.
    """
    top, bottom, down = _taps(size[0], step[0], maps.shape[1], maps)
    left, right, along = _taps(size[1], step[1], maps.shape[2], maps)
    best, index = np.empty(size, maps.new_zeros(()).cpu().numpy().dtype), np.empty(size, np.int32)
    rows = max(1, _STRIP // max(1, len(maps) * size[1]))  # a window may cover no pixel of a tiny photo
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
    """`resampled_argmax` of the maps scores[rows], whose channels need comparing only where neighbours' rows differ."""
    top, bottom, down = _taps(size[0], step[0], rows.shape[0], scores)
    left, right, along = _taps(size[1], step[1], rows.shape[1], scores)
    values, labels = scores.max(dim=1)
    best, index = np.empty(size, scores.new_zeros(()).cpu().numpy().dtype), np.empty(size, np.int32)
    for start in range(0, size[0], count := max(1, _STRIP // (8 * max(1, size[1])))):
        strip = slice(start, start + count)
        corners = [rows[ys[strip]][:, xs] for ys in (top, bottom) for xs in (left, right)]
        own, own_index = values[corners[0]], labels[corners[0]]
        differ = (corners[0] != corners[1]) | (corners[0] != corners[2]) | (corners[0] != corners[3])
        for pixels in differ.nonzero().split(max(1, _STRIP // (4 * scores.shape[1]))):
            y, x = pixels.T
            above_left, above_right, below_left, below_right = (scores[corner[y, x]] for corner in corners)
            above = torch.lerp(above_left, above_right, along[x, None])
            below = torch.lerp(below_left, below_right, along[x, None])
            own[y, x], own_index[y, x] = torch.lerp(above, below, down[strip][y, None]).max(dim=1)
        best[strip], index[strip] = own.cpu().numpy(), own_index.cpu().numpy()
    return best, index


def _taps(
    count: int, step: float, cells: int, like: Tensor
) -> tuple[Int[Tensor, " count"], Int[Tensor, " count"], Float[Tensor, " count"]]:
    """For each output pixel the two nearest cells, and the second one's weight."""
    position = ((torch.arange(count, dtype=torch.float64) + 0.5) * step - 0.5).clamp(0, cells - 1)
    low = position.floor().long()
    return low.to(like.device), (low + 1).clamp(max=cells - 1).to(like.device), (position - low).to(like)
