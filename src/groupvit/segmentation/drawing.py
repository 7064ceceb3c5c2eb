"""Pictures of label maps and of groups."""

import math
from collections.abc import Sequence
from contextlib import suppress
from itertools import accumulate

import numpy as np
from jaxtyping import Float, UInt, UInt8
from PIL import Image, ImageDraw, ImageFont

from groupvit.segmentation.labels import BACKGROUND

_SMALLEST_SIDE = 320  # pixels: smaller photos are enlarged, or their legend could not be read


def palette(count: int) -> UInt8[np.ndarray, "count 3"]:
    """Return distinct colours, always the same: hues a golden angle apart in OKLCH, three levels of lightness."""
    index = np.arange(count)
    # Whole turns of hue repeat nearly after 21 and 34 colours; slow drifts keep those apart, too.
    lightness = np.array([0.72, 0.54, 0.86])[index % 3] - 0.10 * (index // 21 % 3) / 2
    chroma = np.array([0.17, 0.19, 0.13])[index % 3] - 0.05 * (index // 63 % 4) / 3
    hue = np.radians(25 + index * 180 * (3 - math.sqrt(5)))
    return _oklab_to_rgb(np.stack([lightness, chroma * np.cos(hue), chroma * np.sin(hue)], axis=1))


def _oklab_to_rgb(lab: Float[np.ndarray, "count 3"]) -> UInt8[np.ndarray, "count 3"]:
    """Ottosson, "A perceptual color space for image processing" (2020)."""
    to_lms = np.array(
        [[1, 0.3963377774, 0.2158037573], [1, -0.1055613458, -0.0638541728], [1, -0.0894841775, -1.2914855480]]
    )
    to_rgb = np.array(
        [
            [4.0767416621, -3.3077115913, 0.2309699292],
            [-1.2684380046, 2.6097574011, -0.3413193965],
            [-0.0041960863, -0.7034186147, 1.7076147010],
        ]
    )
    linear = ((lab @ to_lms.T) ** 3 @ to_rgb.T).clip(0, 1)
    gamma = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.round(255 * gamma).astype(np.uint8)


def label_colours(names: Sequence[str]) -> UInt8[np.ndarray, "labels 3"]:
    """Return one colour for each name; background is dark grey and takes no colour from the others."""
    if names and names[0] == BACKGROUND:
        return np.concatenate([np.full((1, 3), 48, np.uint8), palette(len(names) - 1)])
    return palette(len(names))


def indexed(label_map: UInt[np.ndarray, "height width"], names: Sequence[str]) -> Image.Image:
    """Return the label map as an image to be saved as PNG: pixel values are indices, shown in the overlay's colours.

    With more than 256 labels it is 16-bit grey, since a PNG palette ends there.
    """
    if len(names) > 256:
        return Image.fromarray(label_map.astype(np.uint16))
    image = Image.fromarray(label_map.astype(np.uint8))
    image.putpalette(label_colours(names).tobytes())
    return image


def overlay(photo: Image.Image, label_map: UInt[np.ndarray, "height width"], names: Sequence[str]) -> Image.Image:
    """Return the photo under its labels' colours, with a legend of the labels that occur, the largest first."""
    colours = label_colours(names)
    picture = _enlarge(_blend(photo, label_map, colours, 0.5))
    counts = np.bincount(label_map.ravel(), minlength=len(names))
    present = [int(i) for i in np.argsort(-counts, kind="stable") if counts[i]]
    return _with_legend(picture, [(names[i], tuple(colours[i].tolist())) for i in present])


def groups(photo: Image.Image, group_map: UInt[np.ndarray, "height width"]) -> Image.Image:
    """Return the groups of one stage (Fig. 5) in strong colours over the greyed photo."""
    return _enlarge(_blend(photo.convert("L").convert("RGB"), group_map, palette(int(group_map.max()) + 1), 0.6))


def panel(images: Sequence[Image.Image], titles: Sequence[str]) -> Image.Image:
    """Return pictures side by side, each under its title; small ones are enlarged."""
    images = [_enlarge(image.convert("RGB")) for image in images]
    height = max(image.height for image in images)
    font = _font(min(image.height for image in images), titles)
    gap, top = 8, round(1.8 * font.size)
    lefts = list(accumulate((image.width + gap for image in images), initial=0))
    canvas = Image.new("RGB", (lefts[-1] - gap, height + top), "white")
    draw = ImageDraw.Draw(canvas)
    for image, title, left in zip(images, titles, lefts[:-1], strict=True):
        draw.text((left + 2, top / 2), _shorten(title, font, image.width - 4), "black", font, anchor="lm")
        canvas.paste(image, (left, top))
    return canvas


def _blend(
    photo: Image.Image,
    index_map: UInt[np.ndarray, "height width"],
    colours: UInt8[np.ndarray, "colours 3"],
    opacity: float,
) -> Image.Image:
    """Paint colours over the photo, with a light line where the index changes."""
    paint = Image.fromarray(np.take(colours, index_map, axis=0))  # four times as fast as colours[index_map]
    blended = np.array(Image.blend(photo.convert("RGB"), paint, opacity))
    blended[:-1][index_map[:-1] != index_map[1:]] = 255
    blended[:, :-1][index_map[:, :-1] != index_map[:, 1:]] = 255
    return Image.fromarray(blended)


def _enlarge(picture: Image.Image) -> Image.Image:
    factor = math.ceil(_SMALLEST_SIDE / max(picture.size))
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)


def _font(side: int, texts: Sequence[str]) -> ImageFont.FreeTypeFont:
    """Return Pillow's own font, which knows ASCII only; other names take a font of the system's."""
    size = max(14, side // 30)
    if not all(text.isascii() for text in texts):
        for name in ("NotoSans-Regular.ttf", "DejaVuSans.ttf", "Arial Unicode.ttf", "arial.ttf"):
            with suppress(OSError):
                return ImageFont.truetype(name, size)
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font


def _shorten(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    text = " ".join(text.split())[:width]  # no letter is narrower than a pixel
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."


def _with_legend(picture: Image.Image, entries: Sequence[tuple[str, tuple[int, ...]]]) -> Image.Image:
    """Return the picture above rows of swatches and names."""
    width = max(picture.width, _SMALLEST_SIDE)
    font = _font(min(width, picture.height), [name for name, _ in entries])
    line = round(1.6 * font.size)
    places, x, y = [], line // 4, 0
    for name, colour in entries:
        text = _shorten(name, font, width - 2 * line)
        end = x + 1.5 * line + font.getlength(text)
        if end > width and x > line // 4:
            x, y = line // 4, y + line
            end = x + 1.5 * line + font.getlength(text)
        places.append((x, y, text, colour))
        x = math.ceil(end)
    canvas = Image.new("RGB", (width, picture.height + y + line + line // 4), "white")
    canvas.paste(picture, (0, 0))
    draw = ImageDraw.Draw(canvas)
    for x, y, text, colour in places:
        top = picture.height + y + line // 4
        draw.rectangle((x, top, x + 0.75 * line, top + 0.75 * line), colour, "black")
        draw.text((x + line, top + 0.4 * line), text, "black", font, anchor="lm")
    return canvas
