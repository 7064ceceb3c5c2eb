"""What `make demo` runs: photographs that come with scikit-image fall apart into named segments.

    python -m experiments.demo --out runs/demo

Writes for each photograph one picture: photo, groups, segments named with the words below; offline, with the model
that is in the package. The words are what one sees in each photograph, chosen once and not by what comes out.
"""

from pathlib import Path

import skimage
import tyro
from PIL import Image

from groupvit import api
from groupvit.segmentation import drawing

PHOTOS = {
    "astronaut": ("person=person,woman", "flag", "wall"),
    "chelsea": ("cat", "bed=bed,blanket", "wall"),
    "coffee": ("cup", "spoon", "table"),
    "motorcycle": ("motorcycle=motorcycle,bike", "floor", "wall"),
}
"""Photographs (NASA; S. van der Walt; R. Michel; Middlebury Stereo) and the words to name their segments with."""


def photograph(name: str) -> Image.Image:
    """The photograph of that name."""
    return Image.fromarray(
        skimage.data.stereo_motorcycle()[0] if name == "motorcycle" else getattr(skimage.data, name)()
    )


def main(out: Path = Path("runs/demo"), model: str = "photos") -> None:
    """Segment the photographs and write the pictures.

    Args:
        out: Folder for the pictures.
        model: Name of the model, or a checkpoint.
    """
    segmenter = api.load(model)
    size = segmenter.config.image.image_size
    out.mkdir(parents=True, exist_ok=True)
    for name, labels in PHOTOS.items():
        photo = photograph(name)
        whole = segmenter.segment(photo, labels)
        result = segmenter.segment(photo, labels, short_side=2 * size, window=size)
        groups = [drawing.groups(photo, stage) for stage in whole.groups]
        pictures = [photo, *groups, result.overlay()]
        titles = ["photo", *(f"groups of the whole, stage {i}" for i in range(1, len(groups) + 1)), "named, by windows"]
        path = out / f"{name}.png"
        drawing.panel(pictures, titles).save(path)
        shares = ", ".join(f"{n} {100 * share:.0f} %" for n, share in zip(result.names, result.shares, strict=True))
        print(f"{path}: {shares}")


if __name__ == "__main__":
    tyro.cli(main)
