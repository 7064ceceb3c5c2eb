"""What a run is made of: a model, data, an objective, a schedule and an optimiser."""

from dataclasses import dataclass, field, replace
from typing import Any, get_args

from groupvit.checkpoints.trunks import PUBLISHED
from groupvit.data.batches import Augmentation
from groupvit.errors import InputError
from groupvit.models import ModelConfig
from groupvit.models.config import ViTConfig
from groupvit.training.objective import Nouns, Objective, Teacher, terms_of
from groupvit.training.optim import Optimizer, Schedule
from groupvit.training.self_supervised import PhotoTerm


@dataclass(frozen=True)
class Data:
    """The photos of a run and what is drawn from them.

    `train` and `held_out` are patterns of shards inside the data folder (`held_out` may be a folder with masks).
    `chunk` photos are encoded at a time (0: the whole batch; see `step`). `crop` is the share of a photo's area.
    `augment` adds to crop and mirror: `color` changes brightness, contrast and saturation, `randaugment` is the
    release's RandAugment and erasing. `min_count` is how many photos must have a noun for the noun losses to learn it.
    `cached_crops` is how many crops of a photo are put through the trunk before the training (see `trunk_cache`; 0:
    photos are read, cropped and encoded at every step).
    """

    train: str
    batch_size: int
    held_out: str = ""
    chunk: int = 0
    crop: tuple[float, float] = (0.08, 1.0)
    augment: Augmentation = "crop"
    min_count: int = 10
    cached_crops: int = 0


@dataclass(frozen=True)
class Run:
    """What a training is made of besides its data folder and its seed.

    docs/TRAINING.md says which row of the paper each named run reproduces, what it costs and what it should score.
    """

    model: ModelConfig
    data: Data
    objective: Objective
    schedule: Schedule
    optimizer: Optimizer = field(default_factory=Optimizer)


def check(run: Run, seed: int, workers: int, keep: int, processes: int = 1) -> None:
    """Refuse numbers that make no training, and parts that do not go together, as an `InputError`."""
    data, schedule, names = run.data, run.schedule, [term.name for term in run.objective]
    teaches, nouns = terms_of(run.objective, Teacher), terms_of(run.objective, Nouns)
    positive = (schedule.steps, schedule.evaluate_every, schedule.save_every, data.batch_size, keep)
    if min(positive) < 1 or min(workers, data.chunk) < 0 or not 0 <= seed < 2**63:
        raise InputError(
            "steps (also between evaluations and saves), batch size and keep are at least 1, workers and chunk at least"
            " 0, the seed 0 to 2**63 - 1"
        )
    if schedule.steps >= 10**8:
        raise InputError("steps are at most 99,999,999")
    if not names or len(set(names)) < len(names):
        raise InputError(f"an objective has at least one term, and one of each name: {', '.join(names) or 'none'}")
    if data.augment not in get_args(Augmentation):
        raise InputError(f"no augment {data.augment!r}: there are {', '.join(get_args(Augmentation))}")
    if (nouns and not run.model.segment_loss) or (teaches and not run.model.teacher_loss):
        raise InputError("the noun losses need a model with segment_loss, the teacher one with teacher_loss")
    if data.cached_crops and data.augment != "crop":
        raise InputError("crops are cached as they are: their colours cannot be changed")
    if (data.cached_crops or teaches) and run.model.image.stem not in PUBLISHED:
        raise InputError("only an EfficientNet-Lite as the trunk has maps to cache and a classifier to learn from")
    if any(isinstance(term, PhotoTerm) for term in run.objective) and (data.chunk or data.cached_crops):
        raise InputError("dino, moco and classify see whole batches of fresh photos: no chunks and no cached crops")
    if data.batch_size // processes < 2:
        raise InputError("a caption is learnt beside others: a batch has at least two photos in each process")


def vary(run: Run, **changes: Any) -> Run:
    """Return the run with other fields of its own or of its parts: `vary(run, steps=10)`.

    The parts are data, schedule, optimiser and the model's image encoder.
    """
    image = {field: changes.pop(field) for field in vars(run.model.image) if field in changes}
    run = replace(run, model=replace(run.model, image=replace(run.model.image, **image)))
    for name in ("data", "schedule", "optimizer"):
        part = getattr(run, name)
        of_part = {field: changes.pop(field) for field in vars(part) if field in changes}
        run = replace(run, **{name: replace(part, **of_part)})
    return replace(run, **changes)


def with_vit(run: Run, vit: ViTConfig) -> Run:
    """Return the run on top of a ViT, which has neither a classifier that teaches nor maps that are cached."""
    objective = tuple(term for term in run.objective if not isinstance(term, Teacher))
    run = replace(run, model=replace(run.model, teacher_loss=False), objective=objective)
    return vary(run, stem="vit", vit=vit, patch_size=vit.patch_size, cached_crops=0)
