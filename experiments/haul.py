"""A long training with faults drawn at random; and what the index and the doctor need for millions of samples.

    python -m experiments.haul --minutes 90 --faults 100 --seed 0 --record      # tables of docs/RELIABILITY.md
    python -m experiments.haul --samples 3000000 --record

The disturbed training is killed, asked to stop, gets no more room on its disk, or loses a shard. It goes on each time
with another number of data workers, and must end with the weights of an undisturbed one, which runs beside it. After an
interruption the same command goes on after the last fault.
"""

import io
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import tyro
from experiments.kills import PHOTOS, RUN, finish, step_of, training, weights
from experiments.record import commit, report_table
from PIL import Image

from groupvit.data import scenes
from groupvit.data.shards import Sample, write_shards
from groupvit.files import write_atomically

FAULTS = ("SIGKILL", "SIGTERM", "full disk", "vanished shard")
PER_SHARD = 10_000
STATE = "state.json"
_LEFT = 100_000  # bytes that a full disk has left: for lines of metrics, but for no checkpoint


def _end(child: subprocess.Popen[bytes], fault: str) -> str:
    """Wait for a disturbed training to end; a traceback is an error."""
    _, message = child.communicate(timeout=600)
    if b"Traceback" in message:
        raise RuntimeError(f"{fault}: {message.decode()}")
    return message.decode()


def _disturb(folder: Path, child: subprocess.Popen[bytes], steps: int, fault: str) -> None:
    """Let a fault happen to a training, and end it."""
    out, shard = folder / "hauled", next((folder / "data" / "train").glob("*.tar"))
    if fault == "full disk":
        metrics = out / "metrics.jsonl"
        full = _LEFT + (metrics.stat().st_size if metrics.is_file() else 0)
        resource.prlimit(child.pid, resource.RLIMIT_FSIZE, (full, full))
        if "cannot save" not in (said := _end(child, fault)):  # at its next checkpoint
            raise RuntimeError(f"a full disk did not hinder it: {said}")
        return
    if fault == "vanished shard":  # who has it open reads on; nobody starts without it
        shard.rename(shard.with_suffix(".gone"))
        try:
            child.kill()
            _end(child, fault)
            before, other = step_of(out), training(folder / "data", out, steps, 1)
            said = _end(other, fault)
            if not other.returncode or step_of(out) != before:
                raise RuntimeError(f"it trains without its shard: {said}")
        finally:
            shard.with_suffix(".gone").rename(shard)
        return
    child.send_signal(signal.SIGKILL if fault == "SIGKILL" else signal.SIGTERM)
    _end(child, fault)


def _steps_in(folder: Path, seconds: float) -> int:
    """Return how many steps a training takes in that time, its start included, but enough for a checkpoint."""
    began, trial = time.monotonic(), folder / "trial"
    finish(training(folder / "data", trial, 30, 1))
    took = time.monotonic() - began
    last = json.loads((trial / "metrics.jsonl").read_text().splitlines()[-1])
    rate = last["photos_per_second"] / RUN.data.batch_size
    return max(20, int(30 + rate * (seconds - took)))


def _wait(child: subprocess.Popen[bytes], out: Path, chance: random.Random, steps: float) -> None:
    """Wait for so many steps on average, and a moment; every fourth time a few seconds, while the training starts."""
    starting = chance.random() < 0.25
    goal = 0 if starting else step_of(out) + 2 * chance.random() * steps
    while child.poll() is None and step_of(out) < goal:
        time.sleep(0.02)
    time.sleep(chance.uniform(0, 10 if starting else 1))


def _haul(folder: Path, state: dict[str, Any], faults: int, seed: int) -> None:
    """Disturb the training as often as asked, and let it end; keep in the state what happened and how long it took."""
    out, steps, happened = folder / "hauled", state["steps"], state["happened"]
    began = time.monotonic() - state["seconds"]
    while (number := len(happened)) < faults and step_of(out) < steps:
        chance = random.Random(f"{seed} {number}")
        child, fault = training(folder / "data", out, steps, number % 3), chance.choice(FAULTS)
        _wait(child, out, chance, (steps - 10 - step_of(out)) / (faults - number))
        if child.poll() is not None:
            finish(child)  # it has ended before the last fault
            continue
        _disturb(folder, child, steps, fault)
        happened.append(fault)
        state["seconds"] = time.monotonic() - began
        write_atomically(folder / STATE, json.dumps(state).encode())
        print(f"{number + 1}: {fault}, goes on from step {step_of(out)} of {steps}", file=sys.stderr)
    finish(training(folder / "data", out, steps, 1))
    state["seconds"] = time.monotonic() - began


def haul(folder: Path, minutes: float, faults: int, seed: int) -> dict[str, Any]:
    """Disturb a training, as often as asked, while it takes about so many minutes; compare it with one in peace."""
    if not (folder / STATE).is_file():
        shutil.rmtree(folder, ignore_errors=True)
        scenes.write(folder / "data", train=PHOTOS, evaluation=1)
        shutil.copytree(folder / "data", folder / "quiet")  # no shard vanishes here
        steps = faults * _steps_in(folder, 60 * minutes / faults)
        state = {"commit": commit(), "steps": steps, "seconds": 0, "happened": []}
        write_atomically(folder / STATE, json.dumps(state).encode())
    for gone in folder.glob("data/train/*.gone"):  # an interruption came while the shard was away
        gone.rename(gone.with_suffix(".tar"))
    state = json.loads((folder / STATE).read_text())
    with training(folder / "quiet", folder / "peace", state["steps"], 1) as peace:
        try:
            _haul(folder, state, faults, seed)
            finish(peace)
        finally:
            peace.kill()
    wanted, hauled = weights(folder / "peace"), weights(folder / "hauled")
    return {
        "minutes": round(state["seconds"] / 60),
        **{fault: state["happened"].count(fault) for fault in FAULTS},
        "steps": state["steps"],
        "tensors": len(wanted),
        "tensors that differ in any bit": sum(value != hauled[name] for name, value in wanted.items()),
        "commit": state["commit"],
    }


def _memory(pid: int) -> int:
    """Return the bytes that a process and those it has started hold, shared ones once."""
    held, processes = 0, [pid]
    while processes:
        process = Path(f"/proc/{processes.pop()}")
        try:
            rollup = (process / "smaps_rollup").read_text().split()
            held += 1024 * int(rollup[rollup.index("Pss:") + 1])
            children = (task.read_text() for task in process.glob("task/*/children"))
            processes += [int(child) for text in children for child in text.split()]
        except (OSError, ValueError):
            pass  # it has ended
    return held


def _command(*words: str) -> tuple[float, float]:
    """Run a command of groupvit on one core; return its seconds and the most GB it held."""
    began, peak = time.monotonic(), 0
    with subprocess.Popen([sys.executable, "-m", "groupvit", "data", *words], stdout=subprocess.DEVNULL) as child:
        while child.poll() is None:
            peak = max(peak, _memory(child.pid))
            time.sleep(0.1)
    if child.returncode not in (0, 1):
        raise RuntimeError(f"groupvit data {words[0]}: exit code {child.returncode}")
    return time.monotonic() - began, peak / 1e9


def _write_samples(folder: Path, samples: int) -> None:
    """Write synthetic samples: four squares of colours drawn by number, and a caption with that number."""

    def sample(number: int) -> Sample:
        file, colours = io.BytesIO(), random.Random(number).randbytes(12)
        Image.frombytes("RGB", (2, 2), colours).resize((64, 64), Image.Resampling.NEAREST).save(file, "JPEG")
        return Sample(f"{number:09d}", file.getvalue(), (f"a dog and a cat beside the house number {number}",))

    write_shards(map(sample, range(samples)), folder, prefix="s", per_shard=PER_SHARD)


def measure_samples(folder: Path, samples: int) -> list[dict[str, Any]]:
    """Index and examine a third of the samples, then all; extrapolate to the authors' photos."""
    rows, peaks = list[dict[str, Any]](), list[tuple[float, float]]()
    for count in (samples // 3, samples):
        _write_samples(folder / str(count), count)
        index = _command("index", str(folder / str(count)), "--processes", "1")
        doctor = _command("doctor", str(folder / str(count)), "--processes", "1")
        rows.append(_row(f"{count:,}", index, doctor))
        peaks.append((index[1], doctor[1]))
    more = (28_663_147 - samples) / (samples - samples // 3)
    index, doctor = (last + more * (last - first) for first, last in zip(*peaks, strict=True))
    return [*rows, _row("28,663,147, by the slope", (0, index), (0, doctor))]


def _row(samples: str, index: tuple[float, float], doctor: tuple[float, float]) -> dict[str, Any]:
    seconds = {f"{name}, s": round(took) or "" for name, (took, _) in (("index", index), ("doctor", doctor))}
    return {"samples": samples, **seconds, "index, GB": f"{index[1]:.2f}", "doctor, GB": f"{doctor[1]:.2f}"}


def main(
    out: Path = Path("runs/haul"),
    minutes: float = 10,
    faults: int = 10,
    seed: int = 0,
    samples: int = 0,
    record: bool = False,
) -> None:
    """Disturb a training; or, with `samples`, measure the index and the doctor.

    Args:
        out: Folder of the trainings.
        minutes: How long the disturbed training takes, about.
        faults: How many.
        seed: Of the faults and their moments.
        samples: How many to index and examine instead.
        record: Write the result into docs/RELIABILITY.md and docs/results.json.
    """
    began, name = commit() if record else "", f"{minutes:g}-minutes-{faults}-faults-seed{seed}"
    with tempfile.TemporaryDirectory() as folder:
        # One answer to what is faster here, for good: another one would change the weights.
        os.environ["XDG_CACHE_HOME"] = f"{folder}/cache" if samples else str((out / name / "cache").absolute())
        rows = measure_samples(Path(folder), samples) if samples else [haul(out / name, minutes, faults, seed)]
    report_table("RELIABILITY.md", "samples" if samples else "haul", rows, began)


if __name__ == "__main__":
    tyro.cli(main)
