"""Pre-training, top to bottom: shards in, a checkpoint out."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from types import FrameType

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader

from groupvit.checkpoints import latest
from groupvit.data.batches import Batch, BatchMaker
from groupvit.data.shards import CaptionBatches, captions_of, find_shards
from groupvit.errors import InputError
from groupvit.models import GroupViT, build_model, noise, temperature
from groupvit.text.nouns import vocabulary
from groupvit.text.tokenizer import Tokenizer
from groupvit.training.objective import Vocabulary, loss_terms
from groupvit.training.optim import learning_rate, parameter_groups
from groupvit.training.progress import Progress
from groupvit.training.runs import Run
from groupvit.training.state import TrainingState, folder_of, restore, save

Evaluate = Callable[[GroupViT], dict[str, float]]


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


def _attention(device: torch.device) -> AbstractContextManager[object]:
    """On a CPU the gradient of fused attention is many times slower than matrix products at our short lengths."""
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()


def _next(batches: Iterator[Batch]) -> Batch:
    try:
        return next(batches)
    except InputError as error:  # from a worker it comes wrapped in the worker's traceback
        raise InputError(str(error).strip().splitlines()[-1].rpartition("InputError: ")[2]) from error


def make_vocabulary(run: Run, shards: list[Path], tokenizer: Tokenizer) -> Vocabulary:
    """The nouns of the training captions that are frequent enough to learn."""
    if not (run.segment_weight or run.patch_weight):
        return Vocabulary.from_counts({}, tokenizer)
    counts = vocabulary(captions_of(shards), run.min_count)
    if not counts:
        raise InputError(
            f"no noun stands in the captions of {run.min_count} photos of {shards[0].parent}; need more data"
        )
    return Vocabulary.from_counts(counts, tokenizer)


def train(
    run: Run,
    data: Path,
    out: Path,
    *,
    seed: int = 0,
    resume: bool = False,
    workers: int = 1,
    device: torch.device | None = None,
    evaluate: Evaluate | None = None,
) -> TrainingState:
    """Train `run` on the shards of `data` into the folder `out`; returns the state it ended in.

    Writes `out/step-*/` (checkpoints; `out/latest` names the newest) and `out/metrics.jsonl`. SIGINT or SIGTERM ends
    the training after the current step with a checkpoint. With `resume` it goes on from the newest checkpoint, to the
    bit as if it had not been interrupted: order, augmentation and noise depend on (seed, step, sample) alone.
    """
    shards = find_shards(data / run.train)
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not resume and latest(out):
        raise InputError(f"{out} holds a training at {latest(out)}; add --resume to continue it, or name another --out")
    tokenizer = Tokenizer(run.model.text.context_length)
    words = make_vocabulary(run, shards, tokenizer)
    torch.manual_seed(seed)
    model = build_model(run.model).to(device).train()
    groups = parameter_groups(model, run.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=run.lr, fused=True)
    state = TrainingState(run, seed, 0, words.nouns, model, optimizer)
    if resume:
        state = restore(out, state)
    saved = latest(out)
    words = words.to(device)
    maker = BatchMaker(run.model.image.image_size, run.crop, run.prompts, run.noun_style, words.nouns, tokenizer)
    stream = CaptionBatches(shards, batch_size=run.batch_size, seed=seed, make_batch=maker, start_batch=state.step)
    loader = DataLoader(
        stream,
        batch_size=None,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        worker_init_fn=_leave_process_group,
    )
    positions = torch.arange(run.batch_size, device=device)
    with _stop_requests() as stop, Progress(out / "metrics.jsonl", state.step, run.steps, run.batch_size) as progress:
        batches = iter(loader)
        while state.step < run.steps and not stop:
            batch = _next(batches).to(device)
            rate = learning_rate(
                state.step, steps=run.steps, warmup=run.warmup, peak=run.lr, start=run.lr_start, end=run.lr_end
            )
            for group in optimizer.param_groups:
                group["lr"] = rate
            keys = noise.sample_keys(seed, state.step, positions)
            with _attention(device), torch.autocast(device.type, torch.bfloat16, enabled=run.precision == "bfloat16"):
                terms = loss_terms(model, batch, run, words, keys)
                loss = torch.stack(list(terms.values())).sum()
            loss.backward()
            norm = nn.utils.clip_grad_norm_(model.parameters(), run.clip_grad)
            if not torch.isfinite(norm):
                raise InputError(f"the gradient is not finite at step {state.step}: the learning rate may be too high")
            optimizer.step()
            optimizer.zero_grad()
            state = state.advance()
            values = {"loss": loss, **terms, "grad_norm": norm, "logit_scale": temperature(model.logit_scale)}
            progress.step(state.step, rate, values)
            last = state.step == run.steps
            if evaluate and (last or state.step % run.evaluate_every == 0):
                model.eval()
                progress.write(state.step, evaluate(model))
                model.train()
                progress.restart_clock(state.step)
            if last or state.step % run.save_every == 0:
                saved = save(out, state)
                progress.restart_clock(state.step)
        if saved != folder_of(out, state):
            save(out, state)
    return state
