"""What the machine does well: how memory is kept, and which numbers are quick."""

import ctypes
import platform
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of glibc's mallopt


def keep_memory() -> None:
    """Lets the whole process keep the memory that it has freed, for its next tensors.

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
    """Whether the device has instructions for bfloat16; without, it is several times slower than float32."""
    import torch

    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu" and platform.machine().lower() in ("x86_64", "amd64"):
        names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        return any(getattr(torch.cpu, name, bool)() for name in names)
    return True
