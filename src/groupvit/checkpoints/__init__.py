"""Where weights come from: native folders, the authors' `.pth`, `transformers` folders, the model hub."""

import os
import re
from pathlib import Path

from safetensors import SafetensorError, safe_open

from groupvit.checkpoints import native, release, transformers
from groupvit.errors import InputError, input_error
from groupvit.files import refuse_pointer
from groupvit.models import GroupViT, ModelConfig

Checkpoint = tuple[GroupViT, ModelConfig]

LAYOUTS = {"native": native, "release": release, "transformers": transformers}
"""Each has `load(path)`, `save(path, model, config)` and `recognises(path)`."""


def latest(training: Path) -> Path | None:
    """Return the newest complete checkpoint of a training's folder, which its `latest` file names, if there is one."""
    pointer = training / "latest"
    with input_error(f"{pointer} cannot be read", OSError):
        if not pointer.is_file():
            return max(training.glob(f"step-{'[0-9]' * 8}"), default=None)  # killed before the first, or copied without
        name = pointer.read_text(errors="replace").strip()
    if not name or not os.path.isdir(training / name):  # of a name too long for a file, Path.is_dir is an error
        raise InputError(f"{pointer} names no checkpoint of {training}: write one of its step folders' names into it")
    return training / name


def load(path: Path) -> Checkpoint:
    """Load a checkpoint of any layout, told by its content, in evaluation mode; of a training's folder the newest."""
    parts = (native.CONFIG, transformers.PICKLE)
    weights = rf"{re.escape(native.WEIGHTS)}(\.index\.json)?|model-\d+-of-\d+\.safetensors"
    if (path.name in parts or re.fullmatch(weights, path.name)) and path.is_file():
        refuse_pointer(path)
        path = path.parent
    path = latest(path) or path
    for file in (path, path / native.WEIGHTS, *(path / part for part in parts)):
        refuse_pointer(file)
    for layout in LAYOUTS.values():
        if layout.recognises(path):
            return layout.load(path)
    _say_what_it_is(path)
    raise InputError(
        f"{path} is no checkpoint: expected a folder with config.json and model.safetensors, or a .pth file of the "
        "authors' release"
    )


def _say_what_it_is(path: Path) -> None:
    """Refuse what looks like a checkpoint with what is wrong about it."""
    if path.is_file() and not path.stat().st_size:
        raise InputError(f"{path} is no checkpoint: it is empty, fetch it again")
    if (path / native.CONFIG).is_file():
        config = native.read_json(path / native.CONFIG)
        weights, more = path / native.WEIGHTS, ""
        if weights.is_file():
            broken = f"{weights} cannot be read, it is no safetensors file or was cut off"
            with input_error(broken, OSError, SafetensorError), safe_open(weights, framework="pt") as file:
                more = f"; transfer takes {weights}" * ("architecture" in config and "cls_token" in file.keys())  # noqa: SIM118
        if kind := config.get("model_type") or config.get("architecture"):
            raise InputError(f"{path} is no checkpoint: it holds a {kind!r}, no GroupViT{more}")
