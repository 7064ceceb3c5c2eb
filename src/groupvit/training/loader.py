"""The photos, the vocabulary and the batches that a process learns from."""

import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from groupvit.data.batches import Batch, Batches, RandomCrops
from groupvit.data.index import CaptionedPhotos
from groupvit.data.order import BatchSampler, Order
from groupvit.data.storage import File
from groupvit.data.tar import FAULTS
from groupvit.data.transforms import jitter_color
from groupvit.data.workers import received
from groupvit.errors import InputError
from groupvit.text.imagenet import imagenet_texts
from groupvit.text.nouns import vocabulary
from groupvit.text.tokenizer import Tokenizer
from groupvit.training.distributed import World
from groupvit.training.objective import MultiLabel, Nouns, Objective, Teacher, Vocabulary, terms_of
from groupvit.training.run import Data
from groupvit.training.self_supervised import Classify
from groupvit.training.state import TrainingState
from groupvit.training.trunk_cache import TrunkCache, cached

_PREFETCH_BYTES = 2**27


def open_photos(shards: Sequence[File], processes: int) -> CaptionedPhotos:
    """Open the training photos, indexed first where they are not; say on stderr what was left out."""
    photos = CaptionedPhotos.open(shards, processes=processes)
    if faults := Counter(fault.kind for index in photos.indexes for fault in index.faults):
        kinds = ", ".join(f"{count} x {FAULTS[kind]}" for kind, count in faults.most_common())
        print(f"left out of the training: {kinds}; groupvit data doctor names them", file=sys.stderr)
    return photos


def make_vocabulary(data: Data, objective: Objective, photos: CaptionedPhotos, tokenizer: Tokenizer) -> Vocabulary:
    """Return the nouns of the training captions and tags that are frequent enough to learn."""
    classes = imagenet_texts() if terms_of(objective, Teacher) else ()
    if not (terms_of(objective, Nouns) or terms_of(objective, Classify)):
        return Vocabulary.from_counts({}, len(photos), tokenizer, classes)
    in_photos, known = photos.noun_counts()
    counts = vocabulary(in_photos, data.min_count)
    if not counts:
        least = f"no noun stands in the captions of {data.min_count} photos of {data.train}"
        raise InputError(f"{least}; need more data (nouns are English)")
    # Photos whose source could not say the noun do not make it rare.
    expected = {noun: count * len(photos) / known[noun] for noun, count in counts.items()}
    return Vocabulary.from_counts(expected, len(photos), tokenizer, classes)


def batches_from(
    state: TrainingState, folder: Path, workers: int, device: torch.device, world: World
) -> Iterator[Batch]:
    """Return this process's shares of all batches from the state on; `folder` is that of the trunk's maps."""
    data, model, prompts = state.run.data, state.run.model, terms_of(state.run.objective, MultiLabel)
    cache = None
    if data.cached_crops:
        crops = RandomCrops(state.photos, state.seed, model.image.image_size, data.crop, data.cached_crops)
        with world.first_goes_first():  # it makes the trunk's maps that are missing
            cache = cached(state.model.image_encoder, crops, folder, device, workers=workers)
    batches = Batches(
        photos=state.photos,
        seed=state.seed,
        image_size=model.image.image_size,
        scale=data.crop,
        augmentation=data.augment,
        prompts=prompts[0].prompts if prompts else 0,
        noun_style=prompts[0].style if prompts else "paper",
        vocabulary=state.nouns,
        tokenizer=Tokenizer(model.text.context_length),
        cached=cache.rows if cache else None,
    )
    order, place = Order(state.photos.counts, state.seed), {"rank": world.rank, "world": world.size}
    # Batches wait in shared memory, two for each worker unless they are large.
    large = 3 * model.image.image_size**2 * data.batch_size // world.size > _PREFETCH_BYTES
    loader = DataLoader(
        batches,
        sampler=BatchSampler(order, data.batch_size, start=state.step * data.batch_size, **place),
        batch_size=None,
        collate_fn=Batch.share if workers else None,  # pyright: ignore[reportArgumentType]
        num_workers=workers,
        prefetch_factor=(1 if large else 2) if workers else None,
        pin_memory=device.type == "cuda",
        worker_init_fn=_leave_process_group,
        generator=torch.Generator(),  # the DataLoader draws a number from it, which must not be one of ours
    )
    return (_on(device, batch, cache) for batch in received(loader))


def _on(device: torch.device, batch: Batch, cache: TrunkCache | None) -> Batch:
    """Put a batch on the device, with the trunk's maps or the last part of the augmentation, quicker in batches."""
    batch = batch.to(device)
    if cache:
        return replace(batch, early=tuple(each.to(device) for each in cache.read(batch.rows, batch.mirrored)))
    return replace(batch, images=jitter_color(batch.images, batch.color)) if len(batch.color) else batch


def _leave_process_group(worker: int) -> None:
    """Leave the process group, which Ctrl-C reaches: a dead worker would end the training without a save."""
    if hasattr(os, "setpgrp"):
        os.setpgrp()
