"""The objective of a run: a tuple of weighted terms over one batch (§3.2, Fig. 3). `embedding` makes what they see."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import ClassVar, Literal, TypeVar

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from groupvit.data.batches import Batch
from groupvit.models import SEGMENT_LOGIT_BIAS, GroupViT, temperature
from groupvit.text.nouns import Style
from groupvit.text.templates import SIMPLE_TEMPLATE
from groupvit.text.tokenizer import Tokenizer
from groupvit.training import losses
from groupvit.training.distributed import World
from groupvit.training.losses import Form
from groupvit.training.self_supervised import PhotoTerm

Pixels = UInt8[Tensor, "_ 3 height width"]
Joined = tuple[Int[Tensor, "batch _"], ...]
Loss = Float[Tensor, ""]
Needs = tuple[Literal["segments", "patches", "taught", "words", "distinct"], ...]


@dataclass(frozen=True)
class Vocabulary:
    """The nouns of the noun losses: their prompts, weights by rarity, and log odds that a photo's captions name them.

    `tokens` goes on with prompts of further words for a trunk's classes; `classes` is the share of each prompt in each
    class, without rows where no trunk teaches.
    """

    nouns: tuple[str, ...]
    tokens: Int[Tensor, "texts length"]
    weights: Float[Tensor, " vocabulary"]
    log_odds: Float[Tensor, " vocabulary"]
    classes: Float[Tensor, "classes texts"]

    @classmethod
    def from_counts(
        cls, counts: Mapping[str, int | float], photos: int, tokenizer: Tokenizer, classes: Sequence[Sequence[str]] = ()
    ) -> "Vocabulary":
        """`counts`: in how many of the `photos` a caption says each noun, or would, could all sources say it;
        `classes`: the words of each class of the trunk that teaches."""
        frequency = torch.tensor(list(counts.values()), dtype=torch.float32)
        weights = frequency.rsqrt()
        texts = {text: i for i, text in enumerate(dict.fromkeys(chain(counts, *classes)))}
        shares = torch.zeros(len(classes), len(texts))
        for row, of in zip(shares, classes, strict=True):
            row[[texts[word] for word in of]] = 1 / len(of)
        tokens = tokenizer([SIMPLE_TEMPLATE.format(text) for text in texts])
        log_odds = torch.logit((frequency / photos).clamp(max=0.999))
        return cls(tuple(counts), tokens, weights / weights.mean(), log_odds, shares)

    def to(self, device: torch.device) -> "Vocabulary":
        tensors = (self.tokens, self.weights, self.log_odds, self.classes)
        return Vocabulary(self.nouns, *(tensor.to(device) for tensor in tensors))


@dataclass(frozen=True)
class Images:
    """Image features that the terms need, the others are empty: `patches` as segments of their own, the segments that
    own one (`occupied`), the `patches` that do where some are empty groups of an earlier stage, what a trunk's
    classifier says of its cells (`taught`), and each stage's assignment."""

    pooled: Float[Tensor, "batch dim"]
    segments: Float[Tensor, "batch segments dim"]
    patches: Float[Tensor, "batch patches dim"]
    occupied: Bool[Tensor, "batch _"]
    patches_occupied: Bool[Tensor, "batch _"]
    taught: Float[Tensor, "batch cells classes"]
    joined: Joined


@dataclass(frozen=True)
class Embeddings:
    """A whole batch as unit vectors, which the terms compare; `images` are this process's share of it.

    `exist` says which `words` stand in a caption. `segments`, `occupied` and `words` of all are there only for terms
    that need words.
    """

    batch: Batch
    vocabulary: Vocabulary
    world: World
    images: Images
    pooled: Float[Tensor, "batch embed"]
    segments: Float[Tensor, "batch segments embed"]
    occupied: Bool[Tensor, "batch _"]
    captions: Float[Tensor, "batch embed"]
    prompts: Float[Tensor, "prompts embed"]
    texts: Float[Tensor, "texts embed"]
    words: Float[Tensor, "batch places embed"]
    exist: Bool[Tensor, "batch places"]

    @property
    def own(self) -> slice:
        """This process's rows of the batch."""
        return self.world.own(len(self.batch.human))

    @property
    def own_human(self) -> slice:
        """This process's rows of the photos with human captions."""
        before = self.batch.human[: self.own.start].sum()
        return slice(int(before), int(before + self.batch.human[self.own].sum()))


@dataclass(frozen=True)
class Captions:
    """Image-text contrastive loss (Eq. 6). Captions made of tags are often equal, so they are left out."""

    weight: float = 1.0
    form: Form = "release"
    name: ClassVar[str] = "caption"
    needs: ClassVar[Needs] = ()

    def __call__(self, model: GroupViT, of: Embeddings) -> Loss:
        human, scale = of.batch.human, temperature(model.logit_scale)
        if int(human.sum()) < 2:
            return _nothing(model, of)
        given = (of.pooled[human], of.captions[human], scale, self.form, of.own_human)
        return of.world.size * losses.contrastive_loss(*given)

    def chance(self, photos: float) -> float:
        """Return the weighted loss of a model that tells none of a batch's photos with human captions from another."""
        return (2 if self.form == "paper" else 1) * self.weight * math.log(max(1, photos))


@dataclass(frozen=True)
class LocalAlignment:
    """Segments aligned with the words of the caption (not in the paper; see `losses.local_alignment_loss`)."""

    weight: float
    name: ClassVar[str] = "local"
    needs: ClassVar[Needs] = ("segments", "words")

    def __call__(self, model: GroupViT, of: Embeddings) -> Loss:
        human = of.batch.human
        if int(human.sum()) < 2:
            return _nothing(model, of)
        given = (of.segments[human], of.occupied[human], of.words[human], of.exist[human])
        loss = losses.local_alignment_loss(*given, temperature(model.logit_scale), of.own_human)
        return of.world.size * loss


@dataclass(frozen=True)
class MultiLabel:
    """Multi-label contrastive loss (Eq. 7) with `prompts` noun prompts a caption.

    With `distinct` each prompt is encoded once, and is a positive of all photos that drew it.
    """

    prompts: int = 3
    style: Style = "paper"
    form: Form = "release"
    distinct: bool = False
    weight: float = 1.0
    name: ClassVar[str] = "multi_label"

    @property
    def needs(self) -> Needs:
        return ("distinct",) if self.distinct else ()

    def __call__(self, model: GroupViT, of: Embeddings) -> Loss:
        scale = temperature(getattr(model, "multi_label_logit_scale", model.logit_scale))
        if self.distinct:
            own = (of.own, of.world.own(len(of.prompts)))
            given = (of.pooled, of.prompts, distinct_prompts(of.batch)[1], scale, self.form)
            return of.world.size * losses.multi_positive_multi_label_loss(*given, *own)
        prompts = of.prompts.unflatten(0, (-1, self.prompts))
        return of.world.size * losses.multi_label_loss(of.pooled, prompts, scale, self.form, of.own)


@dataclass(frozen=True)
class Nouns:
    """Some segment, or patch as a segment of its own, is each noun of the captions (`losses.segment_noun_loss`).

    Weights fall with the root of a noun's frequency. With a `prior` that part of its log odds among the photos is added
    to its logit instead: a segment learns how much likelier it makes the noun (logit adjustment, Menon et al., 2021).
    """

    of: Literal["segment", "patch"]
    weight: float
    prior: float | None = None

    @property
    def name(self) -> str:
        return f"{self.of}_nouns"

    @property
    def needs(self) -> Needs:
        return ("segments",) if self.of == "segment" else ("patches",)

    def __call__(self, model: GroupViT, of: Embeddings) -> Loss:
        words, batch, images = of.vocabulary, of.batch, of.images
        segments, exist = images.segments, images.occupied
        if self.of == "patch":
            segments, exist = images.patches, images.patches_occupied if images.patches_occupied.shape[1] else None
        scale, bias, weights = temperature(model.segment_logit_scale), model.segment_logit_bias, words.weights
        if self.prior is not None:
            count = bias.new_tensor(segments.shape[1]) if exist is None else exist.sum(dim=1)[:, None]
            bias = bias - SEGMENT_LOGIT_BIAS + self.prior * words.log_odds.to(bias.dtype) - count.log()
            weights = torch.ones_like(weights)
        nouns, present, known = of.texts[: len(words.nouns)], batch.present[of.own], batch.known[of.own]
        return losses.segment_noun_loss(segments, exist, nouns, present, known, scale, bias, weights)


@dataclass(frozen=True)
class Teacher:
    """Cells of patches learn what the trunk's classifier says of them (`losses.teacher_loss`)."""

    weight: float = 1.0
    name: ClassVar[str] = "teacher"
    needs: ClassVar[Needs] = ("patches", "taught")

    def __call__(self, model: GroupViT, of: Embeddings) -> Loss:
        patches, taught, scale = of.images.patches, of.images.taught.detach(), temperature(model.teacher_logit_scale)
        grid = rearrange(patches, "b (h w) d -> b d h w", h=math.isqrt(patches.shape[1]))
        cells = F.adaptive_avg_pool2d(grid, math.isqrt(taught.shape[1])).flatten(2).mT
        classes = of.vocabulary.classes.to(of.texts.dtype) @ of.texts
        return losses.teacher_loss(F.normalize(cells, dim=-1), F.normalize(classes, dim=-1), taught, scale)


OF_CAPTIONS = (Captions, LocalAlignment)
"""The terms that learn nothing from photos with tags."""
PairTerm = Captions | LocalAlignment | MultiLabel | Nouns | Teacher
Term = PairTerm | PhotoTerm
Objective = tuple[Term, ...]
Pairs = tuple[PairTerm, ...]
"""The terms that compare photos with texts, in which only `loss_terms` and what serves it take an interest."""
_Kind = TypeVar("_Kind")


def terms_of(objective: Objective, kind: type[_Kind]) -> list[_Kind]:
    """Return the terms of one kind."""
    return [term for term in objective if isinstance(term, kind)]


def distinct_prompts(batch: Batch) -> tuple[Int[Tensor, "prompts length"], Int[Tensor, "batch prompts"]]:
    """Return the prompts without repetitions, and how often each photo drew each."""
    prompts, place = batch.prompts.flatten(0, 1).unique(dim=0, return_inverse=True)
    return prompts, F.one_hot(place.unflatten(0, batch.prompts.shape[:2]), len(prompts)).sum(dim=1)


def _nothing(model: GroupViT, of: Embeddings) -> Loss:
    """Return 0 with the graph of a caption loss, for all steps must have the same."""
    return 0 * (of.pooled.sum() + of.captions.sum()) * temperature(model.logit_scale)
