"""Samples of the shards to the tensors of one training step."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int64, Shaped, UInt8
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from groupvit.data.index import CaptionedPhotos
from groupvit.data.randaugment import erase, rand_augment
from groupvit.data.shards import Sample
from groupvit.data.transforms import draw_color, draw_crop, load_crop, to_tensor
from groupvit.errors import InputError
from groupvit.text.nouns import Style, is_word, noun_prompts
from groupvit.text.tokenizer import Tokenizer

Augmentation = Literal["crop", "color", "randaugment"]
"""Random crops, mirrored or not; those with brightness, contrast and saturation changed too, which keeps captions
true; or those with the release's RandAugment and random erasing."""

_NEIGHBOURS = 16


@dataclass(frozen=True)
class Batch:
    """Photos, one caption each, `count` noun prompts each, and which nouns of the vocabulary their captions name.

    Captions that are not `human` are made of tags; a noun that the source of these could not have said is not `known`,
    nor is one of several words ("traffic light") of captions.
    Photos are cropped already (`images`), or are rows of a `TrunkCache` (`rows`, `mirrored`), whose maps become
    `early`; the other fields are empty then. `color` holds the factors of `jitter_color`, or is empty. `unreadable`
    names the photos in whose place a neighbour stands.
    """

    images: UInt8[Tensor, "_ 3 height width"]
    captions: Int[Tensor, "batch length"]
    prompts: Int[Tensor, "batch count length"]
    present: Bool[Tensor, "batch vocabulary"]
    known: Bool[Tensor, "batch vocabulary"]
    human: Bool[Tensor, " batch"]
    rows: Int[Tensor, "_"] = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    mirrored: Bool[Tensor, "_"] = field(default_factory=lambda: torch.empty(0, dtype=torch.bool))
    color: Float[Tensor, "_ 3"] = field(default_factory=lambda: torch.empty(0, 3))
    early: tuple[Float[Tensor, "batch _ _ _"], ...] = ()
    unreadable: tuple[str, ...] = ()

    def pin_memory(self) -> "Batch":
        """Called by the DataLoader, so that the copy to a GPU does not wait."""
        return self._each(Tensor.pin_memory)

    def share(self) -> "Batch":
        """Called in a worker: without room this is an error here, and no endless wait for the DataLoader's queue."""
        return self._each(Tensor.share_memory_)

    def to(self, device: torch.device) -> "Batch":
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        tensors: dict[str, Any] = {k: change(value) for k, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **tensors, early=tuple(map(change, self.early)))


class _Example(NamedTuple):
    image: UInt8[Tensor, "3 height width"] | None
    row: int
    mirrored: bool
    color: Float[Tensor, "3"] | None
    caption: str
    prompts: list[str]
    nouns: list[str]
    sayable: frozenset[str] | None


@dataclass(frozen=True)
class Batches(Dataset[Batch]):
    """The batch of any list of (epoch, shard, row), for `DataLoader(batches, sampler=BatchSampler(…),
    batch_size=None)`.

    Crop, colour, caption and prompts of a sample are functions of (seed, epoch, shard, row) alone. `scale` is the
    share of a photo's area that a crop keeps. With `cached`, the rows in a `TrunkCache` of each photo's crops, images
    are not read. A photo that cannot be decoded (its rows are -1) is replaced by the next one of its shard, or of the
    next shard, and named.
    """

    photos: CaptionedPhotos
    seed: int
    image_size: int
    scale: tuple[float, float]
    augmentation: Augmentation
    prompts: int
    noun_style: Style
    vocabulary: tuple[str, ...]
    tokenizer: Tokenizer
    cached: Int64[np.ndarray, "photos crops"] | None = None

    def __getitem__(self, places: Int64[np.ndarray, "batch 3"]) -> Batch:
        unreadable: list[str] = []
        examples = [self._readable(epoch, shard, row, unreadable) for epoch, shard, row in places.tolist()]
        size, cached = self.image_size, self.cached is not None
        present, known = np.zeros((2, len(examples), len(self.vocabulary)), dtype=bool)
        column = {noun: i for i, noun in enumerate(self.vocabulary)}
        in_captions = np.array([is_word(noun) for noun in self.vocabulary], dtype=bool)
        for row, marks, example in zip(present, known, examples, strict=True):
            row[[column[noun] for noun in example.nouns if noun in column]] = True
            sayable = () if example.sayable is None else example.sayable
            marks[[column[noun] for noun in sayable if noun in column]] = True
            marks |= row | (in_captions & (example.sayable is None))
        texts = [example.caption for example in examples] + [text for example in examples for text in example.prompts]
        captions, prompts = self.tokenizer(texts).split([len(examples), len(examples) * self.prompts])
        return Batch(
            _stack([example.image for example in examples], (3, size, size), torch.uint8),
            captions,
            prompts.unflatten(0, (len(examples), self.prompts)),
            torch.from_numpy(present),
            torch.from_numpy(known),
            torch.tensor([example.sayable is None for example in examples]),
            torch.tensor([example.row for example in examples if cached], dtype=torch.int64),
            torch.tensor([example.mirrored for example in examples if cached], dtype=torch.bool),
            _stack([example.color for example in examples], (3,), torch.float32),
            unreadable=tuple(unreadable),
        )

    def _readable(self, epoch: int, shard: int, row: int, unreadable: list[str]) -> _Example:
        first, place = len(unreadable), (shard, row)
        number = int(self.photos.counts[:shard].sum()) + row
        for after in range(1, _NEIGHBOURS + 1):
            generator = np.random.default_rng([self.seed, epoch, shard, row])
            try:
                return self._example(*place, generator)
            except _Undecodable as error:
                unreadable.append(str(error))
                place = self.photos.place((number + after) % len(self.photos))
        raise InputError(f"{unreadable[first]}; nor can its neighbours be read; groupvit data doctor says why")

    def _example(self, shard: int, row: int, generator: np.random.Generator) -> _Example:
        number, image, mirrored = int(self.photos.counts[:shard].sum()) + row, None, False
        if self.cached is not None:
            number, mirrored = int(generator.choice(self.cached[number])), bool(generator.integers(2))
            if number < 0:
                raise _Undecodable(f"photo {row} of {self.photos.indexes[shard].shard}")
            captions = self.photos.captions(shard, row)
        else:
            sample = self.photos.read(shard, row)
            image, captions = self._crop(sample, generator), sample.captions
        chosen = int(generator.integers(len(captions)))
        words = self.photos.nouns(shard, row, chosen, self.noun_style) if self.prompts else ()
        prompts = noun_prompts(captions[chosen], words, self.prompts, generator, style=self.noun_style)
        color = draw_color(generator) if self.augmentation == "color" else None
        nouns = self.photos.nouns_of_photo(shard, row) if self.vocabulary else []
        sayable = self.photos.sayable(shard, row)
        return _Example(image, number, mirrored, color, captions[chosen], prompts, nouns, sayable)

    def _crop(self, sample: Sample, generator: np.random.Generator) -> UInt8[Tensor, "3 height width"]:
        draw = partial(draw_crop, scale=self.scale, generator=generator)
        try:
            image = load_crop(sample.image, f"{sample.shard}: {sample.key}", self.image_size, draw)
        except InputError as error:
            raise _Undecodable(str(error)) from None
        if self.augmentation == "randaugment":
            image = Image.fromarray(erase(np.asarray(rand_augment(image, generator)), generator))
        return to_tensor(image)


class _Undecodable(Exception):
    """A photo that another one must stand in for."""


def _stack(
    tensors: list[Shaped[Tensor, "..."] | None], shape: tuple[int, ...], dtype: torch.dtype
) -> Shaped[Tensor, "..."]:
    given = [tensor for tensor in tensors if tensor is not None]
    return torch.stack(given) if given else torch.empty(0, *shape, dtype=dtype)


@dataclass(frozen=True)
class RandomCrops(Dataset[Any]):
    """`count` random crops of every photo, one after the other, and whether it could be decoded (else zeros)."""

    photos: CaptionedPhotos
    seed: int
    side: int
    scale: tuple[float, float]
    count: int

    def __len__(self) -> int:
        return len(self.photos) * self.count

    def __getitem__(self, number: int) -> tuple[UInt8[Tensor, "3 side side"], bool]:
        sample = self.photos.read(*self.photos.place(number // self.count))
        draw = partial(draw_crop, scale=self.scale, generator=np.random.default_rng([self.seed, number]))
        try:
            return to_tensor(load_crop(sample.image, sample.key, self.side, draw)), True
        except InputError:
            return torch.zeros(3, self.side, self.side, dtype=torch.uint8), False
