"""The bar that commands show on a terminal."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def progress(title: str, count: int | None, *, shown: bool = True) -> Iterator[Callable[..., None]]:
    """Show a bar on stderr, if that is a terminal, with photos a second and the time left.

    Gives the function to call with how many of the `count` are done since the last call, and the photos among them.
    """
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
            rate = seen / (time.monotonic() - began)
            bar.update(task, advance=done, rate=f"{rate:,.1f} photos/s")

        yield advance


def tracked(
    title: str, photos: Callable[[Any], int] = lambda item: 1
) -> Callable[[Iterable[Any], int | None], Iterator[Any]]:
    """Return a function that passes items on under a bar; each item stands for `photos(item)` photos."""

    def track(items: Iterable[Any], total: int | None) -> Iterator[Any]:
        with progress(title, total) as advance:
            for item in items:
                advance(1, photos(item))
                yield item

    return track
