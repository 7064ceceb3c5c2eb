"""What a training shows: a bar on a terminal, lines in a log, JSON lines in a file, and their curves."""

import io
import json
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from jaxtyping import Float, UInt8
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from torch import Tensor

from groupvit.errors import InputError, input_error
from groupvit.files import write_atomically
from groupvit.machine import peak_memory
from groupvit.progress import LINE_EVERY
from groupvit.training.health import Alarm

EVERY = 10
_NO_EVENTS = "cannot write TensorBoard's event files"


class Progress:
    """Reports each tenth step: losses, health of the groups, photos per second, the share of the time spent waiting for
    data, photos left out, peak memory; and says it when the `alarm` sees a collapse.

    The file keeps only the steps before the one resumed at. Without a file nothing is shown: another process reports.
    """

    def __init__(
        self, file: Path | None, step: int, steps: int, batch_size: int, alarm: Alarm, *, tensorboard: bool = False
    ):
        self.file: TextIO | None = None
        self.board: Any = None
        if file:
            with input_error(f"cannot write {file}", OSError):
                write_atomically(file, "".join(_lines_until(file, step)).encode())
                self.file = file.open("a")
        if file and tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            # what an interrupted training wrote after this step is taken back
            self.board = SummaryWriter(str(file.parent), purge_step=step + 1)
        self.steps, self.batch_size, self.alarm = steps, batch_size, alarm
        self.unreadable = self.skips = self.skips_on_end = 0
        for line in file.read_text().splitlines() if file and step else []:  # what it has seen and told before
            with suppress(KeyError, TypeError, ValueError):  # of a line that is none of ours
                if "loss" in (earlier := json.loads(line)):
                    self.alarm.check(earlier["step"], earlier)
                self.unreadable, self.skips = int(earlier["unreadable"]), int(earlier["skipped"])
        self.at, self.told = step, (self.unreadable, self.skips)
        self.restart_clock(step)
        self.printed = 0.0
        console = Console(stderr=True, quiet=file is None)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.bar = Bar(*columns, console=console, disable=not console.is_terminal)
        self.task = self.bar.add_task("training", total=steps, completed=step)
        self.bar.start()

    def close(self) -> None:
        self.bar.stop()
        if (self.unreadable, self.skips) != self.told:  # since the last line: who goes on counts from here
            with suppress(InputError):
                self._append({"step": self.at, "unreadable": self.unreadable, "skipped": self.skips})
        if self.file:
            with suppress(OSError):  # what `_append` could not write, and has said so
                self.file.close()
        if self.board:
            with suppress(OSError):
                self.board.close()

    def write(self, step: int, values: dict[str, float]) -> None:
        """Write one line of the metrics file, and of the terminal."""
        self._append({"step": step, **values})
        self._say(f"step {step}: " + ", ".join(f"{k} {v:.4g}" for k, v in values.items()))

    def _say(self, line: str) -> None:
        with suppress(OSError, SystemExit):  # rich exits where nobody reads: a training outlives its terminal
            self.bar.console.print(line, soft_wrap=True, markup=False)

    def _append(self, values: dict[str, Any]) -> None:
        if not self.file:
            return
        with input_error(f"cannot write {self.file.name}", OSError, advice="resume when there is space"):
            self.file.write(json.dumps(values) + "\n")
            self.file.flush()
        if self.board:
            with input_error(_NO_EVENTS, OSError, advice="resume when there is space"):
                for name in values.keys() - {"step", "time", "warning"}:
                    self.board.add_scalar(name, values[name], values["step"])

    def show(self, step: int, picture: UInt8[np.ndarray, "height width 3"]) -> None:
        """Give a picture of the groups to TensorBoard."""
        if self.board:
            with input_error(_NO_EVENTS, OSError, advice="resume when there is space"):
                self.board.add_image("groups", picture, step, dataformats="HWC")
        self.restart_clock(step)

    def restart_clock(self, step: int) -> None:
        """Leave evaluating and saving out of the rate."""
        self.mark = (step, time.perf_counter())
        self.waited = 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time of the block as waiting for data."""
        start = time.perf_counter()
        yield
        self.waited += time.perf_counter() - start

    def left_out(self, photos: tuple[str, ...]) -> None:
        """Count photos that could not be decoded, and name the first ten."""
        for photo in photos[: max(0, 10 - self.unreadable)]:
            self._say(f"left out, its neighbour stands in: {photo}")
        self.unreadable += len(photos)

    def step(self, step: int, rate: float, values: dict[str, Float[Tensor, ""]]) -> None:
        """Report a step that was taken; read the tensors back only where it is one to report."""
        self.at = step
        if torch.isfinite(values["grad_norm"]):
            self.skips_on_end = 0
        else:
            self.skips, self.skips_on_end = self.skips + 1, self.skips_on_end + 1
            self._say(f"step {step - 1} skipped: its gradient is not finite")
        if not self.file or (step % EVERY and step != self.steps):
            return
        now = time.perf_counter()
        numbers = {name: float(value.detach()) for name, value in values.items()}
        speed = (step - self.mark[0]) * self.batch_size / (now - self.mark[1])
        data = {"data_wait": self.waited / (now - self.mark[1]), "unreadable": self.unreadable, "skipped": self.skips}
        self.restart_clock(step)
        memory = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else peak_memory()
        rates = {"lr": rate, "photos_per_second": speed, "memory_gb": memory / 1e9, "time": time.time()}
        warning = self.alarm.check(step, numbers | data)
        self._append({"step": step, **numbers, **data, **rates, **({"warning": warning} if warning else {})})
        self.told = self.unreadable, self.skips
        if warning:
            self._say(f"step {step}: warning: {warning}")
        description = f"loss {numbers['loss']:.3f}, {speed:.0f} photos/s"
        self.bar.update(self.task, completed=step, description=description)
        if self.bar.disable and now - self.printed > LINE_EVERY:
            left = (self.steps - step) * self.batch_size / max(speed, 1e-9)
            with suppress(OSError):
                print(f"step {step}/{self.steps}: {description}, {left / 60:.0f} min left", file=sys.stderr, flush=True)
            self.printed = now


def _lines_until(file: Path, step: int) -> Iterator[str]:
    """Yield the whole lines of the steps so far; a crash may have left half a line."""
    for line in file.read_text(errors="replace").splitlines(keepends=True) if file.exists() else []:
        with suppress(ValueError, KeyError, TypeError):
            if json.loads(line)["step"] <= step and line.endswith("\n"):
                yield line


def draw_curves(metrics: Path, picture: Path) -> Path | None:
    """Draw a small chart for each number in the metrics file; None without matplotlib or without two points."""
    curves = _curves(metrics)
    if find_spec("matplotlib") is None or not curves:
        return None
    from matplotlib.figure import Figure

    rows = -(-len(curves) // 4)
    figure = Figure((16, 2.4 * rows), dpi=80, layout="constrained")
    charts: Any = figure.subplots(rows, 4, squeeze=False)
    for chart, (name, points) in zip(charts.flat, curves.items(), strict=False):
        chart.plot(*zip(*points, strict=True), linewidth=1, marker="." if len(points) < 20 else "")
        chart.set_title(name, fontsize=9)
        chart.tick_params(labelsize=7)
        chart.grid(alpha=0.3)
    for chart in charts.flat[len(curves) :]:
        chart.axis("off")
    image = io.BytesIO()
    figure.savefig(image)
    write_atomically(picture, image.getvalue())
    return picture


def _curves(metrics: Path) -> dict[str, list[tuple[int, float]]]:
    """Return steps and values of every name that has two points at least, in the order of the file."""
    curves: defaultdict[str, list[tuple[int, float]]] = defaultdict(list)
    for line in metrics.read_text().splitlines():
        values = json.loads(line)
        for name, value in values.items():
            if isinstance(value, int | float) and name not in {"step", "time", "unreadable"}:
                curves[name].append((values["step"], value))
    return {name: points for name, points in curves.items() if len(points) > 1}
