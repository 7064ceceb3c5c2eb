import math

import torch

from groupvit.models import noise


def keys(count: int, seed: int = 0, step: int = 3) -> torch.Tensor:
    return noise.sample_keys(seed, step, torch.arange(count))


def test_noise_of_a_sample_does_not_depend_on_its_neighbours():
    whole = noise.gumbel(keys(8), 4, 5)
    chunks = torch.cat([noise.gumbel(chunk, 4, 5) for chunk in keys(8).split(3)])
    assert torch.equal(whole, chunks)


def test_seed_step_position_and_stream_each_change_the_noise():
    drawn = [
        noise.uniform(keys(1), 9),
        noise.uniform(keys(1, seed=1), 9),
        noise.uniform(keys(1, step=4), 9),
        noise.uniform(keys(2)[1:], 9),
        noise.uniform(noise.fold(keys(1), 0), 9),
        noise.uniform(noise.fold(keys(1), 1), 9),
        noise.uniform(noise.fold(keys(1), -2), 9),
    ]
    for i, first in enumerate(drawn):
        assert all(not torch.isclose(first, second).any() for second in drawn[:i])


def test_uniform_noise_is_uniform_and_open():
    values = noise.uniform(keys(64), 4096).flatten()
    assert values.min() > 0
    assert values.max() < 1
    counts = torch.histc(values, 16, 0, 1) / len(values)
    assert (counts - 1 / 16).abs().max() < 0.002
    correlation = torch.corrcoef(torch.stack([values[:-1], values[1:]]))[0, 1]
    assert abs(correlation) < 0.01


def test_gumbel_noise_has_the_moments_of_gumbel_and_many_values():
    values = noise.gumbel(keys(64), 4096).double()
    assert abs(values.mean() - 0.5772) < 0.01
    assert abs(values.std() - math.pi / math.sqrt(6)) < 0.01
    assert values.isfinite().all()
    assert values.unique().numel() > 200_000
