"""Layers of both encoders: attention, multilayer perceptrons, pre-norm blocks."""

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from groupvit.models import noise
from groupvit.models.noise import Keys

Tokens = Float[Tensor, "batch tokens dim"]
Kept = Float[Tensor, "2 batch 1 1"]

_AT_ONCE = 1 << 22  # logits that plain attention without gradients holds at once; they stay in the cache
_LONGEST = 1 << 24  # logits of one sequence beyond which plain attention is not used


def quick_gelu(x: Tensor) -> Tensor:
    """CLIP's sigmoid approximation of GELU."""
    return x * torch.sigmoid(1.702 * x)


def at_least_float32(x: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """Return half precision as float32, for what it is too coarse for; float64 stays."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def attend(
    q: Float[Tensor, "batch heads queries dim"],
    k: Float[Tensor, "batch heads keys dim"],
    v: Float[Tensor, "batch heads keys dim"],
    *,
    causal: bool = False,
) -> Float[Tensor, "batch queries _"]:
    """Scaled dot-product attention, the heads concatenated."""
    # On a CPU plain products beat PyTorch's fused kernel for short sequences in bfloat16 (5.5 against 13.4 ms for 844
    # tokens) and where gradients are wanted; the fused kernel wins in float32 without gradients.
    logits = q.shape[1] * q.shape[2] * k.shape[2]
    short = q.device.type == "cpu" and not torch.jit.is_tracing() and len(q) and 0 < logits <= _LONGEST
    if short and (torch.is_grad_enabled() or torch.compiler.is_compiling()):
        return _attend(q, k, v, causal)
    if short and (causal or q.dtype != torch.float32):
        parts = zip(*(x.split(max(1, _AT_ONCE // logits)) for x in (q, k, v)), strict=True)
        return torch.cat([_attend(q, k, v, causal) for q, k, v in parts])
    return rearrange(F.scaled_dot_product_attention(q, k, v, is_causal=causal), "b h n d -> b n (h d)")


def _attend(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    with torch.autocast(q.device.type, enabled=False):  # it would copy the maps to float32 and back
        logits = q * q.shape[-1] ** -0.5 @ k.mT
        if causal:
            later = torch.ones(logits.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
            logits = logits.masked_fill(later, -torch.inf)
        return rearrange(logits.softmax(dim=-1) @ v, "b h n d -> b n (h d)")


class Mlp(nn.Module):
    """Linear, activation, linear over the last axis."""

    def __init__(self, dim: int, hidden_dim: int, out_dim: int | None = None, *, quick: bool = False):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.activation = quick_gelu if quick else F.gelu
        self.fc2 = nn.Linear(hidden_dim, out_dim or dim)

    def forward(self, x: Float[Tensor, "*rows dim"]) -> Float[Tensor, "*rows out"]:
        return self.fc2(self.activation(self.fc1(x)))


class TokenMixer(Mlp):
    """Token-mixing perceptron of MLP-Mixer: maps one number of tokens to another, channel by channel."""

    def forward(self, x: Tokens) -> Float[Tensor, "batch out dim"]:
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


def _refuse_uneven(dim: int, heads: int) -> None:
    if heads < 1 or dim % heads:
        raise ValueError(f"{dim} channels cannot be divided among {heads} heads")


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, dim: int, heads: int, *, causal: bool = False):
        super().__init__()
        _refuse_uneven(dim, heads)
        self.heads = heads
        self.causal = causal
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tokens) -> Tokens:
        q, k, v = rearrange(self.qkv(x), "b n (three h d) -> three b h n d", three=3, h=self.heads)
        return self.proj(attend(q, k, v, causal=self.causal))


class CrossAttention(nn.Module):
    """Multi-head attention from queries to a context."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        _refuse_uneven(dim, heads)
        self.heads = heads
        self.q_proj = nn.Linear(dim, dim)
        self.k_proj = nn.Linear(dim, dim)
        self.v_proj = nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)

    def forward(
        self, queries: Float[Tensor, "batch queries dim"], context: Tokens
    ) -> Float[Tensor, "batch queries dim"]:
        q, k, v = (
            rearrange(x, "b n (h d) -> b h n d", h=self.heads)
            for x in (self.q_proj(queries), self.k_proj(context), self.v_proj(context))
        )
        return self.proj(attend(q, k, v))


class Block(nn.Module):
    """Pre-norm transformer block; a `causal` one is CLIP's, with quick GELU."""

    def __init__(self, dim: int, heads: int, *, mlp_ratio: float = 4.0, drop_path: float = 0.0, causal: bool = False):
        super().__init__()
        self.drop_path = drop_path
        self.norm1 = nn.LayerNorm(dim)
        self.attn = Attention(dim, heads, causal=causal)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(mlp_ratio * dim), quick=causal)

    def kept(self, keys: Keys | None) -> Kept | None:
        """Return the factors of stochastic depth (Huang et al., 2016) on each sample's two residual branches.

        A factor is 0 with probability `drop_path`. Drawn outside of `forward`, which would be compiled for every rate.
        """
        if keys is None or not self.drop_path:
            return None
        kept = [noise.uniform(noise.fold(keys, branch), 1, 1) >= self.drop_path for branch in range(2)]
        return torch.stack(kept).float() / (1 - self.drop_path)

    def forward(self, x: Tokens, kept: Kept | None = None) -> Tokens:
        branch = self.attn(self.norm1(x))
        x = x + (branch if kept is None else branch * kept[0].to(branch.dtype))
        branch = self.mlp(self.norm2(x))
        return x + (branch if kept is None else branch * kept[1].to(branch.dtype))


def resampled(positions: Float[Tensor, "1 patches dim"], rows: int, columns: int) -> Float[Tensor, "1 cells dim"]:
    """Return the learned positions of a square grid, resampled (bicubic) where the wanted grid is another."""
    side = int(positions.shape[1] ** 0.5)
    if (rows, columns) == (side, side):
        return positions
    grid = rearrange(positions, "1 (h w) d -> 1 d h w", h=side)
    grid = F.interpolate(grid, size=(rows, columns), mode="bicubic", align_corners=False)
    return rearrange(grid, "1 d h w -> 1 (h w) d")
