"""`groupvit transfer`: fine-tune a pre-trained network on masks, and evaluate it."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from groupvit.errors import InputError

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class Options:
    """What to fine-tune, on what, and how; the comments are the help."""

    # What was pre-trained: a GroupViT, a ViT of transformers, a file of DeiT, timm, DINO or MoCo v3, efficientnet-lite0
    # or efficientnet-lite2.
    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    # voc21, voc20, voc4, context60, context59, camvid11, camvid5, or folder.
    benchmark: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="BENCHMARK")]
    root: Path  # Folder of the data set, whose val photos are evaluated (docs/DATASETS.md).
    # The list of photos to train on, such as train or trainaug; for a folder another folder of that kind.
    train: str = "train"
    share: float = 100.0  # Percent of the training masks to use, drawn by the seed.
    steps: int = 4000  # Steps of fine-tuning.
    batch_size: int = 16  # Crops a step.
    lr: float = 1e-3  # Learning rate of the convolution; the network has a tenth of it.
    seed: int = 0  # Of the share, the order, the crops and the convolution.
    out: Path | None = None  # Folder of the transfer, by default runs/transfer-BENCHMARK.
    resume: bool = False  # Go on with the transfer in OUT.
    limit: int | None = None  # Evaluate at most so many photos, spread evenly.
    compare: Path | None = None  # Another result file of the same photos; prints the difference and its interval.
    # A folder for pictures: best and worst photos with prediction and truth; IoU; confusion.
    pictures: Path | None = None
    ignore_index: int | None = None  # For folders: a value of the masks that does not count, besides 255.
    reduce_zero_label: bool = False  # For folders whose masks count classes from 1: 0 does not count.


def transfer(options: Annotated[Options, tyro.conf.arg(name="")]) -> None:
    """Fine-tune a network with a 1 x 1 convolution on photos with masks, and evaluate it on others.

    Writes OUT/transfer.pt, the curves, and OUT/BENCHMARK.transfer.json: a result file like those of evaluate, which
    --compare takes. Ctrl-C saves and stops; --resume goes on.
    """
    recipe = {name: getattr(options, name) for name in ("steps", "batch_size", "lr", "seed")}
    if min(options.steps, options.batch_size) < 1 or not 0 < options.lr < 1 or not 0 <= options.seed < 2**63:
        raise InputError("steps and batch size are at least 1, lr is between 0 and 1, the seed 0 to 2**63 - 1")
    import torch

    from groupvit.api import load_encoder
    from groupvit.cli.evaluate import print_difference, print_result
    from groupvit.evaluation.benchmark import describe_weights
    from groupvit.evaluation.datasets import open_benchmark
    from groupvit.evaluation.pictures import draw, make_folder, row
    from groupvit.evaluation.results import load_comparable
    from groupvit.evaluation.transfer import open_training, predict, score_into, share_of
    from groupvit.models.dense import DenseClassifier
    from groupvit.training.transfer import CROP, SHORT_SIDE, Transfer, finetune

    benchmark, share = options.benchmark, options.share
    ignored: Any = {"ignore_index": options.ignore_index, "reduce_zero_label": options.reduce_zero_label}
    dataset = open_benchmark(benchmark, options.root, **ignored)
    photos = share_of(open_training(dataset, options.train, **ignored), share, options.seed)
    dataset, out = dataset.limited(options.limit), options.out or Path("runs") / f"transfer-{benchmark}"
    file = out / f"{benchmark}.transfer.json"
    if options.compare:
        load_comparable(options.compare, dataset, file)
    if options.pictures:
        make_folder(options.pictures)
    torch.manual_seed(options.seed)
    network = DenseClassifier(load_encoder(options.model), len(dataset.classes))
    source = describe_weights(network.encoder, options.model)
    identity = {"pre-trained": source["sha256"], "benchmark": benchmark, "share": share, "photos": photos.names}
    identity |= {"train": options.train, "classes": dataset.classes, **ignored}
    done = finetune(network, photos, out, Transfer(identity, **recipe), resume=options.resume)
    print(f"{out}: {done} of {options.steps} steps on {len(photos)} masks")
    if done < options.steps:
        print("the same command with --resume goes on")
        return
    recipe |= {"crop": CROP, "short_side": SHORT_SIDE, "masks": len(photos), "share": share, "train": options.train}
    described = describe_weights(network, options.model) | {"pre-trained": source["sha256"], "precision": "fp32"}
    score_into(file, network, dataset, {"name": "transfer", **recipe}, described)
    result = print_result(file, options.root)

    def row_of(index: int) -> "Image.Image":
        photo = dataset[index]
        return row(photo, [], predict(network, photo.image, SHORT_SIDE), dataset.classes)

    for path in draw(result, row_of, options.pictures) if options.pictures else ():
        print(path)
    print_difference(file, options.compare)
