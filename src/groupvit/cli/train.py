"""`groupvit train`: a named run on a folder of captioned shards."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

if TYPE_CHECKING:
    from groupvit.training.run import Run


@dataclass(frozen=True)
class Options:
    """What to train, where, and how; the comments are the help."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]  # Its name; an unknown one lists all.
    data: str  # Folder with the run's tar shards, or a URL of one (s3://…, https://…).
    out: Path | None = None  # Folder of the training, by default runs/RUN.
    seed: int = 0  # Of the weights, the order, the augmentation and the noise.
    train: str | None = None  # Pattern of the training shards, inside DATA or absolute, instead of the run's own.
    # Pattern of shards for retrieval or a folder with masks, inside DATA or absolute; "" for none.
    held_out: str | None = None
    steps: int | None = None  # Optimiser steps, instead of the run's own number.
    batch_size: int | None = None  # Photos a step, instead of the run's own number.
    # Photos to encode at a time where a batch does not fit into memory: the same gradient, a third more work;
    # on a GPU small chunks cost more.
    chunk: int | None = None
    # Share of each photo's patches that a step leaves out, from 0 to below 1, for runs without a trunk.
    patch_dropout: float | None = None
    # Checkpoint or model whose weights to start with ("photos-trunk" is in the package), instead of random ones; images
    # may be of another size there.
    init: str | None = None
    # Go on from the newest checkpoint in OUT; a finished training with a larger --steps, too.
    resume: bool = False
    workers: int = 1  # Processes that read and decode.
    keep: int = 2  # Checkpoints to keep, besides the best.
    # Steps between pictures of four photos' segments, in OUT/emergence.png; without it there are none.
    pictures: int | None = None
    tensorboard: bool = False  # Write the curves as TensorBoard's event files, too, and the pictures.
    # Fuse the transformer blocks (torch.compile): a slower start, then a little faster on a CPU in bfloat16, and less
    # memory on a GPU; needs a C++ compiler, or Triton on a GPU.
    compile: bool = False
    # A pre-trained ViT on which the run then stands, as it is: a folder of transformers, or a file of DeiT, timm, DINO
    # or MoCo v3.
    trunk: Path | None = None
    # Folder for the trunk's maps of the photos, by default OUT/cache; trainings of one seed may share it.
    cache: Path | None = None
    # Minutes that each of several processes waits for the others, which may be evaluating or saving.
    patience: float = 120.0


def train(options: Annotated[Options, tyro.conf.arg(name="")]) -> None:
    """Train from captioned images.

    Writes checkpoints to OUT/step-*, the name of the newest to OUT/latest, and the curves to OUT/metrics.jsonl and
    OUT/curves.png. Ctrl-C saves and stops; --resume goes on from there, on a CPU to the bit as if nothing had happened.
    """
    from groupvit import api
    from groupvit.checkpoints import latest
    from groupvit.evaluation.emergence import Emergence, evaluation_of, photos_to_watch
    from groupvit.machine import cores
    from groupvit.training.distributed import connected, restarted
    from groupvit.training.loop import train as train_run

    run = _run(options)
    _check(options, run)
    out = options.out or Path("runs") / options.run
    draw = None
    if options.pictures is not None:
        watched = photos_to_watch(options.data, run.data.held_out, run.data.train)
        draw = Emergence(run.model, *watched, out / "emergence.png", options.pictures, run.schedule.steps)
    with connected(60 * options.patience) as (world, device):
        # torchrun starts all processes again when one has died: they go on from the last checkpoint.
        again = restarted(out, world) and latest(out) is not None
        measured = bool(run.data.held_out) and not world.rank
        state = train_run(
            run,
            options.data,
            out,
            seed=options.seed,
            init=api.locate(options.init) if options.init and not again else None,
            resume=options.resume or again,
            workers=options.workers,
            indexers=cores(),
            keep=options.keep,
            device=device,
            evaluate=evaluation_of(run.model, Path(options.data), run.data.held_out) if measured else None,
            draw=draw,
            world=world,
            tensorboard=options.tensorboard,
            compiled=options.compile,
            trunk=options.trunk,
            cache=options.cache,
        )
    if not world.rank:
        print(f"{latest(out) or out}: {state.step} of {run.schedule.steps} steps")
        if 0 < state.step < run.schedule.steps:
            print("continue with:", _continue(options, out, several=world.size > 1))


def _run(options: Options) -> "Run":
    import sys

    from groupvit.checkpoints.trunks import read_vit_config
    from groupvit.training.run import vary, with_vit
    from groupvit.training.runs import get_run

    names = ("train", "held_out", "steps", "batch_size", "chunk", "patch_dropout")
    changes = {name: value for name in names if (value := getattr(options, name)) is not None}
    run = vary(get_run(options.run), **changes)
    if options.trunk is None:
        return run
    if run.model.teacher_loss:
        print(f"{options.trunk} has no classifier to learn from: captions and tags alone teach", file=sys.stderr)
    return with_vit(run, read_vit_config(options.trunk))


def _check(options: Options, run: "Run") -> None:
    from importlib.util import find_spec

    from groupvit.data.shards import find_shards
    from groupvit.data.storage import is_url
    from groupvit.errors import InputError
    from groupvit.training.run import check

    if options.cache and not run.data.cached_crops:
        raise InputError("this training caches nothing: leave out --cache")
    check(run, options.seed, options.workers, options.keep)
    if not 0 < options.patience < 10**8:
        raise InputError("--patience is minutes above 0 and below 10**8")
    if options.init and options.resume:
        raise InputError("--resume goes on with a training's own weights: leave out --init")
    if options.tensorboard and find_spec("tensorboard") is None:
        raise InputError("--tensorboard needs the package tensorboard: pip install tensorboard")
    if run.data.held_out and is_url(options.data):
        raise InputError('held-out photos are read from a disk only: add --held-out ""')
    find_shards(run.data.train, below=options.data)  # without them, nothing else needs reading


def _continue(options: Options, out: Path, *, several: bool) -> str:
    import shlex

    words = ["torchrun", "...", "-m", "groupvit"] if several else ["groupvit"]
    words += ["train", options.run]
    for name, value in asdict(replace(options, out=out, init=None, resume=False)).items():
        flag = f"--{name.replace('_', '-')}"
        if name != "run" and value is not None and value is not False:
            words += [flag] if value is True else [flag, str(value)]
    return shlex.join([*words, "--resume"])
