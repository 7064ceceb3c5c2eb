"""Labels: what a segmentation looks for, and the words for each of them."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from groupvit.errors import InputError, input_error
from groupvit.files import refuse_pointer
from groupvit.text.tokenizer import Tokenizer, repaired

_MAX_TEXT = 2**20  # bytes
BACKGROUND = "background"
_INVISIBLE = re.compile("[\xad\u200b\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff]")
_FOREIGN = re.compile(r".*:|[-*\u2022]\s.*|[][{}()<|].*|.*[]{}>|;]|.*[;|].*|(?:.*\s)?\.(?:\s.*)?|.*\.\s.*\.")
_TRIMMED = " \t\r\n_\"'“”‘’"


@dataclass(frozen=True)
class Label:
    """A name in the result and the words that are looked for under it, each put into the templates by itself."""

    name: str
    words: tuple[str, ...]


Labels = Sequence[str | Label] | Mapping[str, str | Sequence[str]]
"""A list of what `parse_labels` reads, or names, which stay as they are, with their words."""


def read_labels(file: Path | str) -> list[str]:
    """Return the labels of a text file, one a line, without blank lines and comments (from a # on)."""
    file = Path(file)
    with input_error(f"cannot read the labels in {file} (a text in UTF-8)", OSError, UnicodeError):
        refuse_pointer(file)
        with file.open("rb") as opened:
            data = opened.read(_MAX_TEXT + 1)
        if len(data) > _MAX_TEXT:
            raise OSError("it has more than 1 MB")
        lines = [re.sub(r"(^|\s)#.*", "", line).strip() for line in data.decode("utf-8-sig").splitlines()]
    if not any(lines):
        raise InputError(f"{file}: no labels: write one a line")
    if _is_json(data):
        raise InputError(f"{file} is JSON: write the labels alone, one a line")
    with input_error(str(file), InputError):
        parse_labels(labels := without_numbers([line for line in lines if line], indices=False))
    return labels


def _is_json(data: bytes) -> bool:
    try:
        return isinstance(json.loads(data), list | dict)
    except (ValueError, RecursionError):
        return False


_BULLET = re.compile(r"[-*\u2022]\s+")
_NUMBERED = re.compile(  # "1 dog", "1: dog", "[1] dog", "1 -> dog", "dog: 1", "dog (1)"
    r"[\[(]?(?:(?:[Cc]lass|[Ll]abel|[Ii]ndex|[Ii][Dd])\s*)?"
    r"(?P<before>\d{1,4})(?:\s*[])_.:;,|=-]+>?\s*|\s+)(?P<after>\S.*)"
    r"|(?P<label>\S.*?)\s*[:;,|=\t\[(]\s*(?P<number>[0-9]{1,4})[])]?"
)


def without_numbers(lines: Sequence[str], *, indices: bool = True) -> list[str]:
    """Return labels without bullets, and without the numbers of their indices, in whose order they come.

    Labels that begin with numbers of their own ("2 wheeler") keep them. Where numbers are `indices` of masks, others
    are an `InputError`.
    """
    lines = [_BULLET.sub("", line, count=1) for line in lines] if all(map(_BULLET.match, lines)) else [*lines]
    if all(re.fullmatch(r".*\S\s+[0-9]{1,3}\s+[0-9]{1,3}\s+[0-9]{1,3}", line) for line in lines):
        raise InputError("colours behind the labels: write them into labelmap.txt, as name:r,g,b::")
    if all(re.fullmatch(r"([0-9]{1,3}\s+){3}[^\d\s].*", line) for line in lines):
        raise InputError("colours before the labels: write them into labelmap.txt, as name:r,g,b::")
    if re.fullmatch(r"(label|class|category)?[ _]?(names?|labels?|class(es)?|categor(y|ies))", lines[0], re.IGNORECASE):
        raise InputError(f"the first line, {lines[0]!r}, is a heading: drop it")
    if all(line.isdecimal() for line in lines):
        raise InputError("numbers alone: write the label of each index")
    found = [_NUMBERED.fullmatch(line) for line in lines]
    numbers = {int(match["before"] or match["number"]): match["after"] or match["label"] for match in found if match}
    if not indices and len({*numbers.values()}) < len(lines):
        return lines  # "1 dollar bill" and "2 dollar bill"
    first = 0 if indices else min(numbers, default=0) == 1
    if all(found) and sorted(numbers) == list(range(first, first + len(lines))):
        return [numbers[index] for index in sorted(numbers)]
    if not indices:
        return lines
    ends = [line.rpartition(" ")[::2] for line in lines]  # "dog 1"; two that are "type 0" and "type 1" keep them
    apart = len({label for label, _ in ends}) == len(lines)
    if apart and [number for _, number in ends] == [str(i) for i in range(len(lines))]:
        return [label.strip() for label, _ in ends]
    near = sum(abs(int(match["before"] or match["number"]) - i) < 2 for i, match in enumerate(found) if match)
    if all(found) or 2 * near >= len(lines):
        raise InputError(
            f"numbers from {min(numbers)} to {max(numbers)} beside {len(lines)} labels, not all from 0: "
            "write the label alone, the first line for index 0 (or a label that begins with a number in quotes)"
        )
    return lines


def parse_labels(labels: object) -> tuple[Label, ...]:
    """Read `dog`, `traffic_light` and `person=man,woman,child`; ready-made labels are taken as they are (`Labels`).

    Background comes first where it is named, and needs words of its own (`background=wall,floor`). To call background
    whatever no label fits, use a threshold (`View.background`).
    """
    if isinstance(labels, str) and labels:
        raise InputError(f"labels are a list of words: [{labels!r}], not {labels!r}")
    if isinstance(labels, bytes) or not isinstance(labels, Mapping | Sequence):
        raise InputError(f"labels are a list of words, or a dictionary of names and words, no {type(labels).__name__}")
    if not labels:
        raise InputError("no labels: give a list of words, such as dog grass sky")
    given = [_entry(*item) for item in labels.items()] if isinstance(labels, Mapping) else labels
    parsed = [_parse(label) for label in given]
    names, words = dict[tuple[int, ...], str](), dict[tuple[int, ...], str]()
    for label in parsed:
        if (tokens := _tokens(label.name)) in names:
            alike = "" if label.name.lower() == names[tokens].lower() else f" (the model reads {names[tokens]!r} alike)"
            raise InputError(f"label {label.name!r} is given twice{alike}: drop one of them")
        names[tokens] = label.name
        _check_words(label, words)
    background = [Label(BACKGROUND, label.words) for label in parsed if label.name.lower() == BACKGROUND]
    return (*background, *(label for label in parsed if label.name.lower() != BACKGROUND))


def _entry(name: object, words: object) -> Label:
    words = words.split(",") if isinstance(words, str) else words
    if not isinstance(words, list | tuple) or not all(isinstance(text, str) for text in (name, *words)):
        raise InputError(f"label {name!r} has the words {words!r}: give a text and a list of texts")
    return Label(str(name), tuple(map(clean, words)))


def _parse(text: object) -> Label:
    if isinstance(text, Label):
        entry = _entry(text.name, text.words)
        return text if isinstance(text.words, tuple) else entry
    if not isinstance(text, str):
        raise InputError(f"label {text!r} is a {type(text).__name__}: give text, and several words as NAME=WORD,WORD")
    if "\t" in text.strip():
        raise InputError(f"label {text!r} has a tab: write the label alone, without other columns")
    name, equals, rest = text.partition("=")
    name = clean(name)
    if name.lower() == BACKGROUND and not equals:
        raise InputError("the label 'background' needs words, background=wall,floor, or use a background threshold")
    if not equals and "," in name:
        raise InputError(
            f"label {text!r} has a comma: write labels apart (dog cat; in a file one a line), or one label's words as "
            "pet=dog,cat"
        )
    if "=" in rest:
        raise InputError(f"label {text!r} has two =: write NAME=WORD,WORD")
    words = rest.split(",") if equals else [name]
    return Label(name, tuple(clean(word) for word in words))


def clean(text: str) -> str:
    """Return text without quotes and white space around it, and with spaces for underscores."""
    return " ".join(_INVISIBLE.sub("", text).strip(_TRIMMED).replace("_", " ").split())


def _check_words(label: Label, owners: dict[tuple[int, ...], str]) -> None:
    if not _tokens(label.name):
        raise InputError(f"label {label.name!r} is blank: give each label a name")
    if not label.words or not all(map(_tokens, label.words)):
        raise InputError(f"label {label.name!r} has a blank word: write it as NAME or NAME=WORD,WORD")
    if bad := re.search("[\0-\x1f\x7f\ud800-\udfff]", "".join((label.name, *label.words))):
        raise InputError(f"label {label.name!r} has {bad[0]!r}, which is no letter: write labels in UTF-8")
    if odd := [text for text in (label.name, *label.words) if _FOREIGN.fullmatch(repaired(text))]:
        raise InputError(
            f"label {odd[0]!r} is no word but a list, or of another format: write labels apart, in a file one a line"
        )
    for word in label.words:
        if (tokens := _tokens(word)) in owners:
            raise InputError(f"word {word!r} of label {label.name!r} is in {owners[tokens]!r} already: drop one")
        owners[tokens] = label.name


@lru_cache(maxsize=2**14)
def _tokens(text: str) -> tuple[int, ...]:
    """Return what a model reads of the text, up to its end token: HTML, case and odd quotes make no difference."""
    row = Tokenizer()(text)[0]
    return tuple(row[1 : int(row.argmax())].tolist())
