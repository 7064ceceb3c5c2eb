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
    own = {part for word in words for part in (word.lower(), *word.lower().split())}
    people = PERSON_WORDS | {"person", "people"}
    families = [own, *filter(own.intersection, map(frozenset, imagenet_texts())), *([people] if own & people else [])]
    return frozenset().union(*families)


def choose_rivals(words: Sequence[str], vocabulary: Sequence[str]) -> tuple[str, ...]:
    """Those nouns of a model's vocabulary that compete with a label's `words` for the pixels of a photo."""
    own = kin(words)
    return tuple(noun for noun in vocabulary if noun in STUFF and noun not in own)
