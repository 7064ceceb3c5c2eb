"""A photo with its mask of class indices, read and checked."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from groupvit.errors import InputError, input_error
from groupvit.evaluation.metrics import IGNORE
from groupvit.photos import load_rgb

Mask = UInt8[np.ndarray, "height width"]
Table = Int[np.ndarray, "256"]


@dataclass(frozen=True)
class MaskedPhoto:
    """A photo and the class index of every pixel (255: not labelled); `digest` is a hash of file and mask."""

    name: str
    image: Image.Image
    mask: Mask
    digest: str = ""


def lookup(indices: Mapping[int, int]) -> Table:
    """Return for each value in a file the class index, `IGNORE`, or -1 for a value that does not belong there."""
    return np.array([{IGNORE: IGNORE, **indices}.get(value, -1) for value in range(256)])


def read_masked(name: str, path: Path, mask_path: Path, table: Table, known: str) -> MaskedPhoto:
    """Read a photo and its mask, whose values `table` turns into indices; `known` says which there may be."""
    if not mask_path.is_file():
        raise InputError(f"{path} has no mask {mask_path}")
    unreadable = input_error(f"{mask_path} cannot be read", OSError, SyntaxError, ValueError)
    with unreadable, Image.open(mask_path, formats=("PNG",)) as file:
        values = np.asarray(file)
    if values.dtype != np.uint8 or values.ndim != 2:
        raise InputError(f"{mask_path} is not an 8-bit mask of indices")
    photo = masked(name, path, table.astype(np.uint8)[values], mask_path)
    if (unknown := np.flatnonzero((table < 0) & (np.bincount(values.ravel(), minlength=256) > 0))).size:
        raise InputError(f"{mask_path} has class {unknown[0]}, but {known}")
    return photo


def masked(name: str, path: Path, mask: Mask, source: Path) -> MaskedPhoto:
    """Read the photo of a mask; `source` is the mask's file."""
    with input_error(f"{path} cannot be read", OSError):
        data = path.read_bytes()
    image = load_rgb(data, str(path))
    if mask.shape != image.size[::-1]:
        raise InputError(
            f"{source} has a mask of {mask.shape[1]} x {mask.shape[0]} for {path}, {image.width} x {image.height}"
        )
    return MaskedPhoto(name, image, mask, hashlib.sha256(data + mask.tobytes()).hexdigest()[:16])
