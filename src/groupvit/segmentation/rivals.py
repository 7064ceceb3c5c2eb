"""Words for what is not asked for: without them, of one label alone, every pixel would be that label."""

from collections.abc import Sequence

from groupvit.text.imagenet import imagenet_texts
from groupvit.text.nouns import PERSON_WORDS

_STUFF = (
    "sky cloud grass lawn ground dirt mud sand gravel field floor tile carpet wall brick ceiling window door curtain "
    "water sea ocean beach wave pool river lake snow ice road street sidewalk pavement path tree forest woods bush "
    "branch leaf mountain hill cliff rock stone building house city fence railing stair bridge light"
)
STUFF = frozenset(_STUFF.split())
"""What things stand on and before (Caesar et al., CVPR 2018, call it stuff)."""


def kin(words: Sequence[str]) -> frozenset[str]:
    """The words, and those that may name the same thing: of an ImageNet class (tabby, cat, animal), or of a person."""
    own, people = _parts(words), PERSON_WORDS | {"person", "people"}
    families = [own, *filter(own.intersection, map(frozenset, imagenet_texts())), *([people] if own & people else [])]
    return frozenset().union(*families)


def siblings(words: Sequence[str]) -> frozenset[str]:
    """Other things of the same sort, by ImageNet's classes: of a dog the other animals, of a car the other vehicles.

    They never are a part of the thing. Furniture has none, since a table's photo shows its chairs too.
    """
    own = _parts(words)
    above = frozenset().union(*(line for line in imagenet_texts() if own.intersection(line))) - own - {"furniture"}
    return frozenset().union(*(line for line in imagenet_texts() if above.intersection(line))) - kin(words)


def choose_rivals(words: Sequence[str], vocabulary: Sequence[str]) -> tuple[str, ...]:
    """Those nouns of a model's vocabulary that compete with the labels' `words` for the pixels of a photo.

    Stuff, siblings and people: all nouns that are unlike a label would be too many, for parts and neighbours of a thing
    (wing, collar) take its pixels (`experiments/nothing_words.py`).
    """
    rivals = (STUFF | siblings(words) | {"person"}) - kin(words)
    return tuple(noun for noun in vocabulary if noun in rivals)


def _parts(words: Sequence[str]) -> frozenset[str]:
    return frozenset(part for word in words for part in (word.lower(), *word.lower().split()))
