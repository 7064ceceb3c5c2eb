"""The objectives (§3.2): captions, noun prompts, and nouns of single segments; forms of them for small batches.

All take unit vectors of the whole batch and a temperature factor (see `groupvit.models.temperature`).
"""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

Form = Literal["release", "paper"]

Rows = Float[Tensor, "batch dim"]
Scalar = Float[Tensor, ""]

_IMAGES_AT_ONCE = 16


def contrastive_loss(images: Rows, texts: Rows, scale: Scalar, form: Form = "release") -> Scalar:
    """Image-text contrastive loss (Eq. 6): the paper adds the two directions, the release takes their mean."""
    logits = scale * images @ texts.T
    targets = torch.arange(len(logits), device=logits.device)
    total = F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)
    return total if form == "paper" else total / 2


def multi_label_loss(
    images: Rows, prompts: Float[Tensor, "batch count dim"], scale: Scalar, form: Form = "release"
) -> Scalar:
    """Multi-label contrastive loss between an image and its noun prompts (Eq. 7).

    The paper's image-to-text term is -log of the summed probability of an image's own prompts; the release's is the
    mean of their -log probabilities, and it takes half of the two directions' sum.
    """
    batch, count, _ = prompts.shape
    logits = scale * torch.einsum("i d, j k d -> i j k", images, prompts)
    log_p = logits.flatten(1).log_softmax(dim=1).view_as(logits)
    positives = log_p.diagonal(dim1=0, dim2=1).T
    targets = torch.arange(batch, device=logits.device)[:, None].expand(batch, count)
    to_images = F.cross_entropy(logits.transpose(0, 1).transpose(1, 2).flatten(0, 1), targets.flatten())
    if form == "paper":
        return to_images - positives.logsumexp(dim=1).mean()
    return (to_images - positives.mean()) / 2


def multi_positive_multi_label_loss(
    images: Rows,
    prompts: Float[Tensor, "prompts dim"],
    counts: Int[Tensor, "batch prompts"],
    scale: Scalar,
    form: Form = "release",
) -> Scalar:
    """Multi-label contrastive loss (Eq. 7) over distinct prompts: equal prompts of other photos are positives too.

    `counts` says how often each photo drew each prompt, without empty rows or columns. Image to text, a prompt has the
    probability of all its copies. Text to image, each photo that drew a prompt stands only against those that did not
    (false negative elimination, Huynh et al., WACV 2022). Where no prompt was drawn twice, this is `multi_label_loss`.
    """
    logits, drawn = scale * images @ prompts.T, counts > 0
    log_p = (logits + counts.sum(dim=0).to(logits.dtype).log()).log_softmax(dim=1)
    rivals = logits.masked_fill(drawn, -torch.inf).logsumexp(dim=0)
    to_images = -(counts * F.logsigmoid(logits - rivals)).sum() / counts.sum()
    if form == "paper":
        return to_images - log_p.masked_fill(~drawn, -torch.inf).logsumexp(dim=1).mean()
    return (to_images - ((counts * log_p).sum(dim=1) / counts.sum(dim=1)).mean()) / 2


def _masked_mean(
    values: Float[Tensor, "*batch count"], exist: Bool[Tensor, "*#batch count"]
) -> Float[Tensor, "*batch"]:
    return values.masked_fill(~exist, 0).sum(dim=-1) / exist.sum(dim=-1)


def local_alignment_loss(
    segments: Float[Tensor, "batch segments dim"],
    occupied: Bool[Tensor, "batch segments"],
    words: Float[Tensor, "batch words dim"],
    exist: Bool[Tensor, "batch words"],
    scale: Scalar,
) -> Scalar:
    """Late interaction of segments and words (FILIP, Yao et al., ICLR 2022), contrasted over the batch.

    A photo looks for its caption by the mean over its segments of their best word's similarity, a caption for its
    photo by the mean over its words of their best segment's. Every photo needs an `occupied` segment, every caption a
    word that exists. A few photos are compared at a time, for all pairs need much memory. Not in the paper.
    """
    to_texts, to_images = [], []
    for some, occupies in zip(segments.split(_IMAGES_AT_ONCE), occupied.split(_IMAGES_AT_ONCE), strict=True):
        both = occupies[:, None, :, None] & exist[None, :, None, :]
        similarity = torch.einsum("b s d, c w d -> b c s w", some, words).masked_fill(~both, -torch.inf)
        to_texts.append(_masked_mean(similarity.max(dim=3).values, occupies[:, None]))
        to_images.append(_masked_mean(similarity.max(dim=2).values, exist[None]))
    targets = torch.arange(len(segments), device=segments.device)
    by_image, by_text = scale * torch.cat(to_texts), scale * torch.cat(to_images).T
    return (F.cross_entropy(by_image, targets) + F.cross_entropy(by_text, targets)) / 2


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
