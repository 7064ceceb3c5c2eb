import numpy as np
import pytest
import torch
import torch.nn.functional as F

from groupvit.segmentation import resampling as module


@pytest.mark.parametrize("size", [(5, 9), (64, 48), (200, 31)])
def test_resampling_in_strips_is_bilinear_interpolation(monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]) -> None:
    monkeypatch.setattr(module, "_STRIP", 600)
    maps = torch.rand(5, 24, 36, dtype=torch.float64)
    best, index = module.resampled_argmax(maps, size, (24 / size[0], 36 / size[1]))
    values, channels = F.interpolate(maps[None], size, mode="bilinear", align_corners=False)[0].max(dim=0)
    assert np.allclose(best, values.numpy(), atol=1e-12)
    assert (index == channels.numpy()).all()


def test_a_window_may_cover_no_pixel_of_a_tiny_photo() -> None:
    assert module.resampled_argmax(torch.rand(5, 4, 4), (1, 0), (4.0, 4.0))[1].shape == (1, 0)


@pytest.mark.parametrize("size", [(5, 9), (64, 48), (200, 31), (1, 0)])
def test_rows_of_a_table_are_resampled_as_the_maps_they_stand_for(monkeypatch, size: tuple[int, int]) -> None:
    monkeypatch.setattr(module, "_STRIP", 600)
    scores, rows = torch.rand(7, 5), torch.randint(7, (6, 9)).repeat_interleave(4, 0).repeat_interleave(4, 1)
    step = (24 / max(1, size[0]), 36 / max(1, size[1]))
    expected = module.resampled_argmax(scores.T[:, rows], size, step)
    for ours, map_of in zip(module.resampled_rows(scores, rows, size, step), expected, strict=True):
        assert np.array_equal(ours, map_of)
