"""The batches that a process learns from."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from groupvit.data.batches import Batch, Batches, RandomCrops
from groupvit.data.order import BatchSampler, Order
from groupvit.data.transforms import jitter_color
from groupvit.data.workers import received
from groupvit.text.tokenizer import Tokenizer
from groupvit.training.distributed import World
from groupvit.training.objective import MultiLabel, terms_of
from groupvit.training.state import TrainingState
from groupvit.training.trunk_cache import TrunkCache, cached

_PREFETCH_BYTES = 2**27


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
        sampler=BatchSampler(order, data.batch_size, start=state.position, **place),
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
