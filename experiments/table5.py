"""Table 5 in miniature: how many masks is a caption worth?

    python -m experiments.table5 --captions SHARDS --evaluation FOLDER --out runs/table5 --record

Every row is a network, pre-trained or not, fine-tuned on a share of VOC 2012's training masks, beside GroupViT without
any mask, and beside the row of the random start if that is there. Rivals are pre-trained on the same photos for the
same time. What is trained or scored already is not done again, and rows that are recorded stay: `--rows` and `--shares`
make the table in parts.
"""

import json
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from experiments.command import finish, run_script
from experiments.photos import between, choose, open_from
from experiments.record import CONSOLE, RESULTS, commit, print_rows, record_table

from groupvit import api
from groupvit.checkpoints import native
from groupvit.errors import InputError
from groupvit.evaluation.benchmark import describe_weights, evaluate_into
from groupvit.evaluation.datasets import Dataset, MaskedPhoto
from groupvit.evaluation.protocols import PAPER_2022
from groupvit.evaluation.results import Result, difference
from groupvit.evaluation.transfer import open_training, score_into, share_of
from groupvit.files import write_atomically
from groupvit.models import build_model
from groupvit.models.dense import DenseClassifier
from groupvit.training.run import Run, vary
from groupvit.training.runs import get_run
from groupvit.training.transfer import SHORT_SIDE, Transfer, finetune

ROWS = {
    "random start": "random",
    "DINO": "photos-dino",
    "MoCo v3": "photos-moco",
    "tags": "photos-classify",
    "ImageNet trunk": "efficientnet-lite2",
    "GroupViT": "photos-trunk",
}
"""What each row is pre-trained as: a run of this table, or a model that is there. Tags: and the nouns of captions."""
ZERO_SHOT = "GroupViT, zero-shot"
AS_IN_PAPER = f"{ZERO_SHOT}, {PAPER_2022.name}"
_BLURRED = ", photos of "


def pretrained(row: str, captions: Path, out: Path, minutes: float, seed: int) -> str:
    """Return the network of a row, pre-trained for so many minutes if it is not there yet."""
    source = ROWS[row]
    if source in ("efficientnet-lite2", "photos-trunk"):
        return source
    folder = out / (f"{source}-{seed}" if source == "random" else f"{source}-{minutes:g}-minutes-{seed}")
    if source == "random":
        if not (folder / native.WEIGHTS).is_file():
            config = get_run("photos-dino").model
            torch.manual_seed(seed)
            native.save(folder, build_model(config), config)
        return str(folder)
    known = out / f"{source}-{minutes:g}-minutes.steps"  # of all seeds: they differ in nothing else
    if not known.is_file():
        steps = steps_within(get_run(source), captions, folder / "trial", minutes, seed)
        if not known.is_file():  # else another seed has measured it meanwhile
            write_atomically(known, str(steps).encode())
    steps = int(known.read_text())
    run = vary(get_run(source), steps=steps, warmup=steps // 10)
    finish(run, captions, folder, seed)
    return str(folder)


def steps_within(run: Run, captions: Path, folder: Path, minutes: float, seed: int) -> int:
    """Return how many steps of a run fit into the minutes, by the second half of a short trial."""
    shutil.rmtree(folder, ignore_errors=True)  # one that was stopped tells nothing
    times = []

    def note(model: Any) -> dict[str, float]:
        times.append(time.perf_counter())
        return {}

    trial = vary(run, steps=10, warmup=2, evaluate_every=5, save_every=100)
    finish(trial, captions, folder, seed, evaluate=note)
    return max(20, int(60 * minutes * 5 / (times[1] - times[0])))


def transferred(
    source: str,
    dataset: Dataset,
    folder: Path,
    share: int | float,
    seed: int,
    steps: int,
    batch_size: int,
    ending: str = "",
) -> Result:
    """Return the result of a network fine-tuned on a share of the masks, made if it is not there yet."""
    photos = share_of(open_training(dataset, "train"), share, seed)
    torch.manual_seed(seed)
    network = DenseClassifier(api.load_encoder(source), len(dataset.classes))
    weights = describe_weights(network.encoder, source)["sha256"]
    identity = {"pre-trained": weights, "share": share, "photos": photos.names}
    settings = Transfer(identity, steps, batch_size, seed=seed)
    if finetune(network, photos, folder, settings, resume=(folder / "transfer.pt").is_file()) < steps:
        raise KeyboardInterrupt
    protocol = {"name": "transfer", "short_side": SHORT_SIDE, "share": share, "steps": steps, "masks": len(photos)}
    model = describe_weights(network, source) | {"precision": "fp32"}
    if not (made := folder / "commit").is_file():
        made.write_text(commit())
    return score_into(folder / f"result{ending}.json", network, dataset, protocol, model)


def blurred(dataset: Dataset, side: int) -> Dataset:
    """Return the photos reduced to a short side and enlarged again: those with masks to train on have 160 px."""

    def read(name: str) -> MaskedPhoto:
        photo = dataset.read(name)
        width, height = photo.image.size
        small = photo.image.resize((width * side // min(width, height), height * side // min(width, height)))
        return replace(photo, image=small.resize((width, height)))

    return replace(dataset, read=read)


def zero_shot(dataset: Dataset, out: Path, ending: str) -> dict[str, Result]:
    """Return the results of the bundled GroupViT without a mask, made if they are not there yet.

    The second one has nothing for the background but the paper's own threshold.
    """
    segmenter, results = api.load(ROWS["GroupViT"]), {}
    for row, protocol in ((ZERO_SHOT, choose(segmenter)), (AS_IN_PAPER, PAPER_2022)):
        file = out / f"zero-shot-{protocol.name}-{len(dataset)}{ending}.json"
        evaluate_into(file, segmenter, dataset, protocol, source=ROWS["GroupViT"], batch_size=8)
        results[row] = Result.load(file)
    return results


def line(row: str, masks: str, result: Result, others: dict[str, Result | None]) -> dict[str, str]:
    """Return a row of the table; with its distance to each of the others."""

    cells = {
        "pre-training": row,
        "masks": masks,
        "steps": str(result.protocol.get("steps", 0)),
        "mIoU": f"{result.metrics()['miou']:.1f} {between(result.interval(), '.1f')}",
    }
    for name, other in others.items():
        ahead = difference(result, other) if other and other is not result else None
        text = f"{ahead['difference']:+.1f} {between(ahead['interval'], '+.1f')}" if ahead else ""
        cells[f"ahead of {name}"] = text
    return cells


def main(
    captions: Path,
    evaluation: Path,
    out: Path,
    rows: tuple[str, ...] = tuple(ROWS),
    shares: tuple[float, ...] = (1.0, 10.0, 100.0),
    seeds: tuple[int, ...] = (0,),
    minutes: float = 45,
    steps: int = 4000,
    batch_size: int = 16,
    limit: int | None = None,
    blur: int | None = None,
    record: bool = False,
) -> None:
    """Pre-train, fine-tune and score every row.

    Args:
        captions: Folder of the shards of photos-trunk.
        evaluation: Folder with the benchmarks.
        out: Folder for the trainings and their results.
        rows: Which of the table's rows.
        shares: Percents of the training masks.
        seeds: Of pre-training, share and fine-tuning.
        minutes: Of pre-training, for each of the rivals.
        steps: Of fine-tuning.
        batch_size: Crops a step of fine-tuning.
        limit: Score at most so many photos.
        blur: Score photos reduced to this short side and enlarged again: 160, as the photos with masks are.
        record: Write the rows to docs/results.json and the table to docs/RESULTS.md.
    """
    if record and (minutes, batch_size, limit) != (45, 16, None):
        raise InputError("--record is for the table's own --minutes and --batch-size, and for all photos")
    began_at = commit() if record else ""
    if unknown := [row for row in rows if row not in ROWS]:
        raise InputError(f"no row {unknown[0]!r}: there are {', '.join(ROWS)}")
    dataset = open_from(evaluation, "voc2012")
    training = len(open_training(dataset, "train"))
    dataset, ending, what = dataset.limited(limit), "", ""
    if blur:
        dataset, ending, what = blurred(dataset, blur), f"-{blur}", f"{_BLURRED}{blur} px"
    zeros = zero_shot(dataset, out, ending)
    zero = zeros[ZERO_SHOT]
    table = [
        {**line(row + what, "0", result, {"zero-shot": zero, "random start": None}), "commit": began_at}
        for row, result in zeros.items()
    ]
    for seed in seeds:
        for row in rows:
            source = pretrained(row, captions, out, minutes, seed)
            for share in shares:
                CONSOLE.print(f"seed {seed}: {row}, {share:g} % of the masks …")
                folder, start = (out / f"transfer-{ROWS[name]}-{seed}-{share:g}" for name in (row, "random start"))
                result = transferred(source, dataset, folder, share, seed, steps, batch_size, ending)
                masks = f"{max(1, round(training * share / 100))} ({share:g} %), seed {seed}"
                file = start / f"result{ending}.json"
                random = Result.load(file) if start != folder and file.is_file() else None
                others = {"zero-shot": zero, "random start": random}
                cells = line(row + what, masks, result, others)
                table.append({**cells, "commit": (folder / "commit").read_text()})
    print_rows(table)
    if record:
        record_table("RESULTS.md", "table5", joined(table), began_at)


def joined(table: list[dict[str, str]]) -> list[dict[str, str]]:
    """Return the rows with those that were recorded before and not made again: the whole table takes days of a core."""
    earlier = json.loads(RESULTS.read_text()).get("table5", {"rows": []})["rows"]
    rows = {(cells["pre-training"], cells["masks"], cells["steps"]): cells for cells in (*earlier, *table)}
    order = [ZERO_SHOT, AS_IN_PAPER, *ROWS]

    def place(cells: dict[str, str]) -> tuple[int, str, int, int]:
        row, _, what = cells["pre-training"].partition(_BLURRED)
        return order.index(row), what, int(cells["steps"]), int(cells["masks"].split()[0])

    return [{name: cells.get(name, "") for name in table[0]} for cells in sorted(rows.values(), key=place)]


if __name__ == "__main__":
    run_script(main, resumes=True)
