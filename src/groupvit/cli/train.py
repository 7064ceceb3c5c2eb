"""`groupvit train`: a named run on a folder of captioned shards."""

from pathlib import Path
from typing import Annotated

import tyro


def train(
    run: Annotated[str, tyro.conf.Positional],
    *,
    data: str,
    out: Path | None = None,
    seed: int = 0,
    train: str | None = None,
    held_out: str | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    chunk: int | None = None,
    init: str | None = None,
    resume: bool = False,
    workers: int = 1,
    keep: int = 2,
    tensorboard: bool = False,
    compile: bool = False,
    trunk: Path | None = None,
    cache: Path | None = None,
) -> None:
    """Train from captioned images.

    Writes checkpoints to OUT/step-*, the name of the newest to OUT/latest, and the curves to OUT/metrics.jsonl and
    OUT/curves.png. Ctrl-C saves and stops; --resume goes on from there, on a CPU to the bit as if nothing had happened.

    Args:
        run: Name of the run; an unknown one lists all.
        data: Folder with the run's tar shards, or a URL of one (s3://…, https://…).
        out: Folder of the training, by default runs/RUN.
        seed: Of the weights, the order, the augmentation and the noise.
        train: Pattern of the training shards inside DATA, instead of the run's own.
        held_out: Pattern of shards for retrieval or a folder with masks, inside DATA; "" for none.
        steps: Optimiser steps, instead of the run's own number.
        batch_size: Photos a step, instead of the run's own number.
        chunk: Photos to encode at a time where a batch does not fit into memory: the same gradient, a third more work.
        init: Checkpoint or model whose weights to start with ("photos-trunk" is in the package), instead of random
            ones; images may be of another size there.
        resume: Go on from the newest checkpoint in OUT.
        workers: Processes that read and decode.
        tensorboard: Write the curves as TensorBoard's event files, too.
        compile: Fuse the transformer blocks (torch.compile): a slower start, then faster in bfloat16; needs a C++
            compiler, or Triton on a GPU.
        keep: Checkpoints to keep besides the best: the newest so many.
        trunk: Folder of a pre-trained ViT (config.json and model.safetensors of transformers), on which the run then
            stands, as it is.
        cache: Folder for what the run's trunk makes of the photos, by default OUT/cache; trainings may share it.
    """
    import os
    import shlex
    import sys
    from dataclasses import replace
    from importlib.util import find_spec

    from groupvit import api
    from groupvit.checkpoints import latest
    from groupvit.checkpoints.trunks import read_vit_config
    from groupvit.data.shards import find_shards
    from groupvit.data.storage import is_url
    from groupvit.errors import InputError
    from groupvit.evaluation.training import evaluation_of
    from groupvit.training.distributed import joined, restarted
    from groupvit.training.loop import train as train_run
    from groupvit.training.runs import get_run, with_vit

    settings = get_run(run)
    changes = {"train": train, "held_out": held_out, "steps": steps, "batch_size": batch_size, "chunk": chunk}
    settings = replace(settings, **{name: value for name, value in changes.items() if value is not None})
    if trunk:
        if settings.teacher_weight:
            print(f"{trunk} has no classifier to learn from: captions and tags alone teach", file=sys.stderr)
        settings = with_vit(settings, read_vit_config(trunk))
    if cache and not settings.cached_crops:
        raise InputError("this training caches nothing: leave out --cache")
    if min(settings.steps, settings.batch_size, keep) < 1 or min(workers, settings.chunk) < 0 or not 0 <= seed < 2**63:
        raise InputError(
            "steps, batch size and keep are at least 1, workers and chunk at least 0, the seed 0 to 2**63 - 1"
        )
    if init and resume:
        raise InputError("--resume goes on with a training's own weights: leave out --init")
    if tensorboard and find_spec("tensorboard") is None:
        raise InputError("--tensorboard needs the package tensorboard: pip install tensorboard")
    if settings.held_out and is_url(data):
        raise InputError('held-out photos are read from a disk only: add --held-out ""')
    find_shards(settings.train, below=data)
    out = out or Path("runs") / run
    with joined() as (ranks, device):
        # torchrun starts all processes again when one has died: they go on from the last checkpoint.
        again = restarted(out) and latest(out) is not None
        measured = bool(settings.held_out) and not ranks.rank
        state = train_run(
            settings,
            data,
            out,
            seed=seed,
            init=api.locate(init) if init and not again else None,
            resume=resume or again,
            workers=workers,
            processes=os.cpu_count() or 1,
            keep=keep,
            device=device,
            evaluate=evaluation_of(settings.model, Path(data) / settings.held_out) if measured else None,
            ranks=ranks,
            tensorboard=tensorboard,
            compiled=compile,
            trunk=trunk,
            cache=cache,
        )
    if ranks.rank:
        return
    print(f"{latest(out)}: {state.step} of {settings.steps} steps")
    if state.step < settings.steps:
        options = {"data": data, "out": out, "seed": seed, "workers": workers, "keep": keep}
        options |= {"trunk": trunk, "cache": cache, **changes}
        given = [
            part
            for name, value in options.items()
            if value is not None
            for part in (f"--{name.replace('_', '-')}", str(value))
        ]
        launcher = ["groupvit"] if ranks.world == 1 else ["torchrun", "...", "-m", "groupvit"]
        flags = ["--tensorboard"] * tensorboard + ["--compile"] * compile + ["--resume"]
        print("continue with:", shlex.join([*launcher, "train", run, *given, *flags]))
