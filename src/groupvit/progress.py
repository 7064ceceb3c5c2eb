"""A bar on stderr, if that is a terminal, with photos a second and the time left."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

Item = TypeVar("Item")


@contextmanager
def progress(title: str, count: int | None, *, shown: bool = True) -> Iterator[Callable[..., None]]:
    """Give the function to call with how many of the `count` are done since the last call, and the photos in them."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"), TimeRemainingColumn()
    bar = Progress(
        TextColumn(title), *columns, console=Console(stderr=True), disable=not (shown and sys.stderr.isatty())
    )
    began, seen = time.monotonic(), 0
    with bar:
        task = bar.add_task("", total=count, rate="")

        def advance(done: int = 1, photos: int = 1) -> None:
            nonlocal seen
            seen += photos
            bar.update(task, advance=done, rate=f"{seen / (time.monotonic() - began):,.1f} photos/s")

        yield advance


def tracked(
    title: str, items: Iterable[Item], count: int | None = None, photos: Callable[[Item], int] = lambda _: 1
) -> Iterator[Item]:
    """Pass items on under a bar; each stands for `photos(item)` photos."""
    with progress(title, count) as advance:
        for item in items:
            advance(1, photos(item))
            yield item
