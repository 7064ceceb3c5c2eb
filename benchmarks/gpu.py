"""GroupViT-S on one GPU: photos a second in training and inference, beside `transformers`, percent of peak, memory.

    python -m benchmarks.gpu [--record]

Training is the published recipe at 224 px with three prompts a photo, in bfloat16, AdamW included, with one graph and
in chunks, compiled and not; `transformers` takes a batch that fits. "% of peak" is the FLOPs of our step (a replayed
chunk's first pass is not counted, nor the padding that `transformers` encodes), over the rate of large matrix products
in bfloat16 on the same GPU.
"""

import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
import tyro
from benchmarks import peer
from benchmarks.memory import random_batch
from benchmarks.peak import flops, matrix_rate
from benchmarks.training_step import our_step, their_step
from experiments.record import commit, report_table
from experiments.scaling import count_flops

from groupvit.models import build_model, normalize
from groupvit.training.run import Run
from groupvit.training.runs import get_run

Row = dict[str, str]
STEPS = 3


def clock() -> float:
    """Seconds, once the GPU has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def measured(work: Callable[[], object], photos: int) -> tuple[float, float]:
    """Photos a second, the median of some calls after a first one, and peak bytes."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    work()
    seconds = []
    for _ in range(STEPS):
        start = clock()
        work()
        seconds.append(clock() - start)
    return photos / statistics.median(seconds), torch.cuda.max_memory_allocated()


def row(work: str, batch: int, make: Callable[[], Callable[[], object]], gflop: float, peak: float) -> Row:
    try:
        speed, memory = measured(make(), batch)
    except (torch.OutOfMemoryError, NotImplementedError) as error:
        why = "does not fit" if isinstance(error, torch.OutOfMemoryError) else "cannot compile here"
        numbers = {"photos/s": why, "% of peak": "", "peak, GB": ""}
    else:
        share = f"{100 * speed * gflop * 1e9 / peak:.0f}"
        numbers = {"photos/s": f"{speed:,.0f}", "% of peak": share, "peak, GB": f"{memory / 1e9:.1f}"}
    print(f"{work}: {', '.join(numbers.values())}", flush=True)  # the rest may not fit into the time
    return {"work": work, "batch": f"{batch:,}", **numbers}


def trained(
    run: Run, batch_size: int, device: torch.device, peak: float, *, chunk: int = 0, theirs: bool = False
) -> list[Row]:
    """Our step with one graph, with a `chunk` in chunks, too, and before them that of `transformers`."""
    each, whole = count_flops(batch_size)
    batch, gflop = random_batch(batch_size, run).to(device), (each + whole / batch_size) / 1e9
    ways: dict[str, Callable[[], Callable[[], object]]] = {}
    if theirs:
        ways["training, transformers"] = partial(their_step, run, batch, bfloat16=True)
    for size in (0, chunk) if chunk else (0,):
        name = f"training, chunks of {size:,}" if size else "training, one graph"
        for compiled in (False, True):
            ways[name + ", compiled" * compiled] = partial(our_step, run, batch, chunk=size, compiled=compiled)
    return [row(work, batch_size, make, gflop, peak) for work, make in ways.items()]


@torch.inference_mode()
def encoded(run: Run, side: int, batch: int, device: torch.device, peak: float) -> list[Row]:
    """The image encoder alone, and that of `transformers` at the only size it takes."""
    model = build_model(run.model).eval()
    with torch.inference_mode(mode=False), torch.no_grad():
        gflop = flops(lambda: model.image_encoder(torch.zeros(1, 3, side, side))) / 1e9
    ways: dict[str, Callable[..., object]] = {}
    if side == run.model.image.image_size:
        ways[", transformers"] = partial(peer.port(model, run.model).vision_model.to(device), output_attentions=True)
    ways[""] = model.image_encoder.to(device)
    images = torch.randint(0, 256, (batch, 3, side, side), dtype=torch.uint8, device=device)

    def encode(encoder: Callable[..., object]) -> None:
        with torch.autocast(device.type, torch.bfloat16):
            encoder(normalize(images))

    return [
        row(f"inference, {side} px{name}", batch, lambda way=way: partial(encode, way), gflop, peak)
        for name, way in ways.items()
    ]


def main(batch: int = 4096, chunk: int = 512, record: bool = False) -> None:
    """Print the table.

    Args:
        batch: Photos a step.
        chunk: Photos that are encoded at a time in the cached steps.
        record: Write the table to docs/RESULTS.md and docs/results.json.
    """
    if not torch.cuda.is_available():
        raise SystemExit("error: no CUDA device here; `make bench` measures a CPU")
    began, device, run = commit() if record else "", torch.device("cuda"), get_run("groupvit-s-gcc-yfcc")
    peak = matrix_rate(torch.bfloat16, clock, device=device, side=8192)
    rows = [row for side, size in ((224, 512), (448, 128)) for row in encoded(run, side, size, device, peak)]
    rows += trained(run, chunk, device, peak, theirs=True) + trained(run, batch, device, peak, chunk=chunk)
    report_table("RESULTS.md", "speed_gpu", rows, began)


if __name__ == "__main__":
    tyro.cli(main)
