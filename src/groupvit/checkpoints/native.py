"""Our own layout: a folder with `model.safetensors` and `config.json`."""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from jaxtyping import Int
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.overrides import TorchFunctionMode

from groupvit import __version__
from groupvit.errors import InputError, input_error
from groupvit.files import refuse_pointer, write_atomically
from groupvit.models import IMAGENET_MEAN, IMAGENET_STD, GroupViT, ModelConfig, build_model

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
IMAGE_NORMALISATION = {"mean": list(IMAGENET_MEAN), "std": list(IMAGENET_STD)}
"""ImageNet's statistics of RGB in [0, 1], for every model without a trunk; a trunk has its own."""

_FORMAT_VERSION = 2  # what this reads; 1 is written where every tensor is there whole
_EMBEDDING, _ROWS = "text_encoder.token_embedding.weight", "text_encoder.token_embedding.rows"
_RIVALS = "rivals"
_HEADER = "groupvit"  # the key of our document in the metadata of the safetensors file
_FIELDS = {"format_version", "groupvit_version", "model", "image", "metadata"}

StateDict = dict[str, Tensor]


def write_safetensors(path: Path, state: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file, atomically."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    write_atomically(path, safetensors.torch.save(tensors, metadata))


def write_json(path: Path, document: Any) -> None:
    """Write a JSON file, atomically."""
    write_atomically(path, json.dumps(document, indent=2).encode() + b"\n")


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file."""
    refuse_pointer(path)
    with input_error(f"{path} cannot be read as JSON", OSError, ValueError, RecursionError):
        document = json.loads(path.read_bytes())
    if not isinstance(document, dict):
        raise InputError(f"{path} holds no JSON object")
    return document


def read_safetensors(path: Path) -> tuple[StateDict, dict[str, str]]:
    """Return all tensors of a file, or of the files that an index beside its place lists, and their metadata."""
    index = path.with_name(f"{path.name}.index.json")
    names = [path.name]
    if not path.exists() and index.exists():
        listed = read_json(index).get("weight_map")
        names = sorted({str(name) for name in listed.values()}) if isinstance(listed, dict) else []
        if not names or any(Path(name).name != name or Path(name).suffix != ".safetensors" for name in names):
            raise InputError(f"{index} lists no files beside it (weight_map)")
    state, metadata = StateDict(), dict[str, str]()
    for file in (path.with_name(name) for name in names):
        refuse_pointer(file)
        if not file.exists():
            others = sorted(other.name for other in file.parent.glob("*") if other.suffix in (".safetensors", ".bin"))
            hint = f" (of {', '.join(others[:3])} it cannot be read)" if others else ""
            if re.match(r"model-\d+-of-\d+", others[0] if others else ""):
                hint = f", nor {index.name}, which lists its parts"
            raise InputError(f"{file} does not exist{hint}")
        broken = f"{file} cannot be read, it is no safetensors file or was cut off"
        with input_error(broken, OSError, SafetensorError), safe_open(file, framework="pt") as tensors:
            state |= {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118
            metadata |= tensors.metadata() or {}
    return state, metadata


def check(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], source: Path) -> None:
    """Name the first tensor that is missing, too much, or of another shape or type than `expected`."""
    if missing := [name for name in expected if name not in state]:
        raise InputError(f"{source}: tensor {missing[0]} is missing ({len(missing)} in all)")
    if extra := [name for name in state if name not in expected]:
        raise InputError(f"{source}: tensor {extra[0]} does not belong to this model ({len(extra)} in all)")
    for name, wanted in expected.items():
        for what, kind in (("shape", tuple), ("dtype", lambda dtype: str(dtype).removeprefix("torch."))):
            actual, should = (kind(getattr(tensor, what)) for tensor in (state[name], wanted))
            if actual != should:
                raise InputError(f"{source}: tensor {name} has {what} {actual}, expected {should}")


def assemble(
    state: StateDict,
    config: ModelConfig,
    source: Path,
    *,
    encode: Callable[[StateDict], StateDict] = dict,
    decode: Callable[[StateDict, Path], StateDict] = lambda state, _: state,
) -> GroupViT:
    """Return the model of `config` with exactly the tensors in `state`, in evaluation mode.

    `encode` and `decode` turn our names into those of the file and back, so that errors use the file's names.
    """
    vit = [config.image.vit.depth] if config.image.vit else []
    if sum(max(depth, 1) for depth in [*vit, config.text.layers, *(s.depth for s in config.image.stages)]) > len(state):
        raise InputError(f"{source}: its configuration has more blocks than the file has tensors")
    model = _skeleton(config, source)
    check(state, encode(model.state_dict()), source)
    if odd := [name for name, tensor in state.items() if not tensor.isfinite().all()]:
        raise InputError(f"{source}: tensor {odd[0]} has numbers that are not finite: its training went wrong")
    model.load_state_dict(decode(state, source), assign=True)
    return model.eval()


class _Undrawn(TorchFunctionMode):
    """Skip random weights: on the meta device PyTorch would import its compiler for them, which takes a second."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        module, name = getattr(func, "__module__", ""), getattr(func, "__name__", "")
        if module == "torch.nn.init" or name in ("normal_", "uniform_"):
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


def _skeleton(config: ModelConfig, source: Path) -> GroupViT:
    impossible = f"{source}: no model can be built from its configuration"
    told = input_error(impossible, RuntimeError, ValueError, TypeError, ArithmeticError)
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)  # whatever the caller's is
    try:
        with told, torch.device("meta"), _Undrawn():
            return build_model(config)
    finally:
        torch.set_default_dtype(default)


def save(
    folder: Path, model: GroupViT, config: ModelConfig, *, metadata: dict[str, str] | None = None, compact: bool = False
) -> None:
    """Write `model` into `folder`, over the checkpoint that may be there.

    `compact` halves it: numbers are float16, and rows of the vocabulary that are zero (see `forget_unseen`) are left
    out; the embeddings of the rivals come along, if the model has them. The configuration is in the weights file: after
    a crash or on a full disk the folder holds the old checkpoint or the new one. `config.json` is a copy for readers.
    """
    state = model.state_dict()
    check(state, _skeleton(config, folder).state_dict(), folder)
    if compact:
        state = _compacted(state if model.rivals is None else state | {_RIVALS: model.rivals})
    document = {
        "format_version": _FORMAT_VERSION if compact else 1,
        "groupvit_version": __version__,
        "model": config.to_dict(),
        "image": IMAGE_NORMALISATION,
        "metadata": metadata or {},
    }
    write_safetensors(folder / WEIGHTS, state, {"format": "pt", _HEADER: json.dumps(document)})
    write_json(folder / CONFIG, {"note": f"a copy for readers: the loader uses the one inside {WEIGHTS}", **document})


def recognises(path: Path) -> bool:
    """Return True if `path` is a folder of this layout."""
    try:
        with safe_open(path / WEIGHTS, framework="pt") as file:
            return _HEADER in (file.metadata() or {})
    except (OSError, SafetensorError):
        return False


def load(path: Path) -> tuple[GroupViT, ModelConfig]:
    """Load what `save` wrote, in evaluation mode. Any deviation is an `InputError` that names it."""
    source = path / WEIGHTS
    state, metadata = read_safetensors(source)
    if _HEADER not in metadata:
        raise InputError(f"{source} carries no groupvit configuration: it was written by another program")
    config = _parse(metadata[_HEADER], source)
    state = _whole(state, config.text.vocab_size, source)
    rivals = state.pop(_RIVALS, None)
    if rivals is not None:
        expected = torch.empty(len(config.rivals), config.embed_dim, dtype=torch.float32)
        check({_RIVALS: rivals}, {_RIVALS: expected}, source)
    model = assemble(state, config, source)
    model.rivals = rivals
    return model, config


def forget_unseen(model: GroupViT, seen: Int[Tensor, " tokens"]) -> None:
    """Set the embedding of every token to zero that training has not `seen`.

    Zeros mark it as never learnt (`Segmenter.segment` warns of such words) and take no room in a file.
    """
    with torch.no_grad():
        unseen = torch.ones(len(model.text_encoder.token_embedding.weight), dtype=torch.bool)
        unseen[seen] = False
        model.text_encoder.token_embedding.weight[unseen] = 0


def _compacted(state: StateDict) -> StateDict:
    """Return the state in half precision, of the vocabulary only the rows that are not zero, and their numbers."""
    rows = state[_EMBEDDING].any(dim=1).nonzero()[:, 0]
    half = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    if lost := [name for name, tensor in half.items() if not tensor.isfinite().all()]:
        raise InputError(f"tensor {lost[0]} has numbers that half precision cannot hold: save it whole")
    return half | {_EMBEDDING: half[_EMBEDDING][rows], _ROWS: rows.int()}


def _whole(state: StateDict, vocabulary: int, source: Path) -> StateDict:
    """Undo `_compacted`; another state is returned as it is."""
    if _ROWS not in state:
        return state
    state = {name: tensor.float() if tensor.dtype == torch.float16 else tensor for name, tensor in state.items()}
    rows, known = state.pop(_ROWS).long(), state.get(_EMBEDDING, torch.empty(0, 0))
    if rows.shape != known.shape[:1] or (len(rows) and not 0 <= rows.min() <= rows.max() < vocabulary):
        raise InputError(f"{source}: tensor {_ROWS} does not number the rows of {_EMBEDDING}")
    state[_EMBEDDING] = known.new_zeros(vocabulary, *known.shape[1:]).index_copy(0, rows, known)
    return state


def _parse(text: str, source: Path) -> ModelConfig:
    with input_error(f"{source}: its configuration is not JSON", ValueError, RecursionError):
        document = json.loads(text)
    if not isinstance(document, dict) or not isinstance(document.get("format_version"), int):
        raise InputError(f"{source}: its configuration has no format_version")
    if document["format_version"] > _FORMAT_VERSION:
        raise InputError(
            f"{source} has format_version {document['format_version']}, newer than this groupvit reads "
            f"({_FORMAT_VERSION}): upgrade groupvit"
        )
    if odd := sorted(_FIELDS ^ set(document)):
        raise InputError(f"{source}: field {odd[0]} of its configuration is unknown or missing")
    if document["image"] != IMAGE_NORMALISATION:
        raise InputError(f"{source}: image normalisation {document['image']} is not supported")
    return parse_config(document["model"], source)


def parse_config(values: Any, source: Path) -> ModelConfig:
    """Call `ModelConfig.from_dict` with the file's name in its errors."""
    with input_error(str(source), InputError):
        return ModelConfig.from_dict(values if isinstance(values, dict) else {})
