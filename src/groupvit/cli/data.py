"""`groupvit data`: training data."""

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from groupvit.cli.progress import progress
from groupvit.errors import InputError

if TYPE_CHECKING:
    from groupvit.data.doctor import Report
    from groupvit.data.findings import Finding

_Shards = Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="SHARD...", help_behavior_hint="")]
_CORES = os.cpu_count() or 1
_NAMED = 3


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


def index(shards: _Shards, *, processes: int = _CORES) -> int:
    """Write an index beside each shard, so that training begins at once and reads any sample with one access.

    SHARD.arrow (Arrow IPC) lists the whole samples: key, place, captions and their nouns. A shard whose index is up to
    date is passed over. Exit code 1: something had to be left out, or a shard could not be indexed.

    Args:
        shards: Tar files, folders of them, or patterns such as 'cc3m/{00000..00331}.tar'.
        processes: Shards that are read at once.
    """
    from groupvit.data.index import Index, beside, index_shards
    from groupvit.data.shards import FAULTS

    files = _find(shards, processes)
    counted = _Counted("indexing", lambda done: getattr(done[1], "samples", 0))
    results = index_shards(files, where=beside, processes=processes, progress=counted)
    indexes = [result for result in results if isinstance(result, Index)]
    for error in results:
        if isinstance(error, InputError):
            print("groupvit: error:", _printable(str(error)), file=sys.stderr)
    photos, captions = sum(each.samples for each in indexes), sum(_captions(each.path) for each in indexes)
    print(
        f"{len(indexes):,} of {len(files):,} shards indexed ({max(0, len(files) - counted.total):,} were up to date):"
        f" {photos:,} photos, {captions:,} captions"
    )
    kinds = Counter(fault.kind for each in indexes for fault in each.faults)
    for kind, count in kinds.most_common():
        faults = [(each.shard, fault) for each in indexes for fault in each.faults if fault.kind == kind]
        print(f"left out: {count:,} x {FAULTS[kind]}")
        print(*(_printable(f"  {shard}: {fault}") for shard, fault in faults[:_NAMED]), sep="\n")
    return int(bool(kinds) or len(indexes) < len(files))


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
        json: Print JSON, with every finding.
        processes: Shards that are read at once.
    """
    if batch_size < 1:
        raise InputError("batch size must be at least 1")
    files = _find(shards, processes)
    from groupvit.data.doctor import examine

    counted = _Counted("examining", lambda done: getattr(done, "photos", 0) or len(done))
    report = examine(files, evaluation=evaluation, batch_size=batch_size, processes=processes, progress=counted)
    print(_json(report) if json else _text(report))
    return int(not report.ready)


def _find(shards: tuple[str, ...], processes: int) -> list[Any]:
    from groupvit.data.shards import find_shards

    if not shards:
        raise InputError("no shards: name tar files, folders of them, or patterns")
    if processes < 1:
        raise InputError("processes must be at least 1")
    return find_shards(shards)


def _captions(path: Path) -> int:
    import pyarrow as pa

    with pa.memory_map(str(path)) as file:
        return sum(len(chunk.flatten()) for chunk in pa.ipc.open_file(file).read_all()["captions"].chunks)


def _printable(text: str) -> str:
    """Names and captions come from the web; control characters in them could rewrite the terminal."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)


class _Counted:
    """Items with a bar; `total` counts them, `photos` says how many photos an item stands for."""

    def __init__(self, description: str, photos: Callable[[Any], int]):
        self.description = description
        self.photos = photos
        self.total = 0

    def __call__(self, items: Iterable[Any], total: int) -> Iterator[Any]:
        self.total += total
        with progress(self.description, total) as advance:
            for item in items:
                advance(1, self.photos(item))
                yield item


def _json(report: "Report") -> str:
    import json
    from dataclasses import asdict

    findings = [{"severity": finding.severity, **asdict(finding)} for finding in report.findings]
    return json.dumps({"ready": report.ready, **asdict(report), "findings": findings}, indent=2)


def _text(report: "Report") -> str:
    captions, nouns = report.captions, report.nouns
    lines = [
        f"{report.shards:,} shards, {report.photos:,} photos, {captions.captions:,} captions"
        + f"; {report.tagged:,} photos have tags instead" * (report.tagged > 0),
        f"captions have {captions.median_length:.0f} tokens (median), {captions.length_95:.0f} (95th percentile);"
        f" {captions.cut:.1%} are cut at 77; {captions.one_word:.1%} are one word",
        f"nouns: {nouns.distinct:,} distinct, {nouns.frequent:,} of them in ten photos or more;"
        f" {nouns.photos_without:,} photos have none; a batch of {nouns.batch_size} has {nouns.per_batch:.0f} distinct",
    ]
    kinds: dict[str, list[Finding]] = {}
    for finding in report.findings:
        kinds.setdefault(finding.kind, []).append(finding)
    for severity in ("error", "note"):
        for findings in kinds.values():
            if findings[0].severity == severity:
                lines += _section(findings)
    errors = sum(finding.severity == "error" for finding in report.findings)
    notes = len(report.findings) - errors
    verdict = "training should wait until the errors have been looked at" if errors else "training can start"
    return "\n".join(map(_printable, [*lines, "", f"errors: {errors:,}; notes: {notes:,}; {verdict}"]))


def _section(findings: "list[Finding]") -> Iterator[str]:
    from groupvit.data.findings import KINDS

    kind = KINDS[findings[0].kind]
    yield from ("", f"{kind.severity} {findings[0].kind}, {len(findings):,} x: {kind.meaning}")
    for finding in findings[:_NAMED]:
        yield "  " + ": ".join(part for part in (finding.shard, finding.key, finding.detail) if part)
    if len(findings) > _NAMED:
        yield f"  and {len(findings) - _NAMED:,} more (--json names all)"
    yield f"  -> {kind.remedy}"
