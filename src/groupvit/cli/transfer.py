"""`groupvit transfer`: fine-tune a pre-trained network on masks, and evaluate it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from groupvit.errors import InputError

if TYPE_CHECKING:
    from groupvit.models.dense import Encoder


def transfer(
    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")],
    benchmark: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="BENCHMARK")],
    /,
    *,
    root: Path,
    train: str = "train",
    share: float = 100.0,
    steps: int = 4000,
    batch_size: int = 16,
    lr: float = 1e-3,
    seed: int = 0,
    out: Path | None = None,
    resume: bool = False,
    limit: int | None = None,
    compare: Path | None = None,
    ignore_index: int | None = None,
    reduce_zero_label: bool = False,
) -> None:
    """Fine-tune a network with a 1 x 1 convolution on photos with masks, and evaluate it on others.

    Writes OUT/transfer.pt, the curves, and OUT/BENCHMARK.transfer.json: a result file like those of evaluate, which
    --compare takes. Ctrl-C saves and stops; --resume goes on.

    Args:
        model: What was pre-trained: a GroupViT, a ViT of transformers, a file of DeiT, timm, DINO or MoCo v3,
            efficientnet-lite0 or efficientnet-lite2.
        benchmark: voc21, voc20, voc4, context60, context59, camvid11, camvid5, or folder.
        root: Folder of the data set, whose val photos are evaluated (docs/DATASETS.md).
        train: The list of photos to train on, such as train or trainaug; for a folder another folder of that kind.
        share: Percent of the training masks to use, drawn by the seed.
        steps: Steps of fine-tuning.
        batch_size: Crops a step.
        lr: Learning rate of the convolution; the network has a tenth of it.
        seed: Of the share, the order, the crops and the convolution.
        out: Folder of the transfer, by default runs/transfer-BENCHMARK.
        resume: Go on with the transfer in OUT.
        limit: Evaluate at most so many photos, spread evenly.
        compare: Another result file of the same photos; prints the difference and its interval.
        ignore_index: For folders: a value of the masks that does not count, besides 255.
        reduce_zero_label: For folders whose masks count classes from 1: 0 does not count.
    """
    if min(steps, batch_size) < 1 or not 0 < lr < 1 or not 0 <= seed < 2**63:
        raise InputError("steps and batch size are at least 1, lr is between 0 and 1, the seed 0 to 2**63 - 1")
    import torch

    from groupvit.cli.evaluate import print_result
    from groupvit.evaluation.benchmark import describe_weights
    from groupvit.evaluation.datasets import open_benchmark
    from groupvit.evaluation.results import load_comparable
    from groupvit.evaluation.transfer import open_training, score_into, share_of
    from groupvit.models.dense import DenseClassifier
    from groupvit.training.transfer import CROP, SHORT_SIDE, Transfer, finetune

    options: dict[str, Any] = {"ignore_index": ignore_index, "reduce_zero_label": reduce_zero_label}
    dataset = open_benchmark(benchmark, root, **options)
    photos = share_of(open_training(dataset, train, **options), share, seed)
    dataset = dataset.first(limit)
    if compare:
        load_comparable(compare, dataset, root)
    torch.manual_seed(seed)
    network = DenseClassifier(load_encoder(model), len(dataset.classes))
    source = describe_weights(network.encoder, model)
    identity = {"pre-trained": source["sha256"], "benchmark": benchmark, "share": share, "photos": photos.names}
    out = out or Path("runs") / f"transfer-{benchmark}"
    chosen = Transfer(identity, steps, batch_size, lr, seed)
    done = finetune(network, photos, out, chosen, resume=resume)
    print(f"{out}: {done} of {steps} steps on {len(photos)} masks")
    if done < steps:
        print("continue with --resume")
        return
    recipe = {"steps": steps, "batch_size": batch_size, "lr": lr, "seed": seed, "crop": CROP, "short_side": SHORT_SIDE}
    recipe |= {"masks": len(photos), "share": share, "train": train}
    described = describe_weights(network, model) | {"pre-trained": source["sha256"], "precision": "fp32"}
    file = out / f"{benchmark}.transfer.json"
    score_into(file, network, dataset, {"name": "transfer", **recipe}, described)
    print_result(file, root, compare)


def load_encoder(source: str) -> "Encoder":
    """Load what was pre-trained, of any layout that some command reads."""
    from groupvit import api
    from groupvit.checkpoints.trunks import PUBLISHED, holds_vit, load_trunk, load_vit

    if source in PUBLISHED:
        return load_trunk(source, None)
    path = api.locate(source)
    return load_vit(path) if holds_vit(path) else api.load_model(path)[0].image_encoder
