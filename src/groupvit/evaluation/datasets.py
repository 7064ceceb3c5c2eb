"""Photos with masks."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from groupvit.data.transforms import load_rgb
from groupvit.errors import InputError
from groupvit.evaluation.metrics import IGNORE


@dataclass(frozen=True)
class MaskedPhoto:
    """A photo and the class index of every pixel (255: not labelled)."""

    name: str
    image: Image.Image
    mask: UInt8[np.ndarray, "height width"]


@dataclass(frozen=True)
class MaskFolder:
    """A folder with `images/NAME.*`, `masks/NAME.png` (class indices) and `classes.txt` (one label a line)."""

    root: Path
    labels: tuple[str, ...]

    @classmethod
    def open(cls, root: Path) -> "MaskFolder":
        """Reads the class list; an `InputError` says which part of the folder is missing."""
        for part in ("images", "masks", "classes.txt"):
            if not (root / part).exists():
                raise InputError(f"{root} has no {part}; an evaluation folder holds images/, masks/ and classes.txt")
        return cls(root, tuple((root / "classes.txt").read_text(encoding="utf-8").splitlines()))

    def __iter__(self) -> Iterator[MaskedPhoto]:
        for path in sorted((self.root / "images").iterdir()):
            yield self._read(path)

    def _read(self, path: Path) -> MaskedPhoto:
        mask_path = self.root / "masks" / f"{path.stem}.png"
        if not mask_path.is_file():
            raise InputError(f"{path} has no mask {mask_path}")
        image = load_rgb(path, str(path))
        try:
            with Image.open(mask_path) as file:
                mask = np.asarray(file)
        except OSError as error:
            raise InputError(f"{mask_path} cannot be read: {error}") from error
        if mask.dtype != np.uint8 or mask.shape != image.size[::-1]:
            raise InputError(
                f"{mask_path} is not an 8-bit index mask of the size of {path}, {image.width} x {image.height}"
            )
        unknown = mask[(mask != IGNORE) & (mask >= len(self.labels))]
        if unknown.size:
            raise InputError(f"{mask_path} has class {unknown[0]}, but classes.txt names {len(self.labels)}")
        return MaskedPhoto(path.stem, image, mask)
