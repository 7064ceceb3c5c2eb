"""A photo with its mask of class indices, read and checked."""

import hashlib
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from groupvit.errors import InputError, input_error
from groupvit.evaluation.metrics import IGNORE
from groupvit.files import refuse_pointer
from groupvit.photos import load_rgb, naming, upright
from groupvit.segmentation.formats import voc_palette

Mask = UInt8[np.ndarray, "height width"]
Table = Int[np.ndarray, "65536"]

MASK_SUFFIXES = (".png", ".tif", ".tiff", ".bmp")
_LOSSLESS = ("PNG", "TIFF", "BMP")
_VOC_COLOURS = {int.from_bytes(bytes(colour)): value for value, colour in enumerate(voc_palette().tolist())}


@dataclass(frozen=True)
class MaskedPhoto:
    """A photo and the class index of every pixel (255: not labelled); `digest` is a hash of file and mask."""

    name: str
    image: Image.Image
    mask: Mask
    digest: str = ""


def lookup(indices: Mapping[int, int]) -> Table:
    """Return for each value in a file the class index, `IGNORE`, or -1 for a value that does not belong there."""
    table = np.full(1 << 16, -1)
    table[IGNORE] = IGNORE
    table[list(indices)] = list(indices.values())
    return table


def read_masked(
    name: str, path: Path, mask_path: Path, table: Table, known: str, colours: Mapping[int, int] | None = None
) -> MaskedPhoto:
    """Read a photo and its mask, whose values `table` turns into indices; `known` says which there may be.

    `colours` are the values of colours (65536 r + 256 g + b), those of VOC by default.
    """
    if not mask_path.is_file():
        raise InputError(f"{path} has no mask {mask_path}")
    usual = {colour: value for colour, value in _VOC_COLOURS.items() if table[value] >= 0}
    values = read_values(mask_path, colours, usual)
    indices = np.where(values == values % len(table), table[values % len(table)], -1)
    if (unknown := indices < 0).any():
        first = ", ".join(map(str, np.unique(values[unknown])[:5]))
        share = f"{100 * unknown.mean():.3g} % of its pixels"
        raise InputError(f"{mask_path} has values of no class ({first}; {share}), but {known}")

    def fitting(image: Image.Image) -> Mask:
        if values.shape != image.size[::-1]:
            sizes = f"{values.shape[1]} x {values.shape[0]} for {path}, {image.width} x {image.height}"
            raise InputError(f"{mask_path} has a mask of {sizes}")
        return indices.astype(np.uint8)

    return masked(name, path, fitting)


def masked(name: str, path: Path, mask_of: Callable[[Image.Image], Mask]) -> MaskedPhoto:
    """Read a photo and make its mask."""
    with input_error(f"{path} cannot be read", OSError, ValueError):
        data = path.read_bytes()
    image = load_rgb(data, str(path))
    mask = mask_of(image)
    return MaskedPhoto(name, image, mask, hashlib.sha256(data + mask.tobytes()).hexdigest()[:16])


def read_values(
    path: Path, colours: Mapping[int, int] | None = None, usual: Mapping[int, int] = _VOC_COLOURS
) -> Int[np.ndarray, "height width"]:
    """Read the values of a mask: indices, or colours that stand for them, by default the `usual` ones."""
    refuse_pointer(path)
    bound = naming(str(path), advice="make photo and mask smaller")
    with bound, Image.open(path, formats=(*_LOSSLESS, "JPEG", "WEBP", "GIF")) as file:
        file.filename = ""  # or Pillow maps a raw TIFF with an orientation, height and width exchanged
        kind, frames, raw = file.format, getattr(file, "n_frames", 1), file.tile[0][3] if file.tile else ""
        bits = str(raw[0] if isinstance(raw, tuple) and raw else raw)
        file.load()  # turns a TIFF
        turned = upright(file)  # as photos are
        pixels = _by_palette(turned, colours) if colours and file.mode == "P" else np.asarray(turned)
    if kind not in _LOSSLESS:
        raise InputError(f"{path} is a {kind} picture, which may change values: save masks as PNG")
    if frames > 1:
        raise InputError(f"{path} has {frames} pictures, and a mask is one: save it as PNG")
    if re.match("(RGB|LA).*;16", bits):
        raise InputError(f"{path} has 16 bits for each of several colours: save indices, or colours of 8 bits")
    if pixels.ndim == 3 and pixels.shape[2] in (2, 4):
        if (pixels[..., -1] < 255).any():
            raise InputError(f"{path} has transparent pixels: save it without transparency")
        pixels = pixels[..., :-1]
    if pixels.ndim == 3 and pixels.shape[2] == 3:
        return _values_of(pixels, colours, usual, path)
    if bits in ("1;I", "L;2I", "L;4I", "L;I"):
        raise InputError(f"{path} has 0 for white: save it as PNG, the value is the index of the class")
    if pixels.dtype.kind == "f":
        raise InputError(f"{path} has floating-point values: save it with 8 bits, the value is the index of the class")
    return pixels.reshape(pixels.shape[:2]).astype(np.int64) // {"L;2": 85, "L;4": 17}.get(bits, 1)  # Pillow scales


_WEIGHTS = (1 << 16, 1 << 8, 1)


def _by_palette(image: Image.Image, colours: Mapping[int, int]) -> Int[np.ndarray, "height width"]:
    """Return what the colours of the palette stand for, or the indices if it is VOC's and these are not."""
    indices = np.asarray(image)
    palette = np.array(image.getpalette()).reshape(-1, 3)
    codes = palette @ _WEIGHTS
    stand = np.full(256, -1)
    stand[: len(codes)] = [colours.get(int(code), -1) for code in codes]
    stand[IGNORE] = IGNORE if stand[IGNORE] < 0 else stand[IGNORE]  # VOC's own masks have a colour for it
    occurring = np.unique(indices)
    if (stand[occurring] >= 0).all():
        return stand[indices]
    if np.array_equal(palette, voc_palette()[: len(palette)]):
        return indices.astype(np.int64)
    red, green, blue = palette[occurring[stand[occurring] < 0][0]]
    raise ValueError(f"its colour {red},{green},{blue} is none of labelmap.txt's: add it there, or leave that file out")


def _values_of(
    pixels: UInt8[np.ndarray, "height width 3"], colours: Mapping[int, int] | None, usual: Mapping[int, int], path: Path
) -> Int[np.ndarray, "height width"]:
    """Return what the colours stand for; greys outside of the usual ones are values themselves."""
    found, places = np.unique(pixels.astype(np.int64) @ _WEIGHTS, return_inverse=True)
    known, grey = colours or usual, (pixels == pixels[..., :1]).all()
    unknown = [int(colour) for colour in found if colour not in known]
    if not unknown:
        if not (colours or grey):
            warnings.warn("colours of masks are taken for VOC's: if they are others, write labelmap.txt", stacklevel=2)
        return np.array([known[colour] for colour in found])[places].reshape(pixels.shape[:2])
    if not colours and grey:
        return pixels[..., 0].astype(np.int64)
    red, green, blue = unknown[0].to_bytes(3, "big")
    raise InputError(
        f"{path} is an RGB picture with {len(unknown)} colours of no class, such as {red},{green},{blue}: save indices "
        f"or write labelmap.txt with a line NAME:{red},{green},{blue}:: for each class"
    )
