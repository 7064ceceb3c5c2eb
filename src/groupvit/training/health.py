"""Health of the groups: numbers for each log step, and a warning when a training collapses."""

import math
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from groupvit.models.image_encoder import ImageEncoder, ImageFeatures, occupied


@contextmanager
def watched(encoder: ImageEncoder, *, active: bool) -> Iterator[dict[str, Float[Tensor, ""]]]:
    """Fill the dictionary with the `group_health` of what the encoder makes meanwhile; of chunks the last one's."""
    health: dict[str, Float[Tensor, ""]] = {}

    def look(module: torch.nn.Module, given: object, features: ImageFeatures) -> None:
        if torch.is_grad_enabled():  # a cached batch encodes each chunk twice
            health.update(group_health(features))

    with encoder.register_forward_hook(look) if active else nullcontext():
        yield health


@torch.no_grad()
def group_health(features: ImageFeatures) -> dict[str, Float[Tensor, ""]]:
    """Return the four numbers of docs/TRAINING.md for each grouping stage, under hard assignment; none for a plain ViT.

    The last stage's groups are compared as final segments, earlier ones as the next stage sees them.
    """
    outputs = [given.segments for given in features.ungrouped[1:]] + [features.segments]
    health = {}
    for i, assignment in enumerate(features.assignments):
        joining = assignment.hard.float()
        if i:  # what owns no patch joins no group
            joining = joining * occupied(features.assignments[:i])[:, None]
        shares = joining.sum(dim=2) / joining.sum(dim=(1, 2))[:, None]
        usage = shares.mean(dim=0)
        values = {
            "usage_entropy": torch.special.entr(usage).sum() / math.log(max(2, len(usage))),
            "dead_groups": (usage == 0).float().sum(),
            "largest_share": shares.amax(dim=1).mean(),
            "similarity": _similarity(outputs[i].float(), occupied(features.assignments[: i + 1])),
        }
        health |= {f"stage{i + 1}/{name}": value for name, value in values.items()}
    return health


def _similarity(groups: Float[Tensor, "batch groups dim"], owning: Bool[Tensor, "batch groups"]) -> Float[Tensor, ""]:
    """Return the mean cosine over pairs, by the length of the sum of unit vectors: |sum|^2 = count + each pair twice.

    Groups of good models have cosines up to 0.99, nearly all of it from what all of them share. A hundredth of that
    stays in, so that groups which differ by less are alike. An image with a single group counts as 1.
    """
    weights = owning[:, :, None].to(groups.dtype)
    shared = (groups * weights).sum(dim=(0, 1)) / weights.sum()
    units = F.normalize(groups - 0.99 * shared, dim=-1) * weights
    count = weights.sum(dim=(1, 2))
    pairs = units.sum(dim=1).square().sum(dim=-1) - count
    return torch.where(count > 1, pairs / (count * (count - 1)).clamp(min=1), 1.0).mean()


def distinct_share(captions: Int[Tensor, "photos length"]) -> Float[Tensor, ""]:
    """Return the share of captions that differ. Photos of one caption count as each other's negatives."""
    return torch.tensor(len(captions.unique(dim=0)) / len(captions))


_WINDOW = 5  # log steps in which a sign must hold, or be absent, on end
_JUMP = "the loss has jumped to more than three times its median"
_SKIPPED = "steps are skipped because their gradient is not finite"
_ALIKE = "most photos of a batch share their caption, there is little to tell them apart by"
_RISEN = "the loss has risen by a quarter of what it was at first, and stays there"


class Alarm:
    """Tells in one line that a training collapses, from its log steps.

    A sign must hold for five log steps on end, a jump of the loss and skipped steps for one; it is told once until it
    has been absent for five. During the warm-up only skipped steps, a rising loss and equal captions tell. The bounds
    lie far from what healthy small trainings show, which is noted beside each. `warmup` counts steps; `chance` is the
    caption loss of a model that has learnt nothing.
    """

    def __init__(self, warmup: int, chance: float):
        self.warmup, self.chance = warmup, chance
        self.losses: deque[float] = deque(maxlen=4 * _WINDOW)
        self.history: defaultdict[str, deque[bool]] = defaultdict(lambda: deque(maxlen=_WINDOW))
        self.told: set[str] = set()
        self.skipped = self.first = 0.0
        self.lowest = math.inf

    def check(self, step: int, values: dict[str, Any]) -> str | None:
        """Return the warning that a log step gives rise to; `values` are named as in the metrics file."""
        skipped, self.skipped = values.get("skipped", 0) - self.skipped, values.get("skipped", 0)
        alike = values.get("distinct_captions", 1.0) < 0.25  # healthy: 0.8 and more
        signs = {_SKIPPED: skipped > 1, _RISEN: self._risen(values["loss"]), _ALIKE: alike}
        if step > self.warmup:
            signs |= {_JUMP: self._jumped(values["loss"])} | self._signs(step, values)
        return "; ".join([text for text, ill in signs.items() if self._is_news(text, ill)]) or None

    def _jumped(self, loss: float) -> bool:
        # at most 1.7 times the median in healthy trainings
        jumped = len(self.losses) >= _WINDOW and not loss <= 3 * median(self.losses)  # a loss that is no number, too
        if math.isfinite(loss):
            self.losses.append(loss)
        return jumped

    def _risen(self, loss: float) -> bool:
        # at most 0.17 in healthy trainings
        if not math.isfinite(loss):
            return False
        self.first, self.lowest = self.first or loss, min(self.lowest, loss)
        return self.first > 0 and loss > self.lowest + 0.25 * self.first

    def _signs(self, step: int, values: dict[str, Any]) -> dict[str, bool]:
        # After twice the warm-up healthy: 0.9 of chance and less; collapsed: 0.99 and more.
        stuck = step > 2 * self.warmup and values.get("caption", 0.0) > 0.98 * self.chance > 0
        signs = {
            "captions and photos are not told apart, the caption loss is that of chance": stuck,
            "the gradient explodes, its norm is above 1000": not values.get("grad_norm", 0.0) <= 1000,  # healthy: 105
            # healthy: 23
            "a temperature stands at its bound of 100": any(v > 99.5 for n, v in values.items() if "logit_scale" in n),
        }
        # healthy: an entropy of 0.95 and less, a variety of 0.5 and more, a spread of 0.3 and more
        signs["dino: every photo has all prototypes alike"] = values.get("dino/entropy", 0.0) > 0.99
        signs["dino: all photos have the same prototypes"] = values.get("dino/variety", 1.0) < 0.1
        signs["moco: all photos have the same feature"] = values.get("moco/spread", 1.0) < 0.05
        signs["classify: all photos have the same answer"] = values.get("classify/spread", 1.0) < 0.01
        for stage in [name.removesuffix("/similarity") for name in values if name.endswith("/similarity")]:
            # healthy: an entropy of 0.78 and more, a share of 0.55 and less
            few = values[f"{stage}/usage_entropy"] < 0.4 or values[f"{stage}/largest_share"] > 0.9
            signs[f"{stage}: nearly all segments join very few groups"] = few
            # healthy: 0.99 for thirty steps, 0.9 for long; collapsed: 0.999
            signs[f"{stage}: the groups of an image are alike"] = values[f"{stage}/similarity"] > 0.995
        return signs

    def _is_news(self, text: str, ill: bool) -> bool:
        history = self.history[text]
        history.append(ill)
        if not any(history) and len(history) == _WINDOW:
            self.told.discard(text)
        needed = 1 if text in (_JUMP, _SKIPPED) else _WINDOW
        news = text not in self.told and list(history)[-needed:] == [True] * needed
        if news:
            self.told.add(text)
        return news
