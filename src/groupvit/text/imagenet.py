"""The 1,000 classes of ImageNet, and their words in everyday captions: a tabby cat is a cat, an airliner a plane.

`imagenet_words.tsv` has a line for each class, in the order of their WordNet ids: its name, a tab, and its words. The
names are CLIP's (Radford et al., 2021; MIT licence, copyright (c) 2021 OpenAI). `experiments/build_imagenet_words.py`
found the words above each class in WordNet 3.0 (copyright 2006 by Princeton University).
"""

import functools
import importlib.resources


@functools.cache
def _lines() -> tuple[tuple[str, str], ...]:
    text = (importlib.resources.files("groupvit.text") / "imagenet_words.tsv").read_text(encoding="utf-8")
    return tuple((name, words) for name, _, words in (line.partition("\t") for line in text.splitlines()))


def imagenet_names() -> tuple[str, ...]:
    """Return CLIP's names, the standard of zero-shot classification; "missile" and "sunglasses" stand twice."""
    return tuple(name for name, _ in _lines())


@functools.cache
def imagenet_texts() -> tuple[tuple[str, ...], ...]:
    """Return of each class its name and its everyday words, the most specific first, all in lower case.

    Classes share words: 118 are dogs. A class without a word has its name alone.
    """
    return tuple((name.lower(), *filter(None, words.split(", "))) for name, words in _lines())
