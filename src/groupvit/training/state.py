"""The state of a training: saved whole or not at all, checked before it is used, resumed to the bit."""

import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from textwrap import shorten
from typing import Any, cast

import torch
from filelock import FileLock, Timeout
from torch import nn
from torch.optim.swa_utils import AveragedModel

from groupvit.checkpoints import latest, native
from groupvit.data.index import CaptionedPhotos
from groupvit.data.storage import File
from groupvit.errors import InputError, input_error
from groupvit.files import new_folder, refuse_remote, sync_folder, write_atomically
from groupvit.models import GroupViT, ModelConfig
from groupvit.training.run import Run
from groupvit.training.self_supervised import Momentum

_FORMAT_VERSION = 2
DAMAGES = (OSError, EOFError, RuntimeError, UnpicklingError, LookupError, TypeError, AttributeError, ValueError)
"""What reading a file of torch.save raises that is missing, damaged or another program's."""
_LONGEST = 300  # characters about a field that differs
# What may change in the middle of a training.
_FREE = {"chunk", "held_out", "evaluate_every", "save_every"}


@dataclass(frozen=True)
class TrainingState:
    """A training after `step` optimiser steps, which took the first `step` batches of the order.

    `best_score` is the highest that was seen so far, at `best_step`. `unscored`: the evaluation of this step has not
    ended. `extras` are what terms train beside the model.
    """

    run: Run
    seed: int
    nouns: tuple[str, ...]
    photos: CaptionedPhotos
    model: GroupViT
    optimizer: torch.optim.Optimizer
    average: AveragedModel | None
    step: int = 0
    best_step: int | None = None
    best_score: float = -math.inf
    unscored: bool = False
    extras: nn.ModuleDict = field(default_factory=nn.ModuleDict)

    @property
    def weights(self) -> GroupViT:
        """The model to evaluate and to ship: the average where there is one."""
        return self.model if self.average is None else cast(GroupViT, self.average.module)

    def advance(self) -> "TrainingState":
        """Return the same training one optimiser step on."""
        if self.average is not None:
            self.average.update_parameters(self.model)
        for module in self.extras.modules():
            if isinstance(module, Momentum):
                module.follow((self.step + 1) / self.run.schedule.steps)
        return replace(self, step=self.step + 1, unscored=False)

    def scored(self, scores: dict[str, float]) -> "TrainingState":
        """Return the training with this step as the best one if the first of its scores is the highest so far."""
        score, state = next(iter(scores.values()), -math.inf), replace(self, unscored=False)
        return replace(state, best_step=self.step, best_score=score) if score > self.best_score else state

    def identity(self) -> dict[str, Any]:
        """Return what must be the same for a training to be continued."""
        run = self.run
        parts = {"data": run.data, "schedule": run.schedule, "optimizer": run.optimizer}
        fields = {name: {k: v for k, v in asdict(part).items() if k not in _FREE} for name, part in parts.items()}
        fields["objective"] = {term.name: asdict(term) for term in run.objective}
        fields["model"] = {**run.model.to_dict(), "rivals": ()}  # the nouns, once they are known
        contents = [f"{index.samples} photos with hash {index.content}" for index in self.photos.indexes]
        shards = dict(zip(_names([index.shard for index in self.photos.indexes]), contents, strict=True))
        return {**fields, "seed": self.seed, "nouns": list(self.nouns), "shards": shards}


def _names(shards: list[File]) -> list[str]:
    """Return the names without the folder that all share, so that the data as a whole may move."""
    paths = [shard for shard in shards if isinstance(shard, Path)]
    if len(paths) < len(shards):
        return [str(shard) for shard in shards]
    common = os.path.commonpath([path.parent for path in paths])
    return [str(path.relative_to(common)) for path in paths]


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Keep a second training out of the folder; the lock goes when the process does, however it ends."""
    refuse_remote(out)
    with input_error(f"cannot train into {out}", OSError, NotImplementedError):
        out.mkdir(parents=True, exist_ok=True)
        try:
            lock = FileLock(out / "lock", timeout=0).acquire()
        except Timeout:
            raise InputError(f"another training is writing to {out}; wait for it, or name another --out") from None
    with lock:
        yield


def folder_of(out: Path, step: int) -> Path:
    """Return the folder of a step's checkpoint."""
    return out / f"step-{step:08d}"


def is_saved(out: Path, step: int) -> bool:
    """Return True if the newest checkpoint is of this step."""
    with suppress(InputError):  # it was moved away
        return latest(out) == folder_of(out, step)
    return False


def last_saved(out: Path) -> str:
    """Say for messages which checkpoint a training can go on from."""
    try:
        last = latest(out)
    except InputError as error:
        return str(error)
    return f"the last checkpoint is {last}" if last else "there is no checkpoint yet"


def save(out: Path, state: TrainingState, *, keep: int = 2) -> Path:
    """Write `out/step-N`, move the pointers `latest` and `best`, and drop all but the newest `keep` and the best.

    A pointer moves only after everything is on disk: a crash or a full disk leaves the previous checkpoint in place. Of
    a step that is saved already only `training.pt` is written again.
    """
    folder = folder_of(out, state.step)
    try:
        if is_saved(out, state.step):
            _write_training(folder, state)
        else:
            with new_folder(folder, locked=True) as partial:
                native.save(partial, state.weights, replace(state.run.model, rivals=state.nouns))
                _write_training(partial, state)
                shutil.rmtree(folder, ignore_errors=True)
            write_atomically(out / "latest", folder.name.encode())
    except (OSError, RuntimeError, InputError) as error:
        disk = error.__context__  # over which torch raises an error of its own
        reason = disk if isinstance(error, RuntimeError) and isinstance(disk, OSError) else error
        raise InputError(f"cannot save to {folder}: {reason}; {last_saved(out)}") from error
    steps = set(out.glob(f"step-{'[0-9]' * 8}"))
    kept = set(sorted(path for path in steps if path.name <= folder.name)[-keep:])
    if state.best_step is not None:
        best = folder_of(out, state.best_step)
        write_atomically(out / "best", best.name.encode())
        kept.add(best)
    # Older ones, and what a killed process or a step back left. A file that another process still reads may stay: the
    # next save tries again.
    for other in (steps | set(out.glob(f"step-{'[0-9]' * 8}.partial"))) - kept:
        shutil.rmtree(other, ignore_errors=True)
    return folder


def _write_training(folder: Path, state: TrainingState) -> None:
    part = folder / "training.pt.partial"
    with part.open("wb") as file:
        torch.save(_document(state), file)
        file.flush()
        os.fsync(file.fileno())
    part.replace(folder / "training.pt")
    sync_folder(folder)


def _document(state: TrainingState) -> dict[str, Any]:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {
        "format_version": _FORMAT_VERSION,
        "identity": state.identity(),
        "step": state.step,
        "best_step": state.best_step,
        "best_score": state.best_score,
        "unscored": state.unscored,
        "held_out": state.run.data.held_out,
        "optimizer": state.optimizer.state_dict(),  # the schedule is a function of the step
        "model": state.model.state_dict() if state.average is not None else None,
        "extras": state.extras.state_dict(),
        "generators": {"cpu": torch.get_rng_state(), "cuda": cuda},
    }


def restore(out: Path, state: TrainingState) -> TrainingState:
    """Read the newest checkpoint of `out` into the model, average and optimiser of a fresh `state` of the same run."""
    folder = latest(out)
    if folder is None:
        raise InputError(f"{out} holds no checkpoint to resume; train without --resume")
    damaged = partial(
        input_error, f"{folder}/training.pt is damaged or missing", *DAMAGES, advice="resume from another step"
    )
    with damaged():
        saved = torch.load(folder / "training.pt", map_location="cpu", weights_only=True)
        version = saved["format_version"]
        identity = _identity_of(saved, state.run) if version == _FORMAT_VERSION else {}
    if version != _FORMAT_VERSION:
        raise InputError(
            f"{folder}/training.pt has format {version}, and this groupvit reads {_FORMAT_VERSION}: finish it with the"
            f" version that wrote it, or start a new training from its weights with --init {folder}"
        )
    if differing := list(differences(identity, plain(state.identity()))):
        more = f" and {len(differing) - 5} more" if len(differing) > 5 else ""
        raise InputError(f"{folder} is another training: {'; '.join(differing[:5])}{more}; resume with the same")
    weights, _ = native.load(folder)
    state.weights.load_state_dict(weights.state_dict())
    with damaged():
        if state.average is not None:
            state.model.load_state_dict(saved["model"])
            state.average.n_averaged.fill_(saved["step"])
        state.optimizer.load_state_dict(saved["optimizer"])
        state.extras.load_state_dict(saved["extras"])
        torch.set_rng_state(saved["generators"]["cpu"])
        if torch.cuda.is_available() and len(saved["generators"]["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(saved["generators"]["cuda"])
        state = replace(state, **{name: saved[name] for name in ("step", "best_step", "best_score", "unscored")})
        others = saved["held_out"] != state.run.data.held_out
    if state.best_step is None or others or not folder_of(out, state.best_step).is_dir():  # after a step back
        (out / "best").unlink(missing_ok=True)
        return replace(state, best_step=None, best_score=-math.inf)
    return state


def _identity_of(saved: dict[str, Any], run: Run) -> dict[str, Any]:
    """Return the identity of a saved training as this version writes it."""
    identity = plain(saved["identity"])
    identity["model"] = plain(ModelConfig.from_dict(identity["model"]).to_dict())
    for part in ("data", "schedule", "optimizer"):
        fields = vars(getattr(run, part)).keys() - identity[part].keys() - _FREE  # those that came later
        identity[part] |= {name: getattr(type(getattr(run, part)), name, None) for name in fields}
    if saved["step"] == identity["schedule"]["steps"] < run.schedule.steps:
        identity["schedule"]["steps"] = run.schedule.steps  # a finished training may go on for longer
    return identity


def plain(value: Any) -> Any:
    """Turn tuples into lists: earlier versions wrote either."""
    return json.loads(json.dumps(value))


def differences(saved: Any, now: Any, name: str = "") -> Iterator[str]:
    """Yield `schedule.lr was 0.001 and is 0.002` for every field that differs, at any depth."""
    if isinstance(saved, dict) and isinstance(now, dict):
        for key in saved | now:
            yield from differences(saved.get(key), now.get(key), f"{name}.{key}" if name else key)
    elif saved != now and name == "nouns":
        gone, new = set(saved or ()) - set(now), set(now) - set(saved or ())
        told = f"{len(gone)} nouns of its vocabulary are gone and {len(new)} are new"
        yield told if gone or new else "the nouns of its vocabulary are in another order"
    elif saved != now:
        yield shorten(f"{name} was {saved} and is {now}", _LONGEST, placeholder=" …")  # a list may name thousands
