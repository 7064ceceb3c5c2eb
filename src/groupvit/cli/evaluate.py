"""`groupvit evaluate`: a model on a benchmark, under a named protocol."""

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from groupvit.errors import InputError

if TYPE_CHECKING:
    from groupvit.evaluation.datasets import Dataset
    from groupvit.evaluation.protocols import Protocol
    from groupvit.evaluation.results import Result


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
    engine: Literal["auto", "torch", "onnxruntime", "openvino"] = "auto",
    batch_size: int = 8,
    ignore_index: int | None = None,
    reduce_zero_label: bool = False,
) -> None:
    """Measure how well a model segments the photos of a benchmark, or classifies or retrieves whole photos.

    Prints mean IoU with a 95 % interval, next to trivial baselines, accuracies, boundary IoU, the grouping of each
    stage and the naming of true regions; writes them with every photo's pixel counts. If interrupted, the same command
    goes on; of whole photos it begins anew. Processes share the photos of a folder:
    torchrun --nproc-per-node 2 -m groupvit evaluate ...

    Args:
        model: A trained model: "photos-trunk", "photos", a folder, a file, or a name on the hub.
        benchmark: voc21, voc20, voc4, context60, context59, coco-object-instances, coco-object-stuff, pets,
            camvid11, camvid11-test, camvid5, or folder (images/, masks/, classes.txt); classification (a folder for
            each class), or retrieval (tar shards). The last two know only --root and --out.
        root: Folder of the data set (docs/DATASETS.md); for retrieval a folder or a pattern of shards.
        protocol: release-2022, paper-2022, or calibrated-native, -whole or -vocabulary (docs/PROTOCOLS.md).
        limit: Use at most so many photos, spread evenly over the data set.
        out: The result file, by default BENCHMARK.PROTOCOL.json here (BENCHMARK.json for whole photos).
        compare: Another result file of the same photos; prints the difference and its interval.
        pictures: A folder for pictures: best and worst photos with groups, prediction and truth; IoU; confusion.
        precision: Numbers of the image encoder, by default what is faster on this machine; all else is float32.
        engine: What runs the image encoder; auto takes OpenVINO on a CPU if it is installed (extra fast), else PyTorch.
        batch_size: Windows to encode at once.
        ignore_index: For a folder: a value of its masks that does not count, besides 255.
        reduce_zero_label: For a folder whose masks count classes from 1: 0 does not count.
    """
    for option, file in (("--out", out), ("--compare", compare)):
        if file and os.path.exists(file) and not os.path.isfile(file):  # reading may never end
            raise InputError(f"{file} is a folder, a pipe or a device: {option} names a result file")
    if benchmark == "classification" or benchmark == "retrieval":
        asked = (limit, compare, pictures, ignore_index) != (None,) * 4 or reduce_zero_label
        asked |= (protocol, engine, batch_size) != ("calibrated-native", "auto", 8) or precision == "bf16"
        _whole_photos(model, benchmark, root, out or Path(f"{benchmark}.json"), asked=asked)
        return
    from groupvit import api
    from groupvit.evaluation.benchmark import evaluate_into
    from groupvit.evaluation.datasets import open_benchmark
    from groupvit.evaluation.pictures import draw, rows_of
    from groupvit.machine import enough_memory

    dataset = open_benchmark(benchmark, root, ignore_index=ignore_index, reduce_zero_label=reduce_zero_label)
    dataset, out = dataset.limited(limit), out or Path(f"{benchmark}.{protocol}.json")
    chosen = _prepare(dataset, protocol, out, compare, pictures, batch_size)
    segmenter = api.load(model, precision=precision, engine=engine)
    with enough_memory("take a smaller --batch-size"):
        first = evaluate_into(out, segmenter, dataset, chosen, source=model, batch_size=batch_size)
    if first:
        result = print_result(out, dataset.root)
        if pictures:
            for path in draw(result, rows_of(result, segmenter, dataset, chosen), pictures):
                print(path)
        print_difference(out, compare)


def _prepare(
    dataset: "Dataset", protocol: str, out: Path, compare: Path | None, pictures: Path | None, batch_size: int
) -> "Protocol":
    """Refuse what cannot work, before a model is loaded."""
    from groupvit.evaluation.benchmark import processes
    from groupvit.evaluation.pictures import make_folder
    from groupvit.evaluation.protocols import get_protocol
    from groupvit.evaluation.results import load_comparable

    processes()
    if batch_size < 1:
        raise InputError("batch size must be at least 1")
    chosen = get_protocol(protocol)
    chosen.threshold(dataset)
    chosen.labels(dataset)
    chosen.calibrated(dataset)
    if compare:
        load_comparable(compare, dataset, out)
    if pictures:
        make_folder(pictures)
    return chosen


def print_result(out: Path, root: Path) -> "Result":
    """Print a result file's numbers; return the result."""
    from groupvit.evaluation.report import report, unseen
    from groupvit.evaluation.results import Result

    result = Result.load(out)
    print(report(result))
    if absent := unseen(result):
        warnings.warn(f"{root}: {absent}", stacklevel=1)
    print(f"{out} has the counts of each photo")
    return result


def print_difference(out: Path, other: Path | None) -> None:
    """Print how far a result is ahead of another one, if there is one."""
    from groupvit.evaluation.report import format_difference
    from groupvit.evaluation.results import compare

    if other:
        print(f"mIoU less that of {other}: {format_difference(compare(out, other))}")


def _whole_photos(
    model: str, benchmark: Literal["classification", "retrieval"], root: Path, out: Path, *, asked: bool
) -> None:
    """Classify or retrieve; `asked` says whether options of segmentation were given."""
    if asked:
        raise InputError(f"{benchmark} has no --protocol, --limit or other options: drop all but --root and --out")
    from groupvit import api
    from groupvit.evaluation.benchmark import evaluate_whole_photos, processes

    if processes()[0]:
        return  # the first process does it all
    segmenter = api.load(model, precision="fp32", engine="torch")
    document = evaluate_whole_photos(segmenter, benchmark, root, out, source=model)
    print(f"{benchmark}, {document['data']['photos']} photos")
    for name, value in document["metrics"].items():
        print(f"{name}: {value:.2f} %")
