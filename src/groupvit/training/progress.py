"""What a training shows: a bar on a terminal, lines in a log, JSON lines in a file."""

import json
import sys
import time
from pathlib import Path
from types import TracebackType

from jaxtyping import Float
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from torch import Tensor

EVERY = 10


class Progress:
    """Reports each tenth step, with photos per second; the file keeps only the steps before the one resumed at."""

    def __init__(self, file: Path, step: int, steps: int, batch_size: int):
        file.parent.mkdir(parents=True, exist_ok=True)
        kept = [line for line in _lines(file) if json.loads(line)["step"] <= step]
        file.write_text("".join(kept))
        self.file = file.open("a")
        self.steps = steps
        self.batch_size = batch_size
        self.mark = (step, time.perf_counter())
        self.printed = 0.0
        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.bar = Bar(*columns, console=console, disable=not console.is_terminal)
        self.task = self.bar.add_task("training", total=steps, completed=step)

    def __enter__(self) -> "Progress":
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()
        self.file.close()

    def write(self, step: int, values: dict[str, float]) -> None:
        """One line of the metrics file, and of the terminal."""
        self.file.write(json.dumps({"step": step, **values}) + "\n")
        self.file.flush()
        self.bar.console.print(f"step {step}: " + ", ".join(f"{k} {v:.4g}" for k, v in values.items()), soft_wrap=True)

    def step(self, step: int, rate: float, values: dict[str, Float[Tensor, ""]]) -> None:
        """Called after every step; reads the tensors back only when it reports."""
        if step % EVERY and step != self.steps:
            return
        now = time.perf_counter()
        speed = (step - self.mark[0]) * self.batch_size / (now - self.mark[1])
        self.mark = (step, now)
        numbers = {name: float(value.detach()) for name, value in values.items()}
        line = {"step": step, **numbers, "lr": rate, "photos_per_second": speed, "time": time.time()}
        self.file.write(json.dumps(line) + "\n")
        self.file.flush()
        description = f"loss {numbers['loss']:.3f}, {speed:.0f} photos/s"
        self.bar.update(self.task, completed=step, description=description)
        if self.bar.disable and now - self.printed > 30:
            left = (self.steps - step) * self.batch_size / max(speed, 1e-9)
            print(f"step {step}/{self.steps}: {description}, {left / 60:.0f} min left", file=sys.stderr, flush=True)
            self.printed = now


def _lines(file: Path) -> list[str]:
    return file.read_text().splitlines(keepends=True) if file.exists() else []
