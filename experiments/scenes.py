"""Do segments emerge, and do words find them? Synthetic scenes with exact masks, in minutes.

    python -m experiments.scenes --seeds 1 --out runs/train-demo    # what `make train-demo` runs
    python -m experiments.scenes --seeds 3 --record             # a table of docs/RESULTS.md

Draws the scenes, trains each run from captions alone with each seed, scores held-out scenes, prints the table beside
baselines, and writes pictures: scene, groups of each stage, named segments, truth, and OUT/RUN-seed0/emergence.png, in
which segments emerge step by step. After an interruption the same command goes on where it was.
"""

import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from experiments.colours import ColourTable, score_colour_clusters
from experiments.command import finish, run_script
from experiments.record import CONSOLE, commit, record_results
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table

from groupvit import checkpoints
from groupvit.data import scenes
from groupvit.evaluation.datasets import MaskedPhoto, open_masks
from groupvit.evaluation.emergence import Emergence, photos_to_watch
from groupvit.evaluation.metrics import confusion_matrix, iou
from groupvit.evaluation.scoring import score
from groupvit.models import ModelConfig, build_model
from groupvit.segmentation import Segmenter, View, drawing
from groupvit.segmentation.labels import parse_labels
from groupvit.segmentation.segmenter import Precision
from groupvit.text.nouns import nouns_of_photo
from groupvit.training.runs import get_run

Row = dict[str, float]
# Hard maps, as the paper says (§3.3). Training sees crops, in which things look larger than in whole pictures: a
# quarter more pixels brings their size back (Touvron et al., 2019). docs/LOG.md compares, on scenes of another seed.
VIEW = View(maps="hard", short_side=80, background=None)


def row(matrix: np.ndarray) -> Row:
    """Return mean IoU over all classes, the ten things and the six grounds, in percent."""
    values, things = iou(matrix), len(scenes.THINGS)
    means = np.nanmean(values), np.nanmean(values[:things]), np.nanmean(values[things:])
    return dict(zip(("miou", "things", "grounds"), map(float, means), strict=True))


def mean_and_range(values: Sequence[float]) -> str:
    """Return the mean over seeds, and the range of several."""
    spread = f" ({min(values):.1f} to {max(values):.1f})" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


def colour_rows(photos: Sequence[MaskedPhoto], groups: int) -> dict[str, Row]:
    """Score colour alone: a look-up table counted with masks, and k-means with each cluster's best label."""
    classes = len(scenes.CLASSES)
    drawn = (scenes.draw(2, index) for index in range(3000))
    known = (MaskedPhoto("", Image.fromarray(scene.image), scene.mask) for scene in drawn)
    table = ColourTable.fit(track(known, "colour table", total=3000, console=CONSOLE, transient=True), classes)
    counted = sum(confusion_matrix(photo.mask, table(photo.image), classes) for photo in photos)
    clusters = track(photos, "k-means of colours", console=CONSOLE, transient=True)
    return {
        "colour look-up table, trained with masks": row(np.asarray(counted)),
        f"k-means on colours, {groups} clusters, best labels": row(score_colour_clusters(clusters, groups, classes)),
    }


def random_weights(config: ModelConfig, seed: int, precision: Precision = "fp32") -> Segmenter:
    """Return a model that has learned nothing."""
    torch.manual_seed(seed)
    return Segmenter(build_model(config), config, precision=precision)


def train_and_score(name: str, seed: int, data: Path, out: Path, photos: Sequence[MaskedPhoto]) -> dict[str, Row]:
    """Return rows of one run and seed: untrained and trained, named and with the best labels of the groups."""
    run = get_run(name)
    untrained = score(random_weights(run.model, seed), photos, scenes.LABELS, VIEW)
    began = time.monotonic()
    watched, steps = photos_to_watch(str(data), run.data.held_out, run.data.train), run.schedule.steps
    draw = Emergence(run.model, *watched, out / "emergence.png", max(1, steps // 12), steps)
    finish(run, data, out, seed, draw=draw)
    CONSOLE.print(f"{name}, seed {seed}: {steps} steps, trained for {(time.monotonic() - began) / 60:.1f} min")
    scores = score(Segmenter(*checkpoints.load(out), precision="fp32"), photos, scenes.LABELS, VIEW)
    return {
        f"{name}, untrained": row(untrained.named),
        f"{name}, untrained, its groups with the best labels": row(untrained.oracle),
        name: row(scores.named),
        f"{name}, its groups with the best labels": row(scores.oracle),
    }


def draw_pictures(
    checkpoint: Path, evaluation: Path, photos: Sequence[MaskedPhoto], count: int, out: Path
) -> list[Path]:
    """Draw scene, groups of each stage, segments named with the words of the scene's caption, and truth."""
    segmenter = Segmenter(*checkpoints.load(checkpoint), precision="fp32")
    captions = json.loads((evaluation / "captions.json").read_text())
    owner = {word: label.name for label in parse_labels(scenes.LABELS) for word in label.words}
    out.mkdir(parents=True, exist_ok=True)
    paths = []
    for photo in photos:
        words = [
            name for name in scenes.CLASSES if name in {owner.get(n) for n in nouns_of_photo([captions[photo.name]])}
        ]
        if len(words) < 3 or len(paths) == count:
            continue
        result = segmenter.segment(
            photo.image, [label for label in scenes.LABELS if label.split("=")[0] in words], VIEW
        )
        stages = [drawing.groups(photo.image, groups) for groups in result.groups]
        # One list of names for both, so that a name has one colour.
        names = (*result.names, *(name for name in scenes.CLASSES if name not in result.names))
        truth = np.array([names.index(name) for name in scenes.CLASSES], dtype=np.uint8)[photo.mask]
        overlays = [drawing.overlay(photo.image, index_map, names) for index_map in (result.label_map, truth)]
        pictures = [photo.image, *stages, *overlays]
        titles = ["scene", *(f"groups, stage {i + 1}" for i in range(len(stages))), "named from caption", "truth"]
        paths.append(out / f"{photo.name}.png")
        drawing.panel(pictures, titles).save(paths[-1])
    return paths


def print_table(rows: dict[str, list[Row]]) -> None:
    """Print the mean over seeds, and the range if there are several."""
    table = Table("held-out scenes, IoU in %", "mIoU", "things", "grounds", "seeds")
    for name, seeds in rows.items():
        cells = [mean_and_range([values[key] for values in seeds]) for key in ("miou", "things", "grounds")]
        table.add_row(name, *cells, str(len(seeds)))
    Console(width=120).print(table)


def main(
    out: Path = Path("runs/scenes"),
    runs: tuple[str, ...] = ("scenes",),
    seeds: int = 1,
    pictures: int = 8,
    record: bool = False,
) -> None:
    """Draw scenes, train, score and draw.

    Args:
        out: Folder for scenes, trainings and pictures.
        runs: Named runs to compare; pictures are of the first.
        seeds: Trainings of each run.
        pictures: Held-out scenes to draw.
        record: Write the figures to docs/results.json.
    """
    began_at = commit() if record else ""
    data = out / f"data-v{scenes.VERSION}"
    if not (data / "scenes.json").is_file():
        scenes.write(data)
    photos = list(open_masks(data / "eval"))
    rows: dict[str, list[Row]] = {}
    for name in runs:
        for seed in range(seeds):
            for label, values in train_and_score(name, seed, data, out / f"{name}-seed{seed}", photos).items():
                rows.setdefault(label, []).append(values)
    groups = next(s.output_groups for s in reversed(get_run(runs[0]).model.image.stages) if s.output_groups)
    rows |= {label: [values] for label, values in colour_rows(photos, groups).items()}
    print_table(rows)
    for path in draw_pictures(out / f"{runs[0]}-seed0", data / "eval", photos, pictures, out / "pictures"):
        print(path)
    if record:
        record_results(runs[0], {"rows": rows, "generator": scenes.VERSION}, began_at)


if __name__ == "__main__":
    run_script(main, resumes=True)
