"""Samples of the shards to the tensors of one training step."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int, UInt8
from torch import Tensor

from groupvit.data.shards import Sample
from groupvit.data.transforms import augment, load_rgb
from groupvit.text.nouns import Style, noun_prompts, nouns_of_photo
from groupvit.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Batch:
    """Photos, one caption each, `count` noun prompts each, and which nouns of the vocabulary their captions name."""

    images: UInt8[Tensor, "batch 3 height width"]
    captions: Int[Tensor, "batch length"]
    prompts: Int[Tensor, "batch count length"]
    present: Bool[Tensor, "batch vocabulary"]

    def pin_memory(self) -> "Batch":
        """Called by the DataLoader, so that the copy to a GPU does not wait."""
        return Batch(**{name: value.pin_memory() for name, value in vars(self).items()})

    def to(self, device: torch.device) -> "Batch":
        return Batch(**{name: value.to(device, non_blocking=True) for name, value in vars(self).items()})


@dataclass(frozen=True)
class BatchMaker:
    """Decodes, augments and tokenises; `scale` is the share of a photo's area that a crop keeps."""

    image_size: int
    scale: tuple[float, float]
    prompts: int
    noun_style: Style
    vocabulary: tuple[str, ...]
    tokenizer: Tokenizer

    def __call__(self, samples: Sequence[Sample], generators: Sequence[np.random.Generator]) -> Batch:
        """One generator per sample makes every draw a function of the sample alone."""
        images, captions, prompts = [], [], []
        for sample, generator in zip(samples, generators, strict=True):
            photo = load_rgb(sample.image, f"{sample.shard}: {sample.key}")
            images.append(augment(photo, self.image_size, scale=self.scale, generator=generator))
            captions.append(sample.captions[generator.integers(len(sample.captions))])
            if self.prompts:
                prompts += noun_prompts(captions[-1], self.prompts, generator, style=self.noun_style)
        present = np.zeros((len(samples), len(self.vocabulary)), dtype=bool)
        if self.vocabulary:
            column = {noun: i for i, noun in enumerate(self.vocabulary)}
            for row, sample in zip(present, samples, strict=True):
                row[[column[noun] for noun in nouns_of_photo(sample.captions) if noun in column]] = True
        tokens = self.tokenizer(captions + prompts)
        return Batch(
            torch.stack(images),
            tokens[: len(samples)],
            tokens[len(samples) :].unflatten(0, (len(samples), self.prompts)),
            torch.from_numpy(present),
        )
