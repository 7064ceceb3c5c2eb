"""Ways of doing the same thing, timed in turns. It imports nothing heavy: a small process can measure itself."""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

Way = Callable[[], object]
Clock = Callable[[], float]
Rows = list[dict[str, str]]
Kind = TypeVar("Kind")


def alternate(ways: Mapping[str, Way], rounds: int, clock: Clock = time.perf_counter) -> dict[str, list[float]]:
    """Seconds of each way's calls. A round calls every way once, so that what else the machine does meets all of them;
    one more round comes first, in which memory is allocated."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for counted in [False] + [True] * rounds:
        for name, way in ways.items():
            start = clock()
            way()
            spent = clock() - start
            if counted:
                seconds[name].append(spent)
    return seconds


def worthwhile(ways: Mapping[str, Kind]) -> dict[str, Kind]:
    """Leave out ways in bfloat16 where float32 is faster: a processor that imitates bfloat16 takes minutes a call."""
    return {name: way for name, way in ways.items() if not name.endswith("bfloat16") or bfloat16_pays()}


def bfloat16_pays() -> bool:
    import torch

    from groupvit.machine import bfloat16_is_faster

    return bfloat16_is_faster(torch.device("cpu"))


def times_faster(own: Sequence[float], peer: Sequence[float]) -> tuple[float, float, float]:
    """How many times faster than the peer: the ratio of medians, and the quartiles of the rounds' ratios."""
    ratios = [theirs / ours for ours, theirs in zip(own, peer, strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    return statistics.median(peer) / statistics.median(own), low, high


def versus(seconds: Mapping[str, Sequence[float]], name: str, peer: str) -> dict[str, str]:
    """Cells of a table: the median and, where there is a peer, `times_faster`."""
    cells = {"ms": f"{1000 * statistics.median(seconds[name]):,.1f}", "times the peer": "", "quartiles": ""}
    if peer in seconds and name != peer:
        ratio, low, high = times_faster(seconds[name], seconds[peer])
        cells |= {"times the peer": f"{ratio:.2f}", "quartiles": f"{low:.2f} to {high:.2f}"}
    return cells


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """The p of cost = c size^p, by least squares of logarithms."""
    return statistics.linear_regression([math.log(size) for size in sizes], [math.log(cost) for cost in costs]).slope
