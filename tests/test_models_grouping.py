import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from groupvit.models import ImageEncoderConfig, noise
from groupvit.models.grouping import AssignAttention, GroupingBlock, SeededGrouping


def assign(**options) -> AssignAttention:
    torch.manual_seed(0)
    return AssignAttention(16, **({"hard": True, "logits": "scaled_dot", "eps": 1.0} | options))


def tokens(count: int, dim: int = 16) -> torch.Tensor:
    return torch.randn(3, count, dim, generator=torch.Generator().manual_seed(count))


KEYS = noise.sample_keys(0, 0, torch.arange(3))


@pytest.mark.parametrize("keys", [None, KEYS])
def test_each_segment_joins_exactly_one_group(keys):
    _, assignment = assign()(tokens(5), tokens(40), keys)
    assert torch.equal(assignment.hard.sum(dim=1), torch.ones(3, 40))
    assert set(assignment.hard.unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(assignment.soft.sum(dim=1), torch.ones(3, 40))


def test_noise_moves_some_assignments_but_not_the_soft_map():
    module = assign()
    _, quiet = module(tokens(5), tokens(40), None)
    _, noisy = module(tokens(5), tokens(40), KEYS)
    assert torch.equal(quiet.soft, noisy.soft)
    assert not torch.equal(quiet.hard, noisy.hard)


def test_straight_through_has_the_one_hot_value_and_the_soft_gradient():
    module = assign()
    logits = torch.randn(3, 5, 40, requires_grad=True)
    weights, assignment = module.assign(logits, KEYS)
    assert torch.equal(weights.detach(), assignment.hard)
    target = torch.randn(3, 5, 40)
    (gradient,) = torch.autograd.grad((weights * target).sum(), logits)
    soft = (logits + noise.gumbel(KEYS, 5, 40)).softmax(dim=1)
    (expected,) = torch.autograd.grad((soft * target).sum(), logits)
    torch.testing.assert_close(gradient, expected)


def test_without_eps_a_group_is_the_mean_of_its_segments_and_an_empty_one_stays_finite():
    module = assign(eps=0.0)
    groups = torch.cat([tokens(2), torch.full((3, 1, 16), 0.0)], dim=1).requires_grad_()
    module.q_proj.bias.data[:] = 0
    segments = tokens(6)
    merged, assignment = module(groups, segments, None)
    values = module.v_proj(segments)
    for b in range(3):
        for g in range(3):
            own = values[b][assignment.hard[b, g] > 0]
            mean = own.mean(dim=0) if len(own) else torch.zeros(16)
            torch.testing.assert_close(merged[b, g], module.proj(mean))
    merged.sum().backward()
    assert groups.grad is not None
    assert groups.grad.isfinite().all()


def test_eps_shrinks_the_mean_of_small_groups():
    """The release divides by the size of a group plus one."""
    with_eps, without = assign(eps=1.0), assign(eps=0.0)
    with_eps.load_state_dict(without.state_dict())
    with_eps.proj.bias.data[:] = without.proj.bias.data[:] = 0
    a, assignment = with_eps(tokens(4), tokens(30), None)
    b, _ = without(tokens(4), tokens(30), None)
    size = assignment.hard.sum(dim=-1, keepdim=True)
    torch.testing.assert_close(a, b * size / (size + 1))


def test_assignment_is_in_float32_under_autocast():
    module = assign()
    with torch.autocast("cpu", torch.bfloat16):
        merged, assignment = module(tokens(5), tokens(40), KEYS)
    assert assignment.soft.dtype == assignment.hard.dtype == torch.float32
    assert merged.dtype == torch.bfloat16


def test_cosine_logits_do_not_depend_on_the_length_of_projected_tokens():
    module = assign(logits="cosine")
    logits = module.similarity(tokens(5), tokens(40))
    torch.testing.assert_close(module.similarity(7 * tokens(5), 3 * tokens(40)), logits)
    assert logits.abs().max() <= 10.001


def test_cosine_logits_stay_below_a_hundred():
    module = assign(logits="cosine")
    with torch.no_grad():
        module.scale.fill_(math.log(1000))
    assert 50 < module.similarity(tokens(5), tokens(7)).abs().max() <= 100


@pytest.mark.parametrize("eps", [0.0, 1.0])
def test_a_segment_alone_is_what_its_own_group_would_be(eps):
    config = ImageEncoderConfig(dim=16, heads=2, assign_eps=eps, group_residual=False)
    block = GroupingBlock(config, 1, 1)
    segments = tokens(4)
    for i in range(4):
        grouped, _ = block(tokens(1), segments[:, i : i + 1])
        torch.testing.assert_close(block.alone(segments)[:, i : i + 1], grouped)


def test_dot_logits_are_unscaled():
    """Eq. 3 has no factor; the release divides by the root of the dimension."""
    scaled, plain = assign(logits="scaled_dot"), assign(logits="dot")
    plain.load_state_dict(scaled.state_dict())
    torch.testing.assert_close(plain.similarity(tokens(5), tokens(9)), 4 * scaled.similarity(tokens(5), tokens(9)))


def test_soft_assignment_mixes_every_segment_into_every_group():
    merged, assignment = assign(hard=False)(tokens(5), tokens(40), KEYS)
    hard, _ = assign(hard=True)(tokens(5), tokens(40), None)
    assert not torch.allclose(merged, hard)
    assert torch.equal(assignment.hard.sum(dim=1), torch.ones(3, 40))


@pytest.mark.parametrize(("before", "after"), [(16, 4), (64, 16), (8, 8)])
@pytest.mark.parametrize("release", [True, False])
def test_token_and_output_counts_may_differ(before, after, release):
    options = {"token_mixer": release, "pre_assign_attention": release, "channel_mlp": release}
    block = GroupingBlock(ImageEncoderConfig(dim=16, heads=2, **options), before, after)
    merged, assignment = block(tokens(before), tokens(20))
    assert merged.shape == (3, after, 16)
    assert assignment.soft.shape == (3, after, 20)


def test_permuting_group_tokens_permutes_the_groups():
    block = GroupingBlock(ImageEncoderConfig(dim=16, heads=2, token_mixer=False), 5, 5).double()
    groups, segments = tokens(5).double(), tokens(20).double()
    order = torch.tensor([3, 1, 4, 0, 2])
    merged, assignment = block(groups, segments)
    permuted, permuted_assignment = block(groups[:, order], segments)
    torch.testing.assert_close(permuted, merged[:, order])
    torch.testing.assert_close(permuted_assignment.soft, assignment.soft[:, order])


def test_permuting_segments_permutes_only_the_assignment():
    block = GroupingBlock(ImageEncoderConfig(dim=16, heads=2), 5, 5).double()
    groups, segments = tokens(5).double(), tokens(20).double()
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    merged, assignment = block(groups, segments)
    permuted, permuted_assignment = block(groups, segments[:, order])
    torch.testing.assert_close(permuted, merged)
    torch.testing.assert_close(permuted_assignment.hard, assignment.hard[:, :, order])


def test_cosine_logits_leave_out_what_all_segments_share():
    """Otherwise one group, whose query points where all keys point, takes every segment."""
    module = assign(logits="cosine")
    groups, segments = tokens(5), tokens(40)
    shared = 30 * torch.ones(16)
    torch.testing.assert_close(
        module.similarity(groups, segments + shared), module.similarity(groups, segments), atol=1e-4, rtol=1e-4
    )
    _, assignment = module(groups, segments + shared, None)
    assert (assignment.hard.sum(dim=-1) > 0).sum(dim=1).min() >= 4


def lloyd(places: np.ndarray, centres: np.ndarray, rounds: int) -> np.ndarray:
    """The group of each cell after so many rounds of k-means."""
    for _ in range(rounds):
        nearest = np.square(places[None] - centres[:, None]).sum(axis=-1).argmin(axis=0)
        for group in range(len(centres)):
            if (nearest == group).any():
                centres[group] = places[nearest == group].mean(axis=0)
    return np.square(places[None] - centres[:, None]).sum(axis=-1).argmin(axis=0)


@pytest.mark.parametrize(("rows", "columns"), [(8, 8), (7, 12), (1, 5), (3, 2)])
def test_seeded_groups_start_as_k_means_from_a_regular_grid(rows, columns):
    grouping = SeededGrouping(6, plain=True)
    local = torch.randn(2, 5, rows, columns, dtype=torch.float64)
    segments = torch.randn(2, rows * columns, 16, dtype=torch.float64)
    merged, assignment = grouping(local, segments)
    down, across = grouping.tiles(6, rows, columns)
    assert 1 <= down <= rows
    assert 1 <= across <= columns
    assert merged.shape == (2, down * across, 16)
    assert assignment.hard.sum(dim=1).eq(1).all()  # each cell joins exactly one group
    assert assignment.hard.unique().tolist() in ([0, 1], [1])
    for i in range(2):
        position = np.stack(np.meshgrid(np.linspace(-1, 1, rows), np.linspace(-1, 1, columns), indexing="ij"), axis=0)
        position[0] = -1 if rows == 1 else position[0]  # as torch's linspace of one step
        grid = np.concatenate([local[i].numpy(), grouping.POSITION * position])
        seeds = F.adaptive_avg_pool2d(torch.from_numpy(grid), (down, across)).flatten(1).T.numpy().copy()
        joined = lloyd(grid.reshape(7, -1).T, seeds, grouping.ROUNDS)
        assert assignment.joined[i].tolist() == joined.tolist()
        for group in set(joined):
            torch.testing.assert_close(merged[i, group], segments[i, torch.from_numpy(joined == group)].mean(dim=0))


def test_a_seed_without_cells_stays_where_it_was_and_shares_fall_with_the_square_of_the_distance():
    local = torch.tensor([1.2, 1.2, 1.2, 0.8, 0.8, 0.8], dtype=torch.float64)  # tiles with the means 1.2, 1 and 0.8
    _, assignment = SeededGrouping(3, plain=True)(local.view(1, 1, 1, 6), torch.randn(1, 6, 4, dtype=torch.float64))
    assert assignment.joined.tolist() == [[0, 0, 0, 2, 2, 2]]
    across = torch.linspace(-1, 1, 6, dtype=torch.float64) / 4
    places = torch.stack([local, across])
    centres = torch.stack([places[:, :3].mean(dim=1), torch.tensor([1.0, 0.0]), places[:, 3:].mean(dim=1)])
    distances = (centres[:, :, None] - places[None]).square().sum(dim=1)
    torch.testing.assert_close(assignment.soft[0], (-20 * distances).softmax(dim=0))


def test_the_number_of_seeds_is_about_what_was_asked_for_at_any_aspect():
    tiles = SeededGrouping.tiles
    assert tiles(16, 28, 28) == (4, 4)
    assert all(12 <= math.prod(tiles(16, *grid)) <= 20 for grid in [(28, 40), (40, 28), (20, 80), (5, 70)])
    assert tiles(16, 2, 2) == (2, 2)
    assert [tiles(16, *grid) for grid in [(1, 125), (125, 1), (2000, 2)]] == [(1, 16), (16, 1), (16, 1)]


def test_seeded_groups_of_a_photo_do_not_depend_on_its_neighbours_in_the_batch():
    grouping, order = SeededGrouping(4), torch.tensor([2, 0, 1])
    local, segments = torch.randn(3, 5, 6, 4), torch.randn(3, 24, 8)
    merged, assignment = grouping(local, segments)
    permuted, other = grouping(local[order], segments[order])
    torch.testing.assert_close(permuted, merged[order])
    assert other.joined.equal(assignment.joined[order])


def test_seeded_groups_keep_to_what_was_joined_before():
    grouping = SeededGrouping(4)
    local, segments = torch.randn(1, 5, 4, 4), torch.randn(1, 16, 8)
    joined = torch.arange(16)[None] % 3  # and no cell joins the last
    merged, assignment = grouping(local, segments, joined)
    assert assignment.joined.equal(joined)
    torch.testing.assert_close(merged[0, 1], segments[0, 1::3].mean(dim=0))
    assert merged[0, 3].eq(0).all()


def test_a_cell_among_others_joins_them_only_where_features_are_smoothed():
    local = torch.zeros(1, 1, 7, 14)
    local[..., 7:] = 4
    local[0, 0, 3, 3] = 4  # a grain of the right half in the left one
    segments = torch.randn(1, 98, 8)
    for smooth in (True, False):
        _, assignment = SeededGrouping(2, plain=not smooth)(local, segments)
        joined = assignment.joined.view(7, 14)
        assert (joined[3, 3] == joined[0, 0]) == smooth
        assert joined[0, 0] != joined[0, 13]


def test_seeded_groups_of_half_precision_are_found_in_float32():
    grouping = SeededGrouping(4)
    local, segments = torch.randn(1, 5, 6, 6).bfloat16(), torch.randn(1, 36, 8).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        merged, assignment = grouping(local, segments)
    assert merged.dtype == torch.bfloat16
    assert assignment.soft.equal(grouping(local.float(), segments)[1].soft)
