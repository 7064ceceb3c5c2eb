"""The gradient of a batch of any size on a machine of any size.

A contrastive loss compares all photos of a batch with each other, so a batch cannot be cut into pieces that are
learnt from one by one. But all that the loss sees of a photo is a feature of a few numbers: the encoders make these
in chunks without a graph, the loss and its gradient are taken of all of them at once, and then chunk by chunk the
encoders run once more, now with a graph, to which the features' gradients are handed back (GradCache, Gao et al.,
2021). Noise is keyed by sample and assignments are repeated, so both passes are the same function, and the result is
that of the whole batch but for rounding. The projectors and their BatchNorm belong to the loss and see everything.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from groupvit.data.batches import Batch
from groupvit.models import GroupViT
from groupvit.training.objective import (
    Images,
    Vocabulary,
    encode_images,
    encode_kinds,
    encode_texts,
    is_words,
    loss_terms,
    texts_of,
)
from groupvit.training.runs import Run

Terms = dict[str, Float[Tensor, ""]]
_Autocast = Callable[[], AbstractContextManager[object]]
_FEATURES = ("pooled", "segments", "patches")


def backward(
    model: GroupViT, batch: Batch, run: Run, words: Vocabulary, keys: Int[Tensor, " batch"], *, mixed: int = 1
) -> Terms:
    """Leaves the gradient of the loss in the parameters, and gives the loss's weighted terms (`objective.loss_terms`).

    `run.chunk` photos and as many texts are encoded at a time (0: all at once, with one graph). `mixed` photos share
    their attention.
    """
    autocast: _Autocast = partial(
        torch.autocast, batch.captions.device.type, torch.bfloat16, enabled=run.precision == "bfloat16"
    )
    if run.chunk:
        return _in_chunks(model, batch, run, words, keys, mixed, autocast)
    with autocast():
        images = encode_images(model, batch.images, run, keys, mixed=mixed)
        terms = loss_terms(model, run, images, encode_kinds(model, texts_of(batch, run, words), run), batch, words)
    _total(terms).backward()
    return {name: term.detach() for name, term in terms.items()}


def _total(terms: Terms) -> Float[Tensor, ""]:
    return torch.stack(list(terms.values())).sum()


def _in_chunks(
    model: GroupViT,
    batch: Batch,
    run: Run,
    words: Vocabulary,
    keys: Int[Tensor, " batch"],
    mixed: int,
    autocast: _Autocast,
) -> Terms:
    photos = [slice(start, start + run.chunk) for start in range(0, len(batch.images), run.chunk)]
    kinds = [kind.split(run.chunk) for kind in texts_of(batch, run, words)]
    with torch.no_grad(), autocast():
        chunks = [encode_images(model, batch.images[own], run, keys[own], mixed=mixed) for own in photos]
        encode = [partial(encode_texts, model, words=is_words(run, i)) for i in range(len(kinds))]
        texts = [_leaf([way(chunk) for chunk in kind]) for way, kind in zip(encode, kinds, strict=True)]
    images = _joined(chunks)
    with autocast():
        terms = loss_terms(model, run, images, texts, batch, words)
    _total(terms).backward()
    for own, first in zip(photos, chunks, strict=True):
        with autocast():
            again = encode_images(model, batch.images[own], run, keys[own], mixed=mixed, joined=first.joined)
        _hand_back([getattr(again, name) for name in _FEATURES], [getattr(images, name) for name in _FEATURES], own)
    for way, kind, leaf in zip(encode, kinds, texts, strict=True):
        for chunk, start in zip(kind, range(0, len(leaf), run.chunk), strict=False):  # none where there are no texts
            with autocast():
                again = way(chunk)
            _hand_back([again], [leaf], slice(start, start + len(chunk)))
    return {name: term.detach() for name, term in terms.items()}


def _leaf(chunks: Sequence[Float[Tensor, "_ *rest"]]) -> Float[Tensor, "batch *rest"]:
    """The features of all chunks, as the place where the loss's gradient ends."""
    return torch.cat(list(chunks)).detach().requires_grad_()


def _joined(chunks: Sequence[Images]) -> Images:
    features = {name: _leaf([getattr(chunk, name) for chunk in chunks]) for name in _FEATURES}
    return replace(chunks[0], **features, occupied=torch.cat([chunk.occupied for chunk in chunks]), joined=())


def _hand_back(outputs: Sequence[Float[Tensor, "..."]], leaves: Sequence[Float[Tensor, "..."]], own: slice) -> None:
    """The gradient that the loss left at the features of a chunk, on to what made them."""
    pairs = [
        (output, leaf.grad[own])
        for output, leaf in zip(outputs, leaves, strict=True)
        if leaf.grad is not None and output.numel()
    ]
    torch.autograd.backward([output for output, _ in pairs], [gradient for _, gradient in pairs])
