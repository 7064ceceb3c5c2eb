"""What `make demo` runs: photographs that come with scikit-image fall apart into named segments.

    python -m experiments.demo --out runs/demo [--record]

Writes for each photograph one picture: photo, groups, segments named with the words below; offline, with the model
that is in the package. The words are what one sees in each photograph; what is none of them is background.
"""

from pathlib import Path

import skimage
from experiments.command import run_script
from experiments.record import DOCS, commit, record_table
from PIL import Image

from groupvit import api
from groupvit.segmentation import Segmentation, Segmenter, drawing

PHOTOS = {
    "astronaut": ("person=person,woman", "flag", "space shuttle"),
    "chelsea": ("cat", "bed=bed,blanket", "wall"),
    "coffee": ("cup", "spoon", "table"),
    "motorcycle": ("motorcycle=motorcycle,bike", "floor", "wall"),
}
"""Photographs (NASA; S. van der Walt; R. Michel; Middlebury Stereo) and the words to name their segments with."""


def photograph(name: str) -> Image.Image:
    """Return the photograph of that name."""
    return Image.fromarray(
        skimage.data.stereo_motorcycle()[0] if name == "motorcycle" else getattr(skimage.data, name)()
    )


def named(segmenter: Segmenter, name: str) -> Segmentation:
    """Return the photograph, segmented as the command does by default."""
    return segmenter.segment(photograph(name), PHOTOS[name])


def main(out: Path = Path("runs/demo"), model: str = "photos-trunk", record: bool = False) -> None:
    """Segment the photographs and write the pictures.

    Args:
        out: Folder for the pictures.
        model: Name of the model, or a checkpoint.
        record: Write what was found to docs/results.json and docs/MODEL_CARD.md, and the README's picture.
    """
    began_at, segmenter, rows = commit() if record else "", api.load(model, precision="fp32"), []
    out.mkdir(parents=True, exist_ok=True)
    for name in PHOTOS:
        result = named(segmenter, name)
        photo = result.image
        groups = [drawing.groups(photo, stage) for stage in result.groups]
        titles = ["photo", *(f"groups, stage {i}" for i in range(1, len(groups) + 1)), "named"]
        drawing.panel([photo, *groups, result.overlay()], titles).save(out / f"{name}.png")
        shares = zip(result.names, result.shares, strict=True)
        rows.append({"photo": name, "found, % of the photo": ", ".join(f"{n} {100 * s:.1f}" for n, s in shares)})
        print(f"{out / name}.png: {rows[-1]['found, % of the photo']} % of the photo")
    if record:
        record_table("MODEL_CARD.md", "demo", rows, began_at)
        picture = Image.open(out / "motorcycle.png").convert("RGB")
        picture.thumbnail((1400, 1400))
        picture.save(DOCS / "photos/motorcycle.jpg", quality=80)


if __name__ == "__main__":
    run_script(main)
