"""What a frozen trunk makes of the training photos, computed once and read from the disk at every step.

Most of a small training's time would go into the trunk, whose early maps never change. So some random crops of each
photo are put through it before the training starts, and the steps choose among these, mirrored or not.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from groupvit.data.batches import Batches, received
from groupvit.errors import InputError
from groupvit.files import write_atomically
from groupvit.machine import has_bfloat16
from groupvit.models.trunks import EfficientNetLite

_AT_ONCE = 64
Maps = tuple[Float[Tensor, "batch _ _ _"], ...]


@dataclass(frozen=True)
class TrunkCache:
    """Memory-mapped half-precision maps: a file for each map, a row for each crop of each photo, channels last."""

    files: tuple[Any, ...]

    def read(self, rows: Int[Tensor, " batch"], mirrored: Bool[Tensor, " batch"]) -> Maps:
        """The maps of some rows in single precision, turned over where `mirrored`."""
        order = rows.cpu().numpy()
        turned = mirrored.cpu()[:, None, None, None]
        maps = (torch.from_numpy(file[order]).float() for file in self.files)
        return tuple(torch.where(turned, each.flip(2), each).permute(0, 3, 1, 2) for each in maps)


def cached(
    trunk: EfficientNetLite,
    batches: Batches,
    crops: int,
    folder: Path,
    identity: str,
    device: torch.device,
    *,
    workers: int = 1,
    progress: Callable[[Iterable[Any], int], Iterable[Any]] = lambda done, total: done,
    say: Callable[[str], None] = lambda line: None,
) -> TrunkCache:
    """The cache of `crops` crops of every photo in `folder`, made first if it is not there or is of other photos.

    `identity` stands for photos, seed, trunk and crops. `batches` gives the crops: that of epoch e is the e-th crop.
    `say` is told the size before anything is written.
    """
    side, photos = batches.image_size, len(batches.photos)
    shapes = [
        (photos * crops, side // stride, side // stride, channels)
        for stride, channels in zip(trunk.strides[:-1], trunk.channels[:-1], strict=True)
    ]
    names = [folder / f"stride-{stride}.float16" for stride in trunk.strides[:-1]]
    done, digest = folder / "done.json", hashlib.blake2b(identity.encode(), digest_size=8).hexdigest()
    if not (done.is_file() and json.loads(done.read_text()) == digest):
        size = 2 * sum(int(np.prod(shape)) for shape in shapes)
        say(f"caching the trunk's maps of {crops} crops of {photos} photos in {folder}: {size / 1e9:.1f} GB")
        done.unlink(missing_ok=True)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            files = [np.memmap(name, np.float16, "w+", shape=shape) for name, shape in zip(names, shapes, strict=True)]
        except OSError as error:
            raise InputError(f"{folder}: no room for a cache ({error.strerror}): name another --cache") from error
        _fill(files, trunk, batches, crops, device, workers, progress)
        write_atomically(done, json.dumps(digest).encode())
    return TrunkCache(
        tuple(np.memmap(name, np.float16, "r", shape=shape) for name, shape in zip(names, shapes, strict=True))
    )


def _fill(
    files: list[Any],
    trunk: EfficientNetLite,
    batches: Batches,
    crops: int,
    device: torch.device,
    workers: int,
    progress: Callable[[Iterable[Any], int], Iterable[Any]],
) -> None:
    places = list(_places(batches, crops))
    loader = torch.utils.data.DataLoader(batches, sampler=places, batch_size=None, num_workers=workers)
    row = 0
    for batch in progress(received(loader), len(places)):
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=has_bfloat16(device)):
            maps = trunk.early(trunk.preprocess(batch.images.to(device)))
        for file, made in zip(files, maps, strict=True):
            file[row : row + len(made)] = made.permute(0, 2, 3, 1).half().cpu().numpy()
        row += len(batch.images)
    for file in files:
        file.flush()


def _places(batches: Batches, crops: int) -> Iterator[np.ndarray]:
    """(epoch, shard, row) of every crop, the crops of a photo side by side."""
    counts = batches.photos.counts
    all_places = [
        (crop, shard, row) for shard in range(len(counts)) for row in range(counts[shard]) for crop in range(crops)
    ]
    for start in range(0, len(all_places), _AT_ONCE):
        yield np.array(all_places[start : start + _AT_ONCE], dtype=np.int64)
