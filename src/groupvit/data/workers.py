"""Processes beside this one: those that read data, and those that torchrun has started."""

import os
import re
import signal
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from multiprocessing import parent_process
from typing import Any

from torch.utils.data import DataLoader

from groupvit.errors import InputError, input_error

_NO_ROOM = "read with --workers 0 (or --processes 1), or give it more (docker run --shm-size=8g)"


def launched() -> tuple[int, int, int]:
    """Return what torchrun told this process: its rank, how many there are, and its rank on this machine.

    An empty variable counts as none, and without `WORLD_SIZE` a process is alone; half a torchrun is an `InputError`.
    """
    with input_error("WORLD_SIZE is no number: it is set, but not as torchrun does", ValueError):
        count = int(os.environ.get("WORLD_SIZE") or 1)
    if count == 1:
        for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"):
            if not os.environ.get("WORLD_SIZE") and os.environ.get(name, "1") not in ("", "1"):
                tasks = os.environ[name]
                way = "start torchrun in its place, or set WORLD_SIZE=1 if each task does something else"
                raise InputError(f"{name} is {tasks}, and each task would do the same: {way}")
        return 0, 1, 0
    if missing := [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]:
        raise InputError(f"WORLD_SIZE is set and {missing[0]} is not: start several processes with torchrun")
    with input_error("WORLD_SIZE, RANK and LOCAL_RANK are set, but not as torchrun does", ValueError):
        rank, local = int(os.environ["RANK"]), int(os.environ.get("LOCAL_RANK") or 0)
        if not 0 <= rank < count:
            raise ValueError(f"RANK is {rank}, WORLD_SIZE {count}")
    return rank, count, local


def received(loader: DataLoader[Any], advice: str = "resume") -> Iterator[Any]:
    """Yield what the workers of a loader make, and raise what goes wrong in one of them as an `InputError` of one line.

    torch's own handler, which it sets in the main thread alone, raises wherever this process happens to be when a
    worker dies. Without it the next batch notices, within seconds, and nothing is lost.
    """
    try:
        with _interrupts_kept():
            batches = iter(loader)
    except (OSError, RuntimeError) as error:  # of memory, processes or threads there are no more
        raise InputError(f"cannot start the processes that read data ({error}): {_NO_ROOM}") from error
    if loader.num_workers and threading.current_thread() is threading.main_thread() and hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except InputError as error:  # from a worker it comes wrapped in the worker's traceback
            raise InputError(str(error).rpartition("InputError: ")[2].strip()) from error
        except (RuntimeError, EOFError, OSError) as error:
            if "shared memory" in str(error) or "Bus error" in str(error):
                raise InputError(f"no room in /dev/shm, where processes pass batches on: {_NO_ROOM}") from error
            killed = re.search(r"worker \(pid|Pin memory thread", str(error))
            if str(error).startswith("Caught") or (isinstance(error, RuntimeError) and not killed):
                raise
            raise InputError(f"a process that reads data was killed, for want of memory perhaps; {advice}") from error
        yield batch


@contextmanager
def _interrupts_kept() -> Iterator[None]:
    """Keep SIGINT until the block ends, and for good from processes that it starts.

    A Ctrl-C in a terminal reaches them, too, and one that it interrupts may take a lock of all of them with it.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


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
