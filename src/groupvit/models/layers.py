"""What both encoders are made of: attention, multilayer perceptrons, pre-norm blocks."""

from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from groupvit.models import noise

_LITTLE = 1 << 20  # below so many multiplications a call of oneDNN costs more than it saves
_LOGITS = 1 << 22  # of the maps that plain attention holds at once where no gradient is wanted; they stay in the cache
_LONG = 1 << 24  # logits of one sequence that are never held
_MANY = 512  # keys from which one head after the other is quicker than PyTorch's fused kernel


def quick_gelu(x: Tensor) -> Tensor:
    """CLIP's sigmoid approximation of GELU."""
    return x * torch.sigmoid(1.702 * x)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x @ weight.T + bias by oneDNN."""
    bias = None if bias is None else bias.contiguous()
    return torch.ops.mkldnn._linear_pointwise(x.contiguous(), weight.contiguous(), bias, "none", [], "")


def _has_onednn() -> bool:
    """Whether this PyTorch has oneDNN, and the door to it that its documentation does not name leads there."""
    try:
        return _product(torch.ones(1, 2), torch.tensor([[1.0, 2.0], [3.0, 4.0]])).tolist() == [[3.0, 7.0]]
    except (AttributeError, RuntimeError, TypeError):
        return False


_ONEDNN = _has_onednn()


def _by_onednn(multiplications: int, *tensors: Tensor | None) -> bool:
    """Whether a float32 product is worth a call of oneDNN, which is twice as fast as PyTorch's MKL on AMD's CPUs."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or torch.is_autocast_enabled("cpu"):
        return False
    if multiplications < _LITTLE:
        return False
    return _ONEDNN and all(x is None or (x.dtype == torch.float32 and x.device.type == "cpu") for x in tensors)


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
            _Product.apply(gradient, weight.T, None) if to_rows else None,
            _Product.apply(gradient.T, rows.T, None) if to_weight else None,
            gradient.sum(dim=0) if to_bias else None,
        )


def linear(
    x: Float[Tensor, "*rows dim"], weight: Float[Tensor, "out dim"], bias: Float[Tensor, " out"] | None = None
) -> Float[Tensor, "*rows out"]:
    """`F.linear`, on a CPU by the faster of PyTorch's libraries."""
    if not _by_onednn(x.numel() * len(weight), x, weight, bias):
        return F.linear(x, weight, bias)
    return _Product.apply(x.reshape(-1, x.shape[-1]), weight, bias).view(*x.shape[:-1], len(weight))


class Linear(nn.Linear):
    """`nn.Linear` by `linear`."""

    def forward(self, input: Float[Tensor, "*rows dim"]) -> Float[Tensor, "*rows out"]:
        return linear(input, self.weight, self.bias)


def attend(
    q: Float[Tensor, "batch heads queries dim"],
    k: Float[Tensor, "batch heads keys dim"],
    v: Float[Tensor, "batch heads keys dim"],
    *,
    causal: bool = False,
) -> Float[Tensor, "batch queries _"]:
    """Scaled dot-product attention, of all heads side by side; the three are of one dtype.

    PyTorch's fused kernel for CPUs is as slow in bfloat16 as in float32, and its gradient many times slower than that
    of plain products at our lengths, so it is left to what these do worse: maps too large to hold, and short sequences
    of images in float32 without gradients.
    """
    one = q.shape[1] * q.shape[2] * k.shape[2]
    small = q.device.type == "cpu" and one * len(q) > 0 and one <= _LONG
    if small and (torch.is_grad_enabled() or torch.compiler.is_compiling()):
        return _attend(q, k, v, causal)
    if small and (causal or q.dtype != torch.float32):
        at_once = max(1, _LOGITS // one)
        parts = zip(q.split(at_once), k.split(at_once), v.split(at_once), strict=True)
        return torch.cat([_attend(*part, causal) for part in parts])
    if small and k.shape[2] >= _MANY and _by_onednn(one * q.shape[-1], q, k, v):
        return _attend_by_head(q, k, v)
    return rearrange(F.scaled_dot_product_attention(q, k, v, is_causal=causal), "b h n d -> b n (h d)")


def _attend(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    with torch.autocast(q.device.type, enabled=False):  # which would copy the maps to float32 and back
        logits = q * q.shape[-1] ** -0.5 @ k.mT
        if causal:
            later = torch.ones(logits.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
            logits = logits.masked_fill(later, -torch.inf)
        return rearrange(logits.softmax(dim=-1) @ v, "b h n d -> b n (h d)")


def _attend_by_head(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    batch, heads, queries, dim = q.shape
    out = q.new_empty(batch, queries, heads, dim)
    for image in range(batch):
        scaled = q[image] * dim**-0.5
        for head in range(heads):
            maps = _product(scaled[head], k[image, head]).softmax(dim=-1)
            out[image, :, head] = _product(maps, v[image, head].mT)
    return out.flatten(2)


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
