"""Labels: the names a user asks for, and the words that stand for each of them."""

from collections.abc import Sequence
from dataclasses import dataclass

from groupvit.errors import InputError

BACKGROUND = "background"
_TRIMMED = " \t\r\n_\"'“”‘’"


@dataclass(frozen=True)
class Label:
    """A name in the result and the words that are looked for under it, each put into the templates by itself."""

    name: str
    words: tuple[str, ...]


def parse_labels(labels: Sequence[str | Label]) -> tuple[Label, ...]:
    """Read `dog`, `traffic_light` and `person=man,woman,child`; ready-made labels are taken as they are.

    Background comes first where it is named, and needs words of its own (`background=wall,floor`). To call background
    whatever no label fits, use a threshold (`View.background`).
    """
    if isinstance(labels, str) or not labels:
        raise InputError("no labels: give a list of words, such as dog grass sky")
    parsed = [_parse(label) if isinstance(label, str) else label for label in labels]
    names, words = set[str](), dict[str, str]()
    for label in parsed:
        if label.name.lower() in names:
            raise InputError(f"label {label.name!r} is given twice: drop one of them")
        names.add(label.name.lower())
        _check_words(label, words)
    background = [Label(BACKGROUND, label.words) for label in parsed if label.name.lower() == BACKGROUND]
    return (*background, *(label for label in parsed if label.name.lower() != BACKGROUND))


def _parse(text: str) -> Label:
    name, equals, rest = text.partition("=")
    name = clean(name)
    if name.lower() == BACKGROUND and not equals:
        raise InputError("the label 'background' needs words, background=wall,floor, or use a background threshold")
    if not equals and "," in name:
        raise InputError(
            f"label {text!r} has a comma: write labels apart (dog cat), or one label's words as pet=dog,cat"
        )
    words = rest.split(",") if equals else [name]
    return Label(name, tuple(clean(word) for word in words))


def clean(text: str) -> str:
    """Return text without quotes and white space around it, and with spaces for underscores."""
    return " ".join(text.strip(_TRIMMED).replace("_", " ").split())


def _check_words(label: Label, owners: dict[str, str]) -> None:
    if not label.name.strip():
        raise InputError("a label is blank: give each label a name")
    if not label.words or not all(word.strip() for word in label.words):
        raise InputError(f"label {label.name!r} has a blank word: write it as NAME or NAME=WORD,WORD")
    for word in label.words:
        if word.lower() in owners:
            raise InputError(f"word {word!r} of label {label.name!r} is in {owners[word.lower()]!r} already: drop one")
        owners[word.lower()] = label.name
