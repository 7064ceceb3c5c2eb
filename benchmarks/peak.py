"""How much of what the machine's matrix products reach a piece of work reaches."""

import math
from collections.abc import Callable, Sequence

import torch
from benchmarks.timing import Clock, alternate
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from groupvit.models.layers import linear


def matrix_rate(
    dtype: torch.dtype,
    clock: Clock,
    rounds: int = 5,
    device: torch.device | str = "cpu",
    side: int = 2048,
    onednn: bool = True,
) -> float:
    """FLOP/s of large square products, the fastest of some.

    PyTorch has two libraries for them on CPUs, and which is faster depends on the processor: `@` in float32 is MKL's;
    `onednn` lets our `linear` compete, which is oneDNN's.
    """
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    ways: dict[str, Callable[[], object]] = {"product": lambda: a @ b}
    if onednn and a.device.type == "cpu":
        ways["oneDNN"] = lambda: linear(a, b)
    seconds = alternate(ways, rounds, clock)
    return 2 * side**3 / min(min(each) for each in seconds.values())


def matrix_rates(clock: Clock) -> dict[torch.dtype, float]:
    """By precision."""
    return {dtype: matrix_rate(dtype, clock) for dtype in (torch.float32, torch.bfloat16)}


def _products(x: Sequence[int], weight: Sequence[int], *_: object, out_shape: Sequence[int], **__: object) -> int:
    """Of a linear layer."""
    return 2 * math.prod(out_shape) * weight[1]


def flops(work: Callable[[], object]) -> int:
    """Floating point operations of the matrix products and convolutions in `work`, which is called once.

    Not in inference mode, which hides them. Fused attention on a CPU is not counted, so it is taken apart.
    """
    ours = {torch.ops.mkldnn._linear_pointwise: _products} if hasattr(torch.ops.mkldnn, "_linear_pointwise") else {}
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False, custom_mapping=ours) as counter:
        work()
    return counter.get_total_flops()
