"""From image files to tensors: safe decoding, resizing, cropping, and the random crop and flip of training.

Everything random is a function of the `numpy` generator that is passed in.
"""

import contextlib
import io
import math
import warnings
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageOps
from torch import Tensor

from groupvit.errors import InputError

# Without EPS, which starts Ghostscript.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")


def load_rgb(file: str | Path | BinaryIO | bytes, name: str, *, min_side: int | None = None) -> Image.Image:
    """The image as 8-bit RGB: first frame, turned upright, transparency on white.

    `min_side` lets a JPEG be decoded at 1/2, 1/4 or 1/8 of its size while its sides stay at least that long, which is
    several times faster.

    Raises:
        InputError: the file named `name` is absent, truncated, implausibly large, or not an image.
    """
    source = io.BytesIO(file) if isinstance(file, bytes) else file
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of odd metadata; the pixels are what matters
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(source, formats=FORMATS) as image:
                if min_side:
                    image.draft(None, (min_side, min_side))
                image.load()
                with contextlib.suppress(Exception):  # a broken EXIF block tells no orientation
                    ImageOps.exif_transpose(image, in_place=True)
                return _to_rgb(image)
    except FileNotFoundError:
        raise InputError(f"{name}: no such file") from None
    except Image.UnidentifiedImageError:
        raise InputError(f"{name}: not an image that can be read ({', '.join(FORMATS)})") from None
    except Exception as error:  # Pillow's decoders raise nearly anything on broken data
        raise InputError(f"{name}: cannot read the image: {error}") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("the range of its floating-point values is unknown, save it with 8 or 16 bits")
    if image.mode.startswith("I"):  # 16 bits; Pillow's own conversion clips at 255
        values = np.asarray(image).astype(np.int64).clip(0, 65535)
        image = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def resize_short_side(image: Image.Image, size: int) -> Image.Image:
    """Bilinear, antialiased; the short side gets `size` pixels and the long side keeps the aspect ratio."""
    scale = size / min(image.size)
    width, height = (max(size, int(side * scale + 0.5)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BILINEAR)


def center_crop(image: Image.Image, size: int) -> Image.Image:
    if min(image.size) < size:
        raise ValueError(f"no {size} x {size} crop in an image of {image.width} x {image.height}")
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def to_tensor(image: Image.Image) -> UInt8[Tensor, "3 height width"]:
    return torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy())


def random_crop_box(
    width: int, height: int, scale: tuple[float, float], generator: np.random.Generator
) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of a box with a share of the area within `scale` and an aspect ratio of 3/4 to 4/3.

    The rule of "random resized crop" (Szegedy et al., 2015) as torchvision and timm have it: ten attempts, then the
    largest central box.
    """
    for _ in range(10):
        area = width * height * generator.uniform(*scale)
        ratio = math.exp(generator.uniform(math.log(3 / 4), math.log(4 / 3)))
        box_width, box_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < box_width <= width and 0 < box_height <= height:
            left, top = generator.integers(width - box_width + 1), generator.integers(height - box_height + 1)
            return int(left), int(top), int(left) + box_width, int(top) + box_height
    box_width, box_height = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
    left, top = (width - box_width) // 2, (height - box_height) // 2
    return left, top, left + box_width, top + box_height


def augment(
    image: Image.Image,
    size: int,
    *,
    scale: tuple[float, float] = (0.08, 1.0),
    flip: bool = True,
    generator: np.random.Generator,
) -> UInt8[Tensor, "3 {size} {size}"]:
    """A random crop resized to a square (bilinear, antialiased), in half of the cases mirrored."""
    box = random_crop_box(image.width, image.height, scale, generator)
    mirrored = generator.random() < 0.5
    image = image.resize((size, size), Image.Resampling.BILINEAR, box=box)
    return to_tensor(ImageOps.mirror(image) if flip and mirrored else image)
