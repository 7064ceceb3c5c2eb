"""The bundled photo model: put a training into the package, and score it beside what knows nothing of where things are.

    groupvit train photos-trunk --data SHARDS --out runs/photos-trunk
    python -m experiments.photos bundle runs/photos-trunk --captions SHARDS
    python -m experiments.photos score photos-trunk --captions SHARDS --evaluation FOLDER --record
    python -m experiments.photos compare photos-trunk photos --captions SHARDS --evaluation FOLDER --record

`FOLDER` holds the benchmarks (`BENCHMARKS`, docs/DATASETS.md), `SHARDS` the run's shards and `flickr8k-test-*.tar`.
`--plain` is a plain ViT trained on the same photos with captions alone (the run `photos-plain`); its patches are
grouped by k-means, as in Table 4.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import tyro
from experiments.clustering import clustered
from experiments.command import run_script
from experiments.given_truth import evaluate_given
from experiments.predictions import evaluate_predictions
from experiments.record import CONSOLE, commit, report_table
from experiments.scenes import random_weights
from experiments.trunk_baselines import trunk_baselines

from groupvit import api
from groupvit.checkpoints import latest, native
from groupvit.data.index import CaptionedPhotos
from groupvit.data.shards import find_shards
from groupvit.evaluation.baselines import trivial_baselines
from groupvit.evaluation.benchmark import evaluate
from groupvit.evaluation.datasets import Dataset, open_benchmark
from groupvit.evaluation.metrics import mean_iou
from groupvit.evaluation.protocols import Protocol, get_protocol
from groupvit.evaluation.results import Result, difference
from groupvit.evaluation.whole_photos import Retrieval
from groupvit.models import GroupViT
from groupvit.segmentation import Segmenter
from groupvit.text.templates import SIMPLE_TEMPLATE
from groupvit.text.tokenizer import Tokenizer
from groupvit.training.loader import make_vocabulary
from groupvit.training.run import Run
from groupvit.training.runs import get_run

BENCHMARKS = {
    "voc2012": ("voc21", "voc2012/VOCdevkit/VOC2012"),
    "voc-coco": ("voc21", "voc/VOCdevkit/VOC2012"),
    "voc4": ("voc4", "voc/VOCdevkit/VOC2012"),
    "pets": ("pets", "pets"),
    "coco-object": ("coco-object-instances", "coco"),
    "camvid5": ("camvid5", "camvid"),
}
"""What each is, and where it lies in the folder for evaluation; `voc-coco` are COCO's photos in VOC's layout."""

ELLIPSE = "centred ellipse, own label"


def learnt(captions: Path, run: Run) -> tuple[torch.Tensor, tuple[str, ...]]:
    """The tokens of what training encoded (all captions of the shards, and the prompts around its vocabulary), and the
    nouns of that vocabulary."""
    photos = CaptionedPhotos.open(find_shards(run.data.train, below=captions))
    places = (photos.place(number) for number in range(len(photos)))
    texts = [caption for shard, row in places for caption in photos.captions(shard, row)]
    tokenizer = Tokenizer(run.model.text.context_length)
    words = make_vocabulary(run.data, run.objective, photos, tokenizer)
    return torch.cat([tokenizer(texts), words.tokens]).unique(), words.nouns


def save_small(folder: Path, model: GroupViT, run: Run, captions: Path, metadata: dict[str, str]) -> None:
    """Write a model that a run trained on these shards: half precision, of the vocabulary the rows that training saw,
    and the nouns that compete with labels, with their embeddings."""
    seen, nouns = learnt(captions, run)
    native.forget_unseen(model, seen)
    config = replace(run.model, rivals=nouns)
    model.rivals = Segmenter(model, config, device=model.logit_scale.device).embed_words(nouns, (SIMPLE_TEMPLATE,))
    native.save(folder, model, config, metadata=metadata, compact=True)


def bundle(
    checkpoint: Annotated[Path, tyro.conf.Positional],
    captions: Path,
    run: str = "photos-trunk",
    name: str = "photos-trunk",
) -> None:
    """Put a checkpoint into the package: half precision, and the rows of the vocabulary that training saw.

    Args:
        checkpoint: A training's folder, of which the newest checkpoint is taken, or one of its steps.
        captions: Folder of the shards it was trained on.
        run: The run it was trained as.
        name: What `groupvit.load` will know it by.
    """
    model, config = api.load_model(checkpoint)
    folder = Path(api.__file__).parent / "bundled" / name
    metadata = {"run": run, "step": (latest(checkpoint) or checkpoint).name}
    save_small(folder, model, replace(get_run(run), model=config), captions, metadata)
    print(f"{folder}: {(folder / native.WEIGHTS).stat().st_size / 1e6:.1f} MB")


def open_from(evaluation: Path, name: str, limit: int | None = None) -> Dataset:
    """Open one of `BENCHMARKS`."""
    benchmark, folder = BENCHMARKS[name]
    return open_benchmark(benchmark, evaluation / folder).limited(limit)


def choose(segmenter: Segmenter, protocol: str | None = None) -> Protocol:
    """Return the protocol of that name, or the one that suits the model."""
    return get_protocol(protocol or ("calibrated-whole" if segmenter.config.image.has_trunk else "calibrated-native"))


def others(
    model: Segmenter, plain: Segmenter | None, dataset: Dataset, protocol: Protocol
) -> Iterator[tuple[str, Result]]:
    """Trivial baselines, the model's trunk by itself, and clusters of the plain ViT's patches."""
    for name, predict in trivial_baselines(model, dataset, protocol.labels(dataset), protocol.view.templates).items():
        yield name, evaluate_predictions(dataset, predict, name)
    for name, other in trunk_baselines(model).items():
        yield name, evaluate(other, dataset, protocol)
    if plain:
        yield "plain ViT, captions alone, k-means", evaluate(clustered(plain, "k-means"), dataset, protocol)


def rows(model: Segmenter, plain: Segmenter | None, dataset: Dataset, protocol: Protocol) -> Iterator[dict[str, str]]:
    """Yield the lines of one benchmark's table: the model, what it must beat and by how much, its parts."""
    result = evaluate(model, dataset, protocol)
    yield _row("the model", mean_iou(result.matrix), result.interval())
    for other, theirs in others(model, plain, dataset, protocol):
        gain = difference(result, theirs)
        ahead = f"{gain['difference']:+.1f} {between(gain['interval'], '+.1f')}"
        yield _row(other, mean_iou(theirs.matrix), theirs.interval(), ahead)
    if dataset.has_background:
        known = evaluate_given(model, dataset, protocol, "objects")
        yield _row("given what is background", mean_iou(known.matrix), known.interval())
    known = evaluate_given(model, dataset, protocol, "labels")
    yield _row("given the photo's labels", mean_iou(known.matrix), known.interval())
    yield _row("its groups with the best names", result.grouping()[-1]["oracle_miou"])
    if not model.config.image.has_trunk:
        untrained = random_weights(model.config, seed=0, precision=model.precision)
        grouping = evaluate(untrained, dataset, protocol).grouping()
        yield _row("the groups of random weights with the best names", grouping[-1]["oracle_miou"])
    if result.naming():
        yield _row("true regions called right, % of them", result.naming()[-1]["accuracy"])
    for error, share in result.metrics()["errors"].items():
        yield _row(f"{error}, % of pixels", share)


def _row(line: str, value: float, interval: tuple[float, float] | None = None, ahead: str = "") -> dict[str, str]:
    return {
        "": line,
        "mIoU": f"{value:.1f}",
        "95 %": between(interval),
        "model ahead by": ahead,
    }


def between(interval: Sequence[float] | None, form: str = ".1f") -> str:
    """Return the ends of an interval in brackets."""
    return f"({interval[0]:{form}} to {interval[1]:{form}})" if interval else ""


def retrieved(segmenter: Segmenter, captions: Path) -> dict[str, float]:
    """Return recall on Flickr8k's test photos and their captions."""
    return Retrieval(captions / "flickr8k-test-*.tar", segmenter.config)(segmenter.model)


def score(
    model: Annotated[str, tyro.conf.Positional],
    captions: Path,
    evaluation: Path,
    plain: Path | None = None,
    protocol: str | None = None,
    benchmarks: tuple[str, ...] = tuple(BENCHMARKS),
    limit: int | None = None,
    record: bool = False,
) -> None:
    """Print the tables of the model card.

    Args:
        model: Name, checkpoint or hub id.
        captions: Folder with flickr8k-test-*.tar.
        evaluation: Folder with the benchmarks.
        plain: Checkpoint of a plain ViT that was trained with captions alone.
        protocol: By default calibrated-whole for a model with a trunk and calibrated-native for others.
        benchmarks: Which of the benchmarks.
        limit: At most so many photos of each benchmark.
        record: Write the figures to docs/results.json and the tables to the model's card.
    """
    began_at, segmenter = commit() if record else "", api.load(model)
    vit = api.load(plain) if plain else None
    has_trunk = segmenter.config.image.has_trunk
    kind, card = ("photos_trunk", "MODEL_CARD.md") if has_trunk else ("photos", "MODEL_CARD_PHOTOS.md")
    for name in benchmarks:
        CONSOLE.print(f"{name} …")
        lines = [*rows(segmenter, vit, open_from(evaluation, name, limit), choose(segmenter, protocol))]
        report_table(card, f"{kind}_{name}", lines, began_at)
    found = retrieved(segmenter, captions)
    ways = ("text_to_image", "image_to_text")
    recalls = {way: {f"R@{k}": f"{found[f'{way}_r{k}']:.1f}" for k in (1, 5, 10)} for way in ways}
    lines = [{"from": way.replace("_", " "), **recall} for way, recall in recalls.items()]
    report_table(card, f"{kind}_retrieval", lines, began_at)


def compare(
    models: Annotated[list[str], tyro.conf.Positional],
    captions: Path,
    evaluation: Path,
    benchmarks: tuple[str, ...] = tuple(BENCHMARKS),
    limit: int | None = None,
    record: bool = False,
) -> None:
    """Print a line for each of several models: mIoU on each benchmark, and retrieval.

    Args:
        models: Names, trainings or checkpoints.
        captions: Folder with flickr8k-test-*.tar.
        evaluation: Folder with the benchmarks.
        benchmarks: Which of the benchmarks.
        limit: At most so many photos of each benchmark.
        record: Write the figures to docs/results.json and the table to the models' card.
    """
    began_at, lines = commit() if record else "", []
    card, table = "MODEL_CARD_PHOTOS.md", "photos_trainings"
    for source in models:
        CONSOLE.print(f"{source} …")
        segmenter = api.load(source)
        if segmenter.config.image.has_trunk:
            card, table = "MODEL_CARD.md", "photos_trunk_seeds"
        parameters = sum(parameter.numel() for parameter in segmenter.model.image_encoder.parameters())
        line = {"model": Path(source).name, "image encoder": f"{parameters / 1e6:.1f} M"}
        protocol = choose(segmenter)
        for name in benchmarks:
            dataset = open_from(evaluation, name, limit)
            line[name] = f"{mean_iou(evaluate(segmenter, dataset, protocol).matrix):.1f}"
            if name == "pets":
                predict = trivial_baselines(segmenter, dataset, protocol.labels(dataset))[ELLIPSE]
                line["pets, its ellipse"] = f"{mean_iou(evaluate_predictions(dataset, predict, ELLIPSE).matrix):.1f}"
        found = retrieved(segmenter, captions)
        line["R@10, text to image"] = f"{found['text_to_image_r10']:.1f}"
        lines.append(line)
    report_table(card, table, lines, began_at)


if __name__ == "__main__":
    run_script({"bundle": bundle, "score": score, "compare": compare})
