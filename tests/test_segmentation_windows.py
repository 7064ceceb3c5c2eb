import numpy as np
import pytest
import torch
import torch.nn.functional as F

from groupvit.segmentation import windows as module
from groupvit.segmentation.windows import Window, enlarged_argmax, mean_scores, plan, resized, shared_scores


def starts(length: int, window: int, stride: int) -> list[int]:
    return [left for _, (_, left, _, _) in plan([(window, length)], window, stride)]


def test_windows_cover_everything_and_the_last_is_flush() -> None:
    assert starts(100, 32, 16) == [0, 16, 32, 48, 64, 68]
    assert starts(96, 32, 32) == [0, 32, 64]
    assert starts(20, 32, 16) == [0]


def test_the_published_evaluation_s_sizes() -> None:
    assert resized((500, 375), 448) == (448, 597)
    assert resized((3000, 100), 448) == (68, 2048)
    assert resized((7, 1), 32) == (21, 146)


def test_windows_are_half_a_window_apart_unless_said() -> None:
    assert [left for _, (_, left, _, _) in plan([(20, 50)], 20, None)] == [0, 10, 20, 30]
    assert [left for _, (_, left, _, _) in plan([(1, 3)], 1, None)] == [0, 1, 2]


def test_a_window_covers_the_photo_s_nearest_pixels() -> None:
    assert module.covered((2, 0, 6, 4), (0.75, 1.0)) == (slice(3, 11), slice(0, 4))  # 2.67 to 10.67


def test_photos_of_one_size_come_together() -> None:
    assert [photo for photo, _ in plan([(32, 48), (32, 32), (32, 48)], None, None)] == [1, 0, 2]
    places = [place for _, place in plan([(32, 48)], 32, None)]
    assert places == [(0, 0, 32, 32), (0, 16, 32, 32)]


def test_scores_are_averaged_where_windows_overlap() -> None:
    groups = torch.eye(2)[:, None].expand(2, 4, 2).contiguous()  # the left half is one group, the right the other
    scores = [torch.tensor([[0.9, 0.1], [0.2, 0.8]]), torch.tensor([[0.5, 0.5], [0.4, 0.6]])]
    windows = [Window(0, left, 8, 4, (4, 2), (groups,), own) for left, own in zip((0, 2), scores, strict=True)]
    table, rows = shared_scores(windows, (8, 6), 2)
    mean = table.T[:, rows]
    assert mean[0, 0].tolist() == pytest.approx([0.9, 0.9, (0.2 + 0.5) / 2, (0.2 + 0.5) / 2, 0.4, 0.4])
    assert torch.allclose(mean.sum(dim=0), torch.ones(8, 6))


def test_a_pixel_averages_the_scores_of_all_final_groups_that_own_it() -> None:
    left, upper = torch.eye(2)[:, None].expand(2, 4, 2).contiguous(), torch.eye(2)[..., None].repeat_interleave(2, 1)
    first, second = torch.tensor([[0.9, 0.1], [0.2, 0.8]]), torch.tensor([[0.5, 0.5], [0.4, 0.6]])
    window = Window(0, 0, 8, 4, (4, 2), (left,), first, others=((upper.expand(2, 4, 2).contiguous(), second),))
    table, rows = shared_scores([window], (8, 4), 2)
    mean = table.T[0, rows]
    assert mean[0].tolist() == pytest.approx([0.7, 0.7, 0.35, 0.35])
    assert mean[-1].tolist() == pytest.approx([0.65, 0.65, 0.3, 0.3])


def test_pixels_of_the_same_groups_share_their_scores() -> None:
    places = [(0, 0), (0, 4), (5, 2), (5, 4)]
    windows = [Window(*place, 8, 8, (4, 4), (torch.rand(3, 4, 4),), torch.rand(3, 6)) for place in places]
    total, count = torch.zeros(6, 13, 12), torch.zeros(13, 12)
    for w in windows:
        owners = F.interpolate(w.groups[-1][None], scale_factor=2.0, mode="bilinear")[0].argmax(dim=0)
        total[:, *w.inside] += w.scores.T[:, owners]
        count[w.inside] += 1
    table, rows = shared_scores(windows, (13, 12), 2)
    covered_pixels = count > 0
    assert torch.equal(table.T[:, rows][:, covered_pixels], (total / count)[:, covered_pixels])


@pytest.mark.parametrize("scale", [1, 2, 5, 8])
@pytest.mark.parametrize("shape", [(1, 1, 1), (4, 1, 7), (6, 9, 5)])
@pytest.mark.parametrize("sharpness", [1, 30])
def test_only_pixels_between_different_cells_are_enlarged_and_none_changes(
    shape: tuple[int, int, int], scale: int, sharpness: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_at_once", lambda _: 100)
    maps = (sharpness * torch.rand(shape, dtype=torch.float64)).softmax(dim=0)
    whole = F.interpolate(maps[None], scale_factor=float(scale), mode="bilinear")[0]
    assert torch.equal(enlarged_argmax(maps, scale), whole.argmax(dim=0))


def test_the_table_stays_smaller_than_the_photo_however_many_windows_overlap() -> None:
    places = [(top, left) for top in range(0, 65, 4) for left in range(0, 65, 4)]
    windows = [Window(*place, 32, 32, (4, 4), (torch.rand(8, 4, 4),), torch.rand(8, 3)) for place in places]
    table, rows = shared_scores(windows, (96, 96), 8)
    assert len(table) <= 2 * rows.numel()
    assert 0 <= rows.min() <= rows.max() < len(table)


def test_without_groups_the_scores_of_patches_are_interpolated() -> None:
    scores = torch.rand(12, 3)
    window = Window(0, 0, 7, 6, (4, 3), (), scores)
    expected = F.interpolate(scores.T.reshape(1, 3, 4, 3), (8, 6), mode="bilinear")[0, :, :7]
    assert torch.allclose(mean_scores([window], (7, 6), 2), expected)


@pytest.mark.parametrize("size", [(5, 9), (64, 48), (200, 31)])
def test_resampling_in_strips_is_bilinear_interpolation(monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]) -> None:
    monkeypatch.setattr(module, "_at_once", lambda _: 600)
    maps = torch.rand(5, 24, 36, dtype=torch.float64)
    best, index = module.resampled_argmax(maps, size, (24 / size[0], 36 / size[1]))
    values, channels = F.interpolate(maps[None], size, mode="bilinear", align_corners=False)[0].max(dim=0)
    assert np.allclose(best, values.numpy(), atol=1e-12)
    assert (index == channels.numpy()).all()


def test_a_window_may_cover_no_pixel_of_a_tiny_photo() -> None:
    assert module.resampled_argmax(torch.rand(5, 4, 4), (1, 0), (4.0, 4.0))[1].shape == (1, 0)


@pytest.mark.parametrize("size", [(5, 9), (64, 48), (200, 31), (1, 0)])
def test_rows_of_a_table_are_resampled_as_the_maps_they_stand_for(monkeypatch, size: tuple[int, int]) -> None:
    monkeypatch.setattr(module, "_at_once", lambda _: 600)
    scores, rows = torch.rand(7, 5), torch.randint(7, (6, 9)).repeat_interleave(4, 0).repeat_interleave(4, 1)
    step = (24 / max(1, size[0]), 36 / max(1, size[1]))
    expected = module.resampled_argmax(scores.T[:, rows], size, step)
    for ours, map_of in zip(module.resampled_rows(scores, rows, size, step), expected, strict=True):
        assert np.array_equal(ours, map_of)
