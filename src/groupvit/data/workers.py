"""Processes that read data beside this one."""

import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import parent_process
from typing import Any

from torch.utils.data import DataLoader

from groupvit.errors import InputError

_NO_ROOM = "read with --workers 0 (or --processes 1), or give it more (docker run --shm-size=8g)"


def received(loader: DataLoader[Any], advice: str = "resume") -> Iterator[Any]:
    """Yield what the workers of a loader make, and raise what goes wrong in one of them as an `InputError` of one line.

    torch's own handler raises wherever this process happens to be when a worker dies. Without it the next batch
    notices, within seconds, and nothing is lost.
    """
    try:
        batches = iter(loader)
    except OSError as error:
        raise InputError(f"cannot start the processes that read data ({error}): {_NO_ROOM}") from error
    if loader.num_workers:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except InputError as error:  # from a worker it comes wrapped in the worker's traceback
            raise InputError(str(error).strip().splitlines()[-1].rpartition("InputError: ")[2]) from error
        except (RuntimeError, EOFError, OSError) as error:
            if "shared memory" in str(error) or "Bus error" in str(error):
                raise InputError(f"no room in /dev/shm, where processes pass batches on: {_NO_ROOM}") from error
            if str(error).startswith("Caught") or (isinstance(error, RuntimeError) and "worker (pid" not in str(error)):
                raise
            raise InputError(f"a process that reads data was killed, for want of memory perhaps; {advice}") from error
        yield batch


def mapped(function: Callable[[Any], Any], items: Iterable[Any], processes: int) -> Iterator[Any]:
    """Yield `function(item)` of each item in order; no more than `processes` processes call it, or this one alone."""
    items = list(items)
    processes = min(processes, len(items))
    if processes <= 1:
        return map(function, items)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create")  # as many as were asked for
        loader = DataLoader(
            items,  # pyright: ignore[reportArgumentType]
            batch_size=None,
            collate_fn=function,
            num_workers=processes,
            worker_init_fn=_follow_parent,
        )
    return received(loader, "try again with fewer processes")


def _follow_parent(_: int) -> None:
    """End this process when its parent ends; torch would end it after the item at hand."""
    if parent := parent_process():
        threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
