"""A frozen trunk's maps of random crops of the training photos, computed once and read from the disk at every step.

Most of a small training's time would go into the trunk, whose early maps never change. The steps choose among the crops
of a photo, mirrored or not.
"""

import hashlib
import json
import os
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from jaxtyping import Bool, Int, Int64
from torch import Tensor, nn
from torch.utils.data import DataLoader

from groupvit.data.batches import RandomCrops
from groupvit.data.workers import received
from groupvit.errors import input_error
from groupvit.files import replacing, write_atomically
from groupvit.machine import bfloat16_is_faster
from groupvit.models.image_encoder import ImageEncoder
from groupvit.models.trunks import EfficientNetLite
from groupvit.progress import tracked

_AT_ONCE = 64
_DONE = "done.json"  # written last: without it the other files are none
Shapes = dict[str, tuple[int, int, int, int]]  # crops, rows, columns and channels in each file


@dataclass(frozen=True)
class TrunkCache:
    """Memory-mapped half-precision maps: a file for each map, a row for each crop of each photo, channels last.

    `rows` are those of each photo's crops, -1 where the photo cannot be decoded.
    """

    files: tuple[Any, ...]
    rows: Int64[np.ndarray, "photos crops"]

    def read(self, rows: Int[Tensor, " batch"], mirrored: Bool[Tensor, " batch"]) -> tuple[Tensor, ...]:
        """Return the maps of some rows in single precision, turned over where `mirrored`."""
        order = rows.cpu().numpy()
        turned = mirrored.cpu()[:, None, None, None]
        maps = (torch.from_numpy(file[order]).float() for file in self.files)
        return tuple(torch.where(turned, each.flip(2), each).permute(0, 3, 1, 2) for each in maps)


def cached(
    encoder: ImageEncoder, crops: RandomCrops, folder: Path, device: torch.device, *, workers: int = 1
) -> TrunkCache:
    """Return the cache of the crops in `folder`, made first if it is missing, not whole, or of other crops or weights.

    Raises `InputError` where there is no room for it; then and after an interruption nothing of it stays.
    """
    trunk = encoder.trunk
    assert isinstance(trunk, EfficientNetLite)
    shapes: Shapes = {
        f"stride-{stride}.float16": (len(crops), -(-crops.side // stride), -(-crops.side // stride), channels)
        for stride, channels in zip(trunk.strides[:-1], trunk.channels[:-1], strict=True)
    }
    read = partial(_read, folder, shapes, identity := _identity(trunk, crops), crops.count)
    if cache := read():
        return cache
    failure = f"cannot cache the trunk's maps in {folder}"
    with input_error(failure, OSError, NotImplementedError, advice="name another --cache"):
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / "cache.lock"):  # of two trainings one makes it
            if not (cache := read()):
                size = sum(np.float16().nbytes * int(np.prod(shape)) for shape in shapes.values())
                message = f"caching the trunk's maps of {len(crops)} crops in {folder}: {size / 1e9:.1f} GB"
                print(message, file=sys.stderr)
                # The DataLoader draws a number from its generator, which must not be one of the training's.
                loader = DataLoader(crops, batch_size=_AT_ONCE, num_workers=workers, generator=torch.Generator())
                _write(folder, shapes, identity, encoder, loader, device)
                cache = read()
    assert cache is not None
    return cache


def _identity(trunk: EfficientNetLite, crops: RandomCrops) -> str:
    """Return a hash of the weights that make the maps, the photos and how they are cropped."""
    contents = [index.content for index in crops.photos.indexes]
    digest = hashlib.blake2b(repr((contents, crops.seed, crops.side, crops.scale, crops.count)).encode())
    early = nn.ModuleList([trunk.stem, trunk.blocks[: trunk.ends[1]]])  # what follows may be tuned
    for tensor in early.state_dict().values():
        digest.update(tensor.detach().cpu().contiguous().numpy())
    return digest.hexdigest()


def _read(folder: Path, shapes: Shapes, identity: str, count: int) -> TrunkCache | None:
    """Return the cache in the folder if it is whole and of that identity."""
    try:
        done = json.loads((folder / _DONE).read_text())
        if done["identity"] != identity:
            return None
        files = [np.memmap(folder / name, np.float16, "r", shape=shape) for name, shape in shapes.items()]
        rows = np.arange(len(files[0]))
        rows[done["undecodable"]] = -1
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        return None
    return TrunkCache(tuple(files), rows.reshape(-1, count))


def _write(
    folder: Path, shapes: Shapes, identity: str, encoder: ImageEncoder, loader: DataLoader[Any], device: torch.device
) -> None:
    (folder / _DONE).unlink(missing_ok=True)
    undecodable: list[int] = []
    bfloat16 = bfloat16_is_faster(device)
    for old in folder.glob(".*.tmp"):  # of a process that was killed
        old.unlink(missing_ok=True)
    # Files, for a full disk kills whoever writes to mapped memory; new ones, as another training may read the old ones.
    with ExitStack() as stack:
        paths = [stack.enter_context(replacing(folder / name)) for name in shapes]
        files = [stack.enter_context(path.open("wb")) for path in paths]
        made = tracked("caching the trunk", received(loader), len(loader), lambda batch: len(batch[0]))
        for i, (images, decoded) in enumerate(made):
            with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, bfloat16):
                maps = encoder.early(images.to(device))
            for file, each in zip(files, maps, strict=True):
                file.write(each.permute(0, 2, 3, 1).half().cpu().numpy().tobytes())
            undecodable += (i * _AT_ONCE + (~decoded).nonzero()[:, 0]).tolist()
        for file in files:
            file.flush()
            os.fsync(file.fileno())
    write_atomically(folder / _DONE, json.dumps({"identity": identity, "undecodable": undecodable}).encode())
