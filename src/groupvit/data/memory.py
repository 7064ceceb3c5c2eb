"""Photos kept decoded in memory, and random crops of them in batches, on the CPU or on a GPU."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor


@dataclass(frozen=True)
class Photos:
    """Photos squashed to squares: a crop's box in shares of the photo's sides is the same box of the square."""

    pixels: UInt8[Tensor, "photos 3 side side"]

    def to(self, device: torch.device | str) -> "Photos":
        return Photos(self.pixels.to(device))

    def crop(
        self,
        rows: Int[Tensor, "batch"],
        boxes: Float[Tensor, "batch 4"],
        mirrored: Bool[Tensor, "batch"],
        size: int,
        *,
        chunk: int | None = None,
    ) -> UInt8[Tensor, "batch 3 {size} {size}"]:
        """One crop of the photo of each row, resized to a square: Pillow's `resize(box=…, BILINEAR)`, within 1.

        The boxes are left, top, right, bottom, each from 0 to 1 (`Crop.relative`). `chunk` photos at a time are held as
        floating-point numbers (None: what is fast on the device); the result does not depend on it.
        """
        device = self.pixels.device
        chunk = chunk or (8 if device.type == "cpu" else 256)
        rows, boxes, mirrored = rows.to(device), boxes.to(device), mirrored.to(device)
        parts = zip(rows.split(chunk), boxes.split(chunk), mirrored.split(chunk), strict=True)
        return torch.cat([self._crop_chunk(*part, size) for part in parts])

    def _crop_chunk(
        self,
        rows: Int[Tensor, "batch"],
        boxes: Float[Tensor, "batch 4"],
        mirrored: Bool[Tensor, "batch"],
        size: int,
    ) -> UInt8[Tensor, "batch 3 {size} {size}"]:
        side = self.pixels.shape[-1]
        left, top, right, bottom = boxes.unbind(dim=1)
        left, right = torch.where(mirrored, right, left), torch.where(mirrored, left, right)
        photos = self.pixels[rows].float().flatten(1, 2)
        lines = (photos @ _bilinear(left, right, side, size).mT).unflatten(1, (3, side))
        return (_bilinear(top, bottom, side, size)[:, None] @ lines).round_().clamp_(0, 255).to(torch.uint8)


def _bilinear(
    start: Float[Tensor, "batch"], end: Float[Tensor, "batch"], side: int, size: int
) -> Float[Tensor, "batch {size} {side}"]:
    """Weights of `side` pixels in each of `size` pixels from `start` to `end`: triangles, as antialiasing has them."""
    step = (end - start)[:, None] * (side / size)
    output = torch.arange(size, device=start.device) + 0.5
    centres = start[:, None] * side + output * step  # backwards where the start is the right edge
    pixels = torch.arange(side, device=start.device) + 0.5
    support = step.abs().clamp(min=1)
    weights = (1 - (centres[:, :, None] - pixels).abs() / support[:, :, None]).clamp_(min=0)
    return weights / weights.sum(dim=2, keepdim=True)
