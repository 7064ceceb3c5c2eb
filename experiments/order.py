"""The order of the paper's training, simulated: 28,663,147 photos in 4,270 shards, three epochs, many processes.

    python -m experiments.order --record      # a table of docs/RELIABILITY.md

Counts how often every photo comes in every epoch, and measures what the order costs one process.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import tyro
from experiments.record import commit, record_table
from jaxtyping import Int64

from groupvit.data.order import BatchSampler, Order
from groupvit.machine import peak_memory

SHARDS, BATCH, EPOCHS = 4_270, 4_096, 3
CHANGING = (1, 8, 1024, 64, 2, 512, 128)
PIECE = 2_500  # steps


def counts(samples: int) -> Int64[np.ndarray, " shards"]:
    """Return photos by shard: about equal, none empty."""
    draws = np.random.default_rng(0).multinomial(samples - SHARDS, np.full(SHARDS, 1 / SHARDS))
    return draws.astype(np.int64) + 1


def wrong(samples: int, worlds: Callable[[int], int]) -> int:
    """Count the photos that do not come exactly once in each epoch, summed over the epochs.

    `worlds` says how many processes there are from a step on. Each is given its own sampler, as it has in a training.
    """
    order = Order(counts(samples), seed=0)
    starts = np.cumsum(order.counts) - order.counts
    seen = np.zeros((EPOCHS, samples), dtype=np.uint8)
    steps = -(-EPOCHS * samples // BATCH)
    for step in range(0, steps, PIECE):
        world = worlds(step)
        for rank in range(world):
            batches = iter(BatchSampler(order, BATCH, start=step * BATCH, rank=rank, world=world))
            places = np.concatenate([next(batches) for _ in range(min(PIECE, steps - step))])
            places = places[places[:, 0] < EPOCHS]
            np.add.at(seen, (places[:, 0], starts[places[:, 1]] + places[:, 2]), 1)
    return int((seen != 1).sum())


def one_process(samples: int, world: int) -> dict[str, float]:
    """Measure steps, time and memory of the last of `world` processes; call it in a fresh process."""
    batches = iter(BatchSampler(Order(counts(samples), seed=0), BATCH, rank=world - 1, world=world))
    steps = -(-EPOCHS * samples // BATCH)
    start = time.process_time()
    drawn = sum(len(next(batches)) for _ in range(steps))
    microseconds = 1e6 * (time.process_time() - start) / drawn
    return {"steps": steps, "microseconds": microseconds, "memory": peak_memory() / 2**20}


def _alone(samples: int, world: int) -> dict[str, float]:
    command = [sys.executable, "-m", "experiments.order", "alone", str(samples), str(world)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def main(samples: int = 28_663_147, record: bool = False) -> None:
    """Simulate and count.

    Args:
        samples: Photos in all.
        record: Write the result into docs/RELIABILITY.md and docs/results.json.
    """
    began, rows = commit(), list[dict[str, Any]]()
    for world in (1, 8, 1024, 0):
        cost = _alone(samples, world) if world else None
        rows.append(
            {
                "processes": f"{world:,}" if world else f"{CHANGING}, each for {PIECE:,} steps",
                "steps of each": f"{cost['steps']:,}" if cost else "",
                "photos not seen exactly once in an epoch": wrong(
                    samples, lambda step, world=world: world or CHANGING[step // PIECE % len(CHANGING)]
                ),
                "µs a sample": f"{cost['microseconds']:.2f}" if cost else "",
                "peak memory of a process": f"{cost['memory']:.0f} MB" if cost else "",
            }
        )
        print(rows[-1])
    if record:
        record_table("RELIABILITY.md", "order", rows, began)


if __name__ == "__main__":
    if sys.argv[1:2] == ["alone"]:
        print(json.dumps(one_process(int(sys.argv[2]), int(sys.argv[3]))))
    else:
        tyro.cli(main)
