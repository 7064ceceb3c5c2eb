"""Baselines of a model with a pre-trained trunk: its trunk without the groups that were learned on it.

Each is a segmenter to be evaluated like the model itself, windows, words for the background and thresholds included.
"""

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import replace

import torch
from einops import rearrange
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from groupvit.errors import InputError
from groupvit.models import Stage, with_stages
from groupvit.models.grouping import SeededGrouping
from groupvit.models.image_encoder import GroupingStage
from groupvit.models.trunks import EfficientNetLite
from groupvit.segmentation.labels import Label
from groupvit.segmentation.segmenter import Segmenter
from groupvit.segmentation.view import View
from groupvit.segmentation.windows import Window, plan
from groupvit.text.imagenet import imagenet_texts


def trunk_baselines(segmenter: Segmenter) -> dict[str, Segmenter]:
    """Return the baselines by the names that tables give them; none for a model without a trunk."""
    if not segmenter.config.image.has_trunk:
        return {}
    named = {
        "k-means on the trunk's features": k_means(segmenter),
        "each patch alone": ungrouped(segmenter),
    }
    if isinstance(segmenter.model.image_encoder.trunk, EfficientNetLite):
        named["the trunk's classifier, dense"] = TrunkClassifier(segmenter)
    return named


def k_means(segmenter: Segmenter) -> Segmenter:
    """Return the model with as many groups as it ends with, but by plain k-means on the local features of its trunk.

    The model's seeded groups have smooth features, and three numbers of them vote. A group is the mean of its patches
    and is named as it is; later stages are left out.
    """
    model, config = deepcopy(segmenter.model), segmenter.config
    encoder = model.image_encoder
    first = encoder.stages[0]
    assert isinstance(first, GroupingStage)
    groups = [stage.output_groups for stage in config.image.stages if stage.has_grouping][-1]
    first.group_tokens = first.group_projector = first.grouping = None
    first.seeded = SeededGrouping(groups, plain=True)
    encoder.stages = nn.ModuleList([first])
    stage = Stage(config.image.stages[0].depth, output_groups=groups, seeded=True)
    return Segmenter(model, with_stages(config, stage), device=segmenter.device, precision=segmenter.precision)


def ungrouped(segmenter: Segmenter) -> Segmenter:
    """Return the model with every patch as a segment of its own."""
    model = deepcopy(segmenter.model)
    model.image_encoder.stages = nn.ModuleList()
    return Segmenter(model, with_stages(segmenter.config), device=segmenter.device, precision=segmenter.precision)


class TrunkClassifier(Segmenter):
    """The trunk's own classifier at every cell of its last map, without anything that was learned on it.

    A label's score is the sum of the probabilities of ImageNet's classes that share a word with it (`class_members`).
    Nothing is embedded: templates and gated scores do not apply, and there are no features to keep.
    """

    def __init__(self, segmenter: Segmenter):
        trunk, config = segmenter.model.image_encoder.trunk, segmenter.config
        if not isinstance(trunk, EfficientNetLite):
            raise InputError("this model has no trunk with a classifier of ImageNet's classes")
        cells = replace(config.image, patch_size=trunk.strides[-1])
        super().__init__(
            segmenter.model, replace(config, image=cells), device=segmenter.device, precision=segmenter.precision
        )
        self._trunk = trunk

    def _encode(
        self,
        photos: Sequence[Image.Image],
        sizes: Sequence[tuple[int, int]],
        labels: Sequence[Label],
        view: View,
        batch_size: int,
        keep_features: bool,
    ) -> Iterator[tuple[int, Window]]:
        members = class_members(labels).to(self.device)
        for i, place in plan(sizes, view.window, view.stride):
            top, left, height, width = place
            pixels = self._pixels(photos[i], sizes[i], view.antialias)
            last = self._trunk(pixels[None, :, top : top + height, left : left + width])[-1]
            with torch.autocast(self.device.type, enabled=False):
                probabilities = self._trunk.classify(last.float()).softmax(dim=1)
                scores = rearrange(probabilities, "1 k h w -> (h w) k") @ members
            yield i, Window(*place, (last.shape[-2], last.shape[-1]), (), scores)


def class_members(labels: Sequence[Label]) -> Float[Tensor, "classes labels"]:
    """Return 1 where one of a class's words (`imagenet_texts`) is one of a label's, else 0."""
    words = [{word.lower() for word in label.words} for label in labels]
    return torch.tensor([[float(not own.isdisjoint(texts)) for own in words] for texts in imagenet_texts()])
