"""Fully-supervised transfer (§4.3): a classifier of pixels, all of it fine-tuned on photos with masks."""

import io
from collections import deque
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from PIL import Image
from torch import Tensor

from groupvit.checkpoints import latest
from groupvit.data.order import BatchSampler, Order
from groupvit.data.transforms import draw_color, jitter_color, to_tensor
from groupvit.errors import InputError, input_error
from groupvit.files import write_atomically
from groupvit.machine import bfloat16_is_faster, cores, enough_memory, usable
from groupvit.models.dense import DenseClassifier
from groupvit.training.health import Alarm
from groupvit.training.loop import SKIPS, stop_requests
from groupvit.training.monitor import Progress, draw_curves
from groupvit.training.optim import Schedule, set_rate
from groupvit.training.state import DAMAGES, differences, locked, plain
from groupvit.training.step import Terms, step

CROP = 224  # pixels of a training crop's side
SHORT_SIDE = 448  # of the photo at test time; crops are taken of photos of half to twice that
STATE = "transfer.pt"
_IGNORE = 255
_SAVE_EVERY = 500
_WEIGHT_DECAY = 0.05
_ENCODER_RATE = 0.1  # as a share of the rate of the convolutions, which start at random
_READERS = 4


@dataclass(frozen=True)
class Transfer:
    """How a network is fine-tuned: `lr` is that of the convolutions, a tenth of it that of the encoder.

    `identity` says on which photos and from which weights; only the same transfer is continued.
    """

    identity: dict[str, Any]
    steps: int = 4000
    batch_size: int = 16
    lr: float = 1e-3
    seed: int = 0


_Batch = tuple[UInt8[Tensor, "batch 3 side side"], Int64[Tensor, "batch side side"]]  # crops and their masks


@enough_memory("take a smaller --batch-size")
def finetune(network: DenseClassifier, photos: Any, out: Path, transfer: Transfer, *, resume: bool = False) -> int:
    """Fine-tune the network into the folder `out`, and return the step it ended at.

    `photos` have each an `image`, and a `mask` with the class of every pixel (255: not labelled).
    SIGINT, SIGTERM and masks that cannot be read end it with a checkpoint, from which `resume` goes on, to the bit as
    if it had not been interrupted.
    """
    device = usable("cuda" if torch.cuda.is_available() else "cpu")
    network.to(device).train()
    encoder = [parameter for parameter in network.encoder.parameters() if parameter.requires_grad]
    groups = [{"params": encoder, "lr_scale": _ENCODER_RATE}, {"params": list(network.heads.parameters())}]
    optimizer = torch.optim.AdamW(groups, weight_decay=_WEIGHT_DECAY, fused=True)
    schedule = Schedule(transfer.steps, warmup=transfer.steps // 20, lr=transfer.lr, lr_end=0.0)
    bfloat16 = bfloat16_is_faster(device)

    def gradient(batch: _Batch) -> Terms:
        images, masks = (each.to(device) for each in batch)
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            logits = network(images)
        loss = pixel_loss(logits, masks, network.stride)
        loss.backward()
        return {"pixels": loss}

    if last := latest(out):
        raise InputError(f"{out} holds a training at {last}; name another --out")
    with locked(out):
        done = saved = _restore(out / STATE, network, optimizer, transfer, resume=resume)
        progress = Progress(out / "metrics.jsonl", done, transfer.steps, transfer.batch_size, Alarm(0, 0.0))
        with closing(progress), stop_requests() as stop, closing(_batches(photos, transfer, done)) as batches:
            try:
                while done < transfer.steps and not stop:
                    with progress.waiting():
                        batch = next(batches)
                    set_rate(optimizer, rate := schedule.rate(done))
                    terms, norm = step(network, partial(gradient, batch), optimizer)
                    done += 1
                    progress.step(done, rate, {**terms, "grad_norm": norm})
                    if progress.skips_on_end == SKIPS:
                        raise InputError(f"no finite gradient in {SKIPS} steps up to {done - 1}: take a lower --lr")
                    if done % _SAVE_EVERY == 0 or done == transfer.steps:
                        _save(out / STATE, network, optimizer, transfer, saved := done)
            except KeyboardInterrupt:
                saved = done  # the weights may be those of the step after it
                raise
            finally:
                if saved < done and progress.skips_on_end < SKIPS:
                    _save(out / STATE, network, optimizer, transfer, done)
        draw_curves(out / "metrics.jsonl", out / "curves.png")
    network.eval()
    return done


def pixel_loss(
    logits: Float[Tensor, "batch classes rows columns"], masks: Int64[Tensor, "batch height width"], stride: int
) -> Float[Tensor, ""]:
    """Return the mean cross-entropy of the labelled pixels, for logits of cells of `stride` pixels; 0 without any."""
    height, width = masks.shape[1:]
    pixels = F.interpolate(logits, scale_factor=stride, mode="bilinear", align_corners=False)[..., :height, :width]
    total = F.cross_entropy(pixels, masks, ignore_index=_IGNORE, reduction="sum")
    return total / (masks != _IGNORE).sum().clamp(min=1)


def _batches(photos: Any, transfer: Transfer, done: int) -> Generator[_Batch, None, None]:
    """Yield the batches from a step on, a few of them read ahead."""
    order = Order(np.array([len(photos)]), transfer.seed)
    places = iter(BatchSampler(order, transfer.batch_size, start=done * transfer.batch_size, rank=0, world=1))
    readers = min(_READERS, cores())
    with ThreadPoolExecutor(readers) as pool:
        coming = deque(pool.submit(_batch, photos, transfer.seed, next(places)) for _ in range(readers))
        try:
            while True:
                coming.append(pool.submit(_batch, photos, transfer.seed, next(places)))
                yield coming.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _batch(photos: Any, seed: int, places: Int64[np.ndarray, "batch 3"]) -> _Batch:
    crops, colors = [], []
    for epoch, _, row in places.tolist():
        generator = np.random.default_rng([seed, epoch, row])
        crops.append(draw_masked_crop(photos[row], generator))
        colors.append(draw_color(generator))
    images, masks = (torch.stack(each) for each in zip(*crops, strict=True))
    return jitter_color(images, torch.stack(colors)), masks


def draw_masked_crop(
    photo: Any, generator: np.random.Generator
) -> tuple[UInt8[Tensor, "3 side side"], Int64[Tensor, "side side"]]:
    """Return a random square of a photo and its mask, mirrored half the time."""
    scale = SHORT_SIDE * generator.uniform(0.5, 2.0) / min(photo.image.size)
    side = min(CROP / scale, *photo.image.size)
    left, top = (generator.uniform(0, length - side) for length in photo.image.size)
    where: Any = {"size": (CROP, CROP), "box": (left, top, left + side, top + side)}
    image = photo.image.resize(resample=Image.Resampling.BILINEAR, **where)
    mask = Image.fromarray(photo.mask).resize(resample=Image.Resampling.NEAREST, **where)
    if generator.random() < 0.5:
        image, mask = (each.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for each in (image, mask))
    return to_tensor(image), torch.from_numpy(np.array(mask)).long()


def _save(
    path: Path, network: DenseClassifier, optimizer: torch.optim.Optimizer, transfer: Transfer, done: int
) -> None:
    states = {"network": network.state_dict(), "optimizer": optimizer.state_dict()}
    file = io.BytesIO()
    torch.save({"transfer": plain(asdict(transfer)), "step": done, **states}, file)
    write_atomically(path, file.getvalue())


def _restore(
    path: Path, network: DenseClassifier, optimizer: torch.optim.Optimizer, transfer: Transfer, *, resume: bool
) -> int:
    """Read the checkpoint into network and optimizer, and return its step; 0 for a new transfer."""
    if path.is_file() != resume:
        what = "holds no transfer to resume; leave out --resume" if resume else "holds a transfer; add --resume"
        raise InputError(f"{path.parent} {what}, or name another --out")
    if not resume:
        return 0
    damaged = f"{path} is damaged, name another --out and start again"
    with input_error(damaged, *DAMAGES):
        saved = torch.load(path, map_location="cpu", weights_only=True)
        settings, done = dict(saved["transfer"]), int(saved["step"])
    if differing := list(differences(settings, plain(asdict(transfer)))):
        raise InputError(f"{path.parent} holds another transfer: {'; '.join(differing[:5])}; resume with the same")
    with input_error(damaged, *DAMAGES):
        network.load_state_dict(saved["network"])
        optimizer.load_state_dict(saved["optimizer"])
    return done
