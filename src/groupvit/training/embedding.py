"""What the terms of an objective compare: encoded images and texts, projected and gathered from all processes."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from groupvit.data.batches import Batch
from groupvit.models import GroupViT
from groupvit.models.image_encoder import Maps
from groupvit.models.layers import at_least_float32
from groupvit.models.noise import Keys
from groupvit.models.trunks import EfficientNetLite
from groupvit.training.distributed import ALONE, World
from groupvit.training.objective import Embeddings, Images, Joined, Loss, Pairs, Pixels, Vocabulary, distinct_prompts


def _needs(objective: Pairs) -> set[str]:
    return {need for term in objective for need in term.needs}


def encode_images(
    model: GroupViT, images: Pixels, objective: Pairs, keys: Keys, *, joined: Joined = (), early: Maps = ()
) -> Images:
    """Encode images for the terms; `joined` and `early` are those of `ImageEncoder.forward`."""
    encoder, needs = model.image_encoder, _needs(objective)
    features = encoder(encoder.preprocess(images), keys, joined=joined, early=early)
    taught = nothing = features.segments[:, :0].detach()
    if "taught" in needs:
        assert features.trunk is not None
        assert isinstance(encoder.trunk, EfficientNetLite)
        with torch.no_grad():
            logits = encoder.trunk.classify(features.trunk.last)
            taught = at_least_float32(rearrange(logits, "b k h w -> b (h w) k")).softmax(dim=-1)
    patches = encoder.patches_alone(features) if "patches" in needs else nothing
    return Images(
        pooled=features.pooled,
        segments=features.segments if "segments" in needs else nothing,
        patches=patches,
        occupied=features.occupied(),
        patches_occupied=encoder.patches_occupied(features, patches),
        taught=taught,
        joined=tuple(assignment.joined for assignment in features.assignments),
    )


def texts_of(batch: Batch, objective: Pairs, vocabulary: Vocabulary) -> tuple[tuple[Int[Tensor, "_ _"], bool], ...]:
    """Return captions, noun prompts and vocabulary, and whether each is encoded word by word.

    Texts of one kind have about one length, so encoding the kinds apart spares padding.
    """
    needs, longest = _needs(objective), int(batch.captions.argmax(dim=1).max()) + 1
    prompts = distinct_prompts(batch)[0] if "distinct" in needs else batch.prompts.flatten(0, 1)
    return (batch.captions[:, :longest], "words" in needs), (prompts, False), (vocabulary.tokens, False)


def encode_texts(model: GroupViT, texts: Int[Tensor, "texts length"], *, words: bool = False) -> Tensor:
    """Return each text's feature, or with `words` that of each of its places."""
    if not len(texts):
        return model.text_encoder.norm.weight.new_empty(0, len(model.text_encoder.norm.weight))
    return model.text_encoder.words(texts) if words else model.text_encoder(texts)


def loss_terms(
    model: GroupViT,
    objective: Pairs,
    images: Images,
    texts: Sequence[Tensor],
    batch: Batch,
    vocabulary: Vocabulary,
    world: World = ALONE,
    counts: Sequence[int] = (),
) -> dict[str, Loss]:
    """Return this process's part of every weighted term: the mean over the processes is the term of the whole batch.

    `batch` is the whole one. `images` are this process's, and `texts` its own of the encoded `texts_of` the batch, of
    which there are `counts` in all. It projects these, and compares its own rows with all others (open_clip's local
    loss).
    """
    # All images in one call and all texts in one: BatchNorm sees everything, empty groups too. Without that, nouns that
    # the images do not tell apart yet are drawn into one point, and stay there.
    visual = [images.pooled[:, None], images.segments, images.patches]
    embedded = at_least_float32(model.embed_image_features(torch.cat(visual, dim=1)))
    pooled, segments, patches = embedded.split([part.shape[1] for part in visual], dim=1)
    images = replace(images, pooled=pooled[:, 0], segments=segments, patches=patches)
    captions, between, exist = _ends_and_words(texts[0], batch.captions.argmax(dim=1), world)
    kinds = [captions, *texts[1:], between]
    embedded = at_least_float32(model.embed_text_features(torch.cat(kinds)))
    *of_texts, between = embedded.split([len(kind) for kind in kinds])
    words = between.new_zeros(*exist.shape, between.shape[-1])
    words[exist] = between
    of_words = (images.segments, images.occupied, words, exist)
    segments, occupied, words, exist = map(world.gather, of_words) if texts[0].ndim == 3 else of_words
    captions, prompts, every = map(world.gather, of_texts, counts or [len(each) for each in texts])
    whole = (batch, vocabulary, world, images, world.gather(images.pooled))
    of = Embeddings(*whole, segments, occupied, captions, prompts, every, words, exist)
    with torch.autocast(of.captions.device.type, enabled=False):  # products of float32 must be float32, too
        return {term.name: term.weight * term(model, of) for term in objective}


def _ends_and_words(
    captions: Tensor, ends: Int[Tensor, " batch"], world: World
) -> tuple[Float[Tensor, "own width"], Float[Tensor, "words width"], Bool[Tensor, "own places"]]:
    """Return the feature at the end of each caption, those of its words, and where words stand.

    Captions that are not encoded word by word have none.
    """
    if captions.ndim == 2:
        return captions, captions[:0], torch.zeros(len(captions), 0, dtype=torch.bool, device=captions.device)
    place, ends = torch.arange(captions.shape[1], device=captions.device), ends[world.own(len(ends))]
    exist = (place > 0) & (place < ends.clamp(min=2)[:, None])  # of an empty caption its end
    return captions[torch.arange(len(ends), device=ends.device), ends], captions[exist], exist
