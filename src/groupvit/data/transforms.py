"""Turn image files into tensors: resize and crop, and draw the random crops and colours of training."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps
from torch import Tensor

from groupvit.photos import naming, opened, orientation, to_rgb


class Crop(NamedTuple):
    """A box in pixels of the upright photo at its full resolution, to be mirrored or not."""

    left: int
    top: int
    right: int
    bottom: int
    mirrored: bool = False


def load_crop(file: bytes, name: str, size: int, draw: Callable[[int, int], Crop]) -> Image.Image:
    """Load the crop that `draw` chooses from the upright width and height, resized to a square (bilinear, antialiased).

    A JPEG is decoded at 1/2, 1/4 or 1/8 of its size, several times faster, if the box keeps `size` pixels a side.
    All else is as in `photos.load_rgb`.
    """
    with naming(name):
        image = opened(file)
        jpeg = image.format in ("JPEG", "MPO")
        turned = orientation(image) if jpeg else 1
        image = image if jpeg else to_rgb(image)
    crop = draw(*(image.size[::-1] if turned in (5, 6, 7, 8) else image.size))  # its errors are not the file's
    with naming(name):
        image, box = _drafted(image, turned, crop, size) if jpeg else (image, crop[:4])
        image = image.resize((size, size), Image.Resampling.BILINEAR, box=box)
    return ImageOps.mirror(image) if crop.mirrored else image


def _drafted(
    image: Image.Image, turned: int, crop: Crop, size: int
) -> tuple[Image.Image, tuple[float, float, float, float]]:
    """Decode a JPEG as small as the crop allows, and return it upright with the crop's box in it."""
    width, height = image.size[::-1] if turned in (5, 6, 7, 8) else image.size
    side = min(crop.right - crop.left, crop.bottom - crop.top)
    factor = max(f for f in (1, 2, 4, 8) if f == 1 or side >= f * size)
    image.draft(None, (image.width // factor, image.height // factor))
    image = to_rgb(image)
    # The decoder rounds sides up to whole pixels, at the right and below; a turn can bring the excess left and above.
    x = image.width - width / factor if turned in (2, 3, 6, 7) else 0
    y = image.height - height / factor if turned in (3, 4, 7, 8) else 0
    left, top, right, bottom = (edge / factor for edge in crop[:4])
    return image, (left + x, top + y, right + x, bottom + y)


def resize_short_side(image: Image.Image, size: int) -> Image.Image:
    """Give the short side `size` pixels and keep the aspect ratio (bilinear, antialiased)."""
    scale = size / min(image.size)
    width, height = (max(size, int(side * scale + 0.5)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BILINEAR)


def center_crop(image: Image.Image, width: int, height: int) -> Image.Image:
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def middle_square(image: Image.Image, short_side: int, size: int) -> Image.Image:
    """Return the square of `size` pixels in the middle of the image resized to a short side."""
    most = 16 * min(image.size)  # the ends of a longer strip, resized, would fill the memory
    middle = center_crop(image, *(min(side, most) for side in image.size))
    return center_crop(resize_short_side(middle, short_side), size, size)


def to_tensor(image: Image.Image) -> UInt8[Tensor, "3 height width"]:
    return torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy())


def draw_crop(width: int, height: int, scale: tuple[float, float], generator: np.random.Generator) -> Crop:
    """Draw a box with a share of the area within `scale` and an aspect ratio of 3/4 to 4/3, mirrored half the time.

    This is the "random resized crop" (Szegedy et al., 2015) of torchvision and timm: ten attempts, then the largest
    central box. It takes 23 draws from the generator, whatever the photo.
    """
    areas = width * height * generator.uniform(*scale, size=10)
    ratios = np.exp(generator.uniform(math.log(3 / 4), math.log(4 / 3), size=10))
    x, y, coin = generator.random(3)
    widths, heights = np.rint(np.sqrt(areas * ratios)), np.rint(np.sqrt(areas / ratios))
    fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
    if fits.any():
        box_width, box_height = int(widths[fits.argmax()]), int(heights[fits.argmax()])
        left, top = int(x * (width - box_width + 1)), int(y * (height - box_height + 1))
    else:
        box_width, box_height = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
        left, top = (width - box_width) // 2, (height - box_height) // 2
    return Crop(left, top, left + box_width, top + box_height, mirrored=bool(coin < 0.5))


def draw_color(generator: np.random.Generator) -> Float[Tensor, "3"]:
    """Draw factors of brightness, contrast and saturation for `jitter_color`, each in 1 ± 0.4."""
    return torch.from_numpy(generator.uniform(0.6, 1.4, size=3)).float()


def jitter_color(
    images: UInt8[Tensor, "batch 3 height width"], factors: Float[Tensor, "batch 3"]
) -> UInt8[Tensor, "batch 3 height width"]:
    """Scale brightness, then contrast, then saturation, as PIL does; hues stay, since captions name colours."""
    brightness, contrast, saturation = factors.to(images.device)[:, :, None, None, None].unbind(dim=1)
    images = (images * brightness).clamp_(0, 255)
    images = torch.lerp(_grey(images).mean(dim=(2, 3), keepdim=True), images, contrast).clamp_(0, 255)
    return torch.lerp(_grey(images), images, saturation).clamp_(0, 255).round_().to(torch.uint8)


def _grey(images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 1 height width"]:
    red, green, blue = images.split(1, dim=1)
    return 0.299 * red + 0.587 * green + 0.114 * blue  # ITU-R BT.601
