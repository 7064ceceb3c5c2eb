"""Words that compete with the labels: without them, one label alone would take every pixel."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from groupvit.text.imagenet import imagenet_texts
from groupvit.text.nouns import PERSON_WORDS
from groupvit.text.tokenizer import clean

_STUFF = (
    "sky cloud grass lawn ground dirt mud sand gravel field floor tile carpet wall brick ceiling window door curtain "
    "water sea ocean beach wave pool river lake snow ice road street sidewalk pavement path tree forest woods bush "
    "branch leaf mountain hill cliff rock stone building house city fence railing stair bridge light"
)
STUFF = frozenset(_STUFF.split())
"""Surroundings of things: stuff, in the words of Caesar et al., CVPR 2018."""

UNLIKE = 0.2
"""Cosine similarity of two words below which neither is a part or a neighbour of the other's thing."""


def kin(words: Sequence[str]) -> frozenset[str]:
    """Return the words, and others for the same thing: of an ImageNet class (tabby, cat, animal), or of a person."""
    parts, people = _parts(words), PERSON_WORDS | {"person", "people"}
    classes = filter(parts.intersection, map(frozenset, imagenet_texts()))
    families = [parts, *classes, *([people] if parts & people else [])]
    return frozenset().union(*families)


def choose_rivals(
    words: Sequence[str], vocabulary: Sequence[str], likeness: Float[np.ndarray, " vocabulary"]
) -> tuple[str, ...]:
    """Return the nouns of a model's vocabulary that compete with the labels' `words` for pixels.

    They are stuff, and the nouns whose `likeness`, the largest cosine similarity to a label, is small: parts and
    neighbours of a thing (wing, collar) would take its pixels (`experiments/nothing_words.py`).
    """
    own = kin(words)
    named = zip(vocabulary, likeness, strict=True)
    return tuple(noun for noun, like in named if noun not in own and (noun in STUFF or like < UNLIKE))


def _parts(words: Sequence[str]) -> frozenset[str]:
    """Return the words as the tokenizer reads them, what they are made of, and its likely singulars."""
    parts = {part for word in map(clean, words) for part in (word, *word.split())}
    for plural, singular in ("s", ""), ("es", ""), ("ies", "y"), ("ves", "f"):
        parts |= {part.removesuffix(plural) + singular for part in parts if part.endswith(plural)}
    return frozenset(parts)
