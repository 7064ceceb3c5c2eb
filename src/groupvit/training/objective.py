"""The objective of one step: which embeddings meet in which loss (§3.2, Fig. 3)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, UInt8
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


@dataclass(frozen=True)
class Images:
    """What the losses take of the image encoder: pooled images, segments, patches as segments of their own, and which
    segments own a patch; parts that no loss of the run asks for are empty. `joined` is each stage's assignment."""

    pooled: Float[Tensor, "batch dim"]
    segments: Float[Tensor, "batch segments dim"]
    patches: Float[Tensor, "batch patches dim"]
    occupied: Bool[Tensor, "batch _"]
    joined: tuple[Int[Tensor, "batch _"], ...]


def encode_images(
    model: GroupViT,
    images: UInt8[Tensor, "batch 3 height width"],
    run: Run,
    keys: Int[Tensor, " batch"],
    *,
    mixed: int = 1,
    joined: Sequence[Int[Tensor, "batch _"]] = (),
) -> Images:
    """The image encoder's part of a step; `mixed` and `joined` are those of `ImageEncoder.forward`."""
    encoder = model.image_encoder
    features = encoder(normalize(images, encoder.pos_embed.dtype), keys, mixed=mixed, joined=joined)
    nothing = features.segments[:, :0]
    return Images(
        features.pooled,
        features.segments if run.segment_weight else nothing,
        encoder.patches_alone(features) if run.patch_weight else nothing,
        features.occupied(),
        tuple(assignment.joined for assignment in features.assignments),
    )


def texts_of(batch: Batch, words: Vocabulary) -> tuple[Int[Tensor, "_ length"], ...]:
    """Captions, noun prompts photo by photo, and the vocabulary: sentences of one kind have about one length, so
    encoding the kinds apart spares padding."""
    return batch.captions, batch.prompts.flatten(0, 1), words.tokens


def encode_texts(model: GroupViT, texts: Int[Tensor, "texts length"]) -> Float[Tensor, "texts width"]:
    """The text encoder's part of a step."""
    width = model.text_encoder.norm.weight
    return model.text_encoder(texts) if len(texts) else width.new_empty(0, len(width))


def _embed_texts(model: GroupViT, kinds: Sequence[Float[Tensor, "_ width"]]) -> tuple[Float[Tensor, "_ embed"], ...]:
    """The projector is called once: its BatchNorm sees every text. Without that, nouns that the images do not tell
    apart yet are drawn into one point, and stay there."""
    embedded = model.embed_text_features(torch.cat(list(kinds)))
    return _at_least_float32(embedded).split([len(encoded) for encoded in kinds])


def _embed_images(model: GroupViT, *parts: Float[Tensor, "batch _ dim"]) -> tuple[Float[Tensor, "batch _ embed"], ...]:
    """One call of the projector for all, for the same reason; it sees empty groups too, as it does at test time."""
    embedded = _at_least_float32(model.embed_image_features(torch.cat(parts, dim=1)))
    return embedded.split([part.shape[1] for part in parts], dim=1)


def _at_least_float32(x: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def loss_terms(
    model: GroupViT,
    run: Run,
    images: Images,
    texts: Sequence[Float[Tensor, "_ width"]],
    present: Bool[Tensor, "batch vocabulary"],
    words: Vocabulary,
) -> dict[str, Float[Tensor, ""]]:
    """Every weighted term: captions and noun prompts (Eq. 8), nouns of segments, nouns of patches.

    `texts` are the encoded `texts_of` the batch, `present` says which words stand in each photo's captions.
    """
    pooled, segments, patches = _embed_images(model, images.pooled[:, None], images.segments, images.patches)
    captions, prompts, nouns = _embed_texts(model, texts)

    def noun_loss(parts: Float[Tensor, "batch _ embed"], exist: Bool[Tensor, "batch _"]) -> Float[Tensor, ""]:
        scale, bias = temperature(model.segment_logit_scale), model.segment_logit_bias
        if run.balance == "prior":
            bias = bias - SEGMENT_LOGIT_BIAS + words.log_odds - exist.sum(dim=1).log()[:, None, None]
        return losses.segment_noun_loss(parts, exist, nouns, present, scale, bias, words.weights)

    terms = {}
    with torch.autocast(pooled.device.type, enabled=False):  # the embeddings are float32, their products must be too
        if run.caption_weight:
            scale = temperature(model.logit_scale)
            terms["caption"] = run.caption_weight * losses.contrastive_loss(
                pooled[:, 0], captions, scale, run.loss_form
            )
        if run.prompts:
            scale = temperature(getattr(model, "multi_label_logit_scale", model.logit_scale))
            prompts = prompts.unflatten(0, (-1, run.prompts))
            terms["multi_label"] = losses.multi_label_loss(pooled[:, 0], prompts, scale, run.loss_form)
        if run.segment_weight:
            terms["segment_nouns"] = run.segment_weight * noun_loss(segments, images.occupied)
        if run.patch_weight:
            exist = torch.ones_like(patches[..., 0], dtype=torch.bool)
            terms["patch_nouns"] = run.patch_weight * noun_loss(patches, exist)
    return terms
