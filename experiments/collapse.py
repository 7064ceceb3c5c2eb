"""Does the alarm go off before the scores fall? A trained model of scenes goes on training, made to collapse.

    python -m experiments.scenes --runs scenes-release --out runs/scenes    # the model to start from
    python -m experiments.collapse --record                                 # a table of docs/RELIABILITY.md

The recipe of the release with (a) nothing changed, (b) a learning rate that rises to 1e-2, (c) the eps of Eq. 5 at
1e-10, (d) pictures whose captions are two words in all. Each is trained for some hundred steps and scored every ten.
"""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from itertools import count, islice
from pathlib import Path

from experiments.command import finish, run_script
from experiments.record import commit, report_table
from experiments.scenes import VIEW, row

from groupvit import checkpoints
from groupvit.data import scenes
from groupvit.data.shards import Sample, write_shards
from groupvit.errors import InputError
from groupvit.evaluation.datasets import MaskedPhoto, open_masks
from groupvit.evaluation.scoring import score
from groupvit.models import GroupViT
from groupvit.segmentation import Segmenter
from groupvit.training.run import Run, vary
from groupvit.training.runs import get_run

WORDS = ("ball", "house")
BASE = vary(get_run("scenes-release"), batch_size=32, steps=300, warmup=20, lr=4e-4, evaluate_every=10, save_every=1000)


def two_words() -> Iterator[Sample]:
    """Yield scenes with one of the two things and not the other, with its name as the caption."""
    things = [scenes.CLASSES.index(word) for word in WORDS]
    for index in count():
        scene = scenes.draw(8, index)
        held = [word for word, thing in zip(WORDS, things, strict=True) if (scene.mask == thing).any()]
        if len(held) == 1:
            yield scenes.sample(index, replace(scene, caption=f"a {held[0]}"))


def provocations(data: Path, out: Path) -> dict[str, tuple[Run, Path]]:
    """Return the run of each training and its data."""
    two = out / "two-words"
    if not two.is_dir():
        partial = out / "two-words.partial"
        shutil.rmtree(partial, ignore_errors=True)
        write_shards(islice(two_words(), 4000), partial / "train", prefix="scenes", per_shard=1000)
        partial.rename(two)
    image = replace(BASE.model.image, assign_eps=1e-10)
    return {
        "nothing": (BASE, data),
        "learning rate of 1e-2": (vary(BASE, lr=1e-2, warmup=200), data),
        "eps of 1e-10": (replace(BASE, model=replace(BASE.model, image=image)), data),
        "two words in all captions": (BASE, two),
    }


def miou(model: GroupViT, run: Run, photos: list[MaskedPhoto]) -> float:
    return row(score(Segmenter(model, run.model, precision="fp32"), photos, scenes.LABELS, VIEW).named)["miou"]


def told(metrics: Path, start: float) -> dict[str, object]:
    """Return when the alarm was given, when the score had halved, and the score at the end."""
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    scores = {line["step"]: line["miou"] for line in lines if "miou" in line}
    warnings = {line["step"]: line["warning"] for line in lines if "warning" in line}
    return {
        "first alarm at step": min(warnings, default="none"),
        "it says": next(iter(warnings.values()), ""),
        "mIoU then": f"{scores[min(warnings)]:.1f}" if warnings else "",
        "mIoU has halved at step": next((step for step, score in scores.items() if score < start / 2), "never"),
        "mIoU at the end": f"{start:.1f} to {scores[max(scores)]:.1f}",
    }


def main(
    init: Path = Path("runs/scenes/scenes-release-seed0"),
    data: Path = Path(f"runs/scenes/data-v{scenes.VERSION}"),
    out: Path = Path("runs/collapse"),
    limit: int = 60,
    record: bool = False,
) -> None:
    """Train, score and report.

    Args:
        init: The trained model to start from.
        data: Folder that `groupvit data scenes` wrote.
        out: Folder of the trainings; after an interruption the same command goes on where it was.
        limit: Held-out scenes to score every ten steps.
        record: Write the table to docs/RELIABILITY.md and its figures to docs/results.json.
    """
    began_at = commit() if record else ""
    photos = list(islice(open_masks(data / "eval"), limit))
    start = miou(checkpoints.load(init)[0].eval(), BASE, photos)

    def scored(model: GroupViT) -> dict[str, float]:
        return {"miou": miou(model, BASE, photos)}

    rows = []
    for name, (run, shards) in provocations(data, out).items():
        folder = out / name.replace(" ", "-")
        try:
            finish(run, shards, folder, init=init, evaluate=scored)
        except InputError as error:  # a training that gives up has collapsed, too
            print(error)
        rows.append({"changed": name, **told(folder / "metrics.jsonl", start)})
    report_table("RELIABILITY.md", "collapse", rows, began_at)


if __name__ == "__main__":
    run_script(main, resumes=True)
