"""Stems, which turn images into patches: convolutions, or a pre-trained trunk."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from groupvit.models.config import ImageEncoderConfig
from groupvit.models.layers import at_least_float32
from groupvit.models.trunks import EfficientNetLite, Map, ViTTrunk


class ResidualBlock(nn.Sequential):
    """Two 3 x 3 convolutions beside the identity, each after its norm and activation (He et al., 2016)."""

    def __init__(self, channels: int):
        layers = [(nn.GroupNorm(1, channels), nn.GELU(), nn.Conv2d(channels, channels, 3, padding=1)) for _ in range(2)]
        super().__init__(*layers[0], *layers[1])

    def forward(self, input: Map) -> Map:
        return input + super().forward(input)


class ConvStem(nn.Sequential):
    """Strided 3 x 3 convolutions in place of one large one (Xiao et al., 2021); `patch_size` is a power of two.

    With `residual`, two residual blocks follow each of the last two strided convolutions and one the third to last.
    """

    def __init__(self, patch_size: int, dim: int, *, residual: bool = False):
        if patch_size & (patch_size - 1):
            raise ValueError(f"a convolutional stem halves: patch size {patch_size} is no power of two")
        layers: list[nn.Module] = []
        channels = 3
        for halving in reversed(range(patch_size.bit_length() - 1)):
            width = max(dim >> halving, 16)
            layers += [nn.Conv2d(channels, width, 3, stride=2, padding=1), nn.GroupNorm(1, width), nn.GELU()]
            layers += [ResidualBlock(width) for _ in range(min(2, 3 - halving) if residual else 0)]
            channels = width
        super().__init__(*layers, nn.Conv2d(channels, dim, 1))

    def forward(self, input: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch dim rows columns"]:
        return super().forward(input.contiguous(memory_format=torch.channels_last))  # quicker on a CPU


@dataclass(frozen=True)
class TrunkFeatures:
    """Maps of a trunk: `patches` from all of its maps, on the grid of the second to last; `local`, all maps but the
    last, on the grid of the finest; and the `last` map itself."""

    patches: Float[Tensor, "batch dim rows columns"]
    local: Float[Tensor, "batch local fine_rows fine_columns"]
    last: Float[Tensor, "batch last _ _"]


class TrunkStem(nn.Module):
    """Patches from the maps of a pre-trained trunk, and the local features by which these are grouped.

    Every map is divided by the root mean square of its channels. The last maps, which recognise, go into the patches;
    those before, which know where things end, also are the local features.
    """

    def __init__(self, trunk: EfficientNetLite | ViTTrunk, dim: int):
        super().__init__()
        self.trunk = trunk
        self.from_local = nn.Conv2d(trunk.channels[-2], dim, 1)
        self.from_last = nn.Conv2d(trunk.channels[-1], dim, 1)

    def forward(
        self, images: Float[Tensor, "_ 3 height width"], early: Sequence[Float[Tensor, "batch _ _ _"]] = ()
    ) -> TrunkFeatures:
        """`early`, the trunk's maps before the last where they are known already, take the images' place."""
        if early:
            assert isinstance(self.trunk, EfficientNetLite)
            *maps, last = *early, self.trunk.late(early[-1])
        else:
            *maps, last = self.trunk(images)
        even = [balanced(local) for local in maps]
        patches = self.from_local(even[-1])
        patches = patches + resized(self.from_last(balanced(last)), patches.shape[-2:])
        # Each map weighs the same in a distance.
        local = [resized(each, maps[0].shape[-2:]) / each.shape[1] ** 0.5 for each in even]
        return TrunkFeatures(patches, torch.cat(local, dim=1), last)


def balanced(x: Map) -> Map:
    """Return the map with each cell divided by the root mean square of its channels."""
    squares = at_least_float32(x).square()
    return x * (squares.mean(dim=1, keepdim=True) + 1e-6).rsqrt().to(x.dtype)


def resized(x: Float[Tensor, "batch channels _ _"], size: torch.Size) -> Map:
    """Return the map at another size, bilinear."""
    return x if x.shape[-2:] == size else F.interpolate(x, size, mode="bilinear", align_corners=False)


def build_stem(config: ImageEncoderConfig) -> nn.Conv2d | ConvStem | TrunkStem:
    """Return the stem of a configuration, at random weights."""
    name, patch_size, dim, vit = config.stem, config.patch_size, config.dim, config.vit
    if name == "patch":
        return nn.Conv2d(3, dim, patch_size, stride=patch_size)
    if name in ("conv", "residual"):
        return ConvStem(patch_size, dim, residual=name == "residual")
    if name == "vit":
        if vit is None:
            raise ValueError("a trunk 'vit' needs its sizes, `vit`")
        trunk = ViTTrunk(vit)
    else:
        trunk = EfficientNetLite(name)
    if trunk.strides[0] != patch_size:
        raise ValueError(f"the trunk has patches of {trunk.strides[0]} pixels, not of {patch_size}")
    return TrunkStem(trunk, dim)
