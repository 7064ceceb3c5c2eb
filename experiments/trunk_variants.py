"""What each part of the run photos-trunk is worth: short trainings of the same steps that differ in one thing.

    python -m experiments.trunk_variants --captions SHARDS --evaluation FOLDER --out runs/variants --record

A row for each variant and seed, on a part of the photos; groups are varied at test time, for they learn nothing. What
is trained or scored already is not done again.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from experiments.command import finish, run_script
from experiments.photos import choose, open_from, retrieved
from experiments.record import CONSOLE, commit, report_table

from groupvit import api
from groupvit.data.index import CaptionedPhotos
from groupvit.evaluation.benchmark import evaluate
from groupvit.evaluation.metrics import mean_iou
from groupvit.files import write_atomically
from groupvit.models import Stage
from groupvit.models.grouping import SeededGrouping
from groupvit.models.stems import TrunkFeatures, TrunkStem
from groupvit.segmentation import Segmenter
from groupvit.training.objective import Teacher
from groupvit.training.run import Run, vary
from groupvit.training.runs import get_run

TAKEN = {"voc2012": 2, "pets": 4}
"""Benchmarks, and of how many photos one is taken."""


def without_teacher(run: Run) -> Run:
    """Return the run without the trunk's classifier as a teacher."""
    objective = tuple(term for term in run.objective if not isinstance(term, Teacher))
    return replace(run, objective=objective, model=replace(run.model, teacher_loss=False))


TWO_STAGES = (Stage(0, output_groups=32, seeded=True), Stage(1, 12, 12))
TRAINED: dict[str, Callable[[Run], Run]] = {
    "as the run has it": lambda run: run,
    "without the teacher": without_teacher,
    "tags as captions": lambda run: run,
    "trunk tuned at a tenth of the rate": lambda run: vary(run, optimizer=replace(run.optimizer, trunk=0.1)),
    "EfficientNet-Lite0": lambda run: vary(run, stem="efficientnet-lite0"),
    "32 seeded groups, merged by 12 learned tokens": lambda run: vary(run, stages=TWO_STAGES),
}


@contextmanager
def tags_as_captions() -> Iterator[None]:
    """Let no word be unknown: a word that a source's vocabulary lacks is absent from its photos."""
    sayable = CaptionedPhotos.sayable
    CaptionedPhotos.sayable = lambda self, shard, row: None
    try:
        yield
    finally:
        CaptionedPhotos.sayable = sayable


def trained(name: str, run: Run, captions: Path, out: Path, seed: int) -> Segmenter:
    """Return the variant's model, trained if it is not there yet."""
    folder = out / f"{name.replace(' ', '-')}-{seed}"
    run = TRAINED[name](run)
    with tags_as_captions() if name == "tags as captions" else nullcontext():
        finish(run, captions, folder, seed, cache=out.parent / f"cache-{run.model.image.stem}-{seed}")
    return api.load(folder, engine="torch")  # the other engines keep graphs by weights, and do not see other methods


def groups_of(segmenter: Segmenter, count: int) -> None:
    """Let the model seed so many groups."""
    segmenter.model.image_encoder.grouping_stages()[0].seeded = SeededGrouping(count)


def group_all_features(segmenter: Segmenter) -> None:
    """Let the groups see the trunk's last map too."""
    stem = segmenter.model.image_encoder.stem
    assert isinstance(stem, TrunkStem)
    original = stem.forward

    def forward(images: torch.Tensor, early: Sequence[torch.Tensor] = ()) -> TrunkFeatures:
        made = original(images, early)
        last = made.last / made.last.square().mean(dim=1, keepdim=True).sqrt().clamp(min=1e-6)
        last = F.interpolate(last, made.local.shape[-2:], mode="bilinear", align_corners=False)
        return replace(made, local=torch.cat([made.local, last / last.shape[1] ** 0.5], dim=1))

    stem.forward = forward


AT_TEST: dict[str, Callable[[Segmenter], None]] = {
    **{
        f"{count} groups at test time": lambda segmenter, count=count: groups_of(segmenter, count)
        for count in (8, 32, 64)
    },
    "groups from all maps at test time": group_all_features,
}


def scored(segmenter: Segmenter, captions: Path, evaluation: Path) -> dict[str, str]:
    """Return the figures of a row."""
    figures: dict[str, str] = {}
    for name, step in TAKEN.items():
        dataset = open_from(evaluation, name)
        dataset = replace(dataset, names=tuple(dataset.names)[::step])
        result = evaluate(segmenter, dataset, choose(segmenter))
        figures[name] = f"{mean_iou(result.matrix):.1f}"
        figures[f"{name}, best names"] = f"{result.grouping()[-1]['oracle_miou']:.1f}"
    return figures | {"R@10": f"{retrieved(segmenter, captions)['text_to_image_r10']:.1f}"}


def main(
    captions: Path,
    evaluation: Path,
    out: Path,
    variants: tuple[str, ...] = (*TRAINED, *AT_TEST),
    seeds: tuple[int, ...] = (1, 0),
    steps: int = 150,
    batch_size: int = 64,
    record: bool = False,
) -> None:
    """Train and score every variant.

    Args:
        captions: Folder of the run's shards and flickr8k-test-*.tar.
        evaluation: Folder with the benchmarks.
        out: Folder for the trainings and their rows.
        variants: Which of them.
        seeds: Of the trainings.
        steps: Of each training.
        batch_size: Photos a step.
        record: Write the rows to docs/results.json and the table to docs/MODEL_CARD.md.
    """
    began_at, table = commit() if record else "", []
    options = {"steps": steps, "batch_size": batch_size, "warmup": steps // 8}
    out /= f"{steps}-steps-of-{batch_size}"
    run = vary(get_run("photos-trunk"), **options, evaluate_every=steps, save_every=steps)
    for seed in seeds:
        for name in variants:
            CONSOLE.print(f"seed {seed}: {name} …")
            row = out / f"{name.replace(' ', '-')}-{seed}.json"
            if not row.is_file():
                segmenter = trained(name if name in TRAINED else next(iter(TRAINED)), run, captions, out, seed)
                AT_TEST.get(name, lambda _: None)(segmenter)
                write_atomically(row, json.dumps(scored(segmenter, captions, evaluation)).encode())
            table.append({"variant": name, "seed": str(seed), **json.loads(row.read_text())})
    report_table("MODEL_CARD.md", "photos_trunk_variants", table, began_at)


if __name__ == "__main__":
    run_script(main, resumes=True)
