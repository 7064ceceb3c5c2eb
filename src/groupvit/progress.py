"""On stderr a bar with photos a second and the time left; without a terminal, a line every half minute."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

Item = TypeVar("Item")

LINE_EVERY = 30.0
"""Seconds from line to line where no bar can be drawn, as in a log."""


@contextmanager
def progress(title: str, count: int | None, *, shown: bool = True) -> Iterator[Callable[..., None]]:
    """Give the function to call with how many of the `count` are done since the last call, and the photos in them."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"), TimeRemainingColumn()
    bar = Progress(
        TextColumn(title),
        *columns,
        console=Console(stderr=True),
        disable=not (shown and sys.stderr.isatty()),
        redirect_stdout=sys.stdout.isatty(),  # what is printed into a file or a pipe stays there
    )
    began = printed = time.perf_counter()
    seen = 0
    with bar:
        task = bar.add_task("", total=count, rate="")

        def advance(done: int = 1, photos: int = 1) -> None:
            nonlocal seen, printed
            seen += photos
            now = time.perf_counter()
            rate = f"{seen / max(now - began, 1e-9):,.1f} photos/s"
            bar.update(task, advance=done, rate=rate)
            if shown and bar.disable and now - printed > LINE_EVERY:
                printed, complete = now, bar.tasks[task].completed
                of, left = "", ""
                if count and complete:
                    of, left = f" of {count}", f", {(now - began) * (count / complete - 1) / 60:.0f} min left"
                with suppress(OSError):  # a log that cannot be written stops no work
                    print(f"{title}: {complete:.0f}{of}, {rate}{left}", file=sys.stderr, flush=True)

        yield advance


def tracked(
    title: str, items: Iterable[Item], count: int | None = None, photos: Callable[[Item], int] = lambda _: 1
) -> Iterator[Item]:
    """Pass items on under a bar; each stands for `photos(item)` photos."""
    with progress(title, count) as advance:
        for item in items:
            advance(1, photos(item))
            yield item
