"""Pictures of a training: every number of its metrics file over the steps."""

import importlib.util
import io
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from groupvit.files import write_atomically

_LEFT_OUT = {"step", "time", "unreadable", "warning"}


def draw(metrics: Path, picture: Path) -> Path | None:
    """One small chart for each number in the metrics file, as PNG; None without matplotlib or without two points."""
    if importlib.util.find_spec("matplotlib") is None:
        return None
    from matplotlib.figure import Figure

    curves = _curves(metrics)
    if not curves:
        return None
    columns = 4
    rows = -(-len(curves) // columns)
    figure = Figure((4 * columns, 2.4 * rows), dpi=80, layout="constrained")
    charts: Any = figure.subplots(rows, columns, squeeze=False)
    for chart, (name, points) in zip(charts.flat, curves.items(), strict=False):
        chart.plot(*zip(*points, strict=True), linewidth=1, marker="." if len(points) < 20 else "")
        chart.set_title(name, fontsize=9)
        chart.tick_params(labelsize=7)
        chart.grid(alpha=0.3)
    for chart in charts.flat[len(curves) :]:
        chart.axis("off")
    data = io.BytesIO()
    figure.savefig(data)
    write_atomically(picture, data.getvalue())
    return picture


def _curves(metrics: Path) -> dict[str, list[tuple[int, float]]]:
    """Step and value of every name that has two points at least, in the order of the file."""
    found: defaultdict[str, list[tuple[int, float]]] = defaultdict(list)
    for line in metrics.read_text().splitlines():
        values = json.loads(line)
        for name, value in values.items():
            if name not in _LEFT_OUT:
                found[name].append((values["step"], value))
    return {name: points for name, points in found.items() if len(points) > 1}
