"""The layout of `transformers`' GroupViTModel: a folder with `config.json` and `model.safetensors`.

The package itself is not needed. It has no second temperature: `multi_label_logit_scale` travels in the metadata of the
weights file.
"""

import re
from pathlib import Path
from typing import Any

import torch

from groupvit.checkpoints import native
from groupvit.checkpoints.names import GROUPING, Table, inverse, refuse_difference, split_qkv, table, translate_all
from groupvit.checkpoints.native import CONFIG, IMAGE_NORMALISATION, WEIGHTS, StateDict
from groupvit.checkpoints.release import as_state, read_pickle
from groupvit.errors import InputError, input_error
from groupvit.models import RELEASE, GroupViT, ModelConfig
from groupvit.text.tokenizer import write_vocabulary

PICKLE = "pytorch_model.bin"
_SCALE = "multi_label_logit_scale"
_LEGACY = "text_model.embeddings.position_ids"  # old versions saved this constant
_BLOCK = """
    norm1.       layer_norm1.
    norm2.       layer_norm2.
    attn.proj.   self_attn.out_proj.
    attn.        self_attn.
    mlp.         mlp.
"""
_ATTENTION = "grouping.pre_assign_attn.attn.proj. downsample.pre_assign_attn.attn.out_proj."
_PROJECTOR = """
    fc1.   0.
    norm.  1.
    fc2.   3.
"""
TABLE: Table = [
    *table("""
        logit_scale                     logit_scale
        multi_label_logit_scale         multi_label_logit_scale
        image_encoder.pos_embed         vision_model.embeddings.position_embeddings
        image_encoder.stem.             vision_model.embeddings.patch_embeddings.projection.
        image_encoder.norm_stem.        vision_model.embeddings.layernorm.
        image_encoder.norm.             vision_model.layernorm.
        text_encoder.token_embedding.   text_model.embeddings.token_embedding.
        text_encoder.pos_embed          text_model.embeddings.position_embedding.weight
        text_encoder.norm.              text_model.final_layer_norm.
    """),
    *table(_BLOCK, "image_encoder.stages.#.blocks.#.", "vision_model.encoder.stages.#.layers.#."),
    *table(_ATTENTION + GROUPING, "image_encoder.stages.#.", "vision_model.encoder.stages.#."),
    *table(_BLOCK, "text_encoder.blocks.#.", "text_model.encoder.layers.#."),
    *table(_PROJECTOR, "image_projector.", "visual_projection."),
    *table(_PROJECTOR, "text_projector.", "text_projection."),
]
_FIELDS = {  # by part, our field and theirs
    "": {"embed_dim": "projection_dim", "projector_dim": "projection_intermediate_dim"},
    "text": {
        "width": "hidden_size",
        "heads": "num_attention_heads",
        "layers": "num_hidden_layers",
        "context_length": "max_position_embeddings",
        "vocab_size": "vocab_size",
    },
    "image": {
        "image_size": "image_size",
        "patch_size": "patch_size",
        "dim": "hidden_size",
        "heads": "num_attention_heads",
        "assign_eps": "assign_eps",
    },
}
_EXPRESSED = {
    *("text", "embed_dim", "projector_dim", "multi_label_scale", "rivals"),
    *(f"image.{name}" for name in ("patch_size", "dim", "heads", "mlp_ratio", "stages", "assign_eps")),
    *("image.drop_path", "image.patch_dropout"),
}
_SPELLING = {"architectures", "model_type", "num_hidden_layers", "num_output_groups", "bos_token_id", "eos_token_id"}


def encode(state: StateDict) -> StateDict:
    """Return our state dict in their names: query, key and value apart."""
    return translate_all(split_qkv(state), TABLE, "this model")


def decode(state: StateDict, source: Path) -> StateDict:
    """Return their state dict in our names: query, key and value fused in self-attention."""
    ours = translate_all(state, inverse(TABLE), source)
    for name in [name for name in ours if re.search(r"blocks\.\d+\.attn\.q_proj\.", name)]:
        pieces = [ours.pop(name.replace(".q_proj.", f".{piece}_proj.")) for piece in "qkv"]
        ours[name.replace(".q_proj.", ".qkv.")] = torch.cat(pieces)
    return ours


def config_document(config: ModelConfig) -> dict[str, Any]:
    """Return their `config.json`. An option that they cannot run is an `InputError`, except what only
    training needs and the rivals, which are left out."""
    image, text = config.image, config.text
    implied = {"image.image_size": image.image_size // image.patch_size * image.patch_size}
    refuse_difference(config, "transformers", _EXPRESSED, implied)
    for before, stage in zip(image.stages, image.stages[1:], strict=False):
        if stage.group_tokens and before.group_tokens != before.output_groups:
            raise InputError(
                f"transformers cannot run {before.group_tokens} group tokens that make {before.output_groups} groups "
                "before another grouping stage: keep this model in the native layout"
            )
    groups = [stage.output_groups for stage in image.stages]
    if len(groups) > 1 and not image.stages[-1].group_tokens:
        groups[-1] = groups[-2]  # as in the published configuration
    return {
        "architectures": ["GroupViTModel"],
        "model_type": "groupvit",
        **_theirs(config, ""),
        "text_config": {
            "model_type": "groupvit_text_model",
            "intermediate_size": 4 * text.width,
            "bos_token_id": text.vocab_size - 2,
            "eos_token_id": text.vocab_size - 1,
            "hidden_act": "quick_gelu",
            "layer_norm_eps": 1e-5,
            **_theirs(text, "text"),
        },
        "vision_config": {
            "model_type": "groupvit_vision_model",
            "num_channels": 3,
            "num_hidden_layers": sum(stage.depth for stage in image.stages),
            "intermediate_size": int(image.mlp_ratio * image.dim),
            "depths": [stage.depth for stage in image.stages],
            "num_group_tokens": [stage.group_tokens for stage in image.stages],
            "num_output_groups": groups,
            "assign_mlp_ratio": [0.5, image.mlp_ratio],
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-5,
            **_theirs(image, "image"),
        },
    }


def _theirs(config: Any, part: str) -> dict[str, Any]:
    return {theirs: getattr(config, ours) for ours, theirs in _FIELDS[part].items()}


def _ours(document: dict[str, Any], part: str) -> dict[str, Any]:
    return {ours: document[theirs] for ours, theirs in _FIELDS[part].items()}


def read_config(document: dict[str, Any], multi_label_scale: bool, source: Path) -> ModelConfig:
    """Return our configuration from their `config.json`; a field that is left out has the published model's value."""
    defaults = config_document(RELEASE)
    whole = {**defaults, **document}
    for part in ("text_config", "vision_config"):
        given = document.get(f"{part}_dict") or document.get(part) or {}
        whole[part] = {**defaults[part], **(given if isinstance(given, dict) else {})}
    text, vision = whole["text_config"], whole["vision_config"]
    values = {**RELEASE.to_dict(), **_ours(whole, ""), "multi_label_scale": multi_label_scale}
    values["text"] |= _ours(text, "text")
    broken = f"{source} is no configuration of a GroupViT"
    with input_error(broken, TypeError, ValueError, ArithmeticError):
        stages = zip(vision["depths"], vision["num_group_tokens"], vision["num_output_groups"], strict=True)
        values["image"] |= _ours(vision, "image") | {
            "mlp_ratio": vision["intermediate_size"] / vision["hidden_size"],
            "stages": [{"depth": d, "group_tokens": n, "output_groups": g if n else 0} for d, n, g in stages],
        }
    config = native.parse_config(values, source)
    with input_error(broken, ValueError, ArithmeticError):
        meant = config_document(config)
    for part in ("text_config", "vision_config"):
        for name, value in meant[part].items():
            if name not in _SPELLING and whole[part][name] != value:
                raise InputError(f"{source}: {part}.{name} = {whole[part][name]!r} is not supported, only {value!r}")
    return config


def recognises(path: Path) -> bool:
    """Return True if `path` is a folder of this layout."""
    try:
        return native.read_json(path / CONFIG).get("model_type") == "groupvit"
    except InputError:
        return False


def load(path: Path) -> tuple[GroupViT, ModelConfig]:
    """Load the model of a folder, in evaluation mode, and its configuration.

    Weights are safetensors or `pytorch_model.bin`.
    """
    source = path / WEIGHTS
    if not any((path / f"{WEIGHTS}{end}").exists() for end in ("", ".index.json")) and (path / PICKLE).exists():
        source = path / PICKLE
        tensors, metadata = read_pickle(source), {}
    else:
        tensors, metadata = native.read_safetensors(source)
    state = as_state(tensors, source)
    state.pop(_LEGACY, None)
    if _SCALE in metadata:
        odd = f"{source}: {_SCALE} = {metadata[_SCALE]!r} in its metadata is no number"
        with input_error(odd, ValueError, OverflowError):
            state[_SCALE] = torch.tensor(float.fromhex(metadata[_SCALE]))
    config = read_config(native.read_json(path / CONFIG), _SCALE in metadata, path / CONFIG)
    return native.assemble(state, config, source, encode=encode, decode=decode), config


def save(path: Path, model: GroupViT, config: ModelConfig) -> None:
    """Write a folder that `transformers` loads, with what its processor needs: the images' numbers and the tokenizer.

    A model of another vocabulary than CLIP's has no tokenizer.
    """
    document, size = config_document(config), config.image.image_size
    state, metadata = encode(model.state_dict()), {"format": "pt"}
    if config.multi_label_scale:
        metadata[_SCALE] = float(state.pop(_SCALE)).hex()
    processor = {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": size},
        "crop_size": {"height": size, "width": size},
        "resample": 3,
        "image_mean": IMAGE_NORMALISATION["mean"],
        "image_std": IMAGE_NORMALISATION["std"],
    }
    native.write_safetensors(path / WEIGHTS, state, metadata)
    native.write_json(path / CONFIG, document)
    native.write_json(path / "preprocessor_config.json", processor)
    if config.text.vocab_size == RELEASE.text.vocab_size:
        write_vocabulary(path)
        tokenizer = {"tokenizer_class": "CLIPTokenizer", "model_max_length": config.text.context_length}
        native.write_json(path / "tokenizer_config.json", tokenizer)
