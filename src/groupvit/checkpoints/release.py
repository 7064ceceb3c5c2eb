"""The layout of the authors' release: one `.pth` file whose entry `model` is a state dict."""

import io
import math
import re
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from groupvit.checkpoints.names import GROUPING, Table, inverse, refuse_difference, table, translate, translate_all
from groupvit.checkpoints.native import StateDict, assemble
from groupvit.errors import InputError
from groupvit.files import refuse_pointer, write_atomically
from groupvit.models import RELEASE, GroupViT, ImageEncoderConfig, ModelConfig, Stage, TextEncoderConfig

_PROJECTOR = """
    fc1.   linear_hidden.0.
    norm.  linear_hidden.1.
    fc2.   linear_out.
"""
TABLE: Table = [
    *table("""
        logit_scale                     logit_scale
        multi_label_logit_scale         multi_label_logit_scale
        image_encoder.pos_embed         img_encoder.pos_embed
        image_encoder.stem.             img_encoder.patch_embed.proj.
        image_encoder.norm_stem.        img_encoder.patch_embed.norm.
        image_encoder.norm.             img_encoder.norm.
        text_encoder.token_embedding.   text_encoder.token_embedding.
        text_encoder.pos_embed          text_encoder.positional_embedding
        text_encoder.norm.              text_encoder.ln_final.
    """),
    *table("blocks. blocks." + GROUPING, "image_encoder.stages.#.", "img_encoder.layers.#."),
    *table(
        """
        norm1.       ln_1.
        norm2.       ln_2.
        attn.qkv.    attn.in_proj_
        attn.proj.   attn.out_proj.
        mlp.fc1.     mlp.c_fc.
        mlp.fc2.     mlp.c_proj.
        """,
        "text_encoder.blocks.#.",
        "text_encoder.transformer.resblocks.#.",
    ),
    *table(_PROJECTOR, "image_projector.", "img_projector."),
    *table(_PROJECTOR, "text_projector.", "text_projector."),
]
_CONVOLUTIONS = re.compile(r".*_projector\.(linear_hidden\.0|linear_out)\.weight")  # with kernels of length one

_EXPRESSED = {
    *("image.patch_size", "image.dim", "image.stages", "image.drop_path", "image.patch_dropout"),
    *("embed_dim", "projector_dim"),
    *("text.width", "text.layers", "text.context_length", "text.vocab_size", "multi_label_scale", "rivals"),
}


_WRAPPERS = (
    *("model", "state_dict", "model_state_dict", "module", "network", "net", "weights", "params"),
    *("model_ema", "state_dict_ema", "ema_state_dict", "ema"),
)
# Of DistributedDataParallel, DeepSpeed, torch.compile, FSDP and its checkpointing, anywhere in a name.
_INSERTED = re.compile(
    r"(?:(?<=\.)|^)(module|_forward_module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)


class _Inert:
    """Stand-in for a foreign object in a pickle, which keeps nothing of it."""

    def __new__(cls, *args: Any, **keywords: Any) -> "_Inert":
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        pass


# Beside the weights the training script pickled its OmegaConf configuration and NumPy scores; DeiT's and DINO's pickle
# their options.
_FOREIGN = """
    omegaconf.dictconfig.DictConfig omegaconf.listconfig.ListConfig omegaconf.base.ContainerMetadata
    omegaconf.base.Metadata omegaconf.nodes.AnyNode omegaconf.nodes.BooleanNode omegaconf.nodes.FloatNode
    omegaconf.nodes.IntegerNode omegaconf.nodes.StringNode typing.Any
    argparse.Namespace numpy.dtype numpy.core.multiarray.scalar numpy._core.multiarray.scalar
"""
_HARMLESS = [*((_Inert, name) for name in _FOREIGN.split()), *(defaultdict, dict, list, tuple, str, int, float, bool)]


def read_pickle(path: Path) -> Any:
    """Return what `torch.save` wrote. No code in it runs; what would need that is an error."""
    refuse_pointer(path)
    try:
        with torch.serialization.safe_globals(_HARMLESS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken pickle can raise anything
        foreign = re.search(r"GLOBAL ([\w.]+)", str(error))
        why = (
            f"it asks for {foreign[1]}, which is no tensor" if foreign else "it is no file of torch.save or was cut off"
        )
        raise InputError(f"{path} cannot be read: {why}; nothing in it was executed") from error


def as_state(values: Any, source: Path) -> StateDict:
    """Return the tensors among `values` in single precision, under plain names.

    Some programs save half precision, wrap what they save, and save other things beside it.
    """
    for _ in _WRAPPERS:  # one may lie in another
        inside = [values[n] for n in _WRAPPERS if isinstance(values, dict) and isinstance(values.get(n), dict)]
        values = inside[0] if inside else values
    if not isinstance(values, dict) or (values and not any(isinstance(value, Tensor) for value in values.values())):
        entries = f", but {', '.join(map(str, [*values][:5]))}" if isinstance(values, dict) else ""
        raise InputError(f"{source} holds no state dict{entries}")
    tensors = {name: value for name, value in values.items() if isinstance(value, Tensor) and not value.is_sparse}
    state = {_INSERTED.sub("", str(name)): value for name, value in tensors.items()}
    state.pop("n_averaged", None)  # of PyTorch's averaged models
    if lightning := {name[6:]: value for name, value in state.items() if name.startswith("model.")}:
        state = lightning
    counts = {name: value.long() for name, value in state.items() if name.endswith(".num_batches_tracked")}
    half = (torch.float16, torch.bfloat16)
    return {name: value.float() if value.dtype in half else value for name, value in state.items()} | counts


def encode(state: StateDict) -> StateDict:
    """Return our state dict in the release's names and shapes."""
    theirs = translate_all(state, TABLE, "this model")
    return {name: tensor.unsqueeze(-1) if _CONVOLUTIONS.fullmatch(name) else tensor for name, tensor in theirs.items()}


def decode(state: StateDict, source: Path) -> StateDict:
    """Return the release's state dict in our names and shapes."""
    flat = {name: tensor.squeeze(-1) if _CONVOLUTIONS.fullmatch(name) else tensor for name, tensor in state.items()}
    return translate_all(flat, inverse(TABLE), source)


def infer_config(state: StateDict, source: Path) -> ModelConfig:
    """Read the configuration off the shapes of a decoded state dict. Heads have 64 channels; the rest is `RELEASE`."""

    def size(name: str, axis: int) -> int:
        if name not in state or state[name].ndim == 0:
            raise InputError(f"{source}: tensor {translate(name, TABLE)} is missing or a scalar")
        return state[name].shape[axis]

    def depth(blocks: str) -> int:
        return len({match[0] for name in state if (match := re.match(blocks.replace(".", r"\.") + r"\.\d+\.", name))})

    stages = []
    while blocks := depth((prefix := f"image_encoder.stages.{len(stages)}.") + "blocks"):
        tokens = size(prefix + "group_tokens", 1) if prefix + "group_tokens" in state else 0
        stages.append(Stage(blocks, tokens, size(prefix + "grouping.token_mixer.fc2.bias", 0) if tokens else 0))
    dim, width = size("image_encoder.pos_embed", -1), size("text_encoder.token_embedding.weight", -1)
    patch_size = size("image_encoder.stem.weight", -1)
    return replace(
        RELEASE,
        image=ImageEncoderConfig(
            image_size=math.isqrt(size("image_encoder.pos_embed", 1)) * patch_size,
            patch_size=patch_size,
            dim=dim,
            heads=dim // 64,
            stages=tuple(stages),
        ),
        text=TextEncoderConfig(
            width=width,
            heads=width // 64,
            layers=depth("text_encoder.blocks"),
            context_length=size("text_encoder.pos_embed", 0),
            vocab_size=size("text_encoder.token_embedding.weight", 0),
        ),
        embed_dim=size("image_projector.fc2.bias", 0),
        projector_dim=size("image_projector.fc1.bias", 0),
        multi_label_scale="multi_label_logit_scale" in state,
    )


def recognises(path: Path) -> bool:
    """Return True if `path` may be a file of this layout: a zip archive or a pickle."""
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        return file.read(2) in (b"PK", b"\x80\x02")


def load(path: Path) -> tuple[GroupViT, ModelConfig]:
    """Load the model of a release file, in evaluation mode, and its configuration. No code in the file runs."""
    tensors = as_state(read_pickle(path), path)
    config = infer_config(decode(tensors, path), path)
    return assemble(tensors, config, path, encode=encode, decode=decode), config


def save(path: Path, model: GroupViT, config: ModelConfig) -> None:
    """Write a release file. An option that the layout cannot express is an `InputError`, except what only
    training needs and the rivals, which are left out."""
    image = config.image
    implied = {
        "image.image_size": image.image_size // image.patch_size * image.patch_size,
        "image.heads": image.dim // 64,
        "text.heads": config.text.width // 64,
    }
    refuse_difference(config, "release", _EXPRESSED, implied)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in encode(model.state_dict()).items()}
    buffer = io.BytesIO()
    torch.save({"model": state}, buffer)
    write_atomically(path, buffer.getvalue())
