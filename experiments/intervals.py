"""How often the 95 % interval of a mean IoU holds the truth, by the number of photos.

    python -m experiments.intervals VOC.json COCO.json --record

The photos of each result file (`groupvit evaluate MODEL BENCHMARK --out FILE`) stand for the world, and the file's mean
IoU for the truth. Sets of photos are drawn from it with replacement, and the intervals counted that hold it.
"""

from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from experiments.command import run_script
from experiments.record import commit, report_table

from groupvit.evaluation.metrics import Areas, area_iou, interval, mean_known, resampled_means
from groupvit.evaluation.results import Result

SIZES = (20, 40, 100, 200, 500)


def share_that_holds(areas: Areas, photos: int, sets: int) -> float:
    """Return the percentage of sets of so many photos whose interval holds the mean IoU of all."""
    truth = mean_known(area_iou(areas.sum(axis=0)))
    generator, holds = np.random.default_rng(0), 0
    for _ in range(sets):
        low, high = interval(resampled_means(areas[generator.integers(len(areas), size=photos)])) or (np.nan, np.nan)
        holds += int(low <= truth <= high)
    return 100 * holds / sets


def main(results: Annotated[tuple[Path, ...], tyro.conf.Positional], sets: int = 500, *, record: bool = False) -> None:
    """Print the table.

    Args:
        results: Result files, each a column.
        sets: Sets of photos to draw for each cell.
        record: Write the table into docs/PROTOCOLS.md and docs/results.json.
    """
    began_at = commit() if record else ""
    read, rows = [Result.load(path) for path in results], []
    for photos in SIZES:
        row = {"photos": photos}
        for result in read:
            name = f"{result.benchmark}, {len(result.classes)} classes, {len(result.photos)} photos"
            row |= {name: f"{share_that_holds(result.photo_areas, photos, sets):.0f}"}
        rows.append(row)
    report_table("PROTOCOLS.md", "intervals", rows, began_at)


if __name__ == "__main__":
    run_script(main)
