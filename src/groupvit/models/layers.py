"""What both encoders are made of: attention, multilayer perceptrons, pre-norm blocks."""

from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from groupvit.models import noise

_ONEDNN = (
    torch.backends.mkldnn.is_available()
    and hasattr(torch, "mkldnn_convolution")
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
)
_LITTLE = 1 << 20  # multiplications, for which a call of oneDNN costs more than it saves
_LOGITS = 1 << 22  # of the attention maps that a CPU holds at once where no gradient is wanted; they stay in its cache
_LONG = 1 << 24  # logits of one sequence that are never held


def quick_gelu(x: Tensor) -> Tensor:
    """CLIP's sigmoid approximation of GELU."""
    return x * torch.sigmoid(1.702 * x)


def _by_onednn(multiplications: int, *tensors: Tensor) -> bool:
    """Whether a float32 product is worth a call of oneDNN, which is twice as fast as PyTorch's MKL on AMD's CPUs."""
    float32 = all(x.dtype == torch.float32 and x.device.type == "cpu" for x in tensors)
    eager = not torch.is_autocast_enabled("cpu") and not torch.compiler.is_compiling()
    return _ONEDNN and float32 and eager and multiplications >= _LITTLE


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None, then: str = "none") -> Tensor:
    """x @ weight.T + bias by oneDNN, and what it calls `then` of that."""
    return torch.ops.mkldnn._linear_pointwise(x.contiguous(), weight.contiguous(), bias, then, [], "none")


class _Product(torch.autograd.Function):
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


def linear(
    x: Float[Tensor, "*rows dim"], weight: Float[Tensor, "out dim"], bias: Float[Tensor, " out"] | None = None
) -> Float[Tensor, "*rows out"]:
    """`F.linear`, on a CPU by the faster of PyTorch's libraries."""
    if not _by_onednn(x.numel() * len(weight), x, weight):
        return F.linear(x, weight, bias)
    return _Product.apply(x.flatten(0, -2), weight, bias).unflatten(0, x.shape[:-1])


class Linear(nn.Linear):
    """`nn.Linear` by `linear`."""

    def forward(self, input: Float[Tensor, "*rows dim"]) -> Float[Tensor, "*rows out"]:
        return linear(input, self.weight, self.bias)


def _attend_by_onednn(
    q: Float[Tensor, "heads queries dim"], k: Float[Tensor, "heads keys dim"], v: Float[Tensor, "heads keys dim"]
) -> Float[Tensor, "queries _"]:
    """The products of all heads are convolutions of single pixels whose channels form groups."""
    heads, keys, _ = k.shape

    def products(x: Tensor, weights: Tensor) -> Tensor:
        pixels = x.contiguous()[None, None].permute(0, 3, 1, 2)
        kernels = weights.flatten(0, 1)[:, :, None, None]
        return torch.mkldnn_convolution(pixels, kernels, None, (0, 0), (1, 1), (1, 1), heads)[0, :, 0].T

    maps = products(rearrange(q, "h n d -> n (h d)") * q.shape[-1] ** -0.5, k)
    maps = maps.unflatten(-1, (heads, keys)).softmax(dim=-1)
    return products(maps.flatten(1), v.mT)


def attend(
    q: Float[Tensor, "batch heads queries dim"],
    k: Float[Tensor, "batch heads keys dim"],
    v: Float[Tensor, "batch heads keys dim"],
    *,
    causal: bool = False,
) -> Float[Tensor, "batch queries _"]:
    """Scaled dot-product attention.

    PyTorch's fused kernel for CPUs is as slow in bfloat16 as in float32, and its gradient many times slower than that
    of plain products at our lengths, so these are used there, unless the maps of one sequence are too large to hold.
    """
    one = q.shape[1] * q.shape[2] * k.shape[2]
    if q.device.type != "cpu" or one > _LONG:
        return rearrange(F.scaled_dot_product_attention(q, k, v, is_causal=causal), "b h n d -> b n (h d)")
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return _attend(q, k, v, causal)
    if not causal and _by_onednn(one * q.shape[-1], q, k, v):
        return torch.stack([_attend_by_onednn(*each) for each in zip(q, k, v, strict=True)])
    at_once = max(1, _LOGITS // one)
    parts = zip(q.split(at_once), k.split(at_once), v.split(at_once), strict=True)
    return torch.cat([_attend(*part, causal) for part in parts])


def _attend(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    with torch.autocast(q.device.type, enabled=False):  # which would copy the maps to float32 and back for nothing
        logits = q * q.shape[-1] ** -0.5 @ k.mT
        if causal:
            later = torch.ones(logits.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
            logits = logits.masked_fill(later, -torch.inf)
        return rearrange(logits.softmax(dim=-1) @ v, "b h n d -> b n (h d)")


class Mlp(nn.Module):
    """Linear, activation, linear over the last axis."""

    def __init__(self, dim: int, hidden_dim: int, out_dim: int | None = None, *, quick: bool = False):
        super().__init__()
        self.fc1 = Linear(dim, hidden_dim)
        self.activation = quick_gelu if quick else F.gelu
        self.fc2 = Linear(hidden_dim, out_dim or dim)

    def forward(self, x: Float[Tensor, "*rows dim"]) -> Float[Tensor, "*rows out"]:
        large = _by_onednn(x.numel() * self.fc1.out_features, x, self.fc1.weight)
        if large and self.activation is F.gelu and not torch.is_grad_enabled():
            return self.fc2(_product(x, self.fc1.weight, self.fc1.bias, "gelu"))
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
        return self.proj(attend(q, k, v, causal=self.causal))


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
        return self.proj(attend(q, k, v))


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

    def kept(self, keys: Int[Tensor, " batch"] | None) -> Float[Tensor, "2 batch 1 1"] | None:
        """What stochastic depth (Huang et al., 2016) multiplies the residual branches of each sample with: 0 with
        probability `drop_path`. One random key per sample; None where nothing is dropped.

        Apart from `forward`, which would be compiled anew for every rate.
        """
        if keys is None or not self.drop_path:
            return None
        kept = [noise.uniform(noise.fold(keys, branch), 1, 1) >= self.drop_path for branch in range(2)]
        return torch.stack(kept).float() / (1 - self.drop_path)

    def forward(
        self, x: Float[Tensor, "batch tokens dim"], kept: Float[Tensor, "2 batch 1 1"] | None = None
    ) -> Float[Tensor, "batch tokens dim"]:
        branch = self.attn(self.norm1(x))
        x = x + (branch if kept is None else branch * kept[0].to(branch.dtype))
        branch = self.mlp(self.norm2(x))
        return x + (branch if kept is None else branch * kept[1].to(branch.dtype))
