"""`groupvit data`: training data."""

from pathlib import Path
from typing import Annotated

import tyro


def scenes(
    folder: Annotated[Path, tyro.conf.Positional],
    *,
    train: int = 30_000,
    evaluation: int = 500,
    size: int = 64,
    seed: int = 0,
) -> None:
    """Write the synthetic scenes: captioned shards to train on, and pictures with masks to evaluate on.

    FOLDER/train/*.tar holds pictures and captions, FOLDER/eval holds other pictures with masks. A folder that holds the
    same set already is left as it is.

    Args:
        folder: A new folder.
        train: Pictures with captions.
        evaluation: Pictures with masks.
        size: Side of a picture in pixels.
        seed: Another seed draws other pictures.
    """
    from rich.console import Console
    from rich.progress import track

    from groupvit.data import scenes as generator

    console = Console(stderr=True)
    generator.write(
        folder,
        train=train,
        evaluation=evaluation,
        size=size,
        seed=seed,
        progress=lambda samples, total: track(samples, "drawing scenes", total=total, console=console),
    )
    print(f"{folder}: {train} captioned scenes in train/, {evaluation} with masks in eval/")
