"""What scripts share: what they do with an error, and with a training that may be there already."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import tyro

from groupvit.checkpoints import latest
from groupvit.errors import InputError
from groupvit.training.loop import train
from groupvit.training.run import Run
from groupvit.training.state import DAMAGES, folder_of


def run_script(main: Any, *, resumes: bool = False) -> None:
    """Run a script's `main`, or of a dictionary the one that is named; an error ends it with its line.

    After Ctrl-C a script that `resumes` says so.
    """
    try:
        tyro.extras.subcommand_cli_from_dict(main) if isinstance(main, dict) else tyro.cli(main)
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
