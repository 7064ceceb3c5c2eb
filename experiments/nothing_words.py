"""Which words should compete with a label that is typed alone: so that one that is not in the photo paints little of
it, and one that is there keeps its pixels.

    python -m experiments.nothing_words photos --evaluation FOLDER

`FOLDER` holds `voc2012/VOCdevkit/VOC2012`, `pets` and `voc/VOCdevkit/VOC2012` (COCO's photos in VOC's layout). A photo
is segmented once, with every word as a label; then a label against some words is a look at their scores.
"""

import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro
from experiments.command import run_script
from experiments.photos import open_from
from experiments.record import commit, print_rows, record_results
from jaxtyping import Float, Int

from groupvit import api
from groupvit.errors import InputError
from groupvit.evaluation.datasets import Dataset
from groupvit.evaluation.metrics import IGNORE
from groupvit.evaluation.protocols import CONTRAST, SYNONYMS
from groupvit.segmentation import Label, Segmenter
from groupvit.segmentation.rivals import STUFF, choose_rivals, kin
from groupvit.text.templates import SIMPLE_TEMPLATE

BENCHMARKS = {"VOC": "voc2012", "Pets": "pets", "COCO as VOC": "voc-coco"}
"""What `photos.BENCHMARKS` calls them."""

_ABSENT = 2  # labels for each photo that are not in it


@dataclass(frozen=True)
class Photo:
    """How all words fit the segments of a photo, the segments' pixels, and those of each class in each of them.

    A segment's pixels share all their final groups; `scores` are those of each. `best` are the ten words of the
    vocabulary that fit some segment best.
    """

    scores: Float[np.ndarray, "finals segments words"]
    pixels: Int[np.ndarray, " segments"]
    classes: Int[np.ndarray, "classes segments"]
    absent: tuple[int, ...]
    best: frozenset[str]


Choice = Callable[[str, str, Photo], Sequence[str]]
"""The words that compete with a word, on a benchmark, for the pixels of a photo."""


class Words:
    """A model's vocabulary and the words of benchmarks, and how alike any two are."""

    def __init__(self, segmenter: Segmenter, datasets: Sequence[Dataset]):
        self.vocabulary = segmenter.config.rivals
        named = [self.typed(name) for dataset in datasets for name in dataset.classes[1:]]
        contrast = [word for dataset in datasets for word in CONTRAST[dataset.benchmark]]
        self.every = list(dict.fromkeys([*self.vocabulary, *named, *contrast]))
        self.index = {word: i for i, word in enumerate(self.every)}
        embedded = segmenter.embed_words(self.every, (SIMPLE_TEMPLATE,))
        self.cosines = (embedded @ embedded.T).cpu().numpy()

    def typed(self, name: str) -> str:
        """Return what a user would type for a class: the first of its words that the model learnt."""
        words = SYNONYMS.get(name, (name,))
        return next((word for word in words if word in self.vocabulary), words[0])

    def chosen(self, word: str) -> Sequence[str]:
        """Return what `segment` lets compete with a word."""
        alike = self.cosines[self.index[word]]
        return choose_rivals([word], self.vocabulary, alike[[self.index[noun] for noun in self.vocabulary]])

    def unlike(self, word: str, limit: float) -> list[str]:
        """Return the vocabulary without a word's kin and without words that are as similar to it as the limit."""
        cosines, own = self.cosines[self.index[word]], kin([word])
        return [noun for noun in self.vocabulary if noun not in own and cosines[self.index[noun]] < limit]


def choices(words: Words) -> dict[str, Choice]:
    """Return the choices of rivals that are compared."""
    surroundings = {word: STUFF - kin([word]) for word in words.every}
    unlike, chosen = cache(words.unlike), cache(words.chosen)

    def stuff(word: str) -> list[str]:
        return [noun for noun in words.vocabulary if noun in surroundings[word]]

    named: dict[str, Choice] = {
        "none": lambda word, benchmark, photo: [],
        "declared contrast": lambda word, benchmark, photo: [w for w in CONTRAST[benchmark] if w != word],
        "stuff": lambda word, benchmark, photo: stuff(word),
        "as segment chooses": lambda word, benchmark, photo: chosen(word),
    }
    for limit in (0.15, 0.2, 0.25, 0.4, 0.6):
        named[f"unlike, below {limit}"] = lambda word, benchmark, photo, limit=limit: unlike(word, limit)
        named[f"stuff, and unlike below {limit}"] = lambda word, benchmark, photo, limit=limit: (
            stuff(word) + unlike(word, limit)
        )
        named[f"stuff, and the photo's best 10 below {limit}"] = lambda word, benchmark, photo, limit=limit: (
            stuff(word) + [w for w in unlike(word, limit) if w in photo.best]
        )
    return named


def read(segmenter: Segmenter, dataset: Dataset, words: Words) -> Iterator[Photo]:
    """Yield the photos of a benchmark, each as one window."""
    generator = np.random.default_rng(0)
    labels = [Label(f"the word {word}", (word,)) for word in words.every]  # some vocabularies have "background"
    for photo in dataset:
        side = segmenter.config.image.short_side
        result = segmenter.segment(photo.image, labels, background=None, window=8 * side)
        if not result.groups:
            raise InputError("rivals are compared on the groups of a model, and this one has none")
        (window,) = result.windows
        owners = [result.groups_of(replace(window, groups=(groups,)))[1][0] for groups, _ in window.finals]
        of_segment, segment = np.unique(np.reshape(owners, (len(owners), -1)), axis=1, return_inverse=True)
        cells = np.ravel_multi_index((photo.mask.ravel(), segment.ravel()), (256, of_segment.shape[1]))
        counts = np.bincount(cells, minlength=256 * of_segment.shape[1]).reshape(256, -1)
        absent = np.flatnonzero(counts[1 : len(dataset.classes)].sum(axis=1) == 0) + 1
        drawn = generator.choice(absent, min(_ABSENT, len(absent)), replace=False)
        known = counts.sum(axis=0) - counts[IGNORE]
        scores = np.stack([fit.cpu().numpy()[own] for (_, fit), own in zip(window.finals, of_segment, strict=True)])
        fits = scores[..., : len(words.vocabulary)].mean(axis=0).max(axis=0)
        yield Photo(
            scores,
            known,
            counts[: len(dataset.classes)],
            tuple(int(c) for c in drawn),
            frozenset(words.vocabulary[i] for i in fits.argsort()[-10:]),
        )


def measure(choice: Choice, photos: Sequence[Photo], dataset: Dataset, words: Words) -> dict[str, float]:
    """Score labels alone, in %: the share of the photo that absent ones paint, and the IoU of present ones."""
    painted, overlap, summed = [], [], defaultdict(lambda: np.zeros(2))
    for photo in photos:
        present = [int(c) for c in np.flatnonzero(photo.classes.sum(axis=1)) if c]
        for c in [*present, *photo.absent]:
            word = words.typed(dataset.classes[c])
            rivals = [words.index[w] for w in choice(word, dataset.benchmark, photo)]
            asked = photo.scores[..., [words.index[word], *rivals]].astype(np.float64)
            scores = (asked / asked.sum(axis=-1, keepdims=True)).mean(axis=0)  # the softmax over these words alone
            own = scores[:, 0] >= scores.max(axis=1)
            if c in present:
                hit, area = photo.classes[c][own].sum(), photo.pixels[own].sum()
                summed[c] += hit, photo.classes[c].sum() + area - hit
                overlap.append(hit / (photo.classes[c].sum() + area - hit))
            else:
                painted.append(photo.pixels[own].sum() / photo.pixels.sum())
    values = {
        "absent, % painted": np.mean(painted),
        "present, IoU": np.mean(overlap),
        "by class": np.mean([hit / union for hit, union in summed.values()]),
    }
    return {name: round(100 * float(value), 1) for name, value in values.items()}


def main(
    model: Annotated[str, tyro.conf.Positional],
    evaluation: Path,
    limit: int | None = None,
    record: bool = False,
) -> None:
    """Print a line for each choice of rivals and each benchmark.

    Args:
        model: Name, training or checkpoint; one with a vocabulary.
        evaluation: Folder with the benchmarks.
        limit: At most so many photos of each benchmark.
        record: Write the figures to docs/results.json.
    """
    began_at, segmenter = commit() if record else "", api.load(model)
    if not segmenter.config.rivals:
        raise InputError(f"{model} brings no vocabulary to choose rivals from")
    torch.set_grad_enabled(False)
    datasets = {title: open_from(evaluation, name, limit) for title, name in BENCHMARKS.items()}
    words, rows = Words(segmenter, [*datasets.values()]), []
    for name, dataset in datasets.items():
        print(f"{name} …", file=sys.stderr)
        photos = [*read(segmenter, dataset, words)]
        for chosen, choice in choices(words).items():
            rows.append({"rivals": chosen, "benchmark": name, **measure(choice, photos, dataset, words)})
    print_rows(rows)
    if record:
        record_results("nothing_words", {"rows": rows}, began_at)


if __name__ == "__main__":
    run_script(main)
