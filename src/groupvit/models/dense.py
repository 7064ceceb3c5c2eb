"""A classifier of pixels: 1 x 1 convolutions on the maps of a pre-trained network (§4.3, fully-supervised transfer)."""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from groupvit.models.image_encoder import ImageEncoder
from groupvit.models.layers import at_least_float32
from groupvit.models.stems import balanced, resized
from groupvit.models.trunks import EfficientNetLite, Images, NewMap, Pixels, ViTTrunk

Encoder = ImageEncoder | EfficientNetLite | ViTTrunk


class DenseClassifier(nn.Module):
    """Logits of every class for each cell, of `stride` pixels, of the encoder's finest map.

    A ViT has one map, its last patches; of a GroupViT they are those before the first grouping. The convolutions on
    EfficientNet's three maps are summed.
    """

    def __init__(self, encoder: Encoder, classes: int):
        super().__init__()
        self.encoder = encoder
        if isinstance(encoder, EfficientNetLite):
            channels, self.stride = encoder.channels, encoder.strides[0]
        elif isinstance(encoder, ViTTrunk):
            channels, self.stride = encoder.channels[-1:], encoder.strides[0]
        else:
            channels, self.stride = (len(encoder.norm.weight),), encoder.patch_size
        self.heads = nn.ModuleList(nn.Conv2d(dim, classes, 1) for dim in channels)
        for head in self.heads:
            nn.init.trunc_normal_(head.weight, std=0.01)  # pyright: ignore[reportArgumentType]
            nn.init.zeros_(head.bias)  # pyright: ignore[reportArgumentType]

    def features(self, pixels: Pixels) -> list[Float[Tensor, "batch _ _ _"]]:
        """Return the encoder's maps, finest first."""
        images = self.encoder.preprocess(pixels)
        if isinstance(self.encoder, EfficientNetLite):
            return list(self.encoder(images))
        return [self.encoder(images)[-1] if isinstance(self.encoder, ViTTrunk) else patches_of(self.encoder, images)]

    def forward(self, pixels: Pixels) -> Float[Tensor, "batch classes rows columns"]:
        maps = self.features(pixels)
        logits = [head(balanced(each)) for head, each in zip(self.heads, maps, strict=True)]
        return torch.stack([resized(at_least_float32(each), logits[0].shape[-2:]) for each in logits]).sum(dim=0)


def patches_of(encoder: ImageEncoder, images: Images) -> NewMap:
    """Return the patches as they are before the first grouping; of a plain ViT after its last block and norm."""
    segments, (rows, _), _ = encoder.embed(images)
    for stage in encoder.grouping_stages():
        segments, _ = stage(segments, None, None)
        if stage.grouping is not None or stage.seeded is not None:
            break
    else:
        segments = encoder.norm(segments)
    return rearrange(segments, "b (h w) d -> b d h w", h=rows)
