"""What both encoders are made of: attention, multilayer perceptrons, pre-norm blocks."""

from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from groupvit.models import noise

_ROWS = 128  # fewer are as quick in MKL
_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch, "mkldnn_convolution")


def quick_gelu(x: Tensor) -> Tensor:
    """CLIP's sigmoid approximation of GELU."""
    return x * torch.sigmoid(1.702 * x)


def _product(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """rows @ weight.T + bias by oneDNN, whose float32 product PyTorch offers only as a convolution of single pixels."""
    pixels = rows.contiguous()[None, None].permute(0, 3, 1, 2)
    kernel = weight.contiguous()[:, :, None, None]
    return torch.mkldnn_convolution(pixels, kernel, bias, (0, 0), (1, 1), (1, 1), 1)[0, :, 0].T


class _Product(torch.autograd.Function):
    """`_product` both ways: PyTorch's own gradient of the convolution is half as fast."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(rows, weight)
        return _product(rows, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), (rows, weight) = gradients, ctx.saved_tensors
        to_rows, to_weight, to_bias = ctx.needs_input_grad
        return (
            _product(gradient, weight.T) if to_rows else None,
            _product(gradient.T, rows.T) if to_weight else None,
            gradient.sum(dim=0) if to_bias else None,
        )


class Linear(nn.Linear):
    """`nn.Linear`; in float32 on a CPU by oneDNN, which is twice as fast as PyTorch's MKL on AMD's processors."""

    def forward(self, input: Float[Tensor, "*rows dim"]) -> Float[Tensor, "*rows out"]:
        float32 = input.dtype == self.weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
        large = input.numel() >= _ROWS * self.in_features
        if not (float32 and large and input.device.type == "cpu" and _ONEDNN) or torch.compiler.is_compiling():
            return super().forward(input)
        return _Product.apply(input.flatten(0, -2), self.weight, self.bias).unflatten(0, input.shape[:-1])


class Mlp(nn.Module):
    """Linear, activation, linear over the last axis."""

    def __init__(self, dim: int, hidden_dim: int, out_dim: int | None = None, *, quick: bool = False):
        super().__init__()
        self.fc1 = Linear(dim, hidden_dim)
        self.activation = quick_gelu if quick else F.gelu
        self.fc2 = Linear(hidden_dim, out_dim or dim)

    def forward(self, x: Float[Tensor, "*rows dim"]) -> Float[Tensor, "*rows out"]:
        return self.fc2(self.activation(self.fc1(x)))


class TokenMixer(Mlp):
    """The token-mixing perceptron of MLP-Mixer: maps one number of tokens to another, channel by channel."""

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch out dim"]:
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, dim: int, heads: int, *, causal: bool = False):
        super().__init__()
        self.heads = heads
        self.causal = causal
        self.qkv = Linear(dim, 3 * dim)
        self.proj = Linear(dim, dim)

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        q, k, v = rearrange(self.qkv(x), "b n (three h d) -> three b h n d", three=3, h=self.heads)
        x = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.proj(rearrange(x, "b h n d -> b n (h d)"))


class CrossAttention(nn.Module):
    """Multi-head attention from queries to a context."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q_proj = Linear(dim, dim)
        self.k_proj = Linear(dim, dim)
        self.v_proj = Linear(dim, dim)
        self.proj = Linear(dim, dim)

    def forward(
        self, queries: Float[Tensor, "batch queries dim"], context: Float[Tensor, "batch tokens dim"]
    ) -> Float[Tensor, "batch queries dim"]:
        q, k, v = (
            rearrange(x, "b n (h d) -> b h n d", h=self.heads)
            for x in (self.q_proj(queries), self.k_proj(context), self.v_proj(context))
        )
        return self.proj(rearrange(F.scaled_dot_product_attention(q, k, v), "b h n d -> b n (h d)"))


def drop_path(
    branch: Float[Tensor, "batch tokens dim"], rate: float, keys: Int[Tensor, " batch"] | None
) -> Float[Tensor, "batch tokens dim"]:
    """Stochastic depth (Huang et al., 2016): a sample's residual branch is dropped with probability `rate`."""
    if keys is None or rate == 0:
        return branch
    keep = (noise.uniform(keys, 1, 1) >= rate).to(branch.dtype)
    return branch * (keep / (1 - rate))


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        causal: bool = False,
        quick: bool = False,
    ):
        super().__init__()
        self.drop_path = drop_path
        self.norm1 = nn.LayerNorm(dim)
        self.attn = Attention(dim, heads, causal=causal)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(mlp_ratio * dim), quick=quick)

    def forward(
        self, x: Float[Tensor, "batch tokens dim"], keys: Int[Tensor, " batch"] | None = None
    ) -> Float[Tensor, "batch tokens dim"]:
        """`keys`: one random key per sample for stochastic depth, or None for none."""
        attn_keys, mlp_keys = (None, None) if keys is None else (noise.fold(keys, 0), noise.fold(keys, 1))
        x = x + drop_path(self.attn(self.norm1(x)), self.drop_path, attn_keys)
        return x + drop_path(self.mlp(self.norm2(x)), self.drop_path, mlp_keys)
