"""Terms that learn from photos without captions, the rivals of Table 5: DINO, MoCo v3, and classification by tags.

Each has modules beside the model (heads, a momentum teacher), which are saved with the training and then left behind.
They see the features of the whole batch, of all processes, and so do their losses.
"""

import copy
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from groupvit.data.batches import Batch
from groupvit.models import GroupViT
from groupvit.models.dual_encoder import init_linear
from groupvit.models.image_encoder import ImageEncoder
from groupvit.models.noise import Keys, fold
from groupvit.training.views import draw_view

Loss = Float[Tensor, ""]
Rows = Float[Tensor, "batch dim"]
Pool = Callable[[ImageEncoder, Tensor, Keys | None], Rows]
"""Encode a batch, and return the pooled features of all processes' batches in single precision."""

_LOCAL = 3 / 7  # side of a local crop beside that of a global one: 96 of 224
_GLOBAL_AREA, _LOCAL_AREA, _MOCO_AREA = (0.4, 1.0), (0.05, 0.4), (0.08, 1.0)
_BLURRED, _SOLARIZED = (1.0, 0.1), (0.0, 0.2)  # of the two global views
_STUDENT_TEMPERATURE, _TEACHER_TEMPERATURE = 0.1, 0.04  # DINO's
_CENTRE = 0.9  # momentum of DINO's centre


@dataclass(frozen=True)
class Dino:
    """Self-distillation (Caron et al., 2021): every view predicts the prototypes that a teacher sees in another one."""

    weight: float = 1.0
    prototypes: int = 65536
    local_crops: int = 8
    hidden: int = 2048
    momentum: float = 0.996
    name: ClassVar[str] = "dino"


@dataclass(frozen=True)
class Moco:
    """Contrast between two views of the photos of a batch (MoCo v3, Chen et al., 2021), by a momentum encoder.

    A plain ViT's projection of patches stays at random, which is what keeps its training stable.
    """

    weight: float = 1.0
    temperature: float = 0.2
    hidden: int = 4096
    momentum: float = 0.99
    name: ClassVar[str] = "moco"


@dataclass(frozen=True)
class Classify:
    """Which nouns of the vocabulary the photo's tags name, each a yes or no; unknown nouns do not count."""

    weight: float = 1.0
    name: ClassVar[str] = "classify"


PhotoTerm = Dino | Moco | Classify


def dino_loss(
    student: Float[Tensor, "views batch prototypes"],
    teacher: Float[Tensor, "globals batch prototypes"],
    centre: Float[Tensor, " prototypes"],
) -> Loss:
    """Return the mean cross-entropy of student views against the other views of the teacher, centred and sharpened."""
    targets = ((teacher - centre) / _TEACHER_TEMPERATURE).softmax(dim=-1)
    log_p = (student / _STUDENT_TEMPERATURE).log_softmax(dim=-1)
    crossed = -torch.einsum("t b k, s b k -> t s", targets, log_p) / student.shape[1]
    other = ~torch.eye(len(teacher), len(student), dtype=torch.bool, device=student.device)
    return crossed[other].mean()


def moco_loss(queries: Rows, keys: Rows, temperature: float) -> Loss:
    """Return the contrastive loss of unit vectors, times 2 x temperature as published."""
    logits = queries @ keys.T / temperature
    return 2 * temperature * F.cross_entropy(logits, torch.arange(len(logits), device=logits.device))


def classify_loss(
    logits: Float[Tensor, "batch nouns"], present: Bool[Tensor, "batch nouns"], known: Bool[Tensor, "batch nouns"]
) -> Loss:
    """Return the mean binary cross-entropy over what is known of the photos; 0 where nothing is."""
    each = F.binary_cross_entropy_with_logits(logits, present.to(logits.dtype), reduction="none")
    return (each * known).sum() / known.sum().clamp(min=1)


def spread(units: Rows) -> Float[Tensor, ""]:
    """Return how far unit vectors of different photos lie apart: 1 in all directions, 0 in one point."""
    return (1 - units.mean(dim=0).square().sum()).clamp(min=0).sqrt()


class Momentum(nn.Module):
    """A copy of modules that follows their weights slowly, without a gradient."""

    def __init__(self, momentum: float, *modules: nn.Module):
        super().__init__()
        self.momentum, self.followed = momentum, modules  # in a tuple they are no parts of this one
        self.copies = copy.deepcopy(nn.ModuleList(modules)).requires_grad_(False)

    @torch.no_grad()
    def follow(self, share: float) -> None:
        """Move towards the modules; the momentum rises to 1 with a cosine over the `share` of the training."""
        moved = (1 - self.momentum) * (math.cos(math.pi * share) + 1) / 2
        for ours, theirs in zip(self.copies, self.followed, strict=True):
            for mean, now in zip(ours.parameters(), theirs.parameters(), strict=True):
                mean.lerp_(now, moved)


def _two_views(batch: Batch, keys: Keys, area: tuple[float, float]) -> list[Tensor]:
    """Return two views of each photo at its own size."""
    side = batch.images.shape[-1]
    return [
        draw_view(batch.images, fold(keys, 300 + i), side, area, blurred=blur, solarized=solar)
        for i, (blur, solar) in enumerate(zip(_BLURRED, _SOLARIZED, strict=True))
    ]


def _prototype_logits(head: nn.Module, prototypes: nn.Module, pooled: Rows) -> Float[Tensor, "batch prototypes"]:
    return F.linear(F.normalize(head(pooled), dim=-1), F.normalize(prototypes.weight, dim=-1))  # pyright: ignore[reportArgumentType]


class DinoModule(nn.Module):
    """DINO's head, prototypes, teacher and centre."""

    centre: Tensor

    def __init__(self, encoder: ImageEncoder, term: Dino, nouns: int):
        super().__init__()
        self.term, dim = term, len(encoder.norm.weight)
        self.head = nn.Sequential(
            *(nn.Linear(dim, term.hidden), nn.GELU(), nn.Linear(term.hidden, term.hidden), nn.GELU()),
            nn.Linear(term.hidden, 256),
        )
        self.prototypes = nn.Linear(256, term.prototypes, bias=False)
        self.head.apply(init_linear)
        self.teacher = Momentum(term.momentum, encoder, self.head, self.prototypes)
        self.register_buffer("centre", torch.zeros(term.prototypes))
        self.health: dict[str, Tensor] = {}

    def forward(self, encoder: ImageEncoder, batch: Batch, keys: Keys, pool: Pool) -> Loss:
        patch = encoder.patch_size
        local = max(patch, round(batch.images.shape[-1] * _LOCAL / patch) * patch)
        views = _two_views(batch, keys, _GLOBAL_AREA)
        locals_ = [
            draw_view(batch.images, fold(keys, 310 + i), local, _LOCAL_AREA, blurred=0.5)
            for i in range(self.term.local_crops)
        ]
        student = torch.stack(
            [
                _prototype_logits(self.head, self.prototypes, pool(encoder, v, fold(keys, 400 + i)))
                for i, v in enumerate(views + locals_)
            ]
        )
        with torch.no_grad():
            slow, head, prototypes = self.teacher.copies
            teacher = torch.stack([_prototype_logits(head, prototypes, pool(slow, view, None)) for view in views])  # pyright: ignore[reportArgumentType]
            self._watch(teacher)
            centre = self.centre.clone()
            self.centre.lerp_(teacher.mean(dim=(0, 1)), 1 - _CENTRE)
        return dino_loss(student, teacher, centre)

    def _watch(self, teacher: Float[Tensor, "views batch prototypes"]) -> None:
        """Note the entropy of a photo's prototypes (1: all alike) and that of the batch's mean (0: always one)."""
        targets = ((teacher - self.centre) / _TEACHER_TEMPERATURE).softmax(dim=-1).flatten(0, 1)
        each, together = torch.special.entr(targets).sum(dim=1).mean(), torch.special.entr(targets.mean(dim=0)).sum()
        most = max(math.log(min(targets.shape)), 1e-9)  # two views of a single photo, or prototypes
        variety = (together / most).clamp(max=1)
        self.health = {"dino/entropy": each / math.log(targets.shape[1]), "dino/variety": variety}


class MocoModule(nn.Module):
    """MoCo v3's projector, predictor and momentum encoder."""

    def __init__(self, encoder: ImageEncoder, term: Moco, nouns: int):
        super().__init__()
        if isinstance(encoder.stem, nn.Conv2d):
            encoder.stem.requires_grad_(False)
        self.term, dim = term, len(encoder.norm.weight)
        self.projector = _batch_normed(dim, term.hidden, term.hidden, 256)
        self.predictor = _batch_normed(256, term.hidden, 256)
        self.teacher = Momentum(term.momentum, encoder, self.projector)
        self.health: dict[str, Tensor] = {}

    def forward(self, encoder: ImageEncoder, batch: Batch, keys: Keys, pool: Pool) -> Loss:
        views = _two_views(batch, keys, _MOCO_AREA)
        queries = [
            F.normalize(self.predictor(self.projector(pool(encoder, view, fold(keys, 400 + i)))), dim=-1)
            for i, view in enumerate(views)
        ]
        with torch.no_grad():
            slow, projector = self.teacher.copies
            taught = [F.normalize(projector(pool(slow, view, None)), dim=-1) for view in views]  # pyright: ignore[reportArgumentType]
            self.health = {"moco/spread": spread(taught[0])}
        first, second = (moco_loss(queries[i], taught[1 - i], self.term.temperature) for i in range(2))
        return first + second


def _batch_normed(*dims: int) -> nn.Sequential:
    """Return linear layers without bias, each with batch norm, the last one's without scale and shift."""
    layers: list[nn.Module] = []
    for i, (dim, out) in enumerate(pairwise(dims)):
        last = i == len(dims) - 2
        layers += [nn.Linear(dim, out, bias=False), nn.BatchNorm1d(out, affine=not last)]
        layers += [] if last else [nn.ReLU()]
    return nn.Sequential(*layers)


class ClassifyModule(nn.Module):
    """A linear layer from the pooled feature to the nouns."""

    def __init__(self, encoder: ImageEncoder, term: Classify, nouns: int):
        super().__init__()
        self.linear = nn.Linear(len(encoder.norm.weight), nouns)
        self.health: dict[str, Tensor] = {}

    def forward(self, encoder: ImageEncoder, batch: Batch, keys: Keys, pool: Pool) -> Loss:
        logits = self.linear(pool(encoder, batch.images, keys))
        self.health = {"classify/spread": logits.detach().std(dim=0, correction=0).mean()}
        return classify_loss(logits, batch.present, batch.known)


_MODULES: dict[type, Any] = {Dino: DinoModule, Moco: MocoModule, Classify: ClassifyModule}


def modules_of(objective: Iterable[Any], model: GroupViT, nouns: int) -> nn.ModuleDict:
    """Return the modules that these terms have beside the model, by their names."""
    terms = [term for term in objective if isinstance(term, PhotoTerm)]
    return nn.ModuleDict({term.name: _MODULES[type(term)](model.image_encoder, term, nouns) for term in terms})
