import torch

from groupvit.models import IMAGENET_MEAN, IMAGENET_STD, normalize


def test_normalize_whitens_by_imagenets_statistics():
    images = torch.randint(0, 256, (2, 3, 5, 7), dtype=torch.uint8)
    normalized = normalize(images, torch.float64)
    for channel in range(3):
        expected = (images[:, channel].double() / 255 - IMAGENET_MEAN[channel]) / IMAGENET_STD[channel]
        torch.testing.assert_close(normalized[:, channel], expected)
    assert normalize(images).dtype == torch.float32
