"""Models by name."""

import os
from pathlib import Path
from typing import Literal

import torch

from groupvit import checkpoints
from groupvit.checkpoints import hub
from groupvit.checkpoints.trunks import PUBLISHED, holds_vit, load_trunk, load_vit
from groupvit.errors import InputError
from groupvit.machine import keep_freed_memory
from groupvit.models.dense import Encoder
from groupvit.segmentation.engine import Engine, chosen
from groupvit.segmentation.segmenter import Precision, Segmenter

BUNDLED = ("photos-trunk", "photos")
"""Names of the models beside this file, each a folder `bundled/NAME`; a wheel holds the first one only."""


def load(
    source: str | Path,
    *,
    revision: str | None = None,
    precision: Precision | None = None,
    engine: Engine | Literal["auto"] = "auto",
    device: torch.device | str | None = None,
) -> Segmenter:
    """Return a ready segmenter from a bundled name, a checkpoint's folder or file, or a hub id `owner/name`.

    `revision` pins a branch, tag or commit of the hub, like `owner/name@revision`. `precision` defaults to what is
    faster on this machine. `engine` runs the image encoder; "auto" is OpenVINO on a CPU if it is installed (extra
    `fast`), and else PyTorch, which computes on `device`: a GPU if there is one. From then on the process keeps the
    memory that it frees (`machine.keep_freed_memory`).
    """
    keep_freed_memory()
    chosen(engine)  # before the weights are read
    return Segmenter(*load_model(source, revision=revision), precision=precision, engine=engine, device=device)


def load_model(source: str | Path, *, revision: str | None = None) -> checkpoints.Checkpoint:
    """Return the module itself, in evaluation mode, and its configuration."""
    return checkpoints.load(locate(source, revision=revision))


def load_encoder(source: str | Path) -> Encoder:
    """Return what was pre-trained alone: a GroupViT's image encoder, a ViT of any published layout, or a trunk's name.

    `transfer` fine-tunes it with masks.
    """
    if source in PUBLISHED:
        return load_trunk(str(source), None)
    path = locate(source)
    return load_vit(path) if holds_vit(path) else load_model(path)[0].image_encoder


def locate(source: str | Path, *, revision: str | None = None, allow_pickle: bool = False) -> Path:
    """Return where the checkpoint lies, downloaded if need be; an `InputError` lists the places looked at."""
    bundled = Path(__file__).parent / "bundled"
    own = isinstance(source, Path) and os.path.exists(source)  # Path("./photos") has no ./, and means it
    if not own and str(source) in BUNDLED and (bundled / str(source)).is_dir():
        source = bundled / str(source)
    if os.path.exists(source):  # of a name too long for a file, Path.exists is an error
        if revision:
            raise InputError(f"{source} is on this machine and has no revision {revision}")
        return Path(source)
    places = [
        f"bundled models ({', '.join(name for name in BUNDLED if (bundled / name).is_dir())})",
        f"files and folders ({Path(source).absolute()})",
    ]
    if isinstance(source, str) and hub.is_hub_id(source):
        try:
            return hub.download(source, revision, allow_pickle=allow_pickle)
        except InputError as error:
            places.append(f"the hub ({error})")
    else:
        places.append("the hub (not spelt owner/name)")
    raise InputError(f"no model {str(source)!r}; looked at {'; '.join(places)}")
