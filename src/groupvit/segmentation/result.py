"""A segmented photo."""

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float, UInt
from PIL import Image

from groupvit.segmentation import drawing, formats
from groupvit.segmentation.windows import Window, covered, resampled_argmax

IndexMap = UInt[np.ndarray, "height width"]


@dataclass(frozen=True, eq=False)
class Segmentation:
    """A photo whose every pixel has a name.

    `label_map` holds indices into `names`, at the photo's size, and `confidence` the score of each pixel's best label.
    `shares` are the labels' parts of the photo, `scores` the mean confidence over a label's pixels (0 where it has
    none). `windows` is what the maps were made of, `step` the resized photo's pixels per pixel of the photo, down and
    along.
    """

    image: Image.Image
    label_map: IndexMap
    names: tuple[str, ...]
    shares: tuple[float, ...]
    scores: tuple[float, ...]
    confidence: Float[np.ndarray, "height width"]
    windows: tuple[Window, ...]
    step: tuple[float, float]
    patch_size: int

    @cached_property
    def groups(self) -> tuple[IndexMap, ...]:
        """Group that owns each pixel, stage by stage.

        Empty for a plain ViT and when several windows were used, since each window has groups of its own.
        """
        return self.groups_of(self.windows[0])[1] if len(self.windows) == 1 else ()

    def groups_of(self, window: Window) -> tuple[tuple[slice, slice], tuple[IndexMap, ...]]:
        """Return the part of the photo that a window covers, and the group that owns each of its pixels, by stage."""
        rows, columns = covered(window.place, self.step)
        size = (rows.stop - rows.start, columns.stop - columns.start)
        patches = (self.step[0] / self.patch_size, self.step[1] / self.patch_size)
        return (rows, columns), tuple(
            resampled_argmax(group, size, patches)[1].astype(np.min_scalar_type(len(group) - 1))
            for group in window.groups
        )

    def reduced(self, pixels: int) -> "Segmentation":
        """Return the result for a smaller photo of about so many pixels, to draw it; scores and shares stay."""
        if (factor := math.ceil(math.sqrt(self.label_map.size / pixels))) == 1:
            return self
        image = self.image.reduce(factor)
        step = (self.step[0] * self.image.height / image.height, self.step[1] * self.image.width / image.width)
        maps = {"label_map": self.label_map[::factor, ::factor], "confidence": self.confidence[::factor, ::factor]}
        return replace(self, image=image, step=step, **maps)

    def overlay(self) -> Image.Image:
        """Return the photo under its labels' colours, with a legend."""
        return drawing.overlay(self.image, self.label_map, self.names)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, without the maps."""
        rows = zip(self.names, self.shares, self.scores, strict=True)
        labels = [
            {"index": i, "name": name, "share": share, "score": score} for i, (name, share, score) in enumerate(rows)
        ]
        return {"width": self.image.width, "height": self.image.height, "labels": labels}

    def to_coco(self, file_name: str, *, polygons: bool = False) -> dict[str, Any]:
        """Return COCO's list of instances with one annotation a label: run lengths, or polygons. CVAT reads it, too."""
        return formats.coco(file_name, self.image.size, self.names, self._regions(), polygons)

    def to_detections(self) -> Any:
        """Return `supervision.Detections` with one mask a label."""
        return formats.detections(self._regions(), self.label_map.shape)

    def to_label_studio(self, image: str, *, polygons: bool = False) -> dict[str, Any]:
        """Return a task of Label Studio for the photo at the address `image`: brush strokes, or polygons."""
        return formats.label_studio(image, self.image.size, self._regions(), polygons)

    def to_labelme(self, image_path: str) -> dict[str, Any]:
        """Return labelme's JSON; `image_path` leads from its file to the photo."""
        return formats.labelme(image_path, self.image.size, self._regions())

    def to_voc(self) -> Image.Image:
        """Return a mask of PASCAL VOC's kind: 0 is background, and the other labels count from 1."""
        return formats.voc(self.label_map, self.names)

    def _regions(self) -> list[formats.Region]:
        return formats.regions(self.label_map, self.names, self.scores)
