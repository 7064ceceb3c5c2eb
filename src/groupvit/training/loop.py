"""Pre-training, top to bottom: shards in, a checkpoint out."""

import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import FrameType

import numpy as np
import torch
from jaxtyping import Int64
from torch import nn
from torch.utils.data import DataLoader

from groupvit.checkpoints import latest, load
from groupvit.checkpoints.native import check
from groupvit.checkpoints.trunks import PUBLISHED, load_trunk
from groupvit.data.batches import Batch, Batches, RandomCrops, decode, received
from groupvit.data.index import CaptionedPhotos
from groupvit.data.memory import Photos
from groupvit.data.order import BatchSampler, Order
from groupvit.data.shards import FAULTS, find_shards
from groupvit.data.storage import File
from groupvit.data.transforms import jitter_color
from groupvit.errors import InputError
from groupvit.machine import bfloat16_is_faster
from groupvit.models import GroupViT, build_model, noise, temperature
from groupvit.models.layers import resampled
from groupvit.text.imagenet import imagenet_texts
from groupvit.text.nouns import vocabulary
from groupvit.text.tokenizer import Tokenizer
from groupvit.training.cached_batch import backward
from groupvit.training.compiled import compile_blocks
from groupvit.training.curves import draw
from groupvit.training.distributed import ALONE, Processes, mark_started
from groupvit.training.health import Alarm, caption_chance, distinct_share, watched
from groupvit.training.objective import Vocabulary
from groupvit.training.optim import learning_rate, make_optimizer, set_rate
from groupvit.training.progress import EVERY, Progress, tracked
from groupvit.training.runs import Run
from groupvit.training.state import TrainingState, average_of, folder_of, last_saved, locked, restore, save
from groupvit.training.trunk_cache import TrunkCache, cached

Evaluate = Callable[[GroupViT], dict[str, float]]

_SKIPS = 10  # steps on end without a finite gradient: there is no hope
_PREFETCH_BYTES = 2**27


@contextmanager
def _stop_requests() -> Iterator[list[int]]:
    """Signals that ask to stop, collected: the loop ends after the step it is in. A second one interrupts at once."""
    received: list[int] = []

    def receive(number: int, _: FrameType | None) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    handlers = {number: signal.signal(number, receive) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _leave_process_group(worker: int) -> None:
    """Ctrl-C reaches the whole process group; a worker that died of it would end the training without a save."""
    if hasattr(os, "setpgrp"):
        os.setpgrp()


def open_photos(shards: Sequence[File], processes: int) -> CaptionedPhotos:
    """The training photos, indexed first where they are not; what was left out is said on stderr."""
    photos = CaptionedPhotos.open(shards, processes=processes, progress=tracked("indexing shards"))
    if faults := Counter(fault.kind for index in photos.indexes for fault in index.faults):
        kinds = ", ".join(f"{count} x {FAULTS[kind]}" for kind, count in faults.most_common())
        print(f"left out of the training: {kinds}; groupvit data doctor names them", file=sys.stderr)
    return photos


def make_vocabulary(run: Run, photos: CaptionedPhotos, tokenizer: Tokenizer) -> Vocabulary:
    """The nouns of the training captions and tags that are frequent enough to learn."""
    classes = imagenet_texts() if run.teacher_weight else ()
    if not (run.segment_weight or run.patch_weight):
        return Vocabulary.from_counts({}, len(photos), tokenizer, run.balance, classes)
    found, known = photos.noun_counts()
    counts = vocabulary(found, run.min_count)
    if not counts:
        raise InputError(f"no noun stands in the captions of {run.min_count} photos of {run.train}; need more data")
    # Photos whose source could not say the noun do not make it rare.
    expected = {noun: count * len(photos) / known[noun] for noun, count in counts.items()}
    return Vocabulary.from_counts(expected, len(photos), tokenizer, run.balance, classes)


def initialise(model: GroupViT, source: Path) -> None:
    """Gives `model` the weights of a checkpoint, whose positions are resampled if it saw images of another size.

    Raises `InputError` for a checkpoint of another architecture.
    """
    trained, _ = load(source)
    positions = trained.image_encoder.pos_embed
    if model.image_encoder.pos_embed is not None and positions is not None:
        side = int(model.image_encoder.pos_embed.shape[1] ** 0.5)
        with torch.no_grad():
            trained.image_encoder.pos_embed = nn.Parameter(resampled(positions, side, side).clone())
    check(trained.state_dict(), model.state_dict(), source)
    model.load_state_dict(trained.state_dict())


def _start(
    run: Run,
    seed: int,
    nouns: tuple[str, ...],
    photos: CaptionedPhotos,
    device: torch.device,
    init: Path | None,
    trunk: Path | None,
    resume: bool,
) -> TrainingState:
    torch.manual_seed(seed)
    model = build_model(run.model)
    own = model.image_encoder.trunk
    if init and not resume:
        initialise(model, init)
    elif own is not None and not resume:
        own.load_state_dict(load_trunk(run.model.image.stem, trunk).state_dict())
    if own is not None:
        own.requires_grad_(False)
    model = model.to(device).train()
    return TrainingState(run, seed, nouns, photos, model, make_optimizer(model, run), average_of(model, run.ema))


def _cache(state: TrainingState, folder: Path, device: torch.device, workers: int, ranks: Processes) -> TrunkCache:
    """The trunk's maps of the run's crops; where they are missing the first process makes them."""
    run = state.run
    crops = RandomCrops(state.photos, state.seed, run.model.image.image_size, run.crop, run.cached_crops)
    if ranks.rank:
        ranks.wait()
    cache = cached(
        state.model.image_encoder,
        crops,
        folder,
        device,
        workers=workers,
        progress=tracked("caching the trunk"),
        say=lambda line: print(line, file=sys.stderr),
    )
    if not ranks.rank:
        ranks.wait()
    return cache


def _load(
    state: TrainingState,
    sizes: Int64[np.ndarray, "photos 2"] | None,
    cache: TrunkCache | None,
    workers: int,
    pin: bool,
    ranks: Processes,
) -> Iterator[Batch]:
    run, size = state.run, state.run.model.image.image_size
    batches = Batches(
        state.photos,
        state.seed,
        size,
        run.crop,
        run.augment,
        run.prompts,
        run.noun_style,
        state.nouns,
        Tokenizer(run.model.text.context_length),
        sizes,
        None if cache is None else cache.rows,
    )
    order = Order(state.photos.counts, state.seed)
    sampler = BatchSampler(order, run.batch_size, start=state.position, rank=ranks.rank, world=ranks.world)
    loader = DataLoader(
        batches,
        sampler=sampler,
        batch_size=None,
        num_workers=workers,
        # Batches wait in shared memory, two for each worker unless they are large.
        prefetch_factor=(1 if 3 * size**2 * run.batch_size // ranks.world > _PREFETCH_BYTES else 2)
        if workers
        else None,
        pin_memory=pin,
        worker_init_fn=_leave_process_group,
        generator=torch.Generator(),  # the DataLoader draws a number from it, which must not be one of ours
    )
    return received(loader)


def _augmented(batch: Batch, memory: Photos | None, cache: TrunkCache | None, size: int) -> Batch:
    """The last part of the augmentation, which is quicker in batches."""
    if cache:
        device = batch.captions.device
        return replace(batch, early=tuple(each.to(device) for each in cache.read(batch.rows, batch.mirrored)))
    images = memory.crop(batch.rows, batch.boxes, batch.mirrored, size) if memory else batch.images
    return replace(batch, images=jitter_color(images, batch.color) if len(batch.color) else images)


def _must_be_new(out: Path) -> None:
    if last := latest(out):
        raise InputError(f"{out} holds a training at {last}; add --resume to continue it, or name another --out")


def train(
    run: Run,
    data: Path | str,
    out: Path,
    *,
    seed: int = 0,
    resume: bool = False,
    workers: int = 1,
    processes: int = 1,
    keep: int = 2,
    device: torch.device | None = None,
    evaluate: Evaluate | None = None,
    init: Path | None = None,
    ranks: Processes = ALONE,
    tensorboard: bool = False,
    compiled: bool = False,
    trunk: Path | None = None,
    cache: Path | None = None,
) -> TrainingState:
    """Train `run` on the shards of `data` into the folder `out`; returns the state it ended in.

    Writes `out/step-*/` (the newest `keep` checkpoints and the one with the best first value of `evaluate`;
    `out/latest` and `out/best` name them) and `out/metrics.jsonl`. SIGINT or SIGTERM ends the training after the
    current step with a checkpoint, and so does data that cannot be read. With `resume` it goes on from the newest
    checkpoint, to the bit as if it had not been interrupted: order, augmentation and noise depend on (seed, step,
    sample) alone. `workers` processes read the data; shards without an index are indexed by `processes`, which need a
    main module that can be imported. `init` is a checkpoint whose weights a new training starts with.

    `out/curves.png` shows the metrics where matplotlib is installed; with `tensorboard` they go to event files, too.
    With `compiled` the transformer blocks are fused (`compile_blocks`), but not in float32 on a CPU. A CPU on
    which bfloat16 is slower trains in float32.

    A trunk starts with its published weights, a "vit" with those in the folder `trunk` (`load_vit`). `cache` is the
    folder of the trunk's maps (`out/cache` by default), which trainings of one run may share.

    Of several processes (`distributed.joined`) each calls this with its own of the `ranks`; the first one writes,
    evaluates and reports.
    """
    shards = find_shards(run.train, below=data)
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if run.precision == "bfloat16" and ranks.any(not bfloat16_is_faster(device), device):
        run = replace(run, precision="float32")
        if not ranks.rank:
            print("bfloat16 is slower on a processor here, so the training is in float32", file=sys.stderr)
    if compiled and device.type == "cpu" and run.precision == "float32":
        compiled = False  # PyTorch's compiler would use its own, slower product
        if not ranks.rank:
            print("in float32 a CPU is quicker without compiling, so nothing is compiled", file=sys.stderr)
    if not resume:
        _must_be_new(out)
    if run.in_memory and run.augment == "randaugment":
        raise InputError("RandAugment works on photos that are read one by one, not on those kept in memory")
    if run.cached_crops and (run.in_memory or run.augment != "crop"):
        raise InputError("crops are cached as they are: neither are photos kept in memory, nor their colours changed")
    if (run.cached_crops or run.teacher_weight) and run.model.image.stem not in PUBLISHED:
        raise InputError("only an EfficientNet-Lite as the trunk has maps to cache and a classifier to learn from")
    if run.mix and (run.batch_size // ranks.world % 4 or run.chunk % 4):
        raise InputError(
            f"photos share attention in fours, so batch ({run.batch_size}) and chunk ({run.chunk}) are multiples of 4"
            + f" in each of {ranks.world} processes" * (ranks.world > 1)
        )
    if run.batch_size // ranks.world < 2:
        raise InputError("a caption is learnt beside others: a batch has at least two photos in each process")
    if ranks.rank:
        ranks.wait()  # for the indexes, which the first process makes where there are none
    photos = open_photos(shards, processes)
    if not ranks.rank:
        ranks.wait()
    words = make_vocabulary(run, photos, Tokenizer(run.model.text.context_length))
    with nullcontext() if ranks.rank else locked(out):
        if not (resume or ranks.rank):  # another training may have come and gone while the data were indexed
            _must_be_new(out)
        state = _start(run, seed, words.nouns, photos, device, init, trunk, resume)
        if resume:
            state = restore(out, state)
        if compiled:
            compile_blocks(state.model)
        if not ranks.agree(f"{state.step} {state.identity()}", device):
            raise InputError("the processes see different data or checkpoints: give all the same --data and --out")
        if not ranks.rank:
            mark_started(out)
        state = _train(state, out, words.to(device), device, workers, keep, evaluate, ranks, tensorboard, cache)
        if not ranks.rank:
            draw(out / "metrics.jsonl", out / "curves.png")
        ranks.wait()  # until the first one has saved
        return state


def _train(
    state: TrainingState,
    out: Path,
    words: Vocabulary,
    device: torch.device,
    workers: int,
    keep: int,
    evaluate: Evaluate | None,
    ranks: Processes,
    tensorboard: bool,
    cache_folder: Path | None,
) -> TrainingState:
    run, model, optimizer = state.run, state.model, state.optimizer
    saved = latest(out)
    memory, sizes = None, None
    if run.in_memory:
        decoded, sizes = decode(state.photos, run.in_memory, workers=workers, progress=tracked("decoding photos"))
        memory = decoded.to(device)
    cache = _cache(state, cache_folder or out / "cache", device, workers, ranks) if run.cached_crops else None
    share, first = run.batch_size // ranks.world, ranks.rank == 0
    positions = torch.arange(share, device=device) + ranks.rank * share
    scales = {name: scale for name, scale in model.named_parameters() if name.endswith("logit_scale")}
    skipped = 0
    alarm = Alarm(run.warmup, caption_chance(run))
    file = out / "metrics.jsonl" if first else None
    log = Progress(file, state.step, run.steps, run.batch_size, alarm, tensorboard=tensorboard)
    with _stop_requests() as stop, log as progress:
        batches = _load(state, sizes, cache, workers, device.type == "cuda", ranks)
        while state.step < run.steps and not ranks.any(bool(stop), device):
            batch, failure = None, InputError("another process cannot read its data; its message says why")
            try:
                with progress.waiting():
                    batch = next(batches).to(device)
            except InputError as error:
                failure = error
            if ranks.any(batch is None, device) or batch is None:
                if first and saved != folder_of(out, state.step):
                    save(out, state, keep=keep)
                raise failure
            progress.left_out(batch.unreadable)
            rate = learning_rate(
                state.step,
                steps=run.steps,
                warmup=run.warmup,
                peak=run.lr,
                start=run.lr_start,
                end=run.lr_end,
                warmup_prefix=run.warmup_prefix,
            )
            set_rate(optimizer, rate)
            buffers = [buffer.clone() for buffer in model.buffers()]  # statistics that a useless step would spoil
            keys = noise.sample_keys(state.seed, state.step, positions)
            batch = _augmented(batch, memory, cache, run.model.image.image_size)
            reported = (state.step + 1) % EVERY == 0
            with watched(model.image_encoder, active=reported) as health:
                terms = backward(model, batch, run, words, keys, mixed=run.mixed(state.step), processes=ranks)
            if reported and batch.human.any():
                health["distinct_captions"] = distinct_share(batch.captions[batch.human])
            norm = nn.utils.clip_grad_norm_(model.parameters(), run.clip_grad)
            if torch.isfinite(norm):
                optimizer.step()
                skipped = 0
            else:
                for buffer, value in zip(model.buffers(), buffers, strict=True):
                    buffer.copy_(value)
                skipped += 1
                progress.skipped(state.step)
            optimizer.zero_grad()
            if skipped == _SKIPS:
                raise InputError(f"no finite gradient in {_SKIPS} steps up to {state.step}; {last_saved(out)}")
            state = state.advance()
            loss = torch.stack(list(terms.values())).sum()
            temperatures = {name: temperature(scale) for name, scale in scales.items()}
            values = {"loss": loss, **terms, "grad_norm": norm, **temperatures, **health}
            progress.step(state.step, rate, values)
            last = state.step == run.steps
            if first and evaluate and (last or state.step % run.evaluate_every == 0):
                state.weights.eval()
                try:
                    scores = evaluate(state.weights)
                except InputError:
                    save(out, state, keep=keep)
                    raise
                model.train()
                progress.write(state.step, scores)
                state = state.scored(scores)
                progress.restart_clock(state.step)
            if first and (last or state.step % run.save_every == 0 or state.best_step == state.step):
                saved = save(out, state, keep=keep)
                progress.restart_clock(state.step)
        if first and saved != folder_of(out, state.step):
            save(out, state, keep=keep)
    return state
