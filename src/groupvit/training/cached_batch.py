"""The gradient of a batch of any size on machines of any size.

A contrastive loss compares all photos of a batch with each other, so a batch cannot be cut into pieces that are
learnt from one by one. But all that the loss sees of a photo is a feature of a few numbers: the encoders make these
in chunks without a graph, the loss and its gradient are taken of all of them at once, and then chunk by chunk the
encoders run once more, now with a graph, to which the features' gradients are handed back (GradCache, Gao et al.,
2021). Noise is keyed by sample and assignments are repeated, so both passes are the same function, and the result is
that of the whole batch but for rounding. The projectors and their BatchNorm belong to the loss and see everything.

Several processes encode a share each and exchange the features. All take the same loss of all of them, and each hands
back the gradients of its own share: their sum is the encoders' gradient of the whole batch.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from groupvit.data.batches import Batch
from groupvit.models import GroupViT
from groupvit.training.distributed import ALONE, Processes
from groupvit.training.objective import Images, Vocabulary, encode_images, encode_texts, is_words, loss_terms, texts_of
from groupvit.training.runs import Run

Terms = dict[str, Float[Tensor, ""]]
Features = tuple[Tensor, ...]


def backward(
    model: GroupViT,
    batch: Batch,
    run: Run,
    words: Vocabulary,
    keys: Int[Tensor, " batch"],
    *,
    mixed: int = 1,
    processes: Processes = ALONE,
) -> Terms:
    """Leaves the gradient of the loss in the parameters, and gives the loss's weighted terms (`objective.loss_terms`).

    `run.chunk` photos and as many texts are encoded at a time (0: all at once, with their graph). `mixed` photos share
    their attention. Of several `processes` each gives its share of the batch and of the keys, and ends with terms and
    gradient of the whole.
    """
    autocast = partial(torch.autocast, batch.captions.device.type, torch.bfloat16, enabled=run.precision == "bfloat16")
    names = ("captions", "prompts", "present", "known", "human")
    whole = replace(batch, early=(), **{name: processes.gather(getattr(batch, name)) for name in names})
    kinds = texts_of(whole, run, words)
    photos = _Photos(model, batch, run, keys, mixed)
    images = _Encoded(photos, len(batch.captions), run.chunk, autocast, processes)
    texts = []
    for i, kind in enumerate(kinds):
        own = processes.share(kind)
        encode = partial(_encode_rows, model, own, words=is_words(run, i))
        texts.append(_Encoded(encode, len(own), run.chunk, autocast, processes))
    with autocast():
        pooled, segments, patches = images.leaves
        occupied, taught = (processes.gather(torch.cat(parts)) for parts in (photos.occupied, photos.taught))
        of_images = Images(pooled, segments, patches, occupied, taught, ())
        of_texts = [encoded.leaves[0][: len(kind)] for encoded, kind in zip(texts, kinds, strict=True)]
        terms = loss_terms(model, run, of_images, of_texts, whole, words)
    torch.stack(list(terms.values())).sum().backward()
    for encoded in (images, *texts):
        encoded.hand_back()
    processes.average_gradients(model.parameters())
    return {name: term.detach() for name, term in terms.items()}


def _encode_rows(model: GroupViT, tokens: Int[Tensor, "texts length"], own: slice, *, words: bool) -> Features:
    return (encode_texts(model, tokens[own], words=words),)


class _Photos:
    """Encodes images of a batch; those it has encoded before keep to their groups. `occupied` and `taught` are of the
    first time."""

    def __init__(self, model: GroupViT, batch: Batch, run: Run, keys: Int[Tensor, " batch"], mixed: int):
        self.encode = partial(encode_images, model, run=run, mixed=mixed)
        self.images = batch.images
        self.early = batch.early
        self.keys = keys
        self.joined: dict[int, tuple[Tensor, ...]] = {}
        self.occupied: list[Tensor] = []
        self.taught: list[Tensor] = []

    def __call__(self, own: slice) -> Features:
        joined = self.joined.get(own.start, ())
        early = tuple(each[own] for each in self.early)
        made = self.encode(self.images[own], keys=self.keys[own], joined=joined, early=early)
        if own.start not in self.joined:
            self.joined[own.start] = made.joined
            self.occupied.append(made.occupied)
            self.taught.append(made.taught)
        return made.pooled, made.segments, made.patches


class _Encoded:
    """What `encode` makes of `count` rows, chunk by chunk, and the way back.

    `leaves` are the features of all processes, where the loss's gradient ends; `hand_back` gives it to what made this
    process's own, times the processes, over which gradients are averaged in the end.
    """

    def __init__(
        self,
        encode: Callable[[slice], Features],
        count: int,
        chunk: int,
        autocast: Callable[[], AbstractContextManager[object]],
        processes: Processes,
    ):
        self.encode = encode
        self.autocast = autocast
        self.world = processes.world
        self.first = processes.rank * count
        size = chunk or max(count, 1)
        self.chunks = [slice(start, min(start + size, count)) for start in range(0, max(count, 1), size)]
        with torch.set_grad_enabled(not chunk), autocast():
            made = [encode(own) for own in self.chunks]
        features = [processes.gather(torch.cat(rows).detach()) for rows in zip(*made, strict=True)]
        self.leaves = tuple(whole.requires_grad_() for whole in features)
        self.kept = [] if chunk else made

    def hand_back(self) -> None:
        for i, own in enumerate(self.chunks):
            if self.kept:
                outputs = self.kept[i]
            else:
                with self.autocast():
                    outputs = self.encode(own)
            place = slice(self.first + own.start, self.first + own.stop)
            pairs = [(made, leaf.grad) for made, leaf in zip(outputs, self.leaves, strict=True)]
            asked = [(made, self.world * grad[place]) for made, grad in pairs if made.numel() and grad is not None]
            if asked:
                torch.autograd.backward([made for made, _ in asked], [gradient for _, gradient in asked])
