"""The objectives (§3.2): captions, noun prompts, and nouns of single segments; forms of them for small batches.

All take unit vectors and a temperature factor (see `groupvit.models.temperature`). Those that contrast a photo with the
others take the whole batch, and can give the part of their mean that belongs to some rows, `own`.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

Form = Literal["release", "paper"]

Rows = Float[Tensor, "batch dim"]
Scalar = Float[Tensor, ""]

_ROWS_AT_ONCE = 16
_ALL = slice(None)


def _identify(logits: Float[Tensor, "own batch"], own: slice) -> Scalar:
    """Return the cross-entropy of each of the rows with itself among all, summed and over the number of all."""
    targets = torch.arange(logits.shape[1], device=logits.device)[own]
    return F.cross_entropy(logits, targets, reduction="sum") / logits.shape[1]


def contrastive_loss(images: Rows, texts: Rows, scale: Scalar, form: Form = "release", own: slice = _ALL) -> Scalar:
    """Image-text contrastive loss (Eq. 6): the paper adds the two directions, the release takes their mean."""
    total = _identify(scale * images[own] @ texts.T, own) + _identify(scale * texts[own] @ images.T, own)
    return total if form == "paper" else total / 2


def multi_label_loss(
    images: Rows, prompts: Float[Tensor, "batch count dim"], scale: Scalar, form: Form = "release", own: slice = _ALL
) -> Scalar:
    """Multi-label contrastive loss between an image and its noun prompts (Eq. 7).

    The paper's image-to-text term is -log of the summed probability of an image's own prompts; the release's is the
    mean of their -log probabilities, and it takes half of the two directions' sum.
    """
    batch, count, _ = prompts.shape
    logits = scale * torch.einsum("i d, j k d -> i j k", images[own], prompts)
    log_p = logits.flatten(1).log_softmax(dim=1).view_as(logits)
    targets = torch.arange(batch, device=logits.device)[own]
    positives = log_p[torch.arange(len(targets), device=logits.device), targets]
    by_prompt = scale * prompts[own].flatten(0, 1) @ images.T
    to_images = F.cross_entropy(by_prompt, targets.repeat_interleave(count), reduction="sum") / (batch * count)
    if form == "paper":
        return to_images - positives.logsumexp(dim=1).sum() / batch
    return (to_images - positives.sum() / (batch * count)) / 2


def multi_positive_multi_label_loss(
    images: Rows,
    prompts: Float[Tensor, "prompts dim"],
    counts: Int[Tensor, "batch prompts"],
    scale: Scalar,
    form: Form = "release",
    own: slice = _ALL,
    own_prompts: slice = _ALL,
) -> Scalar:
    """Multi-label contrastive loss (Eq. 7) over distinct prompts: equal prompts of other photos are positives too.

    `counts` says how often each photo drew each prompt, without empty rows or columns. Image to text, a prompt has the
    probability of all its copies. Text to image, each photo that drew a prompt stands only against those that did not
    (false negative elimination, Huynh et al., WACV 2022). Where no prompt was drawn twice, this is `multi_label_loss`.
    """
    logits, drawn = scale * images @ prompts[own_prompts].T, counts[:, own_prompts]
    rivals = logits.masked_fill(drawn > 0, -torch.inf).logsumexp(dim=0)
    to_images = -(drawn * F.logsigmoid(logits - rivals)).sum() / counts.sum()
    logits, drawn = scale * images[own] @ prompts.T, counts[own]
    log_p = (logits + counts.sum(dim=0).to(logits.dtype).log()).log_softmax(dim=1)
    if form == "paper":
        return to_images - log_p.masked_fill(drawn == 0, -torch.inf).logsumexp(dim=1).sum() / len(images)
    return (to_images - ((drawn * log_p).sum(dim=1) / drawn.sum(dim=1)).sum() / len(images)) / 2


def local_alignment_loss(
    segments: Float[Tensor, "batch segments dim"],
    occupied: Bool[Tensor, "batch segments"],
    words: Float[Tensor, "batch words dim"],
    exist: Bool[Tensor, "batch words"],
    scale: Scalar,
    own: slice = _ALL,
) -> Scalar:
    """Late interaction of segments and words (FILIP, Yao et al., ICLR 2022), contrasted over the batch.

    A photo looks for its caption by the mean over its segments of their best word's similarity, a caption for its
    photo by the mean over its words of their best segment's. Every photo needs an `occupied` segment, every caption a
    word that exists. Not in the paper.
    """
    by_image = _best_matches(segments[own], occupied[own], words, exist)
    by_text = _best_matches(words[own], exist[own], segments, occupied)
    return (_identify(scale * by_image, own) + _identify(scale * by_text, own)) / 2


def _best_matches(
    parts: Float[Tensor, "own parts dim"],
    exist: Bool[Tensor, "own parts"],
    others: Float[Tensor, "batch others dim"],
    others_exist: Bool[Tensor, "batch others"],
) -> Float[Tensor, "own batch"]:
    """Return the mean over the parts of their best similarity to a part of each other.

    A few are compared at a time, for all pairs need much memory.
    """
    found = []
    for some, there in zip(parts.split(_ROWS_AT_ONCE), exist.split(_ROWS_AT_ONCE), strict=True):
        similarity = torch.einsum("a p d, b q d -> a b p q", some, others)
        best = similarity.masked_fill(~others_exist[None, :, None], -torch.inf).max(dim=3).values
        found.append(best.masked_fill(~there[:, None], 0).sum(dim=-1) / there.sum(dim=-1)[:, None])
    return torch.cat(found)


def segment_noun_loss(
    segments: Float[Tensor, "batch segments dim"],
    occupied: Bool[Tensor, "batch segments"] | None,
    nouns: Float[Tensor, "vocabulary dim"],
    present: Bool[Tensor, "batch vocabulary"],
    known: Bool[Tensor, "batch vocabulary"],
    scale: Scalar,
    bias: Float[Tensor, "*_"],
    weights: Float[Tensor, " vocabulary"],
) -> Scalar:
    """Some segment must be each noun of the photo's captions, and none the other nouns of the vocabulary.

    A noun's logit is the log-sum-exp over the segments that own a patch (`occupied`; None: all). Nouns that are not
    `known` of a photo count nothing. `weights`, or a `bias` for each noun, balance frequent and rare ones. Not in the
    paper: its multi-label loss asks the same of the pooled image, and segments learn the words of their neighbours.
    """
    similarities = F.linear(scale * segments, nouns)
    if occupied is not None:
        similarities = similarities.masked_fill(~occupied[:, :, None], -torch.inf)
    logits = similarities.logsumexp(dim=1) + bias
    losses = F.binary_cross_entropy_with_logits(logits, present.to(logits.dtype), reduction="none")
    return (losses * weights).masked_fill(~known, 0).sum(dim=1).mean()


def teacher_loss(
    cells: Float[Tensor, "batch cells dim"],
    classes: Float[Tensor, "classes dim"],
    taught: Float[Tensor, "batch cells classes"],
    scale: Scalar,
) -> Scalar:
    """Cross-entropy between what a classifier says of each cell (`taught`, probabilities) and the softmax over texts:
    distillation (Hinton et al., 2015) cell by cell. Captions tell what is in a photo, the classifier also where."""
    return -(taught * F.linear(scale * cells, classes).log_softmax(dim=-1)).sum(dim=-1).mean()
