"""The hierarchical vision transformer (§3.1, Fig. 2): patches become segments, stage by stage."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from groupvit.models import noise
from groupvit.models.config import ImageEncoderConfig, Stage
from groupvit.models.grouping import Assignment, GroupingBlock, SeededGrouping, Segments
from groupvit.models.layers import Block, TokenMixer, Tokens, resampled
from groupvit.models.noise import Keys
from groupvit.models.preprocessing import normalize
from groupvit.models.stems import TrunkFeatures, TrunkStem, build_stem
from groupvit.models.trunks import EfficientNetLite, Images, Pixels, ViTTrunk

Maps = Sequence[Float[Tensor, "batch _ _ _"]]


@dataclass(frozen=True)
class Ungrouped:
    """Input of a grouping block: the stage's segments and group tokens after its transformer blocks."""

    segments: Segments
    group_tokens: Tokens


@dataclass(frozen=True)
class ImageFeatures:
    """A batch of encoded images, before the projection to the joint space.

    `pooled` is the mean of the segments (Eq. 2). `ungrouped` and `assignments` have one entry per grouping stage (none
    for a plain ViT), `grid` is the height and width of the patch grid.
    """

    pooled: Float[Tensor, "batch dim"]
    segments: Segments
    ungrouped: tuple[Ungrouped, ...]
    assignments: tuple[Assignment, ...]
    grid: tuple[int, int]
    trunk: TrunkFeatures | None = None

    def groups(self, stage: int = -1, *, hard: bool = False) -> Float[Tensor, "batch groups height width"]:
        """Return each patch's share in each group of a stage: the product of the assignments up to it (§3.3)."""
        height, width = self.grid
        if not self.assignments:
            patches = torch.eye(height * width, dtype=self.pooled.dtype, device=self.pooled.device)
            return rearrange(patches, "g (h w) -> 1 g h w", h=height).expand(len(self.pooled), -1, -1, -1)
        stages = self.assignments[: range(len(self.assignments))[stage] + 1]
        maps = _compose([a.hard if hard else a.soft for a in stages])
        return rearrange(maps, "b g (h w) -> b g h w", h=height)

    def stages(self, *, hard: bool = False, keep_empty: bool = True) -> list[Float[Tensor, "batch _ rows columns"]]:
        """Return `groups` of every stage, in float32; without `keep_empty` a final group without patches wins none.

        Between patches its soft map may be the largest.
        """
        with torch.autocast(self.pooled.device.type, enabled=False):
            stages = [self.groups(stage, hard=hard) for stage in range(len(self.assignments))]
        if stages and not keep_empty:
            stages[-1] = torch.where(self.occupied()[:, :, None, None], stages[-1], -1.0)
        return stages

    def image(self, index: int) -> "ImageFeatures":
        """Return a copy of one image of the batch, as a batch of one, without the trunk's maps."""

        def one(batch: Tensor) -> Tensor:
            return batch[index : index + 1].clone()

        ungrouped = tuple(Ungrouped(one(given.segments), one(given.group_tokens)) for given in self.ungrouped)
        assignments = tuple(Assignment(one(made.soft), one(made.hard)) for made in self.assignments)
        return ImageFeatures(one(self.pooled), one(self.segments), ungrouped, assignments, self.grid)

    def occupied(self) -> Bool[Tensor, "batch segments"]:
        """Return which final segments own at least one patch under hard assignment."""
        if not self.assignments:
            return torch.ones_like(self.segments[..., 0], dtype=torch.bool)
        return occupied(self.assignments)


def _compose(maps: Sequence[Float[Tensor, "batch _ _"]]) -> Float[Tensor, "batch final patches"]:
    return reduce(lambda earlier, later: later @ earlier, maps)


def occupied(assignments: Sequence[Assignment]) -> Bool[Tensor, "batch groups"]:
    """Return which groups of the last stage own at least one patch under hard assignment."""
    return _compose([assignment.hard for assignment in assignments]).sum(dim=-1) > 0


class GroupingStage(nn.Module):
    """Blocks over segments and group tokens, then grouping (Fig. 2)."""

    def __init__(self, config: ImageEncoderConfig, stage: Stage, previous_tokens: int, drop_paths: Sequence[float]):
        super().__init__()
        dim = config.dim
        self.group_tokens = None
        self.group_projector = None
        self.grouping = None
        self.seeded = SeededGrouping(stage.output_groups) if stage.seeded else None
        blocks = (Block(dim, config.heads, mlp_ratio=config.mlp_ratio, drop_path=rate) for rate in drop_paths)
        self.blocks = nn.ModuleList(blocks)
        if stage.group_tokens:
            tokens = torch.zeros(1, stage.group_tokens, dim)
            if previous_tokens:
                mixer = TokenMixer(previous_tokens, dim // 2, stage.group_tokens)
                self.group_projector = nn.Sequential(nn.LayerNorm(dim), mixer)
            else:
                nn.init.trunc_normal_(tokens, std=0.02)
            self.group_tokens = nn.Parameter(tokens)
            self.grouping = GroupingBlock(config, stage.group_tokens, stage.output_groups)

    def forward(
        self, segments: Segments, previous: Float[Tensor, "batch previous dim"] | None, keys: Keys | None
    ) -> tuple[Segments, Tokens | None]:
        """Return segments and group tokens after the blocks, before `grouping` merges them."""
        count, x = segments.shape[1], segments
        if self.group_tokens is not None:
            tokens = self.group_tokens.expand(segments.shape[0], -1, -1)
            if self.group_projector is not None and previous is not None:
                tokens = tokens + self.group_projector(previous)
            x = torch.cat([segments, tokens.to(segments.dtype)], dim=1)
        for i, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            x = block(x, block.kept(None if keys is None else noise.fold(keys, i)))
        return x[:, :count], x[:, count:] if self.group_tokens is not None else None


class ImageEncoder(nn.Module):
    """Images of any height and width to segments and their pooled feature (Eqs. 1-2)."""

    def __init__(self, config: ImageEncoderConfig):
        super().__init__()
        stages, dropout = config.stages, config.patch_dropout
        self.patch_size = config.patch_size
        self.stem = build_stem(config)
        seeded = [i for i, stage in enumerate(stages) if stage.seeded]
        grouped = [i for i, stage in enumerate(stages) if stage.has_grouping]
        if seeded and (seeded != grouped[:1] or stages[seeded[0]].group_tokens or self.trunk is None):
            raise ValueError("seeded groups need a trunk, come first, and have no group tokens")
        if any(min(stage.depth, stage.group_tokens, stage.output_groups) < 0 for stage in stages):
            raise ValueError("a stage has a negative number of blocks, group tokens or output groups")
        if not 0 <= dropout < 1 or (dropout and self.trunk is not None):
            raise ValueError("patch_dropout is a share of patches from 0 to below 1, and 0 on a trunk")
        self.patch_dropout = dropout
        self.pool_occupied = bool(seeded) or not config.group_residual
        self.leaves_out_empty = config.hard_assignment and not config.group_residual
        self.norm_stem = nn.LayerNorm(config.dim)
        self.pos_embed = None  # a trunk knows positions as well as its pre-training needed them
        if self.trunk is None:
            patches = (config.image_size // config.patch_size) ** 2
            self.pos_embed = nn.Parameter(torch.empty(1, patches, config.dim))
            nn.init.trunc_normal_(self.pos_embed, std=0.02)
        rates = torch.linspace(0, config.drop_path, sum(stage.depth for stage in stages), device="cpu").tolist()
        self.stages = nn.ModuleList()
        previous_tokens = 0
        for stage in stages:
            drop_paths = [rates.pop(0) for _ in range(stage.depth)]
            self.stages.append(GroupingStage(config, stage, previous_tokens, drop_paths))
            previous_tokens = stage.group_tokens if config.project_group_tokens else 0
        self.norm = nn.LayerNorm(config.dim)

    @property
    def trunk(self) -> EfficientNetLite | ViTTrunk | None:
        """Pre-trained network that makes the patches, if there is one."""
        return self.stem.trunk if isinstance(self.stem, TrunkStem) else None

    def preprocess(self, pixels: Pixels) -> Images:
        """Return images for `forward`, normalised as the trunk was pre-trained or by ImageNet's statistics."""
        dtype = self.norm.weight.dtype
        return normalize(pixels, dtype) if self.trunk is None else self.trunk.preprocess(pixels, dtype)

    def early(self, pixels: Pixels) -> tuple[Float[Tensor, "batch _ _ _"], ...]:
        """Return the trunk's maps before the last, which may take the images' place in `forward`."""
        assert isinstance(self.trunk, EfficientNetLite)
        return self.trunk.early(self._padded(self.preprocess(pixels)))

    def _padded(self, images: Images) -> Float[Tensor, "batch 3 rows columns"]:
        height, width = images.shape[-2:]
        return F.pad(images, (0, -width % self.patch_size, 0, -height % self.patch_size))

    def embed(
        self, images: Float[Tensor, "_ 3 height width"], early: Maps = ()
    ) -> tuple[Float[Tensor, "batch patches dim"], tuple[int, int], TrunkFeatures | None]:
        """Return patch tokens with positions, their grid, and the trunk's maps.

        Right and bottom are padded to whole patches. A trunk's patches are interpolated on the grid of its finest map.
        """
        images = self._padded(images)
        if isinstance(self.stem, TrunkStem):
            made = self.stem(images, early)
            patches = rearrange(self.norm_stem(rearrange(made.patches, "b d h w -> b h w d")), "b h w d -> b d h w")
            fine = F.interpolate(patches, made.local.shape[-2:], mode="bilinear", align_corners=False)
            grid = (fine.shape[-2], fine.shape[-1])
            return rearrange(fine, "b d h w -> b (h w) d"), grid, replace(made, patches=patches)
        x = self.stem(images)
        grid = (x.shape[-2], x.shape[-1])
        x = self.norm_stem(rearrange(x, "b d h w -> b (h w) d"))
        assert self.pos_embed is not None
        return x + resampled(self.pos_embed, *grid).to(x.dtype), grid, None

    def forward(
        self,
        images: Float[Tensor, "_ 3 height width"],
        keys: Keys | None = None,
        *,
        joined: Sequence[Int[Tensor, "batch _"]] = (),
        early: Maps = (),
    ) -> ImageFeatures:
        """`keys` (see `noise.sample_keys`) turn on Gumbel noise, stochastic depth and patch dropout; nothing is drawn
        without them.

        `joined` repeats an earlier pass: `Assignment.joined` of each grouping stage, which the stages then keep to.
        `early`, the trunk's maps before the last where they are known already, take the place of the images, of which
        there may then be none.
        """
        segments, grid, trunk = self.embed(images, early)
        segments = segments if keys is None else self._some(segments, keys)
        tokens, ungrouped, assignments = None, [], []
        for i, stage in enumerate(self.grouping_stages()):
            stage_keys = None if keys is None else noise.fold(keys, 100 + i)
            segments, tokens = stage(segments, tokens, stage_keys)
            given = joined[len(assignments)] if len(assignments) < len(joined) else None
            if stage.grouping is not None and tokens is not None:
                ungrouped.append(Ungrouped(segments, tokens))
                group_keys = None if stage_keys is None else noise.fold(stage_keys, -2)
                exist = occupied(assignments) if self.leaves_out_empty and assignments else None
                segments, assignment = stage.grouping(tokens, segments, group_keys, given, exist)
                assignments.append(assignment)
            elif stage.seeded is not None and trunk is not None:
                ungrouped.append(Ungrouped(segments, segments[:, :0]))
                segments, assignment = stage.seeded(trunk.local, segments, given)
                assignments.append(assignment)
        segments = self.norm(segments)
        pooled = self._pool(segments, assignments)
        return ImageFeatures(pooled, segments, tuple(ungrouped), tuple(assignments), grid, trunk)

    def _some(self, patches: Segments, keys: Keys) -> Float[Tensor, "batch kept dim"]:
        """Return the patches that are not dropped: a random choice for each image (FLIP, Li et al., 2023)."""
        if not self.patch_dropout:
            return patches
        count = max(1, round((1 - self.patch_dropout) * patches.shape[1]))
        kept = noise.uniform(noise.fold(keys, 99), patches.shape[1]).topk(count, dim=1).indices
        return patches.take_along_dim(kept[:, :, None], dim=1)

    def regrouped(self, features: ImageFeatures) -> Iterator[ImageFeatures]:
        """Yield the features with half and with twice as many seeded groups, if such groups come last."""
        stages = self.grouping_stages()
        if not stages or stages[-1].seeded is None or features.trunk is None:
            return
        seeded, cells = stages[-1].seeded, features.ungrouped[-1].segments
        for segments, assignment in seeded.of_sizes(features.trunk.local, cells, seeded.others):
            yield replace(features, segments=self.norm(segments), assignments=(assignment,))

    def patches_alone(self, features: ImageFeatures) -> Float[Tensor, "batch ungrouped dim"]:
        """Return each input of the last grouping as a final segment of its own.

        Of a trunk without group tokens each patch is one. Other models need a last stage that groups and keeps no group
        residual: then a segment is a function of its inputs.
        """
        last = self.grouping_stages()[-1]
        if features.trunk is not None and last.grouping is None:
            return self.norm(rearrange(features.trunk.patches, "b d h w -> b (h w) d"))
        if last.grouping is None or last.grouping.group_residual:
            raise ValueError("a patch is a segment of its own only where segments are made of their patches alone")
        return self.norm(last.grouping.alone(features.ungrouped[-1].segments))

    def patches_occupied(
        self, features: ImageFeatures, patches: Float[Tensor, "batch ungrouped dim"]
    ) -> Bool[Tensor, "batch _"]:
        """Return which of `patches_alone` own a patch: empty groups of an earlier stage do not; nothing if all do."""
        earlier = features.assignments[:-1]
        if self.leaves_out_empty and earlier and patches.shape[1] and self.grouping_stages()[-1].grouping is not None:
            return occupied(earlier)
        return torch.ones_like(patches[:, :0, 0], dtype=torch.bool)

    def grouping_stages(self) -> list[GroupingStage]:
        """Return `stages` with their type, which nn.ModuleList forgets."""
        return [stage for stage in self.stages if isinstance(stage, GroupingStage)]

    def _pool(self, segments: Segments, assignments: Sequence[Assignment]) -> Float[Tensor, "batch dim"]:
        """Return the mean over segments; without the group residual an empty group is not a segment and is left out."""
        if not (self.pool_occupied and assignments):
            return segments.mean(dim=1)
        weights = occupied(assignments).to(segments.dtype)
        weights = weights / weights.sum(dim=1, keepdim=True)
        return torch.einsum("b g, b g d -> b d", weights, segments)
