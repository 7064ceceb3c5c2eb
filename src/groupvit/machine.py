"""What the machine does well: how memory is kept, and which numbers are quick."""

import ctypes
import platform
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of glibc's mallopt


def keep_memory() -> None:
    """Lets the process keep the memory that its main thread has freed, for its next tensors.

    glibc hands large blocks back to the kernel, which clears the pages of each new one: a tenth to a third of an
    encoder's time on two cores. The `groupvit` command does this at its start, other programs choose: what they hold
    does not shrink after its peak. Without glibc nothing happens.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    mallopt(_TRIM_THRESHOLD, -1)  # never
    for size in (32 << 20, 1 << 30):  # larger blocks are still handed back; older versions refuse the second
        mallopt(_MMAP_THRESHOLD, size)


def has_bfloat16(device: "torch.device") -> bool:
    """Whether a CPU has instructions for bfloat16; without, it is up to several times slower than float32. Not asked of
    other devices."""
    import torch

    if device.type != "cpu":
        return True
    if platform.machine().lower() in ("x86_64", "amd64"):
        names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        return any(getattr(torch.cpu, name, bool)() for name in names)
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
