"""Class lists as people and tools write them: `classes.txt`, and `labelmap.txt` in CVAT's format."""

import re
from collections.abc import Sequence
from pathlib import Path

from groupvit.errors import InputError, input_error
from groupvit.evaluation.metrics import IGNORE
from groupvit.files import refuse_pointer
from groupvit.segmentation.formats import voc_palette
from groupvit.segmentation.labels import BACKGROUND, clean, parse_labels, without_numbers

_COLOURED = re.compile(r"([^:]+):\s*(?:([0-9]{1,3})\s*,\s*([0-9]{1,3})\s*,\s*([0-9]{1,3}))?\s*(?::.*)?")


def read_text(path: Path) -> str:
    """Read a text file; an `InputError` says why it is none."""
    with input_error(f"{path} cannot be read as UTF-8", OSError, UnicodeDecodeError):
        refuse_pointer(path)
        return path.read_text(encoding="utf-8-sig")


def read_labels(root: Path) -> tuple[tuple[str, ...], dict[int, int], str]:
    """Return a folder's labels, the index of each colour (65536 r + 256 g + b), and the file that lists them.

    A background in colours that is no label does not count.
    """
    table, listing = root / "labelmap.txt", root / "classes.txt"
    coloured = table.is_file() and not (listing.is_file() and ":" not in read_text(table))  # some have names alone
    colours = _read_colours(table) if coloured else {}
    listing = listing if listing.is_file() or not colours else table
    # Where colours tell the classes, their order is free.
    names = sorted(colours, key=lambda name: clean(name).lower() != BACKGROUND)
    labels = parse_lines(listing, names if listing == table else read_classes(listing))
    order = {label.partition("=")[0].lower(): index for index, label in enumerate(labels)}
    indices = {colour: order.get(clean(name.partition("=")[0]).lower()) for name, colour in colours.items()}
    for name, colour in colours.items():
        if indices[colour] is None and clean(name).lower() != BACKGROUND:
            raise InputError(f"{table} gives a colour to {name!r}, which {listing} does not name: spell it alike")
    return labels, {colour: IGNORE if index is None else index for colour, index in indices.items()}, listing.name


def parse_lines(listing: Path, lines: Sequence[str]) -> tuple[str, ...]:
    """Return labels as they will be looked for: "traffic light" for `traffic_light`."""
    if len(lines) > IGNORE:
        raise InputError(f"{listing} has {len(lines)} classes: masks of 8 bits tell {IGNORE} apart")
    bare = clean(lines[0]).lower() == BACKGROUND
    for number, line in enumerate(() if bare else lines, start=1):
        if clean(line).lower() == BACKGROUND:
            raise InputError(
                f"{listing} names background in line {number}: it is the first class, of index 0 in the masks, or has "
                "words of its own (background=wall,floor)"
            )
    if len(lines) < 2:
        what = "no label but background" if bare else "one label, which all pixels would have: put background before it"
        raise InputError(f"{listing} has {what}")
    with input_error(str(listing), InputError):
        labels = [parse_labels([line])[0] for line in lines[bare:]]
        parse_labels(labels)
    if bare and any(label.name.lower() == BACKGROUND for label in labels):
        raise InputError(f"{listing} names background twice, alone and with words: drop one of them")
    written = (
        f"{label.name}={','.join(label.words)}" if "=" in line else label.name
        for line, label in zip(lines[bare:], labels, strict=True)
    )
    return (*(BACKGROUND,) * bare, *written)


def read_classes(listing: Path) -> list[str]:
    """Return the lines of `classes.txt`, without comments on top and at their ends, and without bullets or numbers.

    Numbered lines come in the order of their numbers.
    """
    lines = [re.sub(r"\s#.*", "", line).strip() for line in read_text(listing).rstrip().split("\n")]
    while lines and (lines[0].startswith("#") or lines[0] == "__ignore__"):  # labelme's name of -1
        lines.pop(0)
    if not all(lines) or not lines or any(line.startswith("#") for line in lines):
        raise InputError(f"{listing} has a blank line or a comment: each line is the label of one index, from 0")
    with input_error(str(listing), InputError):
        return without_numbers(lines)


def _read_colours(listing: Path) -> dict[str, int]:
    """Return each name's colour in CVAT's `name:r,g,b::`; without one, it is VOC's of that place."""
    colours: dict[str, int] = {}
    palette = voc_palette().tolist()
    for line in read_text(listing).splitlines():
        if line.strip() and not line.startswith("#"):
            match = _COLOURED.fullmatch(line.strip())
            usual = palette[min(len(colours), IGNORE)]
            numbers = [int(number or usual[i]) for i, number in enumerate(match.groups()[1:])] if match else [256]
            if not match or max(numbers) > 255:
                raise InputError(f"{listing}: {line!r} is not name:r,g,b:: (numbers up to 255)")
            if (colour := int.from_bytes(numbers)) in colours.values():
                raise InputError(f"{listing} gives two names one colour: their pixels cannot be told apart")
            if match[1] in colours:
                raise InputError(f"{listing} gives {match[1]} two colours: drop one of them")
            colours[match[1]] = colour
    if not colours:
        raise InputError(f"{listing} has no line name:r,g,b::")
    return colours
