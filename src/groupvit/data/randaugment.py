"""The strong augmentation of the release: RandAugment and random erasing, in the settings of DeiT.

RandAugment (Cubuk et al., 2019) is timm's `rand-m9-mstd0.5-inc1`: two operations of fifteen, each applied with
probability 0.5 at a magnitude of N(9, 0.5) within 0 to 10, where a greater magnitude always changes the picture more.
Random erasing (Zhong et al., 2017) puts noise into one box of a quarter of the pictures. Several operations change
colours, which captions name. The number of draws does not depend on the picture.
"""

import math
from collections.abc import Callable

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageEnhance, ImageOps

# Of ImageNet's pixels, from 0 to 255.
MEAN = 255 * np.array([0.485, 0.456, 0.406], dtype=np.float32)
STD = 255 * np.array([0.229, 0.224, 0.225], dtype=np.float32)
FILL = (124, 116, 104)


def _affine(
    image: Image.Image, shear_x: float = 0.0, shear_y: float = 0.0, shift_x: float = 0.0, shift_y: float = 0.0
) -> Image.Image:
    """Return the picture whose pixel (x, y) is (x + shear_x y + shift_x, shear_y x + y + shift_y) of the given one."""
    matrix = (1, shear_x, shift_x, shear_y, 1, shift_y)
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=FILL)


def _factor(signed: float) -> float:
    """Return the factor of an ImageEnhance: 1 changes nothing, 0 takes all of the property away."""
    return max(0.1, 1 + 0.9 * signed)


# Each takes the picture and the strength from -1 to 1; most read only its absolute value.
OPERATIONS: dict[str, Callable[[Image.Image, float], Image.Image]] = {
    "AutoContrast": lambda image, _: ImageOps.autocontrast(image),
    "Equalize": lambda image, _: ImageOps.equalize(image),
    "Invert": lambda image, _: ImageOps.invert(image),
    "Rotate": lambda image, s: image.rotate(30 * s, Image.Resampling.BILINEAR, fillcolor=FILL),
    "Posterize": lambda image, s: ImageOps.posterize(image, max(1, 4 - int(4 * abs(s)))),  # 0 bits would be black
    "Solarize": lambda image, s: ImageOps.solarize(image, 256 - int(256 * abs(s))),
    "SolarizeAdd": lambda image, s: image.point([v + int(110 * abs(s)) if v < 128 else v for v in range(256)] * 3),
    "Color": lambda image, s: ImageEnhance.Color(image).enhance(_factor(s)),
    "Contrast": lambda image, s: ImageEnhance.Contrast(image).enhance(_factor(s)),
    "Brightness": lambda image, s: ImageEnhance.Brightness(image).enhance(_factor(s)),
    "Sharpness": lambda image, s: ImageEnhance.Sharpness(image).enhance(_factor(s)),
    "ShearX": lambda image, s: _affine(image, shear_x=0.3 * s),
    "ShearY": lambda image, s: _affine(image, shear_y=0.3 * s),
    "TranslateX": lambda image, s: _affine(image, shift_x=0.45 * s * image.width),
    "TranslateY": lambda image, s: _affine(image, shift_y=0.45 * s * image.height),
}


def rand_augment(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    """Apply two random operations, one after the other, each in half of the cases."""
    for _ in range(2):
        operation = list(OPERATIONS.values())[generator.integers(len(OPERATIONS))]
        applied, positive = generator.random(2) < 0.5
        magnitude = min(max(generator.normal(9, 0.5), 0), 10)
        if applied:
            image = operation(image, magnitude / 10 if positive else -magnitude / 10)
    return image


def erase(
    pixels: UInt8[np.ndarray, "height width 3"], generator: np.random.Generator
) -> UInt8[np.ndarray, "height width 3"]:
    """Put noise, with probability 0.25, into a box of 2 % to a third of the area, with an aspect ratio of 0.3 to 10/3.

    timm erases after the normalisation, with N(0, 1); here this is N(mean, std) of ImageNet, rounded and clipped.
    """
    height, width = pixels.shape[:2]
    areas = height * width * generator.uniform(0.02, 1 / 3, size=10)
    ratios = np.exp(generator.uniform(math.log(0.3), math.log(1 / 0.3), size=10))
    chance, x, y = generator.random(3)
    seed = generator.integers(2**63)
    heights, widths = np.rint(np.sqrt(areas * ratios)), np.rint(np.sqrt(areas / ratios))
    fits = (heights < height) & (widths < width)
    if chance >= 0.25 or not fits.any():
        return pixels
    box_height, box_width = int(heights[fits.argmax()]), int(widths[fits.argmax()])
    top, left = int(y * (height - box_height + 1)), int(x * (width - box_width + 1))
    noise = np.random.default_rng(seed).standard_normal((box_height, box_width, 3), dtype=np.float32)
    erased = pixels.copy()
    box = erased[top : top + box_height, left : left + box_width]
    box[:] = (MEAN + STD * noise).round().clip(0, 255).astype(np.uint8)
    return erased
