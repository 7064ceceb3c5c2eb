"""The objective of one step: which embeddings meet in which loss (§3.2, Fig. 3)."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from groupvit.data.batches import Batch
from groupvit.models import SEGMENT_LOGIT_BIAS, GroupViT, normalize, temperature
from groupvit.text.templates import SIMPLE_TEMPLATE
from groupvit.text.tokenizer import Tokenizer
from groupvit.training import losses
from groupvit.training.runs import Balance, Run


@dataclass(frozen=True)
class Vocabulary:
    """The nouns of the segment-level loss: their prompts, and the log odds that a photo's captions name them."""

    nouns: tuple[str, ...]
    tokens: Int[Tensor, "vocabulary length"]
    weights: Float[Tensor, " vocabulary"]
    log_odds: Float[Tensor, " vocabulary"]

    @classmethod
    def from_counts(cls, counts: dict[str, int], photos: int, tokenizer: Tokenizer, balance: Balance) -> "Vocabulary":
        """`counts`: in how many of the `photos` each noun stands in a caption."""
        frequency = torch.tensor(list(counts.values()), dtype=torch.float32)
        weights = frequency.rsqrt() if balance == "weights" else torch.ones_like(frequency)
        tokens = tokenizer([SIMPLE_TEMPLATE.format(noun) for noun in counts])
        log_odds = torch.logit(frequency / photos, eps=1e-3)
        return cls(tuple(counts), tokens, weights / weights.mean(), log_odds)

    def to(self, device: torch.device) -> "Vocabulary":
        return Vocabulary(self.nouns, *(part.to(device) for part in (self.tokens, self.weights, self.log_odds)))


def _embed_texts(model: GroupViT, *kinds: Int[Tensor, "_ length"]) -> tuple[Float[Tensor, "_ embed"], ...]:
    """Sentences of one kind have one length, so encoding the kinds apart spares padding.

    The projector is called once: its BatchNorm sees every text. Without that, nouns that the images do not tell apart
    yet are drawn into one point, and stay there.
    """
    encoded = torch.cat([model.text_encoder(tokens) for tokens in kinds if len(tokens)])
    return model.embed_text_features(encoded).float().split([len(tokens) for tokens in kinds])


def _embed_images(model: GroupViT, *parts: Float[Tensor, "batch _ dim"]) -> tuple[Float[Tensor, "batch _ embed"], ...]:
    """One call of the projector for all, for the same reason; it sees empty groups too, as it does at test time."""
    embedded = model.embed_image_features(torch.cat(parts, dim=1)).float()
    return embedded.split([part.shape[1] for part in parts], dim=1)


def loss_terms(
    model: GroupViT, batch: Batch, run: Run, words: Vocabulary, keys: Int[Tensor, " batch"], *, mixed: int = 1
) -> dict[str, Float[Tensor, ""]]:
    """Every weighted term: captions and noun prompts (Eq. 8), nouns of segments, nouns of patches.

    `mixed` photos share their attention (`ImageEncoder.forward`).
    """
    features = model.image_encoder(normalize(batch.images), keys, mixed=mixed)
    nothing = features.segments[:, :0]
    images, segments, patches = _embed_images(
        model,
        features.pooled[:, None],
        features.segments if run.segment_weight else nothing,
        model.image_encoder.patches_alone(features) if run.patch_weight else nothing,
    )
    captions, prompts, nouns = _embed_texts(model, batch.captions, batch.prompts.flatten(0, 1), words.tokens)

    def noun_loss(parts: Float[Tensor, "batch _ embed"], exist: Bool[Tensor, "batch _"]) -> Float[Tensor, ""]:
        scale, bias = temperature(model.segment_logit_scale), model.segment_logit_bias
        if run.balance == "prior":
            bias = bias - SEGMENT_LOGIT_BIAS + words.log_odds - exist.sum(dim=1).log()[:, None, None]
        return losses.segment_noun_loss(parts, exist, nouns, batch.present, scale, bias, words.weights)

    terms = {}
    with torch.autocast(images.device.type, enabled=False):  # the embeddings are float32, their products must be too
        if run.caption_weight:
            scale = temperature(model.logit_scale)
            terms["caption"] = run.caption_weight * losses.contrastive_loss(
                images[:, 0], captions, scale, run.loss_form
            )
        if run.prompts:
            scale = temperature(getattr(model, "multi_label_logit_scale", model.logit_scale))
            prompts = prompts.unflatten(0, (-1, run.prompts))
            terms["multi_label"] = losses.multi_label_loss(images[:, 0], prompts, scale, run.loss_form)
        if run.segment_weight:
            terms["segment_nouns"] = run.segment_weight * noun_loss(segments, features.occupied())
        if run.patch_weight:
            exist = torch.ones_like(patches[..., 0], dtype=torch.bool)
            terms["patch_nouns"] = run.patch_weight * noun_loss(patches, exist)
    return terms
