"""Normalisation of pixels, by ImageNet's statistics or others."""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def normalize(
    images: UInt8[Tensor, "batch 3 height width"],
    dtype: torch.dtype = torch.float32,
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
) -> Float[Tensor, "batch 3 height width"]:
    """Return images of zero mean and unit variance; the statistics are on RGB in [0, 1]."""
    centre, spread = (torch.tensor(v, device=images.device, dtype=dtype).view(3, 1, 1) for v in (mean, std))
    return (images.to(dtype) / 255 - centre) / spread
