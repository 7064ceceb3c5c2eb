"""Peak memory of a training step on a CPU, by batch size, with the encoders in chunks.

    python -m benchmarks.memory --batches 1024 2048 4096 --record

A step of GroupViT-S at 224 px with K = 3 prompts, in bfloat16, AdamW's state in place: every photo and text encoded
without a graph, the loss and its gradient over all, and the first chunks replayed (the others would need no more). Each
batch size runs in a process of its own, whose peak resident memory is read when it ends. What the whole batch with one
graph would need is computed from two batches that fit.
"""

import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
import tyro
from experiments.record import commit, report_table

from groupvit.data.batches import Batch
from groupvit.machine import peak_memory
from groupvit.models import build_model, noise
from groupvit.text.tokenizer import Tokenizer
from groupvit.training.distributed import World, connected
from groupvit.training.objective import MultiLabel, Vocabulary, terms_of
from groupvit.training.optim import parameter_groups
from groupvit.training.run import Run
from groupvit.training.runs import get_run
from groupvit.training.step import Learner, gradient_of

REPLAYED = 3
_WORDS = ("dog", "street", "man", "red", "water", "runs", "on", "the", "grass", "with", "a", "small", "ball", "city")


class _Enough(Exception):
    """Enough chunks were replayed."""


def random_batch(size: int, run: Run) -> Batch:
    """Noise for photos; captions of 5 to 25 words and prompts of the usual length."""
    rng, tokenizer = np.random.default_rng(0), Tokenizer(run.model.text.context_length)
    captions = [" ".join(rng.choice(_WORDS, rng.integers(5, 26))) for _ in range(size)]
    prompted = terms_of(run.objective, MultiLabel)
    count = prompted[0].prompts if prompted else 0
    prompts = [f"a photo of a {rng.choice(_WORDS)}." for _ in range(size * count)]
    side = run.model.image.image_size
    images = torch.from_numpy(rng.integers(0, 256, (size, 3, side, side), dtype=np.uint8))
    no_nouns, human = torch.zeros(size, 0, dtype=torch.bool), torch.ones(size, dtype=torch.bool)
    return Batch(images, tokenizer(captions), tokenizer(prompts).unflatten(0, (size, count)), no_nouns, no_nouns, human)


def step(size: int, chunk: int, world: World) -> None:
    """The step of one batch, of which each process has its share; prints seconds and bytes."""
    run = get_run("groupvit-s-gcc-yfcc")
    share = size // world.size
    torch.manual_seed(0)
    model = build_model(run.model).train()
    optimizer = torch.optim.AdamW(parameter_groups(model, run.optimizer), fused=True)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    batch, began = random_batch(share, run), time.perf_counter()
    words = Vocabulary.from_counts({}, 1, Tokenizer(run.model.text.context_length))
    replayed = 0

    def stop(module: torch.nn.Module, given: object) -> None:
        nonlocal replayed
        replayed += torch.is_grad_enabled()
        if chunk and replayed > REPLAYED:
            raise _Enough

    model.image_encoder.register_forward_pre_hook(stop)
    keys = noise.sample_keys(0, 0, torch.arange(share) + world.rank * share)
    learner = Learner(model, run.objective, words, True, world)
    with suppress(_Enough):
        gradient_of(learner, chunk)(batch, keys)
    if chunk:  # which the cut-off step left out
        world.average_gradients(learner.parameters())
    if not world.rank:
        print(f"{time.perf_counter() - began} {peak_memory()}")


def measure(size: int, chunk: int, processes: int = 1) -> tuple[float, float]:
    """Seconds and peak bytes of a step in a process of its own, or of the first one of several."""
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m"]
    several = torchrun * (processes > 1)
    command = [sys.executable, "-m", *several, "benchmarks.memory", "--one", str(size), "--chunk", str(chunk)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
    seconds, peak = map(float, done.stdout.split()[-2:])
    return seconds, peak


def main(
    batches: tuple[int, ...] = (1024, 2048, 4096),
    chunk: int = 32,
    whole: tuple[int, int] = (16, 32),
    one: int = 0,
    record: bool = False,
) -> None:
    """Print the table.

    Args:
        batches: Photos in a batch.
        chunk: Photos encoded at a time.
        whole: Two batches with one graph, from which the largest of `batches` is computed.
        one: Measure this batch only, in this process.
        record: Write the table to docs/results.json and docs/SCALING.md.
    """
    if one:
        with connected() as (world, _):
            step(one, chunk, world)
        return
    began_at, rows = commit() if record else "", []
    peaks = {}
    for size in batches:
        seconds, peaks[size] = measure(size, chunk)
        way = f"chunks of {chunk}, {REPLAYED} replayed"
        rows.append({"batch": f"{size:,}", "way": way, "peak, GB": f"{peaks[size] / 1e9:.2f}"})
        print(f"{size}: {peaks[size] / 1e9:.2f} GB, {seconds:.0f} s", file=sys.stderr)
    slope, rest = np.polyfit(list(peaks), list(peaks.values()), 1) if len(peaks) > 1 else (np.nan, np.nan)
    fitted = f"{rest / 1e9:.2f} + {slope / 1e6:.3f} for 1,000 photos"
    rows.append({"batch": "fitted", "way": "line through these", "peak, GB": fitted})
    for size in batches[-2:]:
        _, peak = measure(size, chunk, processes=2)
        rows.append({"batch": f"{size:,}", "way": "two processes, each one's peak", "peak, GB": f"{peak / 1e9:.2f}"})
        print(f"{size}, two processes: {peak / 1e9:.2f} GB", file=sys.stderr)
    small, large = (measure(size, 0)[1] for size in whole)
    each = (large - small) / (whole[1] - whole[0])
    computed = small + each * (max(batches) - whole[0])
    rows.append(
        {
            "batch": f"{max(batches):,}",
            "way": f"one graph, computed from {whole[0]} and {whole[1]} photos ({each / 1e6:.0f} MB a photo)",
            "peak, GB": f"{computed / 1e9:.0f}",
        }
    )
    report_table("SCALING.md", "memory", rows, began_at)


if __name__ == "__main__":
    tyro.cli(main)
