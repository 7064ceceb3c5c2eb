"""An evaluation's numbers as lines of text."""

from collections.abc import Mapping, Sequence
from typing import Any

from groupvit.evaluation.results import Result

_NAMED = 12  # classes


def report(result: Result) -> str:
    """Return the numbers of a result."""
    numbers = result.metrics()
    width = max(map(len, numbers["classes"]))
    lines = [*_whole(result, numbers), *_stages(numbers), f"{'class':{width}}    IoU  accuracy  boundary IoU"]
    for name, values in numbers["classes"].items():
        cells = (_number(values[key]) for key in ("iou", "accuracy", "boundary_iou"))
        row = "".join(f"{cell:>{size}}" for cell, size in zip(cells, (6, 10, 14), strict=True))
        lines.append(f"{name:{width}} {row}")
    return "\n".join(lines)


def unseen(result: Result) -> str:
    """Return which classes no mask shows, the first ones by name, and what does not count; "" if all are there."""
    absent = [name for name, pixels in zip(result.classes, result.matrix.sum(axis=1), strict=True) if not pixels]
    if not absent:
        return ""
    more = len(absent) - _NAMED
    names = ", ".join(absent[:_NAMED]) + (f" and {more} more" if more > 0 else "")
    uncounted = 100 - 100 * result.matrix.sum() / sum(photo.pixels for photo in result.photos)
    own = ": pixels of a class must have the index of its line" * (result.benchmark == "folder")
    told = f"no mask shows {names} ({len(absent)} of {len(result.classes)} classes)"
    return f"{told}; {uncounted:.3g} % of the pixels are not labelled and do not count{own}"


def _whole(result: Result, numbers: Mapping[str, Any]) -> list[str]:
    thresholds = " and ".join(f"{threshold:.3g}" for threshold in result.thresholds)
    sizes = ", ".join(f"{size} {_number(value)}" for size, value in numbers["by_size"].items())
    lines = [
        f"{result.benchmark}, {result.protocol.get('name', 'no protocol')}: {len(result.photos)} photos"
        + (f", background below {thresholds}" if thresholds else ""),
        f"mIoU {_number(numbers['miou'])} ({_interval(numbers['interval'])}), "
        f"boundary mIoU {_number(numbers['boundary_miou'])}, "
        f"pixel accuracy {_number(numbers['pixel_accuracy'])}, mean accuracy {_number(numbers['mean_accuracy'])}",
        *(
            f"baseline, {name}: mIoU {_number(values['miou'])}, model minus baseline {format_difference(values)}"
            for name, values in result.floors.items()
        ),
        f"by share of the photo: {sizes}",
    ]
    if numbers["errors"]:
        lines.append("pixels: " + ", ".join(f"{_number(share)} % {name}" for name, share in numbers["errors"].items()))
    return lines


def _stages(numbers: Mapping[str, Any]) -> list[str]:
    lines = []
    for stage, values in enumerate(numbers["grouping"], start=1):
        rand = _number(values["adjusted_rand_index"], ".3f")
        lines.append(
            f"groups of stage {stage}: {_number(values['groups'], '.1f')} in a photo, adjusted Rand index {rand}, "
            f"purity {_number(values['purity'])}, mIoU with the best names {_number(values['oracle_miou'])}"
        )
    for stage, naming in enumerate(numbers["naming"], start=1):
        lines.append(
            f"naming with the true regions in stage {stage}: "
            f"{naming['accuracy']:.2f} % of {naming['regions']} regions, "
            f"{naming['pixel_accuracy']:.2f} % of their pixels"
        )
    return lines


def format_difference(values: Mapping[str, Any]) -> str:
    """Return a difference of mean IoUs with its interval (`results.difference`)."""
    return f"{_number(values['difference'], '+.2f')} ({_interval(values['interval'], '+.2f')})"


def _number(value: float | None, form: str = ".2f") -> str:
    return "-" if value is None or value != value else format(value, form)


def _interval(ends: Sequence[float] | None, form: str = ".2f") -> str:
    return "95 % " + ("-" if ends is None else f"{ends[0]:{form}} to {ends[1]:{form}}")
