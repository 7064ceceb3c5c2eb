"""`groupvit data`: training data."""

import sys
from pathlib import Path
from typing import Annotated, Any

import tyro

from groupvit.errors import InputError
from groupvit.machine import cores

_Shards = Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="SHARD...", help_behavior_hint="")]
_Folder = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]
_CORES = cores()


def scenes(folder: _Folder, *, train: int = 30_000, evaluation: int = 500, size: int = 64, seed: int = 0) -> None:
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
    from groupvit.data.scenes import write

    write(folder, train=train, evaluation=evaluation, size=size, seed=seed)
    print(f"{folder}: {train} captioned scenes in train/, {evaluation} with masks in eval/")


def index(shards: _Shards, *, processes: int = _CORES) -> int:
    """Write an index beside each shard, so that training begins at once and reads any sample with one access.

    SHARD.arrow (Arrow IPC) lists the whole samples: key, place, captions and their nouns. A shard whose index is up to
    date is passed over. SHARD.tar.gz (bz2, xz) is unpacked to SHARD.tar first. Exit code 1: something had to be left
    out, or a shard could not be indexed.

    Args:
        shards: Tar files, folders of them, or patterns such as 'cc3m/{00000..00331}.tar'.
        processes: Shards that are read at once.
    """
    files = _find(shards, processes)
    from groupvit.data.index import Index, beside, index_shards, summary

    results = index_shards(files, where=beside, processes=processes)
    for error in results:
        if isinstance(error, InputError):
            _print(f"groupvit: error: {error}", sys.stderr)
    indexes = [result for result in results if isinstance(result, Index)]
    _print(summary(indexes, len(files)))
    return int(len(indexes) < len(files) or any(each.faults for each in indexes))


def doctor(
    shards: _Shards,
    *,
    evaluation: Annotated[tuple[Path, ...], tyro.conf.UseAppendAction] = (),
    batch_size: int = 256,
    json: bool = False,
    processes: int = _CORES,
) -> int:
    """Tell what is wrong with training shards, and whether training should start.

    Errors lose samples or teach the wrong thing: broken tars; links; images that cannot be decoded, are tiny or huge;
    missing, empty or non-UTF-8 captions; tags without a vocabulary or outside it; keys that come twice; URLs in the
    place of captions; photos of the evaluation; too few nouns a batch. Notes do not: copies of photos, and captions
    that many photos share. Photos are compared by their pixels; resized or newly compressed copies are not found. Exit
    code 0: start; 1: look at the errors first.

    Args:
        shards: Tar files, folders of them, or patterns such as 'cc3m/{00000..00331}.tar'.
        evaluation: Folder whose photos must not be among the shards'; may be given several times.
        batch_size: Photos a step, to count the distinct nouns of a batch.
        json: Print JSON, with every finding (the first 10,000 of each kind, and how many there are).
        processes: Shards that are read at once.
    """
    if batch_size < 1:
        raise InputError("batch size must be at least 1")
    files = _find(shards, processes)
    from groupvit.data.doctor import examine

    report = examine(files, evaluation=evaluation, batch_size=batch_size, processes=processes)
    _print(report.json() if json else str(report))
    return int(not report.ready)


def pack(
    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")],
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")],
    *,
    photos: Path | None = None,
    image_column: str = "",
    caption_column: str = "",
) -> int:
    """Pack photos and captions into shards of 1,000 photos: OUT/OUT-0000.tar, …

    SOURCE is a folder of photos with captions in NAME.txt or NAME.json beside NAME.jpg (img2dataset's `files` output),
    parquet with encoded photos or a folder of it (img2dataset's `parquet`), or a table (CSV, TSV) with a header and a
    row for each caption. OUT is written whole or not at all. Exit code 1: something was left out. Afterwards let
    `groupvit data doctor OUT` look at the photos.

    Args:
        source: Folder, table or parquet file.
        out: A new folder.
        photos: Folder in which the table's file names begin; by default the table's own.
        image_column: Column of the photos, if it has none of the usual names.
        caption_column: Column of the captions, if it has none of the usual names.
    """
    from groupvit.data.pack import pack as pack_samples
    from groupvit.data.tar import left_out

    packed = pack_samples(source, out, photos=photos, image_column=image_column, caption_column=caption_column)
    counts = f"{packed.shards:,} shards, {packed.photos:,} photos, {packed.captions:,} captions"
    _print("\n".join([f"{out}: {counts}", *left_out([("", fault) for fault in packed.faults])]))
    return int(bool(packed.faults))


def _find(shards: tuple[str, ...], processes: int) -> list[Any]:
    from groupvit.data.shards import find_shards

    if not shards:
        raise InputError("no shards: name tar files, folders of them, or patterns")
    if processes < 1:
        raise InputError("processes must be at least 1")
    return find_shards(shards)


def _print(text: str, file: Any = None) -> None:
    """Print names and captions of the web, of which control characters could rewrite the terminal."""
    shown = "".join(each if each.isprintable() or each == "\n" else "\N{REPLACEMENT CHARACTER}" for each in text)
    print(shown, file=file)
