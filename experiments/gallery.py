"""Pictures of the site: the gallery, and the figures of the page that explains the method.

    python -m experiments.gallery runs/train-demo

Draws 24 results into docs/gallery/, good and bad alike: every photo of those that come with scikit-image and
scikit-learn and show things or a texture, all under the same words, by `photos-trunk`; and twelve synthetic scenes that
a seed chose of the 500 held-out ones, by the model of `make train-demo`. No photo of a data set is here: their
licences forbid it. The method's figures go into docs/figures/, with the training's emergence.png and its atlas.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import tyro
from experiments.atlas import main as write_atlas
from experiments.command import run_script
from experiments.demo import photograph
from experiments.record import DOCS
from experiments.scenes import VIEW
from PIL import Image, ImageDraw
from sklearn.datasets import load_sample_image

from groupvit import api
from groupvit.data import scenes
from groupvit.evaluation.datasets import open_masks
from groupvit.segmentation import Segmentation, Segmenter, drawing

PHOTOS = ("astronaut", "chelsea", "coffee", "motorcycle", "rocket", "camera")
PHOTOS += ("china", "flower", "grass", "gravel", "brick", "coins")
THINGS = ("person=person,man,woman", "cat", "dog", "flower", "cup", "motorcycle", "building", "rocket", "coin")
WORDS = (*THINGS, "grass", "stone", "water", "sky", "road", "wall")
SHOWN = 12


def photo_of(name: str) -> Image.Image:
    """Return a photo of scikit-learn or scikit-image."""
    if name in ("china", "flower"):
        return Image.fromarray(load_sample_image(f"{name}.jpg"))
    return photograph(name).convert("RGB")


def save(picture: Image.Image, file: Path, width: int = 960) -> None:
    """Write a picture as WebP, shrunk to a width."""
    file.parent.mkdir(parents=True, exist_ok=True)
    picture.thumbnail((width, width))
    picture.save(file, quality=70, method=6)
    print(file)


def draw_photos() -> None:
    """Draw photo, groups and names of each photo."""
    segmenter = api.load("photos-trunk", precision="fp32", engine="torch")
    for name in PHOTOS:
        result = segmenter.segment(photo_of(name), WORDS)
        pictures = [result.image, drawing.groups(result.image, result.groups[-1]), result.overlay()]
        save(drawing.panel(pictures, ["photo", "groups", "named"]), DOCS / f"gallery/{name}.webp")


def draw_scenes(segmenter: Segmenter, evaluation: Path) -> None:
    """Draw scene, groups, names and truth of scenes that a seed chooses."""
    photos = open_masks(evaluation)
    for number, index in enumerate(np.random.default_rng(0).choice(len(photos), SHOWN, replace=False), start=1):
        photo = photos[int(index)]
        result = segmenter.segment(photo.image, scenes.LABELS, VIEW)
        groups = drawing.groups(photo.image, result.groups[-1])
        truth = drawing.overlay(photo.image, photo.mask, result.names)
        panel = drawing.panel([photo.image, groups, result.overlay(), truth], ["scene", "groups", "named", "truth"])
        save(panel, DOCS / f"gallery/scene-{number:02}.webp")


def draw_figures(segmenter: Segmenter, photo: Image.Image) -> None:
    """Draw one scene's way through the model: patches, groups, each group's share in the patches, words."""
    result = segmenter.segment(photo, scenes.LABELS, VIEW)
    named = [gridded(photo, result.windows[0].grid), drawing.groups(photo, result.groups[-1]), result.overlay()]
    save(drawing.panel(named, ["patches", "groups", "named"]), DOCS / "figures/way.webp")
    owners = np.bincount(result.groups[-1].ravel(), minlength=len(result.windows[0].groups[-1]))
    largest = np.argsort(-owners, kind="stable")[:6]
    save(of_shares(segmenter, photo, largest), DOCS / "figures/shares.webp")
    save(of_words(result, largest), DOCS / "figures/words.webp")


def gridded(photo: Image.Image, grid: tuple[int, int]) -> Image.Image:
    """Return the photo with the borders of its patches."""
    picture = photo.resize((5 * photo.width, 5 * photo.height))
    draw = ImageDraw.Draw(picture)
    for axis, count in enumerate(grid):
        for i in range(1, count):
            at = i * picture.size[1 - axis] / count
            draw.line(((0, at), (picture.width, at)) if axis == 0 else ((at, 0), (at, picture.height)), "white")
    return picture


def of_shares(segmenter: Segmenter, photo: Image.Image, tokens: np.ndarray) -> Image.Image:
    """Return a map of each token's share in the patches, by the soft assignment of Eq. 3."""
    soft = segmenter.segment(photo, scenes.LABELS, VIEW, maps="soft").windows[0].groups[-1]
    figure, charts = plt.subplots(1, len(tokens), figsize=(9, 1.8), layout="constrained")
    for chart, token in zip(charts, tokens, strict=True):
        chart.imshow(soft[int(token)].cpu().numpy(), vmin=0, vmax=float(soft.max()), cmap="magma")
        chart.set_title(f"token {token}", fontsize=9)
        chart.axis("off")
    return rendered(figure)


def of_words(result: Segmentation, tokens: np.ndarray) -> Image.Image:
    """Return a table of how well each word fits each segment."""
    figure, chart = plt.subplots(figsize=(9, 2.8), layout="constrained")
    scores = result.windows[0].scores.cpu().numpy()[tokens]
    chart.imshow(scores, vmin=0, vmax=1, cmap="magma", aspect="auto")
    chart.set_xticks(range(len(result.names)), result.names, rotation=45, ha="right")
    chart.set_yticks(range(len(tokens)), [f"segment {token}" for token in tokens])
    return rendered(figure)


def rendered(figure: plt.Figure) -> Image.Image:
    figure.set_dpi(140)
    figure.canvas.draw()
    return Image.fromarray(np.asarray(figure.canvas.buffer_rgba())).convert("RGB")  # pyright: ignore


def main(scenes_out: tyro.conf.Positional[Path] = Path("runs/train-demo")) -> None:
    """Draw everything.

    Args:
        scenes_out: Folder of `make train-demo`, when it has ended.
    """
    run, evaluation = scenes_out / "scenes-seed0", scenes_out / f"data-v{scenes.VERSION}/eval"
    segmenter = api.load(run, precision="fp32", engine="torch")
    draw_photos()
    draw_scenes(segmenter, evaluation)
    draw_figures(segmenter, open_masks(evaluation)[0].image)
    save(Image.open(run / "emergence.png"), DOCS / "figures/emergence.webp", width=1500)
    words = evaluation / "classes.txt"
    write_atlas(str(run), evaluation / "images", DOCS / "gallery/atlas.html", words, limit=500, crops=8)


if __name__ == "__main__":
    plt.switch_backend("agg")
    run_script(main)
