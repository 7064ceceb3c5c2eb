"""Plain ViTs as their authors publish them: DeiT's and timm's files, DINO's and MoCo v3's, each wrapped otherwise."""

import math
from pathlib import Path

import torch

from groupvit.checkpoints.names import Table, table
from groupvit.checkpoints.native import CONFIG, StateDict, read_json, read_safetensors
from groupvit.checkpoints.release import as_state, read_pickle
from groupvit.errors import InputError, input_error
from groupvit.models import IMAGENET_MEAN, IMAGENET_STD
from groupvit.models.config import ViTConfig

TABLE: Table = table("""
    class_token   cls_token
    pos_embed     pos_embed
    stem.         patch_embed.proj.
    blocks.       blocks.
    norm.         norm.
""")
# The network that each method's own evaluation takes: of DINO's two the teacher, of MoCo's two the one with gradients.
_NETWORKS = ("teacher", "student")
_ENCODERS = ("base_encoder.", "momentum_encoder.", "backbone.")
_LARGEST = {1280: 16, 1408: 16, 1664: 16}  # heads by channels: ViT-H, -g and -G
_HEADS = ("head.", "head_dist.", "pre_logits.")  # what only pre-training or classification needs


def read_state(path: Path) -> StateDict:
    """Return the tensors of the ViT in a file, in timm's names. Nothing in it is executed."""
    values = read_safetensors(path)[0] if path.suffix == ".safetensors" else read_pickle(path)
    inside = [values[name] for name in _NETWORKS if isinstance(values, dict) and isinstance(values.get(name), dict)]
    state = as_state(inside[0] if inside else values, path)
    for prefix in _ENCODERS:
        if encoder := {name.removeprefix(prefix): x for name, x in state.items() if name.startswith(prefix)}:
            state = encoder
            break
    return {name: tensor for name, tensor in state.items() if not name.startswith(_HEADS)}


def read_config(state: StateDict, source: Path) -> ViTConfig:
    """Read the sizes off the tensors; all of these networks have norms of eps 1e-6."""
    shapes = {name: (*tensor.shape,) for name, tensor in state.items()}
    match [shapes.get(n) for n in ("pos_embed", "patch_embed.proj.weight", "blocks.0.mlp.fc1.weight", "cls_token")]:
        case [(1, positions, dim), (width, 3, patch, _), (hidden, _), (1, 1, _)] if dim == width > 0 < patch:
            tokens = 1 + ("dist_token" in state)
        case _:
            raise InputError(
                f"{source} holds no ViT of DeiT, DINO or MoCo v3: it lacks their cls_token, pos_embed, patch_embed.proj"
                " or blocks; of transformers name the folder"
            )
    side = math.isqrt(max(positions - tokens, 0))
    if side**2 != positions - tokens or not side:
        raise InputError(f"{source}: tensor pos_embed has {positions} places, which are not {tokens} and a square")
    mean, std = _statistics(source)
    return ViTConfig(
        image_size=side * patch,
        patch_size=patch,
        dim=dim,
        heads=_heads(state, dim, source),
        depth=len({name.split(".")[1] for name in state if name.startswith("blocks.")}),
        mlp_ratio=hidden / dim,
        norm_eps=1e-6,
        mean=mean,
        std=std,
        class_tokens=tokens,
    )


def _statistics(source: Path) -> tuple[tuple[float, ...], ...]:
    """Return mean and std of the `config.json` that timm puts beside a file, or else ImageNet's."""
    beside = source.with_name(CONFIG)
    told = read_json(beside).get("pretrained_cfg") if beside.is_file() else None
    if not isinstance(told, dict):
        return IMAGENET_MEAN, IMAGENET_STD
    with input_error(
        f"{beside}: mean and std are not three numbers each, std above 0", KeyError, TypeError, ValueError
    ):
        mean, std = (tuple(map(float, told[name])) for name in ("mean", "std"))
        if not len(mean) == len(std) == 3 or min(std) <= 0:
            raise ValueError(f"{mean}, {std}")
    return mean, std


def _heads(state: StateDict, dim: int, source: Path) -> int:
    """Return the number of heads, which no shape tells: 12 in every ViT of MoCo v3, 16 in the largest ones of timm,
    elsewhere one for 64 channels.

    MoCo's positions are sines and cosines, and zero for the class token alone.
    """
    positions = state["pos_embed"][0]
    moco = not positions[0].any() and bool(positions[1:].any())
    if dim % (12 if moco else 64):
        raise InputError(f"{source}: {dim} channels are no multiple of {12 if moco else 64}, so its heads are unknown")
    return 12 if moco else _LARGEST.get(dim, dim // 64)


def with_joined_tokens(state: StateDict, first: str, second: str, source: Path) -> StateDict:
    """Return a DeiT's state with its distillation token behind its class token."""
    for name in (first, second):
        if name not in state or state[name].ndim != 3 or state[name].shape[1:] != state[first].shape[1:]:
            raise InputError(f"{source}: tensor {name} of a distilled DeiT is missing or has another shape")
    rest = {name: tensor for name, tensor in state.items() if name != second}
    return rest | {first: torch.cat([state[first], state[second]], dim=1)}
