"""The numbers of a model, each with its default."""

from dataclasses import asdict, dataclass, field, fields, replace
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from groupvit.errors import InputError

Stem = Literal["patch", "conv", "residual", "efficientnet-lite0", "efficientnet-lite2", "vit"]


@dataclass(frozen=True)
class Stage:
    """Transformer blocks over segments and group tokens, then a grouping block when there are group tokens (§3.1).

    `group_tokens` and `output_groups` may differ: a token mixer maps the one number to the other before assignment.
    With `seeded` groups start from the image itself (`grouping.SeededGrouping`): there are about `output_groups` of
    them, and no group tokens.
    """

    depth: int
    group_tokens: int = 0
    output_groups: int = 0
    seeded: bool = False

    @property
    def has_grouping(self) -> bool:
        """True if the stage ends with a grouping."""
        return self.seeded or self.group_tokens > 0


@dataclass(frozen=True)
class ViTConfig:
    """A pre-trained ViT (`trunks.ViTTrunk`); defaults are ViT-S/16. `mean` and `std` are on RGB in [0, 1].

    `class_tokens` is 2 for a DeiT that was distilled.
    """

    image_size: int = 224
    patch_size: int = 16
    dim: int = 384
    heads: int = 6
    depth: int = 12
    mlp_ratio: float = 4.0
    norm_eps: float = 1e-12
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    class_tokens: int = 1

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "ViTConfig":
        """Return the configuration of plain values; an unknown, missing or mistyped field is an `InputError`."""
        return _parse(cls, values, "vit")


@dataclass(frozen=True)
class ImageEncoderConfig:
    """Defaults are the published checkpoints' ViT-S; `patch_size` and `image_size` are pixels.

    `stem` makes the patches, and may be a pre-trained trunk (`trunks`), whose finest map has a stride of `patch_size`;
    `vit` is the size of a trunk "vit". `patch_dropout` is the share of the patches that training leaves out.
    """

    image_size: int = 224
    patch_size: int = 16
    dim: int = 384
    heads: int = 6
    mlp_ratio: float = 4.0
    stages: tuple[Stage, ...] = (Stage(6, 64, 64), Stage(3, 8, 8), Stage(3))
    drop_path: float = 0.1
    patch_dropout: float = 0.0
    stem: Stem = "patch"
    vit: ViTConfig | None = None
    hard_assignment: bool = True
    assign_logits: Literal["scaled_dot", "dot", "cosine"] = "scaled_dot"
    assign_eps: float = 1.0
    token_mixer: bool = True
    pre_assign_attention: bool = True
    channel_mlp: bool = True
    group_residual: bool = True
    project_group_tokens: bool = True

    @property
    def has_trunk(self) -> bool:
        """True if a pre-trained trunk makes the patches."""
        return self.stem not in ("patch", "conv", "residual")

    @property
    def short_side(self) -> int:
        """Pixels of the short side at which whole photos are segmented best.

        With a trunk that is more than in training, since crops show things larger (Touvron et al., 2019).
        """
        return 2 * self.image_size if self.has_trunk else self.image_size


@dataclass(frozen=True)
class TextEncoderConfig:
    """A causal transformer over CLIP's byte pairs; defaults are the published checkpoints'."""

    width: int = 256
    heads: int = 4
    layers: int = 12
    context_length: int = 77
    vocab_size: int = 49408


@dataclass(frozen=True)
class ModelConfig:
    """A GroupViT, or with a single stage without group tokens a CLIP-style ViT.

    `segment_loss` adds the scale and bias that the noun losses learn, `teacher_loss` the scale of the loss by a trunk's
    classifier. `rivals` are the nouns that it learnt to find, of which some compete with the labels
    (`segmentation.rivals`).
    """

    image: ImageEncoderConfig = field(default_factory=ImageEncoderConfig)
    text: TextEncoderConfig = field(default_factory=TextEncoderConfig)
    embed_dim: int = 256
    projector_dim: int = 4096
    multi_label_scale: bool = True
    segment_loss: bool = False
    teacher_loss: bool = False
    rivals: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "ModelConfig":
        """Invert `to_dict`; an unknown, missing or mistyped field is an `InputError`."""
        return _parse(cls, values, "model")


_ADDED = ("teacher_loss", "rivals", "seeded", "vit", "class_tokens", "patch_dropout")
"""Fields that the first checkpoints do not have, whose defaults say what those are."""


def _parse(kind: Any, value: Any, name: str) -> Any:
    origin = get_origin(kind)
    if origin is Literal:
        if value in get_args(kind):
            return value
    elif origin is tuple:
        if isinstance(value, list | tuple):
            return tuple(_parse(get_args(kind)[0], item, f"{name}[{i}]") for i, item in enumerate(value))
    elif origin is UnionType:
        options = [option for option in get_args(kind) if option is not NoneType]
        return None if value is None and len(options) < len(get_args(kind)) else _parse(options[0], value, name)
    elif hasattr(kind, "__dataclass_fields__"):
        if isinstance(value, dict):
            hints = get_type_hints(kind)
            if unknown := sorted(set(value) - set(hints)):
                raise InputError(f"unknown field {name}.{unknown[0]} in the configuration")
            if missing := [f.name for f in fields(kind) if f.name not in {*value, *_ADDED}]:
                raise InputError(f"field {name}.{missing[0]} is missing in the configuration")
            return kind(**{key: _parse(hints[key], item, f"{name}.{key}") for key, item in value.items()})
    elif kind is float and type(value) in (int, float):
        return float(value)
    elif type(value) is kind:
        return value
    raise InputError(f"field {name} of the configuration is {value!r}, which is not a {kind}")


RELEASE = ModelConfig()
"""The published checkpoints: two stages, ViT-S."""

PAPER = ModelConfig(
    image=ImageEncoderConfig(
        assign_logits="dot",
        assign_eps=0.0,
        token_mixer=False,
        pre_assign_attention=False,
        channel_mlp=False,
        project_group_tokens=False,
    ),
    text=TextEncoderConfig(width=512, heads=8),
    multi_label_scale=False,
)
"""The paper as printed: Eq. 3 without a scale, Eq. 5 without eps, CLIP's text encoder, one temperature."""


def with_stages(config: ModelConfig, *stages: Stage) -> ModelConfig:
    """Return the model with other stages: `Stage(6, 64, 8), Stage(6)` is the 1-stage model, `Stage(12)` a plain ViT."""
    return replace(config, image=replace(config.image, stages=stages))
