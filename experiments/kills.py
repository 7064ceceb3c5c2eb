"""A training that is killed again and again, against the same training in peace: are the weights equal to the bit?

    python -m experiments.kills --kills 20 --record      # a table of docs/RELIABILITY.md

The killed one is sent SIGKILL at random moments, every second time while a checkpoint is being written, and goes on
with another number of workers each time.
"""

import ctypes
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import tyro
from experiments.record import commit, report_table
from safetensors.torch import load_file

from groupvit.checkpoints import latest
from groupvit.cli import main as groupvit
from groupvit.data import scenes
from groupvit.models import ImageEncoderConfig, ModelConfig, Stage, TextEncoderConfig
from groupvit.training import runs
from groupvit.training.objective import Captions, MultiLabel, Nouns
from groupvit.training.optim import Optimizer, Schedule
from groupvit.training.run import Data, Run

RUN = Run(
    model=ModelConfig(
        image=ImageEncoderConfig(32, 8, 32, 2, stages=(Stage(1, 4, 4),), drop_path=0.1, stem="conv"),
        text=TextEncoderConfig(width=32, heads=2, layers=1, context_length=24),
        embed_dim=16,
        projector_dim=32,
        segment_loss=True,
    ),
    data=Data("train/*.tar", batch_size=16, augment="color", min_count=2),
    objective=(Captions(), MultiLabel(prompts=2), Nouns("segment", 1.0)),
    schedule=Schedule(steps=1, warmup=0, save_every=7),  # how many steps, the number of kills says
    optimizer=Optimizer(ema=0.99),
)
PHOTOS = 100  # an epoch is 6.25 steps: batches straddle epochs, and checkpoints fall into the middle of them


def training(data: Path, out: Path, steps: int, workers: int) -> subprocess.Popen[bytes]:
    """Start or resume the training."""
    options = f"--held-out= --steps {steps} --workers {workers}".split() + ["--resume"] * bool(step_of(out))
    command = [sys.executable, "-m", "experiments.kills", "train", "kills", "--data", str(data), "--out", str(out)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, *options],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        preexec_fn=_end_with_parent,
    )


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: a script that is killed leaves no training behind


def finish(child: subprocess.Popen[bytes]) -> None:
    """Wait for a training that must end well."""
    if child.wait():
        _, message = child.communicate()
        raise RuntimeError(message.decode())
    child.communicate()


def step_of(out: Path) -> int:
    """Return the last step that is safe."""
    folder = latest(out) if out.exists() else None
    return int(folder.name.removeprefix("step-")) if folder else 0


def weights(out: Path) -> dict[str, bytes]:
    """Return the weights of the newest checkpoint."""
    folder = latest(out)
    assert folder
    return {name: tensor.numpy().tobytes() for name, tensor in load_file(folder / "model.safetensors").items()}


def _kill_once(data: Path, out: Path, steps: int, number: int, chance: random.Random) -> dict[str, Any]:
    workers, saving, before = number % 3, number % 2 == 1, step_of(out)
    for earlier in out.glob("*.partial"):  # of a kill before this one
        shutil.rmtree(earlier)
    child = training(data, out, steps, workers)
    # Every fourth is killed while it starts, the others some time after their first new checkpoint.
    deadline = time.monotonic() + (chance.uniform(0, 5) if number % 4 == 0 else 600)
    while child.poll() is None and step_of(out) == before and time.monotonic() < deadline:
        time.sleep(0.005)
    if step_of(out) > before:
        time.sleep(chance.uniform(0, 0.2))
    while saving and child.poll() is None and not list(out.glob("*.partial")):
        pass
    if child.poll() is not None:
        finish(child)
        raise RuntimeError(f"the training ended before kill {number + 1}: more steps are needed")
    os.kill(child.pid, signal.SIGKILL)
    child.communicate()
    return {"workers": workers, "step": step_of(out), "saving": bool(list(out.glob("*.partial")))}


def compare(folder: Path, kills: int) -> dict[str, Any]:
    """Compare both trainings in `folder`: count the tensors of their last checkpoints that differ in any bit."""
    scenes.write(folder / "data", train=PHOTOS, evaluation=1)
    steps = 40 + 30 * kills
    finish(training(folder / "data", folder / "peace", steps, workers=2))
    chance, moments = random.Random(0), []
    for number in range(kills):
        moments.append(_kill_once(folder / "data", folder / "killed", steps, number, chance))
        print(f"kill {number + 1}: {moments[-1]}", file=sys.stderr)
    finish(training(folder / "data", folder / "killed", steps, workers=1))
    peace, killed = weights(folder / "peace"), weights(folder / "killed")
    return {
        "kills": kills,
        "of them while a checkpoint was written": sum(moment["saving"] for moment in moments),
        "went on from steps": ", ".join(str(moment["step"]) for moment in moments),
        "steps": steps,
        "tensors": len(peace),
        "tensors that differ in any bit": sum(value != killed[name] for name, value in peace.items()),
    }


def main(kills: int = 20, record: bool = False) -> None:
    """Kill and compare.

    Args:
        kills: How often.
        record: Write the result into docs/RELIABILITY.md and docs/results.json.
    """
    began = commit() if record else ""
    with tempfile.TemporaryDirectory() as folder:
        row = compare(Path(folder), kills)
    report_table("RELIABILITY.md", "kills", [row], began)


if __name__ == "__main__":
    if sys.argv[1:2] == ["train"]:
        runs.RUNS["kills"] = RUN
        groupvit(sys.argv[1:])
    else:
        tyro.cli(main)
