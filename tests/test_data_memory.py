import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from groupvit.data.memory import Photos
from groupvit.data.transforms import draw_crop, to_tensor


def picture(width, height, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture(scope="module")
def squares():
    return [picture(64, 64, seed) for seed in range(5)]


@pytest.fixture(scope="module")
def photos(squares):
    return Photos(torch.stack([to_tensor(square) for square in squares]))


def boxes(count, smallest, seed=0):
    generator = np.random.default_rng(seed)
    sides = generator.uniform(smallest, 1, (count, 2))
    start = generator.random((count, 2)) * (1 - sides)
    return torch.from_numpy(np.concatenate([start, start + sides], axis=1)).float()


@pytest.mark.parametrize("size", [8, 40, 64, 96])
def test_crops_are_those_of_pillow(squares, photos, size):
    relative = torch.cat([boxes(60, 0.05), torch.tensor([[0.0, 0.0, 1.0, 1.0]])])
    rows, mirrored = torch.arange(61) % 5, torch.arange(61) % 2 == 0
    crops = photos.crop(rows, relative, mirrored, size)
    assert crops.shape == (61, 3, size, size)
    for crop, row, box, mirror in zip(crops, rows, relative.double(), mirrored, strict=True):
        expected = squares[row].resize((size, size), Image.Resampling.BILINEAR, box=tuple((box * 64).tolist()))
        expected = to_tensor(ImageOps.mirror(expected) if mirror else expected)
        error = (crop.int() - expected.int()).abs()
        assert error.max() <= 1
        assert error.float().mean() < 0.3  # Pillow rounds after each of its two passes


def test_the_whole_photo_at_its_own_size_is_the_photo(photos):
    rows, whole = torch.tensor([3, 0]), torch.tensor([[0.0, 0.0, 1.0, 1.0]] * 2)
    crops = photos.crop(rows, whole, torch.tensor([False, True]), 64)
    assert torch.equal(crops[0], photos.pixels[3])
    assert torch.equal(crops[1], photos.pixels[0].flip(2))


def test_chunks_give_the_same_bits(photos):
    rows, mirrored, relative = torch.arange(37) % 5, torch.arange(37) % 3 == 0, boxes(37, 0.2)
    whole = photos.crop(rows, relative, mirrored, 24, chunk=37)
    for chunk in (1, 2, 10):
        assert torch.equal(photos.crop(rows, relative, mirrored, 24, chunk=chunk), whole)


def test_a_photo_s_crop_is_the_same_box_of_its_square():
    image = picture(12, 9).resize((300, 200), Image.Resampling.BICUBIC)
    crop = draw_crop(300, 200, (0.2, 0.5), np.random.default_rng(1))
    square = Photos(to_tensor(image.resize((256, 256), Image.Resampling.BILINEAR))[None])
    relative = torch.tensor([crop.relative(300, 200)])
    cropped = square.crop(torch.tensor([0]), relative, torch.tensor([False]), 32)[0]
    expected = to_tensor(image.resize((32, 32), Image.Resampling.BILINEAR, box=crop.box))
    assert (cropped.float() - expected.float()).abs().mean() < 1
