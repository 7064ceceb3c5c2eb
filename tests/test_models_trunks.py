from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from groupvit.checkpoints import trunks as checkpoints
from groupvit.models import IMAGENET_MEAN, IMAGENET_STD
from groupvit.models.config import ViTConfig
from groupvit.models.preprocessing import normalize
from groupvit.models.trunks import EfficientNetLite, SameConv2d, ViTTrunk

SIZES = {"efficientnet-lite0": 224, "efficientnet-lite2": 260}
CHANNELS = {"efficientnet-lite0": (40, 112, 1280), "efficientnet-lite2": (48, 120, 1280)}
both = pytest.mark.parametrize("variant", SIZES)
VIT = ViTConfig(image_size=32, patch_size=8, dim=48, heads=3, depth=4)


def randomise(network: nn.Module) -> None:
    """Random weights and statistics with which signals neither vanish nor grow."""
    for name, tensor in network.state_dict().items():
        if tensor.ndim > 1:
            tensor.normal_(std=(2 / tensor[0].numel()) ** 0.5)
        elif name.endswith(("running_var", "weight")):
            tensor.uniform_(0.5, 1.5)
        elif tensor.is_floating_point():
            tensor.normal_(std=0.2)


def reference(variant: str, **options: Any) -> Any:
    published = pytest.importorskip("efficientnet_lite_pytorch").EfficientNet.from_name(variant, **options).eval()
    randomise(published)
    return published


def ours(variant: Any, published: Any) -> EfficientNetLite:
    state = {name: x for name, x in published.state_dict().items() if not name.endswith("num_batches_tracked")}
    return checkpoints._filled(EfficientNetLite(variant), checkpoints._EFFICIENTNET, state, Path("weights"))


def small() -> EfficientNetLite:
    network = EfficientNetLite("efficientnet-lite0")
    randomise(network)
    return network


@torch.no_grad()
@both
def test_every_bit_is_that_of_the_published_network(variant: str) -> None:
    published = reference(variant)
    trunk = ours(variant, published)
    blocks: list[Tensor] = []
    for block in published._blocks:
        block.register_forward_hook(lambda module, given, out: blocks.append(out))
    images = torch.randn(2, 3, SIZES[variant], SIZES[variant])
    last = published.extract_features(images)
    assert last.std() > 0.1
    assert trunk.channels == tuple(x.shape[1] for x in trunk(images)) == CHANNELS[variant]
    expected = (*(blocks[end - 1] for end in trunk.ends), last)
    assert all(map(torch.equal, trunk(images), expected))
    expected = published(images)
    pooled = last.mean(dim=(2, 3), keepdim=True)
    torch.testing.assert_close(trunk.classify(pooled)[..., 0, 0], expected)
    torch.testing.assert_close(trunk.classify(last).mean(dim=(2, 3)), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(trunk.classify(pooled)[..., 0, 0], expected)


@torch.no_grad()
@pytest.mark.parametrize(("height", "width"), [(33, 70), (64, 97), (1, 31)])
def test_images_of_any_height_and_width(height: int, width: int) -> None:
    published = reference("efficientnet-lite0", image_size=None)
    trunk = ours("efficientnet-lite0", published)
    images = trunk.preprocess(torch.randint(256, (1, 3, height, width), dtype=torch.uint8))
    maps = trunk(images)
    assert torch.equal(maps[-1], published.extract_features(images))
    for x, stride in zip(maps, trunk.strides, strict=True):
        assert x.shape[2:] == (-(-height // stride), -(-width // stride))


def test_batch_norm_never_moves_but_learns() -> None:
    trunk, images = small(), torch.randn(2, 3, 32, 32)
    before = {name: buffer.clone() for name, buffer in trunk.named_buffers()}
    expected = trunk.eval()(images)
    trained = trunk.train()(images)
    assert all(map(torch.equal, trained, expected))
    sum(x.square().mean() for x in trained).backward()
    assert before
    assert all(torch.equal(buffer, before[name]) for name, buffer in trunk.named_buffers())
    learned = {name for name, parameter in trunk.named_parameters() if parameter.grad is not None}
    assert {"blocks.3.depthwise.norm.weight", "blocks.3.depthwise.norm.bias"} <= learned
    nn.SyncBatchNorm.convert_sync_batchnorm(trunk)
    assert not [module for module in trunk.modules() if isinstance(module, nn.SyncBatchNorm)]


@torch.no_grad()
def test_early_and_late_are_the_whole() -> None:
    trunk, images = small(), torch.randn(2, 3, 64, 96)
    fine, coarse = trunk.early(images)
    assert all(map(torch.equal, trunk(images), (fine, coarse, trunk.late(coarse))))


@torch.no_grad()
def test_the_odd_row_and_column_of_padding_come_last() -> None:
    convolution = SameConv2d(1, 1, 3, 2, bias=False)
    convolution.weight.fill_(1)
    assert convolution(torch.ones(1, 1, 4, 5)).squeeze().tolist() == [[6, 9, 6], [4, 6, 4]]


def test_pixels_as_in_pre_training() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(2, 3, -1, -1)
    expected = torch.linspace(-127 / 128, 1, 256).view(16, 16).expand(2, 3, -1, -1)
    images = EfficientNetLite.preprocess(pixels)
    torch.testing.assert_close(images, expected)
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(EfficientNetLite.preprocess(pixels, torch.bfloat16).float(), images)
    trunk = ViTTrunk(replace(VIT, mean=IMAGENET_MEAN, std=IMAGENET_STD))
    torch.testing.assert_close(trunk.preprocess(pixels), normalize(pixels))
    torch.testing.assert_close(ViTTrunk(VIT).preprocess(pixels), pixels / 127.5 - 1)


@torch.no_grad()
@pytest.mark.parametrize(("height", "width"), [(32, 32), (40, 72), (16, 64)])
def test_the_vit_is_that_of_transformers(height: int, width: int, tmp_path: Path) -> None:
    config = transformers.ViTConfig(
        image_size=32, patch_size=8, hidden_size=48, num_attention_heads=3, num_hidden_layers=4, intermediate_size=96
    )
    published = transformers.ViTModel(config).eval()
    randomise(published)
    published.save_pretrained(tmp_path)
    trunk = checkpoints.load_vit(tmp_path)
    images = torch.randn(2, 3, height, width)
    expected = published(images, interpolate_pos_encoding=True, output_hidden_states=True)
    for x, tokens in zip(trunk(images), (expected.hidden_states[2], expected.last_hidden_state), strict=True):
        assert x.shape == (2, 48, height // 8, width // 8)
        torch.testing.assert_close(x.flatten(2).mT, tokens[:, 1:], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_vit_pads_right_and_bottom_to_whole_patches() -> None:
    trunk, images = ViTTrunk(VIT), torch.zeros(1, 3, 40, 48)
    images[..., :35, :41] = torch.randn(35, 41)
    assert all(map(torch.equal, trunk(images[..., :35, :41]), trunk(images)))
    assert (trunk.channels, trunk.strides) == ((48, 48), (8, 8))
