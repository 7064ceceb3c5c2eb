"""The bundled photo model: put a training into the package, and score it beside what knows nothing of where things are.

    groupvit train photos-small --data SHARDS --out runs/photos-small
    python -m experiments.photos bundle runs/photos-small --captions SHARDS
    python -m experiments.photos score photos --captions SHARDS --evaluation FOLDER --plain runs/photos-plain --record
    python -m experiments.photos compare photos runs/photos-small-1 --captions SHARDS --evaluation FOLDER --record

`FOLDER` holds `pets`, `voc/VOCdevkit/VOC2012` and `camvid` (docs/DATASETS.md), `SHARDS` the run's shards and
`flickr8k-test-*.tar`. `--plain` is a plain ViT trained on the same photos with captions alone (the run `photos-plain`);
its patches are grouped by k-means, as in Table 4.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import tyro
from experiments.command import errors_in_one_line
from experiments.record import commit, print_rows, record_table
from rich.console import Console

from groupvit import api
from groupvit.checkpoints import latest, native
from groupvit.data.index import CaptionedPhotos
from groupvit.data.shards import find_shards
from groupvit.errors import InputError
from groupvit.evaluation.baselines import clustered
from groupvit.evaluation.datasets import Dataset, open_benchmark
from groupvit.evaluation.floors import floors
from groupvit.evaluation.metrics import mean_iou
from groupvit.evaluation.protocols import CALIBRATED_NATIVE
from groupvit.evaluation.results import Result, difference
from groupvit.evaluation.retrieval import Retrieval
from groupvit.evaluation.scoring import evaluate, evaluate_predictions
from groupvit.segmentation import Segmenter
from groupvit.text.tokenizer import Tokenizer
from groupvit.training.loop import make_vocabulary
from groupvit.training.runs import Run, get_run

BENCHMARKS = {
    "pets": "pets",
    "voc4": "voc/VOCdevkit/VOC2012",
    "voc21": "voc/VOCdevkit/VOC2012",
    "camvid5": "camvid",
}
"""Where each lies in the folder for evaluation."""

ELLIPSE = "centred ellipse, own label"

CONSOLE = Console(stderr=True)
_LARGEST = 16 * 10**6


def learnt(captions: Path, run: Run) -> tuple[torch.Tensor, tuple[str, ...]]:
    """The tokens of what training encoded (all captions of the shards, and the prompts around its vocabulary), and the
    nouns of that vocabulary."""
    photos = CaptionedPhotos.open(find_shards(run.train, below=captions))
    places = (photos.place(number) for number in range(len(photos)))
    texts = [caption for shard, row in places for caption in photos.captions(shard, row)]
    tokenizer = Tokenizer(run.model.text.context_length)
    words = make_vocabulary(run, photos, tokenizer)
    return torch.cat([tokenizer(texts), words.tokens]).unique(), words.nouns


def bundle(
    checkpoint: Annotated[Path, tyro.conf.Positional],
    captions: Path,
    run: str = "photos-small",
    name: str = "photos",
) -> None:
    """Put a checkpoint into the package: half precision, and the rows of the vocabulary that training saw.

    Args:
        checkpoint: A training's folder, of which the newest checkpoint is taken, or one of its steps.
        captions: Folder of the shards it was trained on.
        run: The run it was trained as.
        name: What `groupvit.load` will know it by.
    """
    model, config = api.load_model(checkpoint)
    seen, nouns = learnt(captions, get_run(run))
    native.forget_unseen(model, seen)
    folder = Path(api.__file__).parent / "bundled" / name
    metadata = {"run": run, "step": (latest(checkpoint) or checkpoint).name}
    native.save(folder, model, replace(config, rivals=nouns), metadata=metadata, compact=True)
    size = (folder / native.WEIGHTS).stat().st_size
    print(f"{folder}: {size / 1e6:.1f} MB")
    if size > _LARGEST:
        raise InputError(f"{folder} is larger than {_LARGEST / 1e6:.0f} MB: too much for a package")


def others(model: Segmenter, plain: Segmenter | None, dataset: Dataset) -> Iterator[tuple[str, Result]]:
    """What the model must beat: floors, and clusters of the plain ViT's patches."""
    named = floors(model, dataset, CALIBRATED_NATIVE.labels(dataset), CALIBRATED_NATIVE.templates)
    for name, predict in named.items():
        yield name, evaluate_predictions(dataset, predict, name)
    if plain:
        yield "plain ViT, captions alone, k-means", evaluate(clustered(plain, "k-means"), dataset, CALIBRATED_NATIVE)


def rows(name: str, model: Segmenter, plain: Segmenter | None, dataset: Dataset) -> Iterator[dict[str, str]]:
    """The lines of the table for one benchmark: the model, what it must beat and by how much it does, its parts."""
    result = evaluate(model, dataset, CALIBRATED_NATIVE)
    yield _row(name, "the model", mean_iou(result.matrix), result.interval())
    for other, theirs in others(model, plain, dataset):
        gain = difference(result, theirs)
        ahead = f"{gain['difference']:+.1f} {_between(gain['interval'], '+.1f')}"
        yield _row(name, other, mean_iou(theirs.matrix), theirs.interval(), ahead)
    yield _row(name, "its groups with the best names", result.grouping()[-1]["oracle_miou"])
    if result.naming():
        yield _row(name, "true regions called right, % of them", result.naming()[-1]["accuracy"])


def _row(
    benchmark: str, line: str, value: float, interval: tuple[float, float] | None = None, ahead: str = ""
) -> dict[str, str]:
    return {
        "benchmark": benchmark,
        "": line,
        "mIoU": f"{value:.1f}",
        "95 %": _between(interval),
        "model ahead by": ahead,
    }


def _between(interval: tuple[float, float] | None, form: str = ".1f") -> str:
    return f"({interval[0]:{form}} to {interval[1]:{form}})" if interval else ""


def retrieved(segmenter: Segmenter, captions: Path) -> dict[str, float]:
    """Recall on Flickr8k's test photos and their captions."""
    return Retrieval([captions / "flickr8k-test-*.tar"], segmenter.config)(segmenter.model)


def score(
    model: Annotated[str, tyro.conf.Positional],
    captions: Path,
    evaluation: Path,
    plain: Path | None = None,
    limit: int | None = None,
    record: bool = False,
) -> None:
    """Print the tables of the model card.

    Args:
        model: Name, checkpoint or hub id.
        captions: Folder with flickr8k-test-*.tar.
        evaluation: Folder with the benchmarks.
        plain: Checkpoint of a plain ViT that was trained with captions alone.
        limit: At most so many photos of each benchmark.
        record: Write the figures to docs/results.json and the tables to docs/MODEL_CARD.md.
    """
    began_at, segmenter = commit() if record else "", api.load(model)
    vit = api.load(plain) if plain else None
    table: list[dict[str, str]] = []
    for name, folder in BENCHMARKS.items():
        CONSOLE.print(f"{name} …")
        table += rows(name, segmenter, vit, open_benchmark(name, evaluation / folder).first(limit))
    found = retrieved(segmenter, captions)
    retrieval = [
        {"from": way.replace("_", " "), **{f"R@{k}": f"{found[f'{way}_r{k}']:.1f}" for k in (1, 5, 10)}}
        for way in ("text_to_image", "image_to_text")
    ]
    for name, lines in (("photos", table), ("photos_retrieval", retrieval)):
        print_rows(lines)
        if record:
            record_table("MODEL_CARD.md", name, lines, began_at)


def compare(
    models: Annotated[list[str], tyro.conf.Positional],
    captions: Path,
    evaluation: Path,
    limit: int | None = None,
    record: bool = False,
) -> None:
    """Print a line for each of several models: mIoU on each benchmark, and retrieval.

    Args:
        models: Names, trainings or checkpoints.
        captions: Folder with flickr8k-test-*.tar.
        evaluation: Folder with the benchmarks.
        limit: At most so many photos of each benchmark.
        record: Write the figures to docs/results.json and the table to docs/MODEL_CARD.md.
    """
    began_at, lines = commit() if record else "", []
    for source in models:
        CONSOLE.print(f"{source} …")
        segmenter = api.load(source)
        parameters = sum(parameter.numel() for parameter in segmenter.model.image_encoder.parameters())
        line = {"training": Path(source).name, "image encoder": f"{parameters / 1e6:.1f} M"}
        for name, folder in BENCHMARKS.items():
            dataset = open_benchmark(name, evaluation / folder).first(limit)
            line[name] = f"{mean_iou(evaluate(segmenter, dataset, CALIBRATED_NATIVE).matrix):.1f}"
            if name == "pets":
                predict = floors(segmenter, dataset, CALIBRATED_NATIVE.labels(dataset))[ELLIPSE]
                line["pets, its ellipse"] = f"{mean_iou(evaluate_predictions(dataset, predict, ELLIPSE).matrix):.1f}"
        found = retrieved(segmenter, captions)
        line["R@10, text to image"] = f"{found['text_to_image_r10']:.1f}"
        lines.append(line)
    print_rows(lines)
    if record:
        record_table("MODEL_CARD.md", "photos_trainings", lines, began_at)


if __name__ == "__main__":
    with errors_in_one_line():
        tyro.extras.subcommand_cli_from_dict({"bundle": bundle, "score": score, "compare": compare})
