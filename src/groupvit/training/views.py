"""Random views of photos for learning without captions: crops, colours, blur and solarisation of a whole batch."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from groupvit.data.transforms import jitter_color
from groupvit.models import noise
from groupvit.models.noise import Keys

Pixels = UInt8[Tensor, "batch 3 height width"]
_BLUR = 4  # pixels that the blur reaches to each side


def draw_view(
    images: Pixels, keys: Keys, size: int, area: tuple[float, float], *, blurred: float, solarized: float = 0.0
) -> UInt8[Tensor, "batch 3 size size"]:
    """Return a random square view of each image: a pure function of its key, so a resumed run sees the same.

    The recipe is that of BYOL, DINO and MoCo v3, but views have no change of hue, and are cut from photos that the
    loader has resized: a crop with a share of the `area`, mirrored half the time; brightness, contrast and saturation
    (of 80 %), grey (of 20 %), blur and solarisation. Blur is as wide for a photo of 224 px as published, and shrinks
    with smaller ones.
    """
    drawn = noise.uniform(keys, 11).T
    views = _cropped(images.float(), drawn[:5], size, area).round().to(torch.uint8)
    strengths = drawn.new_tensor([0.4, 0.4, 0.2])
    factors = 1 + strengths * (2 * drawn[5:8].T - 1) * (drawn[8] < 0.8)[:, None]
    factors[:, 2] *= drawn[9] >= 0.2  # no saturation: grey
    views = jitter_color(views, factors).float()
    chosen = noise.uniform(noise.fold(keys, 0), 2).T
    sigma = torch.where(chosen[0] < blurred, (0.1 + 1.9 * drawn[10]) * min(1, images.shape[-1] / 224), 0.01)
    views = _blurred(views, sigma)
    views = torch.where(((chosen[1] < solarized)[:, None, None, None]) & (views >= 128), 255 - views, views)
    return views.round().to(torch.uint8)


def _cropped(
    images: Float[Tensor, "batch 3 height width"], drawn: Float[Tensor, "5 batch"], size: int, area: tuple[float, float]
) -> Float[Tensor, "batch 3 size size"]:
    share, ratio = area[0] + (area[1] - area[0]) * drawn[0], (math.log(4 / 3) * (2 * drawn[1] - 1)).exp()
    width, height = (share * ratio).sqrt().clamp(max=1), (share / ratio).sqrt().clamp(max=1)
    left, top = (2 * drawn[2] - 1) * (1 - width), (2 * drawn[3] - 1) * (1 - height)
    nothing, mirror = torch.zeros_like(width), torch.where(drawn[4] < 0.5, -1.0, 1.0)
    boxes = torch.stack([width * mirror, nothing, left, nothing, height, top], dim=1).view(-1, 2, 3)
    grid = F.affine_grid(boxes, [len(images), 3, size, size], align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def _blurred(images: Float[Tensor, "batch 3 height width"], sigma: Float[Tensor, " batch"]) -> Tensor:
    """Return each image under a Gaussian of its own width, in pixels."""
    places = torch.arange(-_BLUR, _BLUR + 1, device=images.device)
    kernels = (-(places**2) / (2 * sigma[:, None] ** 2)).softmax(dim=1).repeat_interleave(3, dim=0)
    together = F.pad(images.flatten(0, 1)[None], 4 * [_BLUR], mode="replicate")
    down = F.conv2d(together, kernels[:, None, :, None], groups=len(kernels))
    return F.conv2d(down, kernels[:, None, None], groups=len(kernels))[0].view_as(images)
