"""The objectives (§3.2): captions, noun prompts, and nouns of single segments.

All take unit vectors of the whole batch and a temperature factor (see `groupvit.models.temperature`).
"""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

Form = Literal["release", "paper"]


def contrastive_loss(
    images: Float[Tensor, "batch dim"],
    texts: Float[Tensor, "batch dim"],
    scale: Float[Tensor, ""],
    form: Form = "release",
) -> Float[Tensor, ""]:
    """Image-text contrastive loss (Eq. 6): the paper adds the two directions, the release takes their mean."""
    logits = scale * images @ texts.T
    targets = torch.arange(len(logits), device=logits.device)
    total = F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)
    return total if form == "paper" else total / 2


def multi_label_loss(
    images: Float[Tensor, "batch dim"],
    prompts: Float[Tensor, "batch count dim"],
    scale: Float[Tensor, ""],
    form: Form = "release",
) -> Float[Tensor, ""]:
    """Multi-label contrastive loss between an image and its noun prompts (Eq. 7).

    The paper's image-to-text term is -log of the summed probability of an image's own prompts; the release's is the
    mean of their -log probabilities, and it takes half of the two directions' sum.
    """
    batch, count, _ = prompts.shape
    logits = scale * torch.einsum("i d, j k d -> i j k", images, prompts)
    log_p = logits.flatten(1).log_softmax(dim=1).view_as(logits)
    own = log_p.diagonal(dim1=0, dim2=1).T
    targets = torch.arange(batch, device=logits.device)[:, None].expand(batch, count)
    to_images = F.cross_entropy(logits.transpose(0, 1).transpose(1, 2).flatten(0, 1), targets.flatten())
    if form == "paper":
        return to_images - own.logsumexp(dim=1).mean()
    return (to_images - own.mean()) / 2


def segment_noun_loss(
    segments: Float[Tensor, "batch segments dim"],
    occupied: Bool[Tensor, "batch segments"],
    nouns: Float[Tensor, "vocabulary dim"],
    present: Bool[Tensor, "batch vocabulary"],
    scale: Float[Tensor, ""],
    bias: Float[Tensor, "*_"],
    weights: Float[Tensor, " vocabulary"],
) -> Float[Tensor, ""]:
    """Some segment must be each noun of the photo's captions, and none the other nouns of the vocabulary.

    A noun's logit for the photo is the log-sum-exp over the segments that own a patch; a sigmoid per noun makes the
    loss independent of the batch. `weights`, or a `bias` for each noun, balance frequent and rare ones. Not in the
    paper: its multi-label loss asks the same of the pooled image, and then segments learn the words of their
    neighbours.
    """
    logits = scale * torch.einsum("b s d, v d -> b s v", segments, nouns) + bias
    logits = logits.masked_fill(~occupied[:, :, None], -torch.inf).logsumexp(dim=1)
    losses = F.binary_cross_entropy_with_logits(logits, present.to(logits.dtype), reduction="none")
    return (losses * weights).sum(dim=1).mean()
