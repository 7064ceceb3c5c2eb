"""What a run is made of: a model, data, an objective, a schedule and an optimiser."""

from dataclasses import dataclass, field, replace
from typing import Any

from groupvit.models import ModelConfig
from groupvit.models.config import ViTConfig
from groupvit.training.data import Data
from groupvit.training.objective import Objective, Teacher
from groupvit.training.optim import Optimizer, Schedule


@dataclass(frozen=True)
class Run:
    """What a training is made of besides its data folder and its seed.

    `paper`, `cost` and `expected` say which row the run reproduces, what it costs, and what it should score; they are
    the table of docs/TRAINING.md.
    """

    model: ModelConfig
    data: Data
    objective: Objective
    schedule: Schedule
    optimizer: Optimizer = field(default_factory=Optimizer)
    paper: str = ""
    cost: str = ""
    expected: str = ""


def vary(run: Run, **changes: Any) -> Run:
    """Return the run with other fields of its own or of its data, schedule and optimiser: `vary(run, steps=10)`."""
    for name in ("data", "schedule", "optimizer"):
        part = getattr(run, name)
        of_part = {field: changes.pop(field) for field in vars(part) if field in changes}
        run = replace(run, **{name: replace(part, **of_part)})
    return replace(run, **changes)


def with_vit(run: Run, vit: ViTConfig) -> Run:
    """Return the run on top of a ViT, which has neither a classifier that teaches nor maps that are cached."""
    image = replace(run.model.image, stem="vit", vit=vit, patch_size=vit.patch_size)
    objective = tuple(term for term in run.objective if not isinstance(term, Teacher))
    return vary(run, model=replace(run.model, image=image, teacher_loss=False), objective=objective, cached_crops=0)
