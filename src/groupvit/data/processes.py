"""Work on many files in many processes."""

import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any

from groupvit.errors import InputError


@contextmanager
def mapped(processes: int) -> Iterator[Callable[..., Iterable[Any]]]:
    """`map`, in many processes if they are wanted; Ctrl-C ends those at once and in silence."""
    if processes <= 1:
        yield map
        return
    options = {"initializer": signal.signal, "initargs": (signal.SIGINT, signal.SIG_DFL)}
    pool = ProcessPoolExecutor(processes, mp_context=get_context("spawn"), **options)  # forking threads can deadlock
    try:
        yield pool.map
    except BrokenProcessPool:
        raise InputError("a process was killed, for want of memory perhaps; try again with fewer processes") from None
    finally:
        pool.shutdown(cancel_futures=True)
