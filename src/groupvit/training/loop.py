"""Pre-training, top to bottom: shards in, a checkpoint out."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import FrameType

import numpy as np
import torch
from jaxtyping import UInt8

from groupvit.checkpoints import latest
from groupvit.data.batches import Batch
from groupvit.data.shards import find_shards
from groupvit.data.storage import File
from groupvit.errors import InputError
from groupvit.machine import bfloat16_is_faster, enough_memory, usable
from groupvit.models import GroupViT, noise, temperature
from groupvit.text.tokenizer import Tokenizer
from groupvit.training.distributed import ALONE, World, mark_started
from groupvit.training.health import Alarm, distinct_share, watched
from groupvit.training.loader import batches_from, make_vocabulary, open_photos
from groupvit.training.monitor import EVERY, Progress, draw_curves
from groupvit.training.objective import OF_CAPTIONS, Captions, terms_of
from groupvit.training.optim import set_rate
from groupvit.training.prepare import prepare
from groupvit.training.run import Run, check
from groupvit.training.state import TrainingState, is_saved, last_saved, locked, save
from groupvit.training.step import Gradient, Learner, compile_blocks, gradient_of, step

Evaluate = Callable[[GroupViT], dict[str, float]]
Draw = Callable[[GroupViT, int], UInt8[np.ndarray, "height width 3"] | None]

SKIPS = 10  # steps on end without a finite gradient: there is no hope
_UNREAD = "another process cannot read its data; its message says why"
_GO, _STOP, _FAILED = 0, 1, 2  # what a process asks for before a step; the largest wish of all counts


@enough_memory("encode fewer photos at a time with --chunk, or take a smaller --batch-size or fewer --workers")
def train(
    run: Run,
    data: Path | str,
    out: Path | str,
    *,
    seed: int = 0,
    resume: bool = False,
    workers: int = 1,
    indexers: int = 1,
    keep: int = 2,
    device: torch.device | None = None,
    evaluate: Evaluate | None = None,
    draw: Draw | None = None,
    init: Path | str | None = None,
    world: World = ALONE,
    tensorboard: bool = False,
    compiled: bool = False,
    trunk: Path | str | None = None,
    cache: Path | str | None = None,
) -> TrainingState:
    """Train `run` on the shards of `data` into the folder `out`; return the state it ended in.

    docs/TRAINING.md says what it writes, and what its options do. SIGINT, SIGTERM and data that cannot be read end it
    with a checkpoint. With `resume` it goes on from the newest one, to the bit as if it had not been interrupted, or
    for more steps than it was made for.

    `evaluate` scores the model each `evaluate_every` steps, and at the end; without it nothing is scored.
    `evaluation.emergence.evaluation_of` makes it of the run's held-out photos, as `groupvit train` does.
    `init` is a checkpoint's folder or file (`api.locate` finds the bundled ones).
    `draw` gets the model and the step before the first and after each one; TensorBoard shows the pictures it returns.
    `workers` processes read the data; `indexers` index shards that have no index, and need a main module that can be
    imported. A trunk has its published weights, a "vit" those in the folder or file `trunk`; its maps are kept in the
    folder `cache`.
    Each process of several (`distributed.connected`) calls this with its own `world`; the first one writes.
    """
    first, out = world.rank == 0, Path(out)
    init, trunk = (Path(path) if path else None for path in (init, trunk))
    shards = find_shards(run.data.train, below=data)
    if evaluate and run.data.held_out.endswith(".tar"):
        _refuse_both(shards, find_shards(run.data.held_out, below=data))
    device = usable(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if not resume:
        _must_be_new(out)
    check(run, seed, workers, keep, world.size)
    with world.first_goes_first():  # it indexes the shards that are not
        photos = open_photos(shards, indexers)
    if all(isinstance(term, OF_CAPTIONS) for term in run.objective) and not photos.human_share():
        raise InputError(f"{run.data.train}: all photos have tags, and this run learns from captions alone")
    if len(photos) < run.data.batch_size:
        raise InputError(f"a batch of {run.data.batch_size} photos, of which there are {len(photos)}: make it smaller")
    words = make_vocabulary(run.data, run.objective, photos, Tokenizer(run.model.text.context_length)).to(device)
    with locked(out) if first else nullcontext():
        if first and not resume:  # another training may have come and gone while the data were indexed
            _must_be_new(out)
        bfloat16 = not world.largest(int(not bfloat16_is_faster(device)), device)  # of all processes
        state = prepare(run, seed, photos, words.nouns, device, bfloat16, init, trunk, out if resume else None)
        if len(set(world.texts(f"{state.step} {state.identity()}"))) > 1:
            raise InputError("the processes see different data or checkpoints: give all the same --data and --out")
        mark_started(out, world)
        if first and not bfloat16:
            print("bfloat16 is slower on a processor here, so the training is in float32", file=sys.stderr)
        if compiled and state.step < run.schedule.steps:
            compile_blocks(state.model)
        batches = batches_from(state, Path(cache or out / "cache"), workers, device, world)
        learner = Learner(state.model, run.objective, words, bfloat16, world, state.extras)
        gradient = gradient_of(learner, run.data.chunk)
        with closing(_progress(state, out, tensorboard, world)) as progress:
            tests = (evaluate, draw) if first else (None, None)
            state = _loop(state, learner, gradient, batches, progress, out, keep, *tests, device, world)
        world.wait()  # until the first one has saved
        if first:
            draw_curves(out / "metrics.jsonl", out / "curves.png")
        return state


def _refuse_both(train: Sequence[File], held_out: Sequence[File]) -> None:
    if both := {*train} & {*held_out}:
        raise InputError(f"{min(map(str, both))} is among --train and among --held-out: score other photos")


def _must_be_new(out: Path) -> None:
    if last := latest(out):
        raise InputError(f"{out} holds a training at {last}; add --resume to continue it, or name another --out")
    if (out / "transfer.pt").exists():
        raise InputError(f"{out} holds a transfer; name another --out")


def _progress(state: TrainingState, out: Path, tensorboard: bool, world: World) -> Progress:
    run = state.run
    human = run.data.batch_size * state.photos.human_share()
    chance = sum((term.chance(human) for term in terms_of(run.objective, Captions)), start=0.0)
    file = None if world.rank else out / "metrics.jsonl"
    alarm = Alarm(run.schedule.warmup, chance)
    return Progress(file, state.step, run.schedule.steps, run.data.batch_size, alarm, tensorboard=tensorboard)


@contextmanager
def stop_requests() -> Iterator[list[int]]:
    """Collect signals that ask to stop: the loop ends after the step it is in. A second Ctrl-C interrupts at once.

    Other signals do not: schedulers and torchrun may send one twice, or one after the other. A terminal that closes
    (SIGHUP) is one, too, unless nohup has it ignored. Only the main thread of a process can take any.
    """
    received: list[int] = []

    def receive(number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT and number in received:
            raise KeyboardInterrupt
        received.append(number)
        if number == signal.SIGINT:
            with suppress(OSError):
                os.write(2, b"\nstops after this step; Ctrl-C again: at once, and what is not saved is lost\n")

    numbers = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    main = threading.current_thread() is threading.main_thread()
    handlers = {number: signal.signal(number, receive) for number in numbers if main}
    try:
        yield received
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _loop(
    state: TrainingState,
    learner: Learner,
    gradient: Gradient,
    batches: Iterator[Batch],
    progress: Progress,
    out: Path,
    keep: int,
    evaluate: Evaluate | None,
    draw: Draw | None,
    device: torch.device,
    world: World,
) -> TrainingState:
    model, schedule = state.model, state.run.schedule
    share = state.run.data.batch_size // world.size
    positions = torch.arange(share, device=device) + world.rank * share
    scales = {name: scale for name, scale in model.named_parameters() if name.endswith("logit_scale")}
    if not state.step:
        _drawn(state, draw, progress, out, keep)
    if evaluate and state.unscored:
        state = _evaluated(state, evaluate, progress, out, keep)
    with stop_requests() as stop:
        while state.step < schedule.steps:
            try:
                with progress.waiting():
                    batch = next(batches)
            except InputError as error:
                batch = error
            # The signal may have reached the processes that read, too: then there is no batch, and nothing is wrong.
            wish = world.largest(_STOP if stop else _FAILED if isinstance(batch, InputError) else _GO, device)
            if wish == _STOP:
                break
            if wish == _FAILED or isinstance(batch, InputError):
                try:
                    _save_once(out, state, keep, world)
                finally:
                    with suppress(RuntimeError):  # one that is gone hides no reason
                        world.wait()  # until the first one has saved: torchrun ends it soon after another one
                raise batch if isinstance(batch, InputError) else InputError(_UNREAD)
            progress.left_out(batch.unreadable)
            set_rate(state.optimizer, rate := schedule.rate(state.step))
            keys = noise.sample_keys(state.seed, state.step, positions)
            with watched(model.image_encoder, active=(reported := (state.step + 1) % EVERY == 0)) as health:
                terms, norm = step(learner, partial(gradient, batch, keys), state.optimizer)
            for extra in state.extras.values() if reported else ():
                health |= extra.health  # pyright: ignore[reportOperatorIssue]
            if reported and batch.human.any():
                health["distinct_captions"] = distinct_share(batch.captions[batch.human])
            state = state.advance()
            temperatures = {name: temperature(scale) for name, scale in scales.items()}
            progress.step(state.step, rate, {**terms, "grad_norm": norm, **temperatures, **health})
            if progress.skips_on_end == SKIPS:
                raise InputError(f"no finite gradient in {SKIPS} steps up to {state.step - 1}; {last_saved(out)}")
            ended = state.step == schedule.steps
            if evaluate and (ended or state.step % schedule.evaluate_every == 0):
                state = _evaluated(state, evaluate, progress, out, keep)
            _drawn(state, draw, progress, out, keep)
            if ended or state.step % schedule.save_every == 0:
                _save_once(out, state, keep, world)
                progress.restart_clock(state.step)
        _save_once(out, state, keep, world)
    return state


def _evaluated(state: TrainingState, evaluate: Evaluate, progress: Progress, out: Path, keep: int) -> TrainingState:
    """Save, evaluate, and save what came out: whatever ends an evaluation, no step is lost, and `train` repeats it."""
    if not is_saved(out, state.step):
        save(out, replace(state, unscored=True), keep=keep)
    state.weights.eval()
    scores = {name: float(score) for name, score in evaluate(state.weights).items()}
    state.model.train()
    progress.write(state.step, scores)
    state = state.scored(scores)
    save(out, state, keep=keep)
    progress.restart_clock(state.step)
    return state


def _drawn(state: TrainingState, draw: Draw | None, progress: Progress, out: Path, keep: int) -> None:
    try:
        picture = draw(state.weights, state.step) if draw else None
    except (InputError, RuntimeError, MemoryError):  # of which a picture is no reason to lose steps
        if state.step:
            save(out, state, keep=keep)
        raise
    if picture is not None:
        progress.show(state.step, picture)


def _save_once(out: Path, state: TrainingState, keep: int, world: World) -> None:
    if not world.rank and state.step and not is_saved(out, state.step):
        save(out, state, keep=keep)
