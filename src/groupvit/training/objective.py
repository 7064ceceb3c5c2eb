"""The objective of one step: which embeddings meet in which loss (§3.2, Fig. 3)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from groupvit.data.batches import Batch
from groupvit.models import SEGMENT_LOGIT_BIAS, GroupViT, temperature
from groupvit.models.trunks import EfficientNetLite
from groupvit.text.templates import SIMPLE_TEMPLATE
from groupvit.text.tokenizer import Tokenizer
from groupvit.training import losses
from groupvit.training.runs import Balance, Run


@dataclass(frozen=True)
class Vocabulary:
    """The nouns of the segment-level loss: their prompts, and the log odds that a photo's captions name them.

    After the nouns' prompts `tokens` has those of further words for a trunk's classes; `classes` is the share that each
    prompt has in a class, and has no rows where no trunk teaches.
    """

    nouns: tuple[str, ...]
    tokens: Int[Tensor, "texts length"]
    weights: Float[Tensor, " vocabulary"]
    log_odds: Float[Tensor, " vocabulary"]
    classes: Float[Tensor, "classes texts"]

    @classmethod
    def from_counts(
        cls,
        counts: Mapping[str, int | float],
        photos: int,
        tokenizer: Tokenizer,
        balance: Balance,
        classes: Sequence[Sequence[str]] = (),
    ) -> "Vocabulary":
        """`counts`: in how many of the `photos` each noun stands in a caption, or would, could all sources say it.

        `classes` are the words of each class of the trunk that teaches.
        """
        frequency = torch.tensor(list(counts.values()), dtype=torch.float32)
        weights = frequency.rsqrt() if balance == "weights" else torch.ones_like(frequency)
        texts = {text: i for i, text in enumerate(dict.fromkeys([*counts, *(word for own in classes for word in own)]))}
        shares = torch.zeros(len(classes), len(texts))
        for row, own in zip(shares, classes, strict=True):
            row[[texts[word] for word in own]] = 1 / len(own)
        tokens = tokenizer([SIMPLE_TEMPLATE.format(text) for text in texts])
        log_odds = torch.logit((frequency / photos).clamp(max=0.999))
        return cls(tuple(counts), tokens, weights / weights.mean(), log_odds, shares)

    def to(self, device: torch.device) -> "Vocabulary":
        parts = (self.tokens, self.weights, self.log_odds, self.classes)
        return Vocabulary(self.nouns, *(part.to(device) for part in parts))


@dataclass(frozen=True)
class Images:
    """Image features that the losses use: pooled images, segments, patches as segments of their own, which segments
    own a patch, and what a trunk's classifier says of its cells; parts that no loss of the run asks for are empty.

    `joined` is each stage's assignment.
    """

    pooled: Float[Tensor, "batch dim"]
    segments: Float[Tensor, "batch segments dim"]
    patches: Float[Tensor, "batch patches dim"]
    occupied: Bool[Tensor, "batch _"]
    taught: Float[Tensor, "batch cells classes"]
    joined: tuple[Int[Tensor, "batch _"], ...]


def encode_images(
    model: GroupViT,
    images: UInt8[Tensor, "_ 3 height width"],
    run: Run,
    keys: Int[Tensor, " batch"],
    *,
    mixed: int = 1,
    joined: Sequence[Int[Tensor, "batch _"]] = (),
    early: Sequence[Float[Tensor, "batch _ _ _"]] = (),
) -> Images:
    """The image encoder's part of a step; `mixed`, `joined` and `early` are those of `ImageEncoder.forward`."""
    encoder = model.image_encoder
    features = encoder(encoder.preprocess(images), keys, mixed=mixed, joined=joined, early=early)
    nothing = features.segments[:, :0]
    taught = nothing
    if run.teacher_weight:
        assert features.trunk is not None
        assert isinstance(encoder.trunk, EfficientNetLite)
        with torch.no_grad():
            logits = encoder.trunk.classify(features.trunk.last)
            taught = _at_least_float32(rearrange(logits, "b k h w -> b (h w) k")).softmax(dim=-1)
    return Images(
        features.pooled,
        features.segments if run.segment_weight or run.local_weight else nothing,
        encoder.patches_alone(features) if run.patch_weight or run.teacher_weight else nothing,
        features.occupied(),
        taught,
        tuple(assignment.joined for assignment in features.assignments),
    )


def texts_of(batch: Batch, run: Run, words: Vocabulary) -> tuple[Int[Tensor, "_ _"], ...]:
    """Captions, noun prompts (photo by photo, or each distinct one once), and the vocabulary.

    Sentences of one kind have about one length, so encoding the kinds apart spares padding.
    """
    longest = int(batch.captions.argmax(dim=1).max()) + 1
    prompts = _distinct(batch)[0] if run.distinct_prompts and run.prompts else batch.prompts.flatten(0, 1)
    return batch.captions[:, :longest], prompts, words.tokens


def _distinct(batch: Batch) -> tuple[Int[Tensor, "prompts length"], Int[Tensor, "batch prompts"]]:
    """The prompts without repetitions, and how often each photo drew each."""
    prompts, place = batch.prompts.flatten(0, 1).unique(dim=0, return_inverse=True)
    return prompts, F.one_hot(place.unflatten(0, batch.prompts.shape[:2]), len(prompts)).sum(dim=1)


def encode_texts(model: GroupViT, texts: Int[Tensor, "texts length"], *, words: bool = False) -> Tensor:
    """The text encoder's part of a step: each text's feature, or with `words` that of each of its places."""
    if not len(texts):
        return model.text_encoder.norm.weight.new_empty(0, len(model.text_encoder.norm.weight))
    return model.text_encoder.words(texts) if words else model.text_encoder(texts)


def is_words(run: Run, kind: int) -> bool:
    """Whether that kind of text is encoded word by word."""
    return kind == 0 and run.local_weight > 0


def _embed_texts(model: GroupViT, kinds: Sequence[Float[Tensor, "_ _"]]) -> tuple[Float[Tensor, "_ embed"], ...]:
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
    model: GroupViT, run: Run, images: Images, texts: Sequence[Tensor], batch: Batch, words: Vocabulary
) -> dict[str, Float[Tensor, ""]]:
    """Every weighted term: captions and noun prompts (Eq. 8), segments with words, nouns of segments and of patches.

    `texts` are the encoded `texts_of` the batch.
    """
    pooled, segments, patches = _embed_images(model, images.pooled[:, None], images.segments, images.patches)
    pooled = pooled[:, 0]
    captions, in_captions = texts[0], torch.zeros(0, dtype=torch.bool)
    ends = batch.captions.argmax(dim=1)
    if run.local_weight:
        place = torch.arange(captions.shape[1], device=captions.device)
        in_captions = (place > 0) & (place < ends.clamp(min=2)[:, None])  # of an empty caption its end
        captions, of_words = captions[torch.arange(len(ends), device=ends.device), ends], captions[in_captions]
    else:
        of_words = captions[:0]
    captions, prompts, nouns, of_words = _embed_texts(model, [captions, *texts[1:], of_words])
    every, nouns = nouns, nouns[: len(words.nouns)]

    def noun_loss(
        parts: Float[Tensor, "batch parts embed"], exist: Bool[Tensor, "batch parts"] | None = None
    ) -> Float[Tensor, ""]:
        scale, bias = temperature(model.segment_logit_scale), model.segment_logit_bias
        if run.balance == "prior":
            count = bias.new_tensor(parts.shape[1]) if exist is None else exist.sum(dim=1)[:, None]
            bias = bias - SEGMENT_LOGIT_BIAS + run.prior * words.log_odds - count.log()
        return losses.segment_noun_loss(parts, exist, nouns, batch.present, batch.known, scale, bias, words.weights)

    human = batch.human  # captions made of tags are often equal, each a wrong pair of the others: they are left out
    few = int(human.sum()) < 2
    terms = {}
    with torch.autocast(pooled.device.type, enabled=False):  # the embeddings are float32, their products must be too
        scale = temperature(model.logit_scale)
        if run.caption_weight and few:
            terms["caption"] = 0 * pooled.sum()
        elif run.caption_weight and run.caption_loss == "sigmoid":
            same = batch.captions[human].unique(dim=0, return_inverse=True)[1]
            positives = same[:, None] == same
            terms["caption"] = losses.sigmoid_loss(pooled[human], captions[human], scale, model.logit_bias, positives)
        elif run.caption_weight:
            terms["caption"] = losses.contrastive_loss(pooled[human], captions[human], scale, run.loss_form)
        if run.local_weight and few:
            terms["local"] = 0 * pooled.sum()
        elif run.local_weight:
            grid = of_words.new_zeros(*in_captions.shape, of_words.shape[-1])
            grid[in_captions] = of_words
            terms["local"] = losses.local_alignment_loss(
                segments[human], images.occupied[human], grid[human], in_captions[human], scale
            )
        if run.prompts:
            scale = temperature(getattr(model, "multi_label_logit_scale", model.logit_scale))
            if run.distinct_prompts:
                counts = _distinct(batch)[1]
                own = losses.multi_positive_multi_label_loss(pooled, prompts, counts, scale, run.loss_form)
            else:
                own = losses.multi_label_loss(pooled, prompts.unflatten(0, (-1, run.prompts)), scale, run.loss_form)
            terms["multi_label"] = own
        if run.segment_weight:
            terms["segment_nouns"] = noun_loss(segments, images.occupied)
        if run.patch_weight:
            terms["patch_nouns"] = noun_loss(patches)
        if run.teacher_weight:
            cells = F.normalize(_pooled(patches, images.taught.shape[1]), dim=-1)
            classes = F.normalize(words.classes.to(every.dtype) @ every, dim=-1)
            scale = temperature(model.teacher_logit_scale)
            terms["teacher"] = losses.teacher_loss(cells, classes, images.taught, scale)
    return {name: weights_of(run)[name] * term for name, term in terms.items()}


def _pooled(patches: Float[Tensor, "batch patches dim"], cells: int) -> Float[Tensor, "batch cells dim"]:
    """The means of a square grid of patches over a coarser square grid."""
    grid = rearrange(patches, "b (h w) d -> b d h w", h=math.isqrt(patches.shape[1]))
    return F.adaptive_avg_pool2d(grid, math.isqrt(cells)).flatten(2).mT


def weights_of(run: Run) -> dict[str, float]:
    """The weight of each term."""
    return {
        "caption": run.caption_weight,
        "local": run.local_weight,
        "multi_label": 1.0,
        "segment_nouns": run.segment_weight,
        "patch_nouns": run.patch_weight,
        "teacher": run.teacher_weight,
    }
