"""Everything that goes wrong with data and disks, each done to a small training: what it says, and what is lost.

    python -m experiments.faults --record      # a table of docs/RELIABILITY.md

Each fault is planted into 40 photos in four shards, on which `groupvit train debug` then runs as a user would run it.
"""

import ctypes
import io
import os
import re
import resource
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import tyro
from experiments.record import commit, record_table
from PIL import Image

from groupvit.checkpoints import latest, load
from groupvit.data import scenes
from groupvit.data.index import CaptionedPhotos
from groupvit.data.shards import find_shards, read_shard, write_shards

PHOTOS, PER_SHARD, STEPS = 40, 10, 15


def make(data: Path) -> None:
    """Write 40 captioned scenes in four shards."""
    samples = (scenes.sample(number, scenes.draw(0, number)) for number in range(PHOTOS))
    write_shards(samples, data / "train", prefix="t", per_shard=PER_SHARD)


def _shard(data: Path) -> Path:
    return data / "train" / "t-0001.tar"


def _cut(data: Path) -> None:
    with tarfile.open(_shard(data)) as tar:
        member = tar.getmembers()[6 * 3]
    os.truncate(_shard(data), member.offset_data + member.size // 2)


def _empty(data: Path) -> None:
    os.truncate(_shard(data), 0)


def _image(data: Path, image: Callable[[bytes], bytes]) -> None:
    """Replace the fourth photo of the shard."""
    samples = list(read_shard(_shard(data)))
    samples[3] = replace(samples[3], image=image(samples[3].image))
    (made,) = write_shards(samples, data / "made", prefix="t")
    os.replace(made, _shard(data))


def _bomb(_: bytes) -> bytes:
    file = io.BytesIO()
    Image.new("1", (30_000, 30_000)).save(file, "PNG")
    return file.getvalue()


def _files(data: Path, drop: tuple[str, ...], **files: bytes) -> None:
    """Replace some files of the shard's fourth photo, by their ending."""
    with tarfile.open(_shard(data)) as old, tarfile.open(data / "new.tar", "w") as new:
        key = old.getnames()[3 * 3].partition(".")[0]
        for member in old:
            if member.name not in [f"{key}.{ending}" for ending in drop]:
                new.addfile(member, old.extractfile(member))
        for ending, content in files.items():
            member = tarfile.TarInfo(f"{key}.{ending}")
            member.size = len(content)
            new.addfile(member, io.BytesIO(content))
    os.replace(data / "new.tar", _shard(data))


def _link(data: Path) -> None:
    with tarfile.open(_shard(data), "a") as tar:
        member = tarfile.TarInfo("z.jpg")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(member)


PLANTED: dict[str, Callable[[Path], None]] = {
    "nothing": lambda data: None,
    "tar cut in the seventh of its ten photos": _cut,
    "tar of zero bytes": _empty,
    "JPEG cut after 200 bytes": partial(_image, image=lambda image: image[:200]),
    "image of zero bytes": partial(_files, drop=("jpg",), jpg=b""),
    "PNG of 30,000 x 30,000 pixels": partial(_image, image=_bomb),
    "photo without a caption": partial(_files, drop=("txt", "json")),
    "empty caption": partial(_files, drop=("txt", "json"), txt=b" \n"),
    "caption that is not UTF-8": partial(_files, drop=("txt", "json"), txt=b"a dog \xff\xfe"),
    "link in a tar": _link,
}


def _command(folder: Path, steps: int = STEPS, *options: str) -> list[str]:
    train = ["train", "debug", "--data", str(folder / "data"), "--out", str(folder / "out"), "--held-out", ""]
    return [sys.executable, "-m", "groupvit", *train, "--steps", str(steps), *options]


def _environment(folder: Path) -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(folder / "cache"), "COLUMNS": "1000"}


def _train(folder: Path, *options: str, **settings: Any) -> subprocess.CompletedProcess[str]:
    command, environment = _command(folder, STEPS, *options), _environment(folder)
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, **settings)


def _said(text: str) -> str:
    """Return the lines about the fault, without the folders of this machine."""
    lines = [line for line in text.splitlines() if line.startswith(("left out", "groupvit:"))]
    return re.sub(r"\S*/(?=[\w.-]+)", "", "; ".join(dict.fromkeys(lines))).replace("|", "/")


def _step(folder: Path) -> int:
    """Return the step of the newest checkpoint, which must load."""
    found = latest(folder / "out") if (folder / "out").is_dir() else None
    if found:
        load(found)
    return int(found.name.removeprefix("step-")) if found else 0


def _row(fault: str, code: int, text: str, folder: Path, lost: str) -> dict[str, Any]:
    return {
        "fault": fault,
        "exit code": code,
        "last checkpoint": _step(folder),
        "lost": lost,
        "it says": _said(text) or "nothing",
    }


def _not_started(folder: Path) -> str:
    curve = folder / "out" / "metrics.jsonl"
    if curve.is_file() and curve.read_text():
        raise RuntimeError(f"it trained before it ended: {curve.read_text()}")
    return "nothing: it does not start"


def planted(fault: str, folder: Path) -> dict[str, Any]:
    """Make a fault, then start a training."""
    make(folder / "data")
    PLANTED[fault](folder / "data")
    done = _train(folder)
    if done.returncode:
        return _row(fault, done.returncode, done.stderr, folder, _not_started(folder))
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    indexed = len(CaptionedPhotos.open(find_shards(folder / "data" / "train")))
    undecodable = len(set(re.findall(r"its neighbour stands in: \S+: (\w+)", done.stderr)))
    return _row(fault, 0, done.stderr, folder, f"{PHOTOS - indexed + undecodable} of {PHOTOS} photos")


def _while_training(fault: str, folder: Path, change: Callable[[Path], None]) -> dict[str, Any]:
    """Make a fault while the training runs, repair it, and resume the training."""
    make(folder / "data")
    process = subprocess.Popen(
        _command(folder, 200), env=_environment(folder), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    curve = folder / "out" / "metrics.jsonl"
    while process.poll() is None and not (curve.exists() and curve.read_text()):
        time.sleep(0.05)
    shutil.copytree(folder / "data", folder / "copy")
    change(folder / "data" / "train")
    _, text = process.communicate(timeout=300)
    row = _row(fault, process.returncode, text, folder, "nothing")
    if process.returncode:
        shutil.rmtree(folder / "data")
        shutil.copytree(folder / "copy", folder / "data")
        again = subprocess.run(
            _command(folder, 200, "--resume"), env=_environment(folder), capture_output=True, text=True, timeout=300
        )
        if again.returncode or _step(folder) != 200:
            raise RuntimeError(again.stderr)
        row["lost"] = "no step: it goes on once the shards are back"
    return row


def _vanish(train: Path) -> None:
    for shard in train.iterdir():
        shard.rename(shard.with_suffix(".gone"))


def _overwrite(train: Path) -> None:
    for shard in train.iterdir():
        data = shard.read_bytes()
        shard.write_bytes(bytes(512) + data)


def full_disk(folder: Path) -> dict[str, Any]:
    """Limit files to 20 MB, which is less than a checkpoint, and lift the limit later."""
    make(folder / "data")
    limit = (20_000_000, 20_000_000)
    done = _train(folder, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit))
    row = _row("disk full while a checkpoint is written", done.returncode, done.stderr, folder, "")
    left = sorted(path.name for path in (folder / "out").iterdir())
    again = _train(folder)
    if again.returncode or _step(folder) != STEPS:
        raise RuntimeError(again.stderr)
    return row | {"lost": f"the steps since the last checkpoint; left behind: {', '.join(left)}"}


def _without_override() -> None:
    """Drop CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH, so that permissions count for root too."""
    for capability in (1, 2):
        ctypes.CDLL(None).prctl(24, capability)  # PR_CAPBSET_DROP


def forbidden(folder: Path, what: str) -> dict[str, Any]:
    """Make a folder that the user may not enter, or may not write to."""
    make(folder / "data")
    (folder / "out").mkdir()
    target, mode = {"read": (folder / "data" / "train", 0o000), "write": (folder / "out", 0o555)}[what]
    target.chmod(mode)
    done = _train(folder, preexec_fn=_without_override)
    target.chmod(0o755)
    fault = f"folder without permission to {what}"
    return _row(fault, done.returncode, done.stderr, folder, _not_started(folder))


def main(record: bool = False) -> None:
    """Try every fault.

    Args:
        record: Write the result into docs/RELIABILITY.md and docs/results.json.
    """
    began, rows = commit(), list[dict[str, Any]]()
    trials: list[Callable[[Path], dict[str, Any]]] = [
        *(partial(planted, fault) for fault in PLANTED),
        partial(_while_training, "all shards renamed while it trains", change=_vanish),
        partial(_while_training, "all shards rewritten while it trains", change=_overwrite),
        full_disk,
        partial(forbidden, what="read"),
        partial(forbidden, what="write"),
    ]
    for trial in trials:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(trial(Path(folder)))
        print(rows[-1])
    if record:
        record_table("RELIABILITY.md", "faults", rows, began)


if __name__ == "__main__":
    tyro.cli(main)
