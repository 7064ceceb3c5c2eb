"""Work on many files in many processes."""

import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from typing import Any

from groupvit.errors import InputError


def _start() -> None:
    """Of a process: Ctrl-C ends it, and so does the end of its parent, which it would otherwise not notice."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_follow, daemon=True).start()


def _follow() -> None:
    if parent := parent_process():
        parent.join()
        os._exit(1)


@contextmanager
def mapped(processes: int) -> Iterator[Callable[..., Iterable[Any]]]:
    """`map`, in many processes if they are wanted; Ctrl-C ends those at once and in silence."""
    if processes <= 1:
        yield map
        return
    # Forking a process with threads can deadlock.
    pool = ProcessPoolExecutor(processes, mp_context=get_context("spawn"), initializer=_start)
    try:
        yield pool.map
    except BrokenProcessPool:
        raise InputError("a process was killed, for want of memory perhaps; try again with fewer processes") from None
    finally:
        pool.shutdown(cancel_futures=True)
