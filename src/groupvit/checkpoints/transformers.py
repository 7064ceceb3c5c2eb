"""The layout of `transformers`' GroupViTModel: a folder with `config.json` and `model.safetensors`.

The package itself is not needed. It has no second temperature: `multi_label_logit_scale` travels in the metadata of the
weights file.
"""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from groupvit.checkpoints.names import Table, inverse, products, refuse_difference, translate_all
from groupvit.checkpoints.native import (
    CONFIG,
    IMAGE_NORMALISATION,
    WEIGHTS,
    StateDict,
    assemble,
    parse_config,
    read_safetensors,
    write_json,
    write_safetensors,
)
from groupvit.checkpoints.release import as_state, read_pickle
from groupvit.errors import InputError
from groupvit.models import RELEASE, GroupViT, ModelConfig

PICKLE = "pytorch_model.bin"
_SCALE = "multi_label_logit_scale"
_LEGACY = "text_model.embeddings.position_ids"  # old versions saved this constant
_BLOCK = [
    ("norm1.", "layer_norm1."),
    ("norm2.", "layer_norm2."),
    ("attn.proj.", "self_attn.out_proj."),
    ("attn.", "self_attn."),
    ("mlp.", "mlp."),
]
_PROJECTOR = [("fc1.", "0."), ("norm.", "1."), ("fc2.", "3.")]

TABLE: Table = [
    ("logit_scale", "logit_scale"),
    (_SCALE, _SCALE),
    ("image_encoder.pos_embed", "vision_model.embeddings.position_embeddings"),
    ("image_encoder.stem.", "vision_model.embeddings.patch_embeddings.projection."),
    ("image_encoder.norm_stem.", "vision_model.embeddings.layernorm."),
    ("image_encoder.norm.", "vision_model.layernorm."),
    *products("image_encoder.stages.#.blocks.#.", "vision_model.encoder.stages.#.layers.#.", _BLOCK),
    *products(
        "image_encoder.stages.#.",
        "vision_model.encoder.stages.#.",
        [
            ("group_tokens", "group_token"),
            ("group_projector.", "group_projector."),
            ("grouping.token_mixer.", "downsample.mlp_inter."),
            ("grouping.norm_segments.", "downsample.norm_x."),
            ("grouping.norm_new.", "downsample.norm_new_x."),
            ("grouping.channel_mlp.", "downsample.mlp_channels."),
            ("grouping.pre_assign_attn.attn.proj.", "downsample.pre_assign_attn.attn.out_proj."),
            ("grouping.", "downsample."),
        ],
    ),
    ("text_encoder.token_embedding.", "text_model.embeddings.token_embedding."),
    ("text_encoder.pos_embed", "text_model.embeddings.position_embedding.weight"),
    ("text_encoder.norm.", "text_model.final_layer_norm."),
    *products("text_encoder.blocks.#.", "text_model.encoder.layers.#.", _BLOCK),
    *products("image_projector.", "visual_projection.", _PROJECTOR),
    *products("text_projector.", "text_projection.", _PROJECTOR),
]


def encode(state: StateDict) -> StateDict:
    """Our state dict in their names: query, key and value apart."""
    apart: StateDict = {}
    for name, tensor in state.items():
        if ".attn.qkv." in name:
            for part, piece in zip("qkv", tensor.chunk(3), strict=True):
                apart[name.replace(".qkv.", f".{part}_proj.")] = piece
        else:
            apart[name] = tensor
    return translate_all(apart, TABLE, "this model")


def decode(state: StateDict, source: Path) -> StateDict:
    """Their state dict in our names: query, key and value fused in self-attention."""
    ours = translate_all(state, inverse(TABLE), source)
    for name in [name for name in ours if re.search(r"blocks\.\d+\.attn\.q_proj\.", name)]:
        parts = [ours.pop(name.replace(".q_proj.", f".{part}_proj.")) for part in "qkv"]
        ours[name.replace(".q_proj.", ".qkv.")] = torch.cat(parts)
    return ours


def config_document(config: ModelConfig) -> dict[str, Any]:
    """Their `config.json`. An option that they cannot run is an `InputError`, except the training-only `drop_path`
    and the rivals, which are left out."""
    image, text = config.image, config.text
    expressed = replace(
        RELEASE,
        image=replace(
            RELEASE.image,
            image_size=image.image_size // image.patch_size * image.patch_size,
            patch_size=image.patch_size,
            dim=image.dim,
            heads=image.heads,
            mlp_ratio=image.mlp_ratio,
            stages=image.stages,
            drop_path=image.drop_path,
            assign_eps=image.assign_eps,
        ),
        text=text,
        embed_dim=config.embed_dim,
        projector_dim=config.projector_dim,
        multi_label_scale=config.multi_label_scale,
        rivals=config.rivals,
    )
    refuse_difference(config, expressed, "transformers")
    for before, stage in zip(image.stages, image.stages[1:], strict=False):
        if stage.group_tokens and before.group_tokens != before.output_groups:
            raise InputError(
                f"transformers cannot run {before.group_tokens} group tokens that make {before.output_groups} groups "
                "before another grouping stage: keep this model in the native layout"
            )
    return {
        "architectures": ["GroupViTModel"],
        "model_type": "groupvit",
        "projection_dim": config.embed_dim,
        "projection_intermediate_dim": config.projector_dim,
        "text_config": {
            "model_type": "groupvit_text_model",
            "hidden_size": text.width,
            "intermediate_size": 4 * text.width,
            "num_attention_heads": text.heads,
            "num_hidden_layers": text.layers,
            "max_position_embeddings": text.context_length,
            "vocab_size": text.vocab_size,
            "bos_token_id": text.vocab_size - 2,
            "eos_token_id": text.vocab_size - 1,
            "hidden_act": "quick_gelu",
            "layer_norm_eps": 1e-5,
        },
        "vision_config": {
            "model_type": "groupvit_vision_model",
            "image_size": image.image_size,
            "patch_size": image.patch_size,
            "num_channels": 3,
            "hidden_size": image.dim,
            "intermediate_size": int(image.mlp_ratio * image.dim),
            "num_attention_heads": image.heads,
            "num_hidden_layers": sum(stage.depth for stage in image.stages),
            "depths": [stage.depth for stage in image.stages],
            "num_group_tokens": [stage.group_tokens for stage in image.stages],
            "num_output_groups": _output_groups(config),
            "assign_eps": image.assign_eps,
            "assign_mlp_ratio": [0.5, image.mlp_ratio],
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-5,
        },
    }


def _output_groups(config: ModelConfig) -> list[int]:
    """A last stage without grouping repeats the number before it, as in the published configuration."""
    stages = config.image.stages
    groups = [stage.output_groups for stage in stages]
    return [*groups[:-1], groups[-2]] if len(stages) > 1 and not stages[-1].group_tokens else groups


_SPELLING = {"architectures", "model_type", "num_hidden_layers", "num_output_groups", "bos_token_id", "eos_token_id"}


def read_config(document: dict[str, Any], multi_label_scale: bool, source: Path) -> ModelConfig:
    """Our configuration from their `config.json`, in which a field that is left out has the published model's value."""
    defaults = config_document(RELEASE)
    whole = {**defaults, **document}
    for part in ("text_config", "vision_config"):
        given = document.get(f"{part}_dict") or document.get(part) or {}
        whole[part] = {**defaults[part], **(given if isinstance(given, dict) else {})}
    text, vision = whole["text_config"], whole["vision_config"]
    try:
        stages = zip(vision["depths"], vision["num_group_tokens"], vision["num_output_groups"], strict=True)
        values = RELEASE.to_dict() | {
            "embed_dim": whole["projection_dim"],
            "projector_dim": whole["projection_intermediate_dim"],
            "multi_label_scale": multi_label_scale,
        }
        values["image"] |= {
            "image_size": vision["image_size"],
            "patch_size": vision["patch_size"],
            "dim": vision["hidden_size"],
            "heads": vision["num_attention_heads"],
            "mlp_ratio": vision["intermediate_size"] / vision["hidden_size"],
            "assign_eps": vision["assign_eps"],
            "stages": [{"depth": d, "group_tokens": n, "output_groups": g if n else 0} for d, n, g in stages],
        }
        values["text"] |= {
            "width": text["hidden_size"],
            "heads": text["num_attention_heads"],
            "layers": text["num_hidden_layers"],
            "context_length": text["max_position_embeddings"],
            "vocab_size": text["vocab_size"],
        }
    except (TypeError, ValueError, ArithmeticError) as error:
        raise InputError(f"{source} is no configuration of a GroupViT: {error}") from error
    config = parse_config(values, source)
    ours = config_document(config)
    for part in ("text_config", "vision_config"):
        for name, value in ours[part].items():
            if name not in _SPELLING and whole[part][name] != value:
                raise InputError(f"{source}: {part}.{name} = {whole[part][name]!r} is not supported, only {value!r}")
    return config


def recognises(path: Path) -> bool:
    """Whether `path` is a folder of this layout."""
    try:
        return read_json(path / CONFIG).get("model_type") == "groupvit"
    except InputError:
        return False


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file."""
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(document, dict):
        raise InputError(f"{path} holds no JSON object")
    return document


def load(path: Path) -> tuple[GroupViT, ModelConfig]:
    """The model of a `transformers` folder, in evaluation mode. Its weights are safetensors or `pytorch_model.bin`."""
    source = path / WEIGHTS
    if not source.exists() and (path / PICKLE).exists():
        source, metadata = path / PICKLE, {}
        found = as_state(read_pickle(source), source)
    else:
        found, metadata = read_safetensors(source)
        found = as_state(found, source)
    found.pop(_LEGACY, None)
    if _SCALE in metadata:
        found[_SCALE] = _parse_scale(metadata[_SCALE], source)
    config = read_config(read_json(path / CONFIG), _SCALE in metadata, path / CONFIG)
    return assemble(found, config, source, encode=encode, decode=lambda state: decode(state, source)), config


def _parse_scale(text: str, source: Path) -> torch.Tensor:
    try:
        return torch.tensor(float.fromhex(text))
    except (ValueError, OverflowError) as error:
        raise InputError(f"{source}: {_SCALE} = {text!r} in its metadata is no number") from error


def save(path: Path, model: GroupViT, config: ModelConfig) -> None:
    """Writes a folder that `transformers` loads, with the image processor's numbers beside it."""
    document = config_document(config)
    state = encode(model.state_dict())
    metadata = {"format": "pt"}
    if config.multi_label_scale:
        metadata[_SCALE] = float(state.pop(_SCALE)).hex()
    write_safetensors(path / WEIGHTS, state, metadata)
    write_json(path / CONFIG, document)
    write_json(path / "preprocessor_config.json", _processor(config.image.image_size))


def _processor(size: int) -> dict[str, Any]:
    return {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": size},
        "crop_size": {"height": size, "width": size},
        "resample": 3,
        "image_mean": IMAGE_NORMALISATION["mean"],
        "image_std": IMAGE_NORMALISATION["std"],
    }
