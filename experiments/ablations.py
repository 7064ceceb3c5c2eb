"""Tables 1 to 4 of the paper (§4.2) in miniature, on scenes: what each part of GroupViT is worth; then what groups are.

    python -m experiments.ablations 1 --out runs/ablations --record    # hard or soft, with multi-label loss or without
    python -m experiments.ablations 2 --out runs/ablations --record    # how many group tokens and output tokens
    python -m experiments.ablations 3 --out runs/ablations --record    # one stage or two, on a third of the data or all
    python -m experiments.ablations 4 --out runs/ablations --record    # GroupViT or a ViT whose patches are clustered
    python -m experiments.ablations groups-or-patches --out runs/ablations --record    # with the same losses
    python -m experiments.ablations untrained --out runs/ablations --record    # how well random weights cut

Tables 1 to 3 in two columns: the losses of the paper and ours with nouns, otherwise the runs `scenes-64-release` and
`scenes-64`. `--size 48` asks whether they come out alike at another image size: 36 patches instead of 64. Table 4 has
the paper's losses. "groups-or-patches", with nouns alone, asks what it leaves open here: are there groups that beat
patches? A training takes four to seven minutes of one core, with patches of 4 px twice as long. A complete one is not
done again, not even for another table, so after an interruption the same command goes on where it was.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import tyro
from experiments.clustering import CLUSTERINGS, clustered, refined
from experiments.command import finish, run_script
from experiments.record import CONSOLE, commit, report_table
from experiments.scenes import mean_and_range, random_weights, row
from experiments.table4 import SCENES, plain_run

from groupvit import api
from groupvit.data import scenes
from groupvit.evaluation.benchmark import evaluate
from groupvit.evaluation.datasets import Dataset, open_masks
from groupvit.evaluation.protocols import Protocol
from groupvit.evaluation.results import Result
from groupvit.models import Stage
from groupvit.training.objective import MultiLabel
from groupvit.training.run import Run, vary
from groupvit.training.runs import get_run

LOSSES = {"paper": "scenes-64-release", "nouns": "scenes-64"}
"""The two columns of each table, and their runs."""


def without_multi_label(run: Run) -> Run:
    """Return the run without the multi-label loss (Eq. 9)."""
    return replace(run, objective=tuple(term for term in run.objective if not isinstance(term, MultiLabel)))


def tokens(groups: int, outputs: int) -> Callable[[Run], Run]:
    """Return what gives a run so many group tokens, and output tokens of the grouping (Table 2)."""
    return lambda run: vary(run, stages=(Stage(3, groups, outputs),))


ONE, TWO = (Stage(3, 32, 32),), (Stage(2, 32, 32), Stage(1, 8, 8))
"""Table 3's encoders, of equal depth. The paper's have 64 group tokens, and 8 in the second stage."""

THIRD = "train/scenes-000[0-9].tar"
"""10,000 of the 30,000 scenes."""

Variant = Callable[[Run], Run]
TABLES: dict[str, dict[str, Variant]] = {
    "1": {
        "soft": lambda run: without_multi_label(vary(run, hard_assignment=False)),
        "hard": without_multi_label,
        "soft, multi-label loss": lambda run: vary(run, hard_assignment=False),
        "hard, multi-label loss": lambda run: run,
    },
    "2": {
        f"{groups} group tokens, {outputs} output tokens": tokens(groups, outputs)
        for groups, outputs in ((16, 4), (16, 8), (32, 8), (64, 8), (64, 16))
    },
    "3": {
        f"{name}, {title}": lambda run, stages=stages, changes=changes: vary(run, stages=stages, **changes)
        for title, changes in (("10,000 scenes", {"train": THIRD}), ("30,000 scenes", {}))
        for name, stages in (("one stage", ONE), ("two stages", TWO))
    },
    "4": {
        **{f"ViT, {clustering}": lambda run: plain_run(run, nouns=False) for clustering in CLUSTERINGS},
        "GroupViT, no multi-label loss": without_multi_label,
        "GroupViT": lambda run: run,
    },
    "groups-or-patches": {
        "patches alone": lambda run: plain_run(run, nouns=True),
        "16 groups": lambda run: run,
        "16 groups, refined": lambda run: run,
        "16 groups, soft": lambda run: vary(run, hard_assignment=False),
        "64 groups": tokens(64, 64),
        "16 groups, then 8": lambda run: vary(run, stages=(Stage(2, 16, 16), Stage(1, 8, 8))),
        "patches of 4 px alone": lambda run: plain_run(vary(run, patch_size=4), nouns=True),
        "16 groups of patches of 4 px": lambda run: vary(run, patch_size=4),
        "16 groups of patches of 4 px, refined": lambda run: vary(run, patch_size=4),
    },
}
"""Each table's lines, and what a line changes of a run."""

COLUMNS = {"4": ["paper"], "groups-or-patches": ["nouns"]}
"""The tables that do not have both columns."""

REGROUPED = {"refined": refined} | {name: partial(clustered, method=name) for name in CLUSTERINGS}
"""What is done to a trained model whose line ends with such a word."""


def key(table: str) -> str:
    """Return the name of a table in file names and docs/results.json."""
    return f"table{table}" if table.isdigit() else table


def trained_as(losses: str, change: Variant) -> str:
    """Return the name of a line's training: that of the first line, of any table, which trains the same."""
    run = get_run(LOSSES[losses])
    lines = ((table, line, same) for table in TABLES for line, same in TABLES[table].items())
    name = next(f"{key(table)}-{losses}-{line}" for table, line, same in lines if same(run) == change(run))
    return name.replace(", ", "-").replace(" ", "-")


def protocol_for(size: int) -> Protocol:
    """Return how scenes are scored by a model of this image size: two patches a side more than in training."""
    return replace(SCENES, view=replace(SCENES.view, short_side=size + 16))


def result_of(run: Run, folder: Path, data: Path, dataset: Dataset, seed: int, line: str) -> Result:
    """Return the result of a training, of which both are made if they are not there; without groups, of its patches."""
    regrouped = next((name for name in REGROUPED if line.endswith(f", {name}")), "")
    file = folder / f"{regrouped or 'result'}.json"
    if not file.is_file() or Result.load(file).names != dataset.names:
        finish(run, data, folder, seed)
        segmenter = api.load(folder, engine="torch", precision="fp32")
        if not any(stage.has_grouping for stage in run.model.image.stages):
            regrouped = regrouped or "pixel-wise"
        segmenter = REGROUPED[regrouped](segmenter) if regrouped else segmenter
        evaluate(segmenter, dataset, protocol_for(run.model.image.image_size)).save(file)
    return Result.load(file)


def cells(results: Sequence[Result]) -> dict[str, str]:
    """Return a row's figures: the mean over seeds, and the range of several."""
    means = [row(result.matrix) for result in results]
    figures = {
        "mIoU": [mean["miou"] for mean in means],
        "things": [mean["things"] for mean in means],
        "boundary mIoU": [result.metrics()["boundary_miou"] for result in results],
        "best names": [stages[-1]["oracle_miou"] for result in results if (stages := result.grouping())],
    }
    return {name: mean_and_range(values) if values else "" for name, values in figures.items()}


def untrained(dataset: Dataset, seeds: int, size: int) -> Iterator[dict[str, str]]:
    """Yield what the groups of random weights score, for each encoder with groups of the tables once."""
    run = vary(get_run(LOSSES["nouns"]), image_size=size)
    images = dict.fromkeys(change(run).model.image for lines in TABLES.values() for change in lines.values())
    for image in images:
        if image.hard_assignment and any(stage.has_grouping for stage in image.stages):
            models = (random_weights(replace(run.model, image=image), seed) for seed in range(seeds))
            results = [evaluate(model, dataset, protocol_for(size)) for model in models]
            tokens = ", then ".join(f"{stage.group_tokens} to {stage.output_groups}" for stage in image.stages)
            yield {"group tokens to output tokens": f"{tokens}, patches of {image.patch_size} px", **cells(results)}


def trained(
    table: str, trainings: Path, data: Path, dataset: Dataset, seeds: int, size: int, steps: int | None
) -> Iterator[dict[str, str]]:
    """Yield a table's lines, whose trainings and scores are made if they are not there."""
    for losses in COLUMNS.get(table, LOSSES):
        for line, change in TABLES[table].items():
            results = []
            for seed in range(seeds):
                CONSOLE.print(f"{losses}, {line}, seed {seed} …")
                run = vary(change(get_run(LOSSES[losses])), image_size=size)
                run = vary(run, steps=steps, warmup=steps // 8) if steps else run
                folder = trainings / f"{trained_as(losses, change)}-seed{seed}"
                results.append(result_of(run, folder, data, dataset, seed, line))
            yield {"losses": losses, f"Table {table}" if table.isdigit() else table: line, **cells(results)}


def main(
    table: Annotated[Literal["1", "2", "3", "4", "groups-or-patches", "untrained"], tyro.conf.Positional],
    out: Path = Path("runs/ablations"),
    seeds: int = 3,
    size: int = 64,
    steps: int | None = None,
    limit: int | None = None,
    record: bool = False,
) -> None:
    """Print a table of the paper, in miniature.

    Args:
        table: Which one; "untrained" is a line for each encoder of the others, with random weights.
        out: Folder for scenes, trainings and results.
        seeds: Trainings of each line.
        size: Of the images, in pixels; scenes are drawn at 64.
        steps: Of each training, instead of the run's.
        limit: At most so many scenes are scored.
        record: Write the figures to docs/results.json and the table to docs/RESULTS.md.
    """
    began_at = commit() if record else ""
    name = key(table) if size == 64 else f"{key(table)}-{size}px"
    trainings = out if size == 64 else out / f"{size}px"
    trainings = trainings / f"{steps}-steps" if steps else trainings  # a trial is no part of the table
    data = out / f"data-v{scenes.VERSION}"
    if not (data / "scenes.json").is_file():
        scenes.write(data)
    dataset = replace(open_masks(data / "eval"), benchmark="scenes").limited(limit)
    if table == "untrained":
        rows = [*untrained(dataset, seeds, size)]
    else:
        rows = [*trained(table, trainings, data, dataset, seeds, size, steps)]
    report_table("RESULTS.md", name, rows, began_at)


if __name__ == "__main__":
    run_script(main, resumes=True)
