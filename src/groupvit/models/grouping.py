"""The grouping block (§3.1, Eqs. 3-5): segments join groups and become fewer, larger segments."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from groupvit.models import noise
from groupvit.models.config import ImageEncoderConfig
from groupvit.models.layers import CrossAttention, Mlp, TokenMixer, Tokens, at_least_float32
from groupvit.models.noise import Keys

Segments = Float[Tensor, "batch segments dim"]
Groups = Float[Tensor, "batch groups dim"]
Shares = Float[Tensor, "batch groups segments"]
Joined = Int[Tensor, "batch segments"]
Exist = Bool[Tensor, "batch segments"]
Map = Float[Tensor, "batch channels rows columns"]


@dataclass(frozen=True)
class Assignment:
    """Groups that the segments of one stage join.

    `soft` is the softmax over groups without noise; `hard` is one-hot, with the noise that was drawn in training.
    """

    soft: Shares
    hard: Shares

    @property
    def joined(self) -> Joined:
        """Index of the group that each segment joins."""
        return self.hard.argmax(dim=1)


def assignment(soft: Shares, joined: Joined) -> Assignment:
    """Return the assignment in which each segment joins the group `joined`."""
    return Assignment(soft, torch.zeros_like(soft).scatter_(1, joined[:, None], 1.0))


class CrossAttentionBlock(nn.Module):
    """Group tokens look at the segments before they claim them: in the published model, not in the paper."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float):
        super().__init__()
        self.attn = CrossAttention(dim, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(mlp_ratio * dim))
        self.norm_post = nn.LayerNorm(dim)

    def forward(self, groups: Groups, segments: Segments) -> Groups:
        groups = groups + self.attn(groups, segments)
        return self.norm_post(groups + self.mlp(self.norm2(groups)))


class AssignAttention(nn.Module):
    """Single-head attention whose softmax runs over the groups: segments choose, groups average (Eqs. 3-5).

    `eps` is added to the size of a group before dividing by it; with 0 a group is the mean of its segments.
    """

    def __init__(self, dim: int, *, hard: bool, logits: Literal["scaled_dot", "dot", "cosine"], eps: float):
        super().__init__()
        self.hard = hard
        self.logits = logits
        self.eps = eps
        self.q_proj = nn.Linear(dim, dim)
        self.k_proj = nn.Linear(dim, dim)
        self.v_proj = nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)
        if logits == "cosine":
            self.scale = nn.Parameter(torch.tensor(math.log(10.0)))

    def similarity(self, groups: Groups, segments: Segments, exist: Exist | None = None) -> Shares:
        """Return the logits of Eq. 3 in at least float32: bfloat16 cannot separate close groups."""
        q, k = self.q_proj(groups), self.k_proj(segments)
        with torch.autocast(q.device.type, enabled=False):
            q, k = at_least_float32(q), at_least_float32(k)
            if self.logits == "cosine":
                # What all segments share would let one group win them all, what all groups share tells nothing.
                q, k = q - q.mean(dim=1, keepdim=True), k - mean_of(k, exist)
                q, k = F.normalize(q, dim=-1) * self.scale.exp().clamp(max=100), F.normalize(k, dim=-1)
            logits = q @ k.transpose(1, 2)
        return logits * q.shape[-1] ** -0.5 if self.logits == "scaled_dot" else logits

    def assign(self, logits: Shares, keys: Keys | None, joined: Joined | None = None) -> tuple[Shares, Assignment]:
        """Return the weights that merge segments, and the assignment; `keys` turn on Gumbel noise (Eqs. 3, 4).

        `joined` repeats the assignment of an earlier pass, which rounding could change.
        """
        noisy = soft = logits.softmax(dim=1)
        if self.hard and keys is not None:
            noisy = (logits + noise.gumbel(keys, *logits.shape[1:])).softmax(dim=1)
        made = assignment(soft, noisy.argmax(dim=1) if joined is None else joined)
        return made.hard + (noisy - noisy.detach()) if self.hard else soft, made

    def forward(
        self,
        groups: Groups,
        segments: Segments,
        keys: Keys | None,
        joined: Joined | None = None,
        exist: Exist | None = None,
    ) -> tuple[Groups, Assignment]:
        weights, made = self.assign(self.similarity(groups, segments, exist), keys, joined)
        return self.merge(weights if exist is None else weights * exist[:, None], segments), made

    def merge(self, weights: Shares, segments: Segments) -> Groups:
        """Return each group's mean of its segments, projected (Eq. 5)."""
        size = weights.sum(dim=-1, keepdim=True) + self.eps
        # Without eps an empty group would divide by zero; it keeps a zero update instead.
        weights = weights / torch.where(size > 0, size, 1.0)
        values = self.v_proj(segments)
        return self.proj(weights.to(values.dtype) @ values)


def mean_of(segments: Segments, exist: Exist | None) -> Float[Tensor, "batch 1 dim"]:
    """Return the mean of the segments that exist (None: all)."""
    if exist is None:
        return segments.mean(dim=1, keepdim=True)
    shares = exist[:, None].to(segments.dtype)
    return shares @ segments / shares.sum(dim=-1, keepdim=True).clamp(min=1)


class GroupingBlock(nn.Module):
    """Group tokens claim segments; each group's segments merge into one new segment (§3.1, Fig. 2)."""

    def __init__(self, config: ImageEncoderConfig, group_tokens: int, output_groups: int):
        super().__init__()
        dim, heads, mlp_ratio = config.dim, config.heads, config.mlp_ratio
        hard, logits, eps = config.hard_assignment, config.assign_logits, config.assign_eps
        self.group_residual = config.group_residual
        self.norm_tokens = nn.LayerNorm(dim)
        mix = config.token_mixer or group_tokens != output_groups
        self.token_mixer = TokenMixer(group_tokens, dim // 2, output_groups) if mix else nn.Identity()
        self.norm_post_tokens = nn.LayerNorm(dim) if mix else nn.Identity()
        self.norm_segments = nn.LayerNorm(dim)
        self.pre_assign_attn = CrossAttentionBlock(dim, heads, mlp_ratio) if config.pre_assign_attention else None
        self.assign = AssignAttention(dim, hard=hard, logits=logits, eps=eps)
        self.norm_new = nn.LayerNorm(dim) if config.channel_mlp else nn.Identity()
        self.channel_mlp = Mlp(dim, int(mlp_ratio * dim)) if config.channel_mlp else None

    def forward(
        self,
        group_tokens: Tokens,
        segments: Segments,
        keys: Keys | None = None,
        joined: Joined | None = None,
        exist: Exist | None = None,
    ) -> tuple[Groups, Assignment]:
        """`exist` leaves out segments that are empty groups of the stage before, except as a context of attention."""
        groups, segments = self.prepare(group_tokens, segments)
        merged, assignment = self.assign(groups, segments, keys, joined, exist)
        return self.mix_channels(merged + groups if self.group_residual else merged), assignment

    def alone(self, segments: Segments) -> Segments:
        """Return each segment as a group of its own would be, without the group token."""
        values = self.assign.v_proj(self.norm_segments(segments)) / (1 + self.assign.eps)
        return self.mix_channels(self.assign.proj(values))

    def prepare(self, group_tokens: Tokens, segments: Segments) -> tuple[Groups, Segments]:
        """Return groups and segments as `assign` takes them."""
        groups = self.norm_post_tokens(self.token_mixer(self.norm_tokens(group_tokens)))
        segments = self.norm_segments(segments)
        return groups if self.pre_assign_attn is None else self.pre_assign_attn(groups, segments), segments

    def mix_channels(self, merged: Groups) -> Groups:
        """Return the new segments from the merged ones."""
        return merged if self.channel_mlp is None else merged + self.channel_mlp(self.norm_new(merged))


class SeededGrouping(nn.Module):
    """Groups that start from the image itself and claim cells by local features, as k-means does.

    The seeds are the means of a regular grid of about `groups` tiles; each round gives every cell to the nearest group
    and moves the group to the mean of its cells (cross-attention as k-means: Yu et al., kMaX-DeepLab, ECCV 2022; seeds
    on a grid and position among the features: Achanta et al., SLIC, 2012). Nothing here is learned: a learned map of
    the local features scatters the groups, which the noun loss rewards (docs/LOG.md).
    """

    ROUNDS = 8
    POSITION = 0.25
    """Weight of the position, from -1 to 1, beside local features whose maps have length 1."""
    SHARPNESS = 20.0
    """Of the soft assignment, by squared distances."""
    OTHER_SIZES = (0.5, 2.0)
    """Numbers of groups, in shares of the own one, whose scores a pixel averages with those of its own group."""

    def __init__(self, groups: int, *, plain: bool = False):
        """`plain` k-means compares the local features as they are, and only by its own number of groups."""
        super().__init__()
        self.groups = groups
        self.smooth = not plain
        self.others = () if plain else tuple(max(1, round(size * groups)) for size in self.OTHER_SIZES)

    @staticmethod
    def tiles(groups: int, rows: int, columns: int) -> tuple[int, int]:
        """Return the number of seeds down and across."""
        down = min(rows, groups, max(1, round((groups * rows / columns) ** 0.5)))
        return down, min(columns, max(1, round(groups / down)))

    def forward(self, local: Map, segments: Segments, joined: Joined | None = None) -> tuple[Groups, Assignment]:
        """Return the mean segment of each group, and the assignment; `joined` as in `AssignAttention.assign`."""
        [grouped] = self.of_sizes(local, segments, (self.groups,), joined)
        return grouped

    def of_sizes(
        self, local: Map, segments: Segments, sizes: Sequence[int], joined: Joined | None = None
    ) -> list[tuple[Float[Tensor, "batch _ dim"], Assignment]]:
        """Return what `forward` returns, for each of several numbers of groups."""
        with torch.no_grad(), torch.autocast(local.device.type, enabled=False):  # all in at least float32
            places = self._places(at_least_float32(local))
            assignments = [self._assigned(places, groups, joined) for groups in sizes]
            shares = [made.hard / made.hard.sum(dim=-1, keepdim=True).clamp(min=1) for made in assignments]
        merged = [weights.to(segments.dtype) @ segments for weights in shares]
        return list(zip(merged, assignments, strict=True))

    def _places(self, local: Map) -> Float[Tensor, "batch _ rows columns"]:
        """Return the features to compare: the local ones, averaged with their eight neighbours', and the position."""
        if self.smooth:
            local = local.contiguous(memory_format=torch.channels_last)  # on a CPU four times as fast
            local = F.avg_pool2d(local, 3, stride=1, padding=1, count_include_pad=False)
        axes = [self.axis(count).to(local.device) for count in local.shape[-2:]]
        position = self.POSITION * torch.stack(torch.meshgrid(axes, indexing="ij")).to(local.dtype)
        return torch.cat([local, position.expand(local.shape[0], -1, -1, -1)], dim=1)

    @staticmethod
    def axis(count: int) -> Float[Tensor, " count"]:
        """Return the cells' positions along a side."""
        return torch.linspace(-1, 1, count)

    def seeds(self, places: Map, groups: int) -> Float[Tensor, "batch _ channels"]:
        """Return the means of the tiles."""
        return F.adaptive_avg_pool2d(places, self.tiles(groups, *places.shape[-2:])).flatten(2).transpose(1, 2)

    def _assigned(self, places: Map, groups: int, joined: Joined | None) -> Assignment:
        centres, cells = self.seeds(places, groups), places.flatten(2).transpose(1, 2)
        for _ in range(self.ROUNDS):
            nearest = _distances(cells, centres).min(dim=1).indices  # on a CPU up to 60 times as fast as argmin
            members = F.one_hot(nearest, centres.shape[1]).to(cells.dtype).transpose(1, 2)
            size = members.sum(dim=-1, keepdim=True)
            centres = torch.where(size > 0, members @ cells / size.clamp(min=1), centres)
        soft = (-self.SHARPNESS * _distances(cells, centres)).softmax(dim=1)
        return assignment(soft, soft.max(dim=1).indices if joined is None else joined)


def _distances(cells: Segments, centres: Groups) -> Shares:
    """Return squared distances, less each cell's own square, which is the same for all groups."""
    return centres.square().sum(dim=-1, keepdim=True) - 2 * centres @ cells.transpose(1, 2)
