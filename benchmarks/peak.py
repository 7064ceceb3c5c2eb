"""How much of what the machine's matrix products reach a piece of work reaches."""

from collections.abc import Callable

import torch
from benchmarks.timing import Clock, alternate, bfloat16_pays
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def matrix_rate(
    dtype: torch.dtype, clock: Clock, rounds: int = 5, device: torch.device | str = "cpu", side: int = 2048
) -> float:
    """FLOP/s of large square products, the fastest of some."""
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    seconds = alternate({"product": lambda: a @ b}, rounds, clock)
    return 2 * side**3 / min(seconds["product"])


def matrix_rates(clock: Clock) -> dict[torch.dtype, float]:
    """By precision."""
    return {dtype: matrix_rate(dtype, clock) for dtype in (torch.float32, torch.bfloat16)[: 1 + bfloat16_pays()]}


def flops(work: Callable[[], object]) -> int:
    """Floating point operations of the matrix products and convolutions in `work`, which is called once.

    Not in inference mode, which hides them. Fused attention on a CPU is not counted, so it is taken apart.
    """
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()
