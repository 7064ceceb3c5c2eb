"""The machine at hand: how the process keeps memory, and which numbers are quick."""

import ctypes
import hashlib
import os
import platform
import re
import time
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of glibc's mallopt


def keep_freed_memory() -> None:
    """Let the process keep the memory that its main thread frees, for its next tensors.

    glibc hands large blocks back to the kernel, which clears the pages of each new one: a tenth to a third of an
    encoder's time on two cores. What the process holds does not shrink after its peak. Does nothing without glibc.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    mallopt(_TRIM_THRESHOLD, -1)  # never
    for size in (32 << 20, 1 << 30):  # larger blocks are still handed back; older versions refuse the second
        mallopt(_MMAP_THRESHOLD, size)


@lru_cache
def bfloat16_is_faster(device: "torch.device") -> bool:
    """Return True if a layer of the image encoder is faster in bfloat16 than in float32 on this machine.

    The flags of a CPU do not tell, so one layer is timed once and the answer kept in the user's cache. Where nothing
    can be kept there, each process times it. Devices other than CPUs are taken to be faster.
    """
    if device.type != "cpu":
        return True
    file = _answer_file()
    if (answer := _read(file)) is None:
        answer = _seconds_of_a_layer(bf16=True) < _seconds_of_a_layer(bf16=False)
        with suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("x") as new:
                new.write(str(answer))
        kept = _read(file)  # of several processes the first one decides
        answer = answer if kept is None else kept
    return answer


def _read(file: Path) -> bool | None:
    with suppress(OSError):
        return {"True": True, "False": False}.get(file.read_text())
    return None


def _answer_file() -> Path:
    """Return where the answer for this CPU and this PyTorch is kept."""
    import torch

    processor = platform.processor() or platform.machine()
    with suppress(OSError):
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
        processor = found[1] if found else processor
    cache = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    key = hashlib.sha256(f"{processor} {torch.__version__}".encode()).hexdigest()[:16]
    return cache / "groupvit" / f"bfloat16-is-faster-{key}"


def _seconds_of_a_layer(*, bf16: bool) -> float:
    """Return the shortest of a few passes of a linear layer with ViT-S's width over 1,024 tokens."""
    import torch

    weight, tokens, seconds = torch.ones(1536, 384), torch.ones(1024, 384), []  # no random numbers are drawn
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        for _ in range(6):
            start = time.perf_counter()
            torch.nn.functional.linear(tokens, weight)
            seconds.append(time.perf_counter() - start)
    return min(seconds)
