"""Work on many files in many processes."""

import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context, parent_process
from typing import Any

from groupvit.errors import InputError

_stopping = False


def _stop(*_: object) -> None:
    global _stopping
    _stopping = True


def _start() -> None:
    """Of a process: the end of its parent ends it, which it would otherwise not notice."""
    signal.signal(signal.SIGINT, _stop)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    threading.Thread(target=_follow, daemon=True).start()


def _call(function: Callable[..., Any], *items: Any) -> Any:
    """`function(*items)`; Ctrl-C ends it and what waits behind it.

    The process itself stays until its parent ends it: of a pool that lost one, the others are killed, and what they
    were clearing up would be left.
    """
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if _stopping:
            raise KeyboardInterrupt
        return function(*items)
    except KeyboardInterrupt:
        _stop()
        raise
    finally:
        signal.signal(signal.SIGINT, _stop)


def _follow() -> None:
    if parent := parent_process():
        parent.join()
        os._exit(1)


@contextmanager
def _ctrl_c_later() -> Iterator[None]:
    """Processes that start meanwhile are not interrupted before `_start`: they would print where they were."""
    if not hasattr(signal, "pthread_sigmask"):  # on Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def mapped(processes: int) -> Iterator[Callable[..., Iterable[Any]]]:
    """`map`, in many processes if they are wanted; Ctrl-C ends those at once and in silence.

    Raises `InputError` when one of them is killed.
    """
    if processes <= 1:
        yield map
        return
    # Forking a process with threads can deadlock.
    pool = ProcessPoolExecutor(processes, mp_context=get_context("spawn"), initializer=_start)

    def run(function: Callable[..., Any], *items: Iterable[Any]) -> Iterator[Any]:
        whole = [list(each) for each in items]  # the pool wants them all at once, and making them may take long
        with _ctrl_c_later():
            return pool.map(partial(_call, function), *whole)

    try:
        yield run
    except BrokenProcessPool:
        raise InputError("a process was killed, for want of memory perhaps; try again with fewer processes") from None
    finally:
        pool.shutdown(cancel_futures=True)
