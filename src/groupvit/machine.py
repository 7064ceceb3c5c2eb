"""This machine: how the process keeps memory, and which precision is faster."""

import ctypes
import hashlib
import os
import platform
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from groupvit.errors import InputError, input_error
from groupvit.files import cache_folder

if TYPE_CHECKING:
    import torch

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # of glibc's mallopt
_ANSWERS: dict[Path, bool] = {}  # of `bfloat16_is_faster`


@contextmanager
def enough_memory(advice: str) -> Iterator[None]:
    """Turn a lack of memory, of the machine or of its GPU, into an `InputError` with the advice."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # ONNX Runtime's are nothing more special
        lack = "out of memory|allocate memory|not enough memory|ALLOC_FAILED|bad_alloc"
        if isinstance(error, MemoryError) or re.search(lack, str(error)):
            raise InputError(f"out of memory: {advice}") from error
        raise


def usable(device: "torch.device | str") -> "torch.device":
    """Return the device; one that is not there, or for which this PyTorch has no kernels, is an `InputError`."""
    import torch

    advice = "with CUDA_VISIBLE_DEVICES='' the CPU computes"
    with input_error(f"cannot compute on the device {device}", RuntimeError, AssertionError, advice=advice):
        return torch.ones(1, device=device).device  # a kernel: copies need none


def cores() -> int:
    """Return how many cores this process may use, of those that the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def peak_memory() -> int:
    """Return the most bytes that this process has held (0 where the system does not tell)."""
    with suppress(OSError):  # on Linux getrusage counts what its parent held, too
        if held := re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text()):
            return 1024 * int(held[1])
    if sys.platform == "win32":
        return 0
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def keep_freed_memory() -> None:
    """Let the process keep the memory that its main thread frees, for its next tensors.

    glibc hands large blocks back to the kernel, which clears the pages of each new one: a tenth to a third of an
    encoder's time on two cores. What the process holds does not shrink after its peak. Does nothing without glibc.
    """
    _mallopt(_TRIM_THRESHOLD, -1)  # never
    for size in (32 << 20, 1 << 30):  # larger blocks are still handed back; older versions refuse the second
        _mallopt(_MMAP_THRESHOLD, size)


def share_freed_memory() -> None:
    """Let all threads that start from now on use the memory that one of them has freed: a server has many."""
    _mallopt(_ARENA_MAX, 1)


def return_freed_memory() -> None:
    """Hand freed memory back to the system once: in many hours the holes between what is kept add up."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _mallopt(option: int, value: int) -> None:
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").mallopt(option, value)


def bfloat16_is_faster(
    device: "torch.device", kind: str = "linear layer", work: Callable[[], object] | None = None
) -> bool:
    """Return True if `work` (default: a linear layer) is faster in bfloat16 than in float32 on this machine.

    The flags of a CPU do not tell, and on one CPU transformers gain what convolutions lose. So the work is timed once,
    and the answer is kept under its `kind` in the user's cache, or where that cannot be written for this process.
    Devices other than CPUs are taken to be faster, but for GPUs that have no such numbers and imitate them.
    """
    if device.type != "cpu":
        import torch

        return device.type != "cuda" or torch.cuda.get_device_capability(device) >= (8, 0)
    file = _answer_file(kind)
    if file not in _ANSWERS:
        answer = _read(file)
        if answer is None:
            answer = _is_faster(work or _linear_layer())
            with suppress(OSError):
                file.parent.mkdir(parents=True, exist_ok=True)
                if _read(file) is None:  # of a disk that was full
                    file.unlink(missing_ok=True)
                with file.open("x") as new:  # of several processes the first one decides
                    new.write(str(answer))
            kept = _read(file)
            answer = answer if kept is None else kept
        _ANSWERS[file] = answer
    return _ANSWERS[file]


def _read(file: Path) -> bool | None:
    with suppress(OSError, ValueError):
        return {"True": True, "False": False}.get(file.read_text())
    return None


def _answer_file(kind: str) -> Path:
    """Return where the answer for this CPU, this PyTorch and a kind of work is kept."""
    import torch

    processor = platform.processor() or platform.machine()
    with suppress(OSError):
        named = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
        processor = named[1] if named else processor
    key = hashlib.sha256(f"{processor} {torch.__version__} {kind}, twice".encode()).hexdigest()[:16]
    return cache_folder() / "bfloat16-is-faster" / key


def _linear_layer() -> Callable[[], object]:
    """Return a linear layer of ViT-S's width over 1,024 tokens; no random numbers are drawn."""
    import torch

    weight, tokens = torch.ones(1536, 384), torch.ones(1024, 384)
    return lambda: torch.nn.functional.linear(tokens, weight)


def _is_faster(work: Callable[[], object]) -> bool:
    """Time the work three times in turn; twice is enough where bfloat16 takes several times as long.

    The first time may count what an engine compiles.
    """
    seconds: dict[bool, float] = {False: float("inf"), True: float("inf")}
    for repeated in (False, True, True):
        for bf16 in seconds:
            seconds[bf16] = min(seconds[bf16], _seconds(work, bf16=bf16))
        if repeated and seconds[True] > 4 * seconds[False]:
            break
    return seconds[True] < seconds[False]


def _seconds(work: Callable[[], object], *, bf16: bool) -> float:
    import torch

    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        start = time.perf_counter()
        work()
        return time.perf_counter() - start
