"""What scripts share: what they do with an error, and with a training that may be there already."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from groupvit.checkpoints import latest
from groupvit.errors import InputError
from groupvit.training.loop import train
from groupvit.training.run import Run
from groupvit.training.state import DAMAGES, folder_of


@contextmanager
def errors_in_one_line(*, resumes: bool = False) -> Iterator[None]:
    """End the script with the error's line; after Ctrl-C a script that `resumes` says so."""
    try:
        yield
    except InputError as error:
        raise SystemExit(f"error: {error}") from None
    except KeyboardInterrupt:
        if not resumes:
            raise
        raise SystemExit("interrupted; the same command goes on from here") from None


def finish(run: Run, data: Path, out: Path, seed: int = 0, **options: Any) -> None:
    """Train, resume a training, or leave a complete one as it is; one that is stopped ends the script."""
    last, steps = latest(out), run.schedule.steps
    if last == folder_of(out, steps):
        return
    if last:
        there = steps
        with suppress(*DAMAGES):  # of which `train` tells
            there = torch.load(last / "training.pt", map_location="cpu", mmap=True)["identity"]["schedule"]["steps"]
        if there != steps:
            raise InputError(f"{out} holds a training of {there} steps, not of {steps}: name another --out")
    # The tables have more than 200 trainings of 90 MB a checkpoint.
    state = train(run, data, out, seed=seed, keep=1, resume=last is not None, **options)
    if state.step < steps:
        raise KeyboardInterrupt
