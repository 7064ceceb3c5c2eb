"""Networks pre-trained on ImageNet, whose feature maps already recognise: EfficientNet-Lite and the plain ViT."""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from groupvit.models.config import ViTConfig
from groupvit.models.layers import Block, resampled
from groupvit.models.preprocessing import normalize

Pixels = UInt8[Tensor, "batch 3 height width"]
Images = Float[Tensor, "batch 3 height width"]
Map = Float[Tensor, "batch channels height width"]
NewMap = Float[Tensor, "batch out rows columns"]

_SCALES = {"efficientnet-lite0": (1.0, 1.0), "efficientnet-lite2": (1.1, 1.2)}  # of channels and of depth
# Blocks, kernel, stride and channels of each stage (EfficientNet's Table 1)
_STAGES = [(1, 3, 1, 16), (2, 3, 2, 24), (2, 5, 2, 40), (3, 3, 2, 80), (3, 5, 1, 112), (4, 5, 2, 192), (1, 3, 1, 320)]
_LATE = 5  # the first stage of stride 32
_STEM, _HEAD, _CLASSES = 32, 1280, 1000
_EPS = 1e-3  # of the norms


class SameConv2d(nn.Conv2d):
    """A convolution with TensorFlow's padding "SAME": the output has ceil(size / stride) rows and columns."""

    def reset_parameters(self) -> None:
        """Keep the size of the signal, which fixed statistics do not mend."""
        nn.init.kaiming_normal_(self.weight)

    def forward(self, input: Map) -> NewMap:
        if self.groups > 1 and input.device.type == "cpu" and self.weight.requires_grad:
            # A depthwise gradient in bfloat16 takes 50 times as long as the forward pass.
            with torch.autocast("cpu", enabled=False):
                return self.convolve(input.to(self.weight.dtype), self.weight, self.bias)
        return self.convolve(input, self.weight, self.bias)

    def convolve(self, input: Map, weight: Tensor, bias: Tensor | None) -> NewMap:
        """Convolve with another kernel and bias."""
        stride, around = self.stride[0], self.kernel_size[0] // 2
        if stride == 1:
            return F.conv2d(input, weight, bias, padding=around, groups=self.groups)
        # Of an even size the first row and column need one less; kernels and strides are square, strides 1 or 2.
        above, left = (around - 1 + size % 2 for size in input.shape[-2:])
        return F.conv2d(F.pad(input, (left, around, above, around)), weight, bias, stride, groups=self.groups)


class FixedBatchNorm(nn.Module):
    """Batch norm by the statistics of pre-training, also while training; scale and shift are learned.

    No subclass of PyTorch's, which training mode or a conversion to synchronised norms would wake.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Map) -> Map:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=_EPS)


class ConvNorm(nn.Module):
    """Convolution, batch norm and, where wanted, ReLU6."""

    def __init__(
        self, dim: int, out_dim: int, kernel: int = 1, *, stride: int = 1, groups: int = 1, activate: bool = True
    ):
        super().__init__()
        self.conv = SameConv2d(dim, out_dim, kernel, stride, groups=groups, bias=False)
        self.norm = FixedBatchNorm(out_dim)
        self.activate = activate

    def forward(self, x: Map) -> NewMap:
        if inferring := torch.is_inference_mode_enabled():
            # Folded into the kernel, the norm costs no pass over the map: more than half of the time in bfloat16.
            scale = self.norm.weight * (self.norm.running_var + _EPS).rsqrt()
            bias = self.norm.bias - self.norm.running_mean * scale
            x = self.conv.convolve(x, self.conv.weight * scale[:, None, None, None], bias)
        else:
            x = self.norm(self.conv(x))
        return F.relu6(x, inplace=inferring) if self.activate else x


class InvertedResidual(nn.Module):
    """Expansion, depthwise convolution, projection (Sandler et al., 2018), beside the identity where shapes allow."""

    def __init__(self, dim: int, out_dim: int, kernel: int, *, stride: int, expansion: int):
        super().__init__()
        hidden = expansion * dim
        self.expand = ConvNorm(dim, hidden) if expansion > 1 else nn.Identity()
        self.depthwise = ConvNorm(hidden, hidden, kernel, stride=stride, groups=hidden)
        self.project = ConvNorm(hidden, out_dim, activate=False)
        self.residual = stride == 1 and dim == out_dim

    def forward(self, x: Map) -> NewMap:
        branch = self.project(self.depthwise(self.expand(x)))
        return branch + x if self.residual else branch


class EfficientNetLite(nn.Module):
    """EfficientNet (Tan and Le, 2019) without squeeze-excitation and with ReLU6, for images of any height and width.

    `channels` and `strides` (pixels) are those of the three maps.
    """

    mean, std = (127 / 255,) * 3, (128 / 255,) * 3

    def __init__(self, variant: str):
        super().__init__()
        width, depth = _SCALES[variant]
        dims = [int(channels * width + 4) // 8 * 8 for *_, channels in _STAGES]  # to the nearest multiple of 8
        depths = [math.ceil(repeats * depth) for repeats, *_ in _STAGES]
        depths[0], depths[-1] = _STAGES[0][0], _STAGES[-1][0]  # as stem and head, not scaled
        self.channels = (dims[2], dims[4], _HEAD)
        self.strides = (8, 16, 32)
        self.ends = (sum(depths[:3]), sum(depths[:_LATE]))  # blocks up to stride 8, and up to stride 16
        self.stem = ConvNorm(3, _STEM, 3, stride=2)
        self.blocks = nn.Sequential()
        dim = _STEM
        for i, (_, kernel, stride, _) in enumerate(_STAGES):
            for j in range(depths[i]):
                step, expansion = 1 if j else stride, 6 if i else 1
                self.blocks.append(InvertedResidual(dim, dims[i], kernel, stride=step, expansion=expansion))
                dim = dims[i]
        self.head = ConvNorm(dim, _HEAD)
        self.classifier = nn.Linear(_HEAD, _CLASSES)

    @staticmethod
    def preprocess(pixels: Pixels, dtype: torch.dtype = torch.float32) -> Images:
        """Return pixels from -1 to 1, as in pre-training; exact also in bfloat16.

        Channels come last in memory: a CPU convolves that faster, most of all in bfloat16.
        """
        return (pixels.to(dtype, memory_format=torch.channels_last) - 127) / 128

    def early(
        self, images: Images
    ) -> tuple[Float[Tensor, "batch fine rows8 columns8"], Float[Tensor, "batch coarse rows16 columns16"]]:
        """Return the maps of stride 8 and 16, most of the work of an image."""
        first, second = self.ends
        fine = self.blocks[:first](self.stem(images))
        return fine, self.blocks[first:second](fine)

    def late(self, coarse: Map) -> NewMap:
        """Return the last map from the one of stride 16."""
        return self.head(self.blocks[self.ends[1] :](coarse))

    def late_modules(self) -> list[nn.Module]:
        """Return what follows the map of stride 16, but the classifier."""
        return [self.blocks[self.ends[1] :], self.head]

    def forward(self, images: Images) -> tuple[Float[Tensor, "batch _ _ _"], ...]:
        """Return the three maps, finest first."""
        fine, coarse = self.early(images)
        return fine, coarse, self.late(coarse)

    def classify(self, last: Float[Tensor, "batch last rows columns"]) -> Float[Tensor, "batch 1000 rows columns"]:
        """Return logits of ImageNet's classes at every cell; their mean over the cells is the network's own answer."""
        return self.classifier(last.movedim(1, -1)).movedim(-1, 1)


class ViTTrunk(nn.Module):
    """The plain pre-norm ViT (Dosovitskiy et al., 2021) as in `transformers`, for images of any height and width.

    `mean` and `std`, on RGB in [0, 1], are those of pre-training: 0.5 for Google's weights, ImageNet's for DeiT's and
    DINO's. There are two class tokens if DeiT's distillation token is one of them.
    """

    def __init__(self, config: ViTConfig):
        super().__init__()
        dim, patch = config.dim, config.patch_size
        self.channels = (dim, dim)
        self.strides = (patch, patch)
        self.mean, self.std = config.mean, config.std
        self.class_token = nn.Parameter(torch.zeros(1, config.class_tokens, dim))
        self.pos_embed = nn.Parameter(torch.empty(1, config.class_tokens + (config.image_size // patch) ** 2, dim))
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        self.stem = nn.Conv2d(3, dim, patch, stride=patch)
        self.blocks = nn.ModuleList(Block(dim, config.heads, mlp_ratio=config.mlp_ratio) for _ in range(config.depth))
        self.norm = nn.LayerNorm(dim)
        for module in self.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = config.norm_eps

    def preprocess(self, pixels: Pixels, dtype: torch.dtype = torch.float32) -> Images:
        """Return pixels as in pre-training."""
        return normalize(pixels, dtype, self.mean, self.std)

    def forward(
        self, images: Images
    ) -> tuple[Float[Tensor, "batch dim rows columns"], Float[Tensor, "batch dim rows columns"]]:
        """Return the patches after half of the blocks, and after all of them and the norm.

        The first know what is there, the last more of the whole image. Right and bottom are padded to whole patches.
        """
        patch = self.strides[0]
        height, width = images.shape[-2:]
        patches = self.stem(F.pad(images, (0, -width % patch, 0, -height % patch)))
        rows, columns = patches.shape[-2:]
        tokens = rearrange(patches, "b d h w -> b (h w) d")
        x = torch.cat([self.class_token.expand(images.shape[0], -1, -1), tokens], dim=1)
        first = self.class_token.shape[1]
        positions = resampled(self.pos_embed[:, first:], rows, columns)
        positions = torch.cat([self.pos_embed[:, :first], positions], dim=1)
        x = x + positions.to(x.dtype)
        middle = x
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i == len(self.blocks) // 2 - 1:
                middle = x
        local, last = (rearrange(y[:, first:], "b (h w) d -> b d h w", h=rows) for y in (middle, self.norm(x)))
        return local, last
