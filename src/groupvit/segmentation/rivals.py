"""Words that compete with the labels: without them, one label alone would take every pixel."""

from collections.abc import Sequence

from groupvit.text.imagenet import imagenet_texts
from groupvit.text.nouns import PERSON_WORDS

_STUFF = (
    "sky cloud grass lawn ground dirt mud sand gravel field floor tile carpet wall brick ceiling window door curtain "
    "water sea ocean beach wave pool river lake snow ice road street sidewalk pavement path tree forest woods bush "
    "branch leaf mountain hill cliff rock stone building house city fence railing stair bridge light"
)
STUFF = frozenset(_STUFF.split())
"""Surroundings of things: stuff, in the words of Caesar et al., CVPR 2018."""


def kin(words: Sequence[str]) -> frozenset[str]:
    """Return the words, and others for the same thing: of an ImageNet class (tabby, cat, animal), or of a person."""
    parts, people = _parts(words), PERSON_WORDS | {"person", "people"}
    classes = filter(parts.intersection, map(frozenset, imagenet_texts()))
    families = [parts, *classes, *([people] if parts & people else [])]
    return frozenset().union(*families)


def siblings(words: Sequence[str]) -> frozenset[str]:
    """Return other things of the same sort, by ImageNet's classes: of a dog the other animals.

    They never are a part of the thing. Furniture has none, since a table's photo shows its chairs too.
    """
    parts = _parts(words)
    above = frozenset().union(*(line for line in imagenet_texts() if parts.intersection(line))) - parts - {"furniture"}
    return frozenset().union(*(line for line in imagenet_texts() if above.intersection(line))) - kin(words)


def choose_rivals(words: Sequence[str], vocabulary: Sequence[str]) -> tuple[str, ...]:
    """Return the nouns of a model's vocabulary that compete with the labels' `words` for pixels.

    They are stuff, siblings and people. All nouns unlike a label would be too many: parts and neighbours of a thing
    (wing, collar) would take its pixels (`experiments/nothing_words.py`).
    """
    rivals = (STUFF | siblings(words) | {"person"}) - kin(words)
    return tuple(noun for noun in vocabulary if noun in rivals)


def _parts(words: Sequence[str]) -> frozenset[str]:
    return frozenset(part for word in words for part in (word.lower(), *word.lower().split()))
