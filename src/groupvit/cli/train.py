"""`groupvit train`: a named run on a folder of captioned shards."""

from pathlib import Path
from typing import Annotated

import tyro


def train(
    run: Annotated[str, tyro.conf.Positional],
    *,
    data: Path,
    out: Path | None = None,
    seed: int = 0,
    steps: int | None = None,
    batch_size: int | None = None,
    resume: bool = False,
    workers: int = 1,
) -> None:
    """Train from captioned images.

    Writes checkpoints to OUT/step-*, the name of the newest to OUT/latest, and the curves to OUT/metrics.jsonl. Ctrl-C
    saves and stops; --resume goes on from there, to the bit as if nothing had happened.

    Args:
        run: Name of the run; an unknown one lists all.
        data: Folder with the run's tar shards.
        out: Folder of the training, by default runs/RUN.
        seed: Of the weights, the order, the augmentation and the noise.
        steps: Optimiser steps, instead of the run's own number.
        batch_size: Photos a step, instead of the run's own number.
        resume: Go on from the newest checkpoint in OUT.
        workers: Processes that read and decode.
    """
    from dataclasses import replace

    from groupvit.checkpoints import latest
    from groupvit.evaluation.training import evaluation_of
    from groupvit.training.loop import train as train_run
    from groupvit.training.runs import get_run

    settings = get_run(run)
    settings = replace(settings, steps=steps or settings.steps, batch_size=batch_size or settings.batch_size)
    out = out or Path("runs") / run
    state = train_run(
        settings,
        data,
        out,
        seed=seed,
        resume=resume,
        workers=workers,
        evaluate=evaluation_of(settings.model, data / settings.held_out) if settings.held_out else None,
    )
    print(f"{latest(out)}: {state.step} of {settings.steps} steps")
    if state.step < settings.steps:
        given = "".join(f" --{name} {value}" for name, value in (("steps", steps), ("batch-size", batch_size)) if value)
        print(f"continue with: groupvit train {run} --data {data} --out {out} --seed {seed}{given} --resume")
