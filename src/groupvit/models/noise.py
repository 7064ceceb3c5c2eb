"""Random numbers keyed per sample: a pure function of (key, stream, position), on every device.

Draws from a global generator depend on how a batch is cut into chunks or spread over processes; these do not, so a
replayed chunk, a resumed run and another number of processes see the same noise.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

Keys = Int[Tensor, " batch"]

_GOLDEN = -7046029254386353131  # 2**64 / golden ratio, as a signed integer
_MIX_1 = -4658895280553007687
_MIX_2 = -7723592293110705685


def _shift_right(x: Tensor, bits: int) -> Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)  # torch shifts arithmetically; the mix wants zeros from the left


def _mix(x: Tensor) -> Tensor:
    """The finaliser of splitmix64 (Steele et al., 2014); products wrap modulo 2**64."""
    x = (x ^ _shift_right(x, 30)) * _MIX_1
    x = (x ^ _shift_right(x, 27)) * _MIX_2
    return x ^ _shift_right(x, 31)


def sample_keys(seed: int, step: int, positions: Int[Tensor, " batch"]) -> Keys:
    """Return one key per sample from the run's seed, the step and the sample's position in the global batch."""
    return fold(fold(_mix(positions * _GOLDEN + seed), step), 0)


def fold(keys: Keys, stream: int) -> Keys:
    """Return independent keys for a named stream (a layer, a branch)."""
    offset = (stream + 1) * 0x632BE59BD9B4E019 % 2**64
    return _mix(keys + (offset - 2**64 if offset >= 2**63 else offset))


def uniform(keys: Keys, *shape: int) -> Float[Tensor, "batch *shape"]:
    """Return numbers uniform in (0, 1), both ends excluded, in steps of 2**-23, float32."""
    count = torch.Size(shape).numel()
    counters = torch.arange(1, count + 1, device=keys.device) * _GOLDEN
    bits = _shift_right(_mix(keys[:, None] + counters), 41)
    return ((bits.to(torch.float32) + 0.5) * 2.0**-23).view(len(keys), *shape)


def gumbel(keys: Keys, *shape: int) -> Float[Tensor, "batch *shape"]:
    """Return Gumbel(0, 1) noise, float32: half precision has too few distinct values for an argmax over groups."""
    return -torch.log(-torch.log(uniform(keys, *shape)))
