"""What a training needs to go on: weights, optimiser, step, vocabulary, and the run they belong to."""

import os
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch.optim import Optimizer

from groupvit.checkpoints import latest, native
from groupvit.errors import InputError
from groupvit.models import GroupViT
from groupvit.training.runs import Run

KEEP = 2


@dataclass(frozen=True)
class TrainingState:
    """A training after `step` optimiser steps."""

    run: Run
    seed: int
    step: int
    nouns: tuple[str, ...]
    model: GroupViT
    optimizer: Optimizer

    def advance(self) -> "TrainingState":
        """The same training one step on."""
        return replace(self, step=self.step + 1)

    def identity(self) -> dict[str, Any]:
        """What must be the same for a training to be continued."""
        fields = {key: value for key, value in asdict(self.run).items() if key not in ("evaluate_every", "save_every")}
        return {**fields, "seed": self.seed, "nouns": list(self.nouns)}


def folder_of(out: Path, state: TrainingState) -> Path:
    """Where the checkpoint of a state stands."""
    return out / f"step-{state.step:08d}"


def save(out: Path, state: TrainingState) -> Path:
    """Write `out/step-N`, move the `latest` pointer to it, and drop all but the newest two.

    The pointer moves only after everything is on disk: a crash or a full disk leaves the previous checkpoint in place.
    """
    folder = folder_of(out, state)
    partial = folder.with_suffix(".partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        native.save(partial, state.model, state.run.model)
        with (partial / "training.pt").open("wb") as file:
            torch.save(
                {"step": state.step, "identity": state.identity(), "optimizer": state.optimizer.state_dict()}, file
            )
            os.fsync(file.fileno())
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(partial, folder)
        native.write_atomically(out / "latest", folder.name.encode())
    except (OSError, RuntimeError, InputError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise InputError(f"cannot save to {folder}: {error}; the last checkpoint is {latest(out)}") from error
    kept = sorted(path for path in out.glob("step-????????") if path.name <= folder.name)[-KEEP:]
    for other in set(out.glob("step-*")) - set(kept):  # older ones, and what a killed process or a step back left
        shutil.rmtree(other)
    return folder


def restore(out: Path, state: TrainingState) -> TrainingState:
    """The state that `out` holds, read into the model and optimiser of a fresh `state` of the same run."""
    folder = latest(out)
    if folder is None:
        raise InputError(f"{out} holds no checkpoint to resume; train without --resume")
    try:
        saved = torch.load(folder / "training.pt", map_location="cpu", weights_only=True)
        step, identity, optimizer = saved["step"], saved["identity"], saved["optimizer"]
    except (OSError, EOFError, RuntimeError, UnpicklingError, KeyError, TypeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{folder}/training.pt is damaged or missing ({reason}): resume from another step") from error
    ours = state.identity()
    if differing := [key for key in ours if _plain(ours[key]) != _plain(identity.get(key))]:
        raise InputError(f"{folder} was trained with another {', '.join(differing)}; resume with the same settings")
    model, _ = native.load(folder)
    state.model.load_state_dict(model.state_dict())
    state.optimizer.load_state_dict(optimizer)
    return replace(state, step=step)


def _plain(value: Any) -> Any:
    """Tuples as lists, so that what was written equals what is read."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
