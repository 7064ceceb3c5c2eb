"""`groupvit evaluate`: a model on a benchmark, under a named protocol."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from groupvit.cli.progress import progress
from groupvit.errors import InputError

if TYPE_CHECKING:
    from groupvit.evaluation.results import Result
    from groupvit.segmentation import Segmenter


def evaluate(
    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")],
    benchmark: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="BENCHMARK")],
    /,
    *,
    root: Path,
    protocol: str = "calibrated-native",
    limit: int | None = None,
    out: Path | None = None,
    compare: Path | None = None,
    pictures: Path | None = None,
    precision: Literal["bf16", "fp32"] | None = None,
    batch_size: int = 8,
) -> None:
    """Measure how well a model segments the photos of a benchmark, or classifies or retrieves whole photos.

    Prints mean IoU with its interval and beside floors that find nothing, accuracies, boundary IoU, the grouping of
    each stage and the naming of true regions, and writes them with every photo's pixel counts. Interrupted, the same
    command goes on; with torchrun, processes that see the same folder share the photos:
    torchrun --nproc-per-node 2 -m groupvit evaluate ...

    Args:
        model: A trained model: "photos-trunk", "photos", a folder, a file, or a name on the hub.
        benchmark: voc21, voc20, voc4, context60, context59, coco-object-instances, coco-object-stuff, pets,
            camvid11, camvid11-test, camvid5, or folder (images/, masks/, classes.txt); classification (a folder for
            each class), or retrieval (tar shards). The last two know no protocol, limit, comparison or pictures.
        root: Folder of the data set (docs/DATASETS.md); for retrieval a folder or a pattern of shards.
        protocol: release-2022, paper-2022, calibrated-native or calibrated-whole (docs/PROTOCOLS.md).
        limit: At most so many photos, spread evenly over the data set.
        out: The result file, by default BENCHMARK.PROTOCOL.json here.
        compare: Another result file of the same photos, for the difference and its interval.
        pictures: A folder for pictures: best and worst photos with groups, prediction and truth; IoU; confusion.
        precision: Numbers of the image encoder, by default bf16 where the processor has it; scores and decisions are
            always float32, and so are whole photos.
        batch_size: Windows that are encoded at once.
    """
    import torch

    from groupvit import api
    from groupvit.evaluation.datasets import open_benchmark
    from groupvit.evaluation.floors import score_floors
    from groupvit.evaluation.parts import Parts
    from groupvit.evaluation.pictures import draw, make_folder
    from groupvit.evaluation.protocols import get_protocol
    from groupvit.evaluation.results import Result
    from groupvit.evaluation.results import compare as compare_files
    from groupvit.evaluation.scoring import conclude, describe, native_precision, score_photos, unchanged

    if batch_size < 1:
        raise InputError("batch size must be at least 1")
    if benchmark in ("classification", "retrieval"):
        if limit or compare or pictures or protocol != "calibrated-native":
            raise InputError(f"{benchmark} has no --protocol, --limit, --compare or --pictures: drop them")
        _whole_photos(api.load(model), model, benchmark, root, out or Path(f"{benchmark}.json"))
        return
    chosen = get_protocol(protocol)
    dataset = open_benchmark(benchmark, root).first(limit)
    chosen.threshold(dataset)
    chosen.labels(dataset)
    if compare:
        Result.load(compare)
    if pictures:
        make_folder(pictures)
    out = out or Path(f"{benchmark}.{protocol}.json")
    rank, processes = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
    segmenter = api.load(model)
    precision = precision or native_precision(segmenter)
    result = Result(
        benchmark,
        dataset.classes,
        chosen.record(segmenter.config, dataset),
        {"source": model, **describe(segmenter), "precision": precision},
    )
    identity = result.identity(dataset.names)
    if out.exists():
        held = Result.load(out)
        if held.identity() != identity:
            what = "model, protocol, classes, photos or precision"
            raise InputError(f"{out} holds another evaluation ({what}): choose another --out or delete it")
        for photo in held.photos if rank == 0 else ():
            unchanged(dataset, photo)
    else:
        with Parts(out, identity, rank) as parts:
            own = dataset.names[rank::processes]
            for name in parts.scores.keys() & set(own):
                unchanged(dataset, parts.scores[name])
            left = [name for name in own if name not in parts.scores]
            with progress("evaluating", len(left), shown=rank == 0) as advance:
                scored = score_photos(segmenter, dataset, chosen, left, precision=precision, batch_size=batch_size)
                for photo in scored:
                    parts.add(photo)
                    advance()
            if rank == 0:
                parts.wait_for(dataset.names)
                result = conclude(result, [parts.scores[name] for name in dataset.names], dataset, chosen)
                with progress("floors", len(dataset)) as advance:
                    floors = score_floors(result, segmenter, dataset, chosen, advance)
                replace(result, floors=floors).save(out)
                parts.remove()
    if rank == 0:
        print(report(Result.load(out)))
        if compare:
            print(f"mIoU less that of {compare}: {_difference(compare_files(out, compare))}")
        if pictures:
            for path in draw(Result.load(out), segmenter, dataset, chosen, pictures):
                print(path)
        print(f"{out} has the counts of each photo")


def _whole_photos(segmenter: "Segmenter", source: str, benchmark: str, root: Path, out: Path) -> None:
    """Zero-shot classification with CLIP's 7 and 80 templates, or retrieval; prints, and writes JSON."""
    import json

    from groupvit.evaluation.classification import ClassFolder, classify
    from groupvit.evaluation.results import versions
    from groupvit.evaluation.retrieval import Retrieval
    from groupvit.evaluation.scoring import describe
    from groupvit.files import write_atomically
    from groupvit.text.templates import IMAGENET_TEMPLATES_7, IMAGENET_TEMPLATES_80

    if out.is_dir():
        raise InputError(f"{out} is a folder: --out names the result file")
    metrics: dict[str, float] = {}
    if benchmark == "retrieval":
        retrieval = Retrieval([root], segmenter.config)
        photos, digest = len(retrieval.photos), retrieval.digest
        metrics = retrieval(segmenter.model)
    else:
        folder = ClassFolder.open(root)
        for templates in (IMAGENET_TEMPLATES_7, IMAGENET_TEMPLATES_80):
            found = classify(segmenter, folder, templates)
            metrics |= {f"{name}, {len(templates)} templates": value for name, value in found.items()}
        photos, digest = len(folder), folder.digest()
    print(f"{benchmark}, {photos} photos")
    for name, value in metrics.items():
        print(f"{name}: {value:.2f} %")
    document: dict[str, Any] = {"benchmark": benchmark, "metrics": metrics, "versions": versions()}
    document["data"] = {"photos": photos, "sha256": digest}
    document["model"] = {"source": source, **describe(segmenter), "precision": "fp32"}
    write_atomically(out, (json.dumps(document, indent=1) + "\n").encode())


def report(result: "Result") -> str:
    """The numbers as lines of text."""
    numbers = result.metrics()
    thresholds = " and ".join(f"{threshold:.3g}" for threshold in result.thresholds)
    sizes = ", ".join(f"{size} {_number(value)}" for size, value in numbers["by_size"].items())
    lines = [
        f"{result.benchmark}, {result.protocol['name']}: {len(result.photos)} photos"
        + (f", background below {thresholds}" if thresholds else ""),
        f"mIoU {_number(numbers['miou'])} ({_interval(numbers['interval'])}), "
        f"boundary mIoU {_number(numbers['boundary_miou'])}, "
        f"pixel accuracy {_number(numbers['pixel_accuracy'])}, mean accuracy {_number(numbers['mean_accuracy'])}",
        *(
            f"floor, {name}: mIoU {_number(floor['miou'])}, model minus floor {_difference(floor)}"
            for name, floor in result.floors.items()
        ),
        f"by share of the photo: {sizes}",
    ]
    if numbers["errors"]:
        lines.append("pixels: " + ", ".join(f"{_number(share)} % {name}" for name, share in numbers["errors"].items()))
    for stage, values in enumerate(numbers["grouping"], start=1):
        rand = _number(values["adjusted_rand_index"], ".3f")
        lines.append(
            f"groups of stage {stage}: {_number(values['groups'], '.1f')} in a photo, adjusted Rand index {rand}, "
            f"purity {_number(values['purity'])}, mIoU with the best names {_number(values['oracle_miou'])}"
        )
    for stage, naming in enumerate(numbers["naming"], start=1):
        lines.append(
            f"naming with the true regions in stage {stage}: "
            f"{naming['accuracy']:.2f} % of {naming['regions']} regions, "
            f"{naming['pixel_accuracy']:.2f} % of their pixels"
        )
    width = max(map(len, numbers["classes"]))
    lines.append(f"{'class':{width}}    IoU  accuracy  boundary IoU")
    for name, values in numbers["classes"].items():
        cells = (_number(values[key]) for key in ("iou", "accuracy", "boundary_iou"))
        lines.append(
            f"{name:{width}} " + "".join(f"{cell:>{size}}" for cell, size in zip(cells, (6, 10, 14), strict=True))
        )
    return "\n".join(lines)


def _number(value: float | None, form: str = ".2f") -> str:
    return "-" if value is None else format(value, form)


def _interval(ends: Sequence[float] | None, form: str = ".2f") -> str:
    return "95 % " + ("-" if ends is None else f"{ends[0]:{form}} to {ends[1]:{form}}")


def _difference(values: Mapping[str, Any]) -> str:
    return f"{_number(values['difference'], '+.2f')} ({_interval(values['interval'], '+.2f')})"
