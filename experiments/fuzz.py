"""Hostile bytes for every reader of foreign files: the outcome is a value or an `InputError`, within bounded memory.

    python -m experiments.fuzz --inputs 100000 --record     # a table of docs/RELIABILITY.md

Valid files are changed at random: bytes, JSON values, and lengths and checksums that are made to fit again. Each reader
has a process of its own. With the package atheris installed, inputs that reach new code are changed further.
"""

import contextlib
import gzip
import io
import json
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import tarfile
import tempfile
import time
import traceback
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from importlib.util import find_spec
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import tyro
from experiments.record import RESULTS, commit, print_rows, record_table

atheris: Any = None
if sys.argv[1:2] == ["run"] and find_spec("atheris"):
    import atheris
with atheris.instrument_imports(include=["groupvit"]) if atheris else contextlib.nullcontext():
    import numpy as np
    import torch
    from PIL import Image

    from groupvit.checkpoints import native, release, transformers
    from groupvit.data import index, pack, scenes, shards, tar
    from groupvit.errors import InputError
    from groupvit.evaluation.datasets import open_benchmark
    from groupvit.evaluation.masks import lookup, read_masked
    from groupvit.evaluation.partial import PartialResult
    from groupvit.evaluation.results import PhotoScores, Result, compare
    from groupvit.machine import peak_memory
    from groupvit.models import ImageEncoderConfig, ModelConfig, Stage, TextEncoderConfig, build_model
    from groupvit.photos import load_rgb
    from groupvit.segmentation.labels import parse_labels

TINY = ModelConfig(
    image=ImageEncoderConfig(16, 8, 64, 1, stages=(Stage(1, 2, 2), Stage(1))),
    text=TextEncoderConfig(width=64, heads=1, layers=1, context_length=8, vocab_size=32),
    embed_dim=4,
    projector_dim=8,
)
MEMORY = 2**30  # bytes that reading a hostile file may take beside what the libraries take
SLOW = 10  # seconds of CPU after which an input counts as a hang

HOSTILE: list[Any] = [
    *(None, True, [], {}, "", 0, -1, 0.5, 1e308, -1e308, float("nan"), float("inf"), 2**31, 2**63, 2**64, 10**30),
    *("\ud800", "\0", "../../etc/passwd", "/dev/zero", "a" * 5000, [[]], [None], {"a": 1}, 10**9, "1", "é́"),
]


@cache
def photo() -> bytes:
    """Return a small JPEG."""
    return scenes.sample(1, scenes.draw(0, 1)).image


def _tar(**files: bytes) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name.replace("_", "."))
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return file.getvalue()


SAMPLE = {"caption": "a dog on the grass", "captions": ["two cats"], "kind": "tags", "tags": ["dog"], "url": "x"}


def _shard(path: Path) -> None:
    rows, _ = shards.scan_shard(path)
    for row in rows:
        shards.read_image(path, row, shards.stamp(path))


def _photo(path: Path) -> None:
    load_rgb(path.read_bytes(), "a")


def _caption(path: Path) -> None:
    member = shards.Member("a.jpg", 512, 1, 0, b"")
    for ending in ("json", "txt"):
        files = {"jpg": member, ending: member._replace(text=path.read_bytes())}
        rows, _ = shards.rows_of({"a": files}, [])
        index.table_of(rows)


def _compressed(path: Path) -> None:
    shard = path.with_name("a.tar.gz")
    shard.with_suffix("").unlink(missing_ok=True)  # one that is there is not replaced
    shutil.copyfile(path, shard)
    shards.scan_shard(tar.unpack(shard))


def _packed(path: Path, ending: str) -> None:
    table = path.with_name(f"table.{ending}")
    shutil.copyfile(path, table)
    (path.parent / "a.jpg").write_bytes(photo())
    list(pack._open(table, None, "", ""))


def _parquet_seed(folder: Path) -> bytes:
    import pyarrow as pa
    from pyarrow import parquet

    columns = {"jpg": [photo()] * 3, "caption": ["a dog", None, "grass"], "url": ["x", "y", None]}
    parquet.write_table(pa.table(columns), folder / "seed.parquet")
    return (folder / "seed.parquet").read_bytes()


def _vocabulary(path: Path) -> None:
    shutil.copyfile(path, path.with_name("vocabulary.txt"))
    shards.read_vocabulary(path.with_name("00000.tar"))


def _index(path: Path) -> None:
    shard = path.with_name("a.tar")
    if not shard.exists():
        shard.write_bytes(_tar(a_jpg=photo(), a_json=b'{"caption": "a dog"}', b_jpg=photo(), b_txt=b"grass"))
        os.utime(shard, (1, 1))
        index.build_index(shard, path.with_name("valid.arrow"))
    shutil.copyfile(path, index.beside(shard))
    found = index._read(shard, index.beside(shard))
    if found and found.stamp == shards.stamp(shard):
        index._columns.cache_clear()
        photos = index.CaptionedPhotos([found])
        for row in range(min(int(photos.counts[0]), 3)):
            photos.nouns(0, row, 0, "paper")
            photos.read(0, row)
        photos.noun_counts()


def _classes(path: Path) -> None:
    root = path.parent / "folder"
    for part in ("images", "masks"):
        (root / part).mkdir(parents=True, exist_ok=True)
    if not (root / "masks/a.png").exists():
        (root / "images/a.jpg").write_bytes(photo())
        with Image.open(io.BytesIO(photo())) as image:
            Image.new("L", image.size).save(root / "masks/a.png")
    shutil.copyfile(path, root / "classes.txt")
    data = open_benchmark("folder", root)
    assert len(data) == len(list(data)) == 1
    parse_labels(data.labels[data.has_background :])


def _palette(path: Path) -> None:
    root = path.parent / "palette"
    if not (root / "masks/a.png").exists():
        for part in ("images", "masks"):
            (root / part).mkdir(parents=True, exist_ok=True)
        (root / "images/a.jpg").write_bytes(photo())
        with Image.open(io.BytesIO(photo())) as image:
            Image.new("RGB", image.size).save(root / "masks/a.png")
    shutil.copyfile(path, root / "labelmap.txt")
    list(open_benchmark("folder", root))


def _coco(path: Path) -> None:
    root = path.parent / "coco"
    for part in ("val2017", "annotations"):
        (root / part).mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 10)).save(root / "val2017/1.png")
    shutil.copyfile(path, root / "annotations/instances_val2017.json")
    data = open_benchmark("coco-object-instances", root)
    for number in range(min(len(data), 2)):
        with contextlib.suppress(InputError):
            data[number]


def _mask(path: Path) -> None:
    picture = path.with_name("photo.png")
    if not picture.exists():
        Image.new("RGB", (8, 8)).save(picture)
    read_masked("a", picture, path, lookup({0: 0, 1: 1}), "0 and 1")


def _result(path: Path) -> None:
    Result.load(path).metrics()
    compare(path, path)


def _partial(path: Path) -> None:
    out = path.with_name("out.json")
    shutil.copyfile(path, path.with_name("out.json.part-1"))
    part = PartialResult(out, {"a": 1})
    part._file.close()


def _weights(path: Path) -> None:
    folder = path.parent / "native"
    folder.mkdir(exist_ok=True)
    shutil.copyfile(path, folder / native.WEIGHTS)
    native.load(folder)


def _pickle(path: Path) -> None:
    if release.recognises(path):
        release.load(path)


def _config(path: Path) -> None:
    folder = path.parent / "transformers"
    folder.mkdir(exist_ok=True)
    if not (folder / native.WEIGHTS).exists():
        model = build_model(replace(TINY, multi_label_scale=False))
        native.write_safetensors(folder / native.WEIGHTS, transformers.encode(model.state_dict()), {"format": "pt"})
    shutil.copyfile(path, folder / native.CONFIG)
    transformers.load(folder)


def _coco_seed() -> bytes:
    image = {"id": 1, "file_name": "1.png", "width": 20, "height": 10}
    polygon = [[1.0, 1.0, 9.0, 1.0, 9.0, 8.0]]
    thing = {"id": 1, "image_id": 1, "category_id": 1, "iscrowd": 0, "area": 9.0, "segmentation": polygon}
    crowd = thing | {"id": 2, "iscrowd": 1, "segmentation": {"size": [10, 20], "counts": [50, 100, 50]}}
    packed = thing | {"id": 3, "segmentation": {"size": [10, 20], "counts": "b1b3b1"}}
    return _json(
        {"images": [image], "annotations": [thing, crowd, packed], "categories": [{"id": 1, "name": "person"}]}
    )


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


def _result_seed(folder: Path) -> bytes:
    ones = np.array([[0, 0, 9], [1, 0, 3]])
    scores = PhotoScores("a", "d", 12, ones, np.array([[0, 1, 2, 3]]), naming=np.array([[1, 3, 1]]))
    Result("folder", ("cat", "dog"), {}, {}, (), (scores, scores)).save(folder / "result.json")
    return (folder / "result.json").read_bytes()


def _partial_seed(folder: Path) -> bytes:
    scores = PhotoScores("a", "d", 12, np.array([[0, 0, 9]]), np.array([[0, 1, 2, 3]]))
    return _json({"evaluation": {"a": 1}}) + b"\n" + _json(scores.to_dict()) + b"\n"


def _saved(folder: Path, write: Callable[[Path], Any]) -> bytes:
    write(folder / "seed")
    path = folder / "seed" / native.WEIGHTS
    return (path if path.exists() else folder / "seed").read_bytes()


def _index_seed(folder: Path) -> bytes:
    with contextlib.suppress(Exception):
        _index(folder / "input")
    return (folder / "valid.arrow").read_bytes()


def _png(folder: Path) -> bytes:
    Image.fromarray(np.eye(8, dtype=np.uint8)).save(folder / "mask.png")
    return (folder / "mask.png").read_bytes()


@dataclass(frozen=True)
class Reader:
    """A reader of a file, and a valid file for it; `kind` says which lengths or checksums are made to fit."""

    read: Callable[[Path], None]
    seed: Callable[[Path], bytes]
    kind: str = ""


def _model() -> Any:
    torch.manual_seed(0)
    return build_model(TINY)


READERS = {
    "tar shards": Reader(
        _shard, lambda _: _tar(a_jpg=b"\xff\xd8\xff", a_json=_json(SAMPLE), a_txt=b"a dog", b_png=b"x"), "tar"
    ),
    "compressed shards": Reader(
        _compressed, lambda _: gzip.compress(_tar(a_jpg=photo(), a_txt=b"a dog"), mtime=0), "gzip"
    ),
    "CSV tables": Reader(
        partial(_packed, ending="csv"), lambda _: b'file,caption\na.jpg,"a dog"\na.jpg,"two, ""cats"""\n'
    ),
    "parquet": Reader(partial(_packed, ending="parquet"), _parquet_seed),
    "captions": Reader(_caption, lambda _: _json(SAMPLE), "json"),
    "vocabularies of tags": Reader(_vocabulary, lambda _: b"dog\ntraffic light\n"),
    "indexes": Reader(_index, _index_seed),
    "photos": Reader(_photo, lambda _: photo()),
    "masks": Reader(_mask, _png),
    "classes.txt": Reader(_classes, lambda _: b"background\ncat\ndog=dog,puppy\ntraffic_light\n"),
    "labelmap.txt": Reader(
        _palette, lambda _: b"# label:color_rgb:parts:actions\nbackground:0,0,0::\ncat:128,0,0::\ndog:0,128,0::\n"
    ),
    "COCO JSON": Reader(_coco, lambda _: _coco_seed(), "json"),
    "results": Reader(_result, _result_seed, "json"),
    "parts of results": Reader(_partial, _partial_seed, "lines"),
    "safetensors": Reader(
        _weights, lambda folder: _saved(folder, lambda path: native.save(path, _model(), TINY)), "safetensors"
    ),
    ".pth": Reader(
        _pickle,
        lambda folder: _saved(folder, lambda path: torch.save({"model": release.encode(_model().state_dict())}, path)),
        "zip",
    ),
    "configurations": Reader(
        _config, lambda _: _json(transformers.config_document(replace(TINY, multi_label_scale=False))), "json"
    ),
}


def changed_bytes(data: bytes, chance: random.Random) -> bytes:
    """Flip, insert, delete, repeat or overwrite a few pieces."""
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 4, 16))):
        place, size = chance.randrange(len(changed) + 1), chance.choice((1, 1, 2, 4, 8, 64))
        piece = chance.choice((chance.randbytes(size), b"\0" * size, b"\xff" * size, bytes(changed[:size])))
        keep = chance.choice((0, size, size, chance.randrange(len(changed) + 1)))
        changed[place : place + keep] = chance.choice((piece, piece, b""))
    return bytes(changed)


def changed_json(value: Any, chance: random.Random) -> Any:
    """Replace, drop or repeat a value at any depth."""
    if isinstance(value, dict | list) and value and chance.random() < 0.85:
        pairs = list(value.items()) if isinstance(value, dict) else list(enumerate(value))
        key, item = chance.choice(pairs)
        action = chance.random()
        if isinstance(value, dict):
            rest = {k: v for k, v in value.items() if k != key}
            return rest if action < 0.08 else {**value, key: changed_json(item, chance)}
        one = value[:key] + value[key + 1 :]
        return one if action < 0.05 else [*value, item] if action < 0.1 else [*one, changed_json(item, chance)]
    return chance.choice((*HOSTILE, [value], {"a": value}))


def _fitting(kind: str, data: bytes, chance: random.Random) -> bytes:
    """Change a file inside its envelope, whose lengths and checksums fit again."""
    if kind == "json":
        return _json(changed_json(json.loads(data), chance))
    if kind == "lines":
        lines = data.splitlines()
        return b"\n".join(_json(changed_json(json.loads(line), chance)) for line in lines) + b"\n"
    if kind == "safetensors":
        size = struct.unpack("<Q", data[:8])[0]
        header = json.loads(data[8 : 8 + size])
        ours = json.loads(header["__metadata__"]["groupvit"])
        header["__metadata__"]["groupvit"] = json.dumps(changed_json(ours, chance))
        if chance.random() < 0.3:
            header = changed_json(header, chance)
        text = _json(header)
        return struct.pack("<Q", len(text)) + text + data[8 + size :]
    if kind == "gzip":
        return gzip.compress(_fitting("tar", gzip.decompress(data), chance), 1, mtime=0)
    if kind == "zip":
        made = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(made, "w") as new:
            for name in old.namelist():
                content = old.read(name)
                new.writestr(name, changed_bytes(content, chance) if name.endswith("data.pkl") else content)
        return made.getvalue()
    changed = bytearray(data)  # a tar: change a header, then its checksum
    start = 512 * chance.randrange(len(data) // 512)
    changed[start : start + 512] = changed_bytes(data[start : start + 512], chance)[:512].ljust(512, b"\0")
    total = sum(changed[start : start + 148]) + 256 + sum(changed[start + 156 : start + 512])
    changed[start + 148 : start + 156] = b"%06o\0 " % total
    return bytes(changed)


def mutated(reader: Reader, seed: bytes, data: bytes, chance: random.Random) -> bytes:
    """Return the valid file or another input, changed."""
    if reader.kind and chance.random() < 0.6:
        with contextlib.suppress(Exception):  # what is no such file any more is changed as bytes
            return _fitting(reader.kind, data if chance.random() < 0.5 else seed, chance)
    return changed_bytes(data if chance.random() < 0.7 else seed, chance)


def attempt(reader: Reader, path: Path, data: bytes) -> str:
    """Return "value", "refused", or where and why the reader broke its promise."""
    path.write_bytes(data)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # from here on the peak is that of this input
    before, began = peak_memory(), time.process_time()
    signal.setitimer(signal.ITIMER_PROF, SLOW)
    try:
        reader.read(path)
        outcome = "value"
    except InputError:
        outcome = "refused"
    except BaseException as error:
        places = [frame for frame in traceback.extract_tb(error.__traceback__) if "groupvit" in frame.filename]
        at = f"{Path(places[-1].filename).name}:{places[-1].lineno}" if places else "?"
        outcome = f"{type(error).__name__} at {at}: {str(error)[:150]!r}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    grown = peak_memory() - before
    if grown > MEMORY:
        return f"took {grown / 2**30:.1f} GB"
    return outcome if time.process_time() - began < SLOW else f"hang: {outcome}"


def _hung(*_: Any) -> None:
    raise TimeoutError("hang")


def run(name: str, inputs: int, seconds: float, folder: Path) -> None:
    """Try inputs on one reader, in this process; keep count and failures in the folder after each."""
    reader, chance = READERS[name], random.Random(0)
    valid = reader.seed(folder)
    warnings.simplefilter("ignore")
    (folder / "input").write_bytes(valid)
    reader.read(folder / "input")  # a value, and the time and memory of all that is loaded at first use
    signal.signal(signal.SIGPROF, _hung)
    counts, failures, until = {"value": 0, "refused": 0}, dict[str, str](), time.monotonic() + seconds
    highest = 0

    def tell() -> None:
        (folder / "found.json").write_text(json.dumps({**counts, "failures": failures, "MB": highest / 2**20}))

    def one(data: bytes) -> None:
        nonlocal highest
        outcome = attempt(reader, folder / "input", data)
        highest = max(highest, peak_memory())
        if outcome in counts:
            counts[outcome] += 1
        elif (kind := outcome.partition(": '")[0]) not in failures:
            failures[kind] = data.hex()
        done = sum(counts.values())
        if not done % 100 or outcome not in counts:
            tell()
        if time.monotonic() > until:
            tell()
            os._exit(0)

    if atheris:
        change = lambda data, size, seed: mutated(reader, valid, data, random.Random(seed))[:size]  # noqa: E731
        (folder / "corpus").mkdir()
        (folder / "corpus" / "valid").write_bytes(valid)
        options = [f"-runs={inputs}", "-seed=1", f"-max_len={4 * len(valid) + 4096}", "-rss_limit_mb=0", "-timeout=300"]
        options += [f"-artifact_prefix={folder}/", str(folder / "corpus")]
        atheris.Setup([sys.argv[0], *options], one, custom_mutator=change)
        atheris.Fuzz()
    for _ in range(inputs):
        one(mutated(reader, valid, valid, chance))
    tell()


def fuzz(name: str, inputs: int, seconds: float = 1e9) -> dict[str, Any]:
    """Try inputs on one reader in a process of its own."""
    with tempfile.TemporaryDirectory() as place:
        command = [sys.executable, "-m", "experiments.fuzz", "run", name, str(inputs), str(seconds), place]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": place}
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", env=environment)
        if not (Path(place) / "found.json").exists():
            raise RuntimeError(f"{name}: the process ends with {done.returncode}: {done.stderr[-1000:]}")
        found = json.loads((Path(place) / "found.json").read_text())
        failures = found["failures"]
        if done.returncode:
            failures[f"the process ends with {done.returncode}: {done.stderr[-300:]}"] = (
                (Path(place) / "input").read_bytes().hex()
            )
    return {
        "reader": name,
        "inputs": f"{found['value'] + found['refused'] + len(failures):,}",
        "read": f"{found['value']:,}",
        "refused": f"{found['refused']:,}",
        "peak memory, MB": f"{found['MB']:,.0f}",
        "failures": failures,
    }


def main(
    inputs: int = 10_000, seconds: float = 1e9, only: tuple[str, ...] = (), processes: int = 1, record: bool = False
) -> None:
    """Try every reader.

    Args:
        inputs: Inputs for each.
        seconds: Seconds for each, at most.
        only: Readers to try; the recorded rows of others stay.
        processes: Readers to try at a time.
        record: Write the table into docs/RELIABILITY.md and docs/results.json.
    """
    began, rows, broken = commit(), list[dict[str, Any]](), False
    names = only or tuple(READERS)
    found = ThreadPool(processes).imap(partial(fuzz, inputs=inputs, seconds=seconds), names)
    for name, row in zip(names, found, strict=True):
        for kind, data in row["failures"].items():
            print(f"{name}: {kind.splitlines()[0]}\n    {data[:2000]}", file=sys.stderr)
        rows.append(row | {"failures": len(row["failures"]), "commit": began})
        broken |= bool(row["failures"])
        print(rows[-1], file=sys.stderr)
    print_rows(rows)
    if record:
        earlier = json.loads(RESULTS.read_text()).get("fuzz", {"rows": []})["rows"]
        known = {row["reader"]: row for row in (*earlier, *rows)}
        record_table("RELIABILITY.md", "fuzz", [known[name] for name in READERS if name in known], began)
    sys.exit(broken)


if __name__ == "__main__":
    if sys.argv[1:2] == ["run"]:
        run(sys.argv[2], int(sys.argv[3]), float(sys.argv[4]), Path(sys.argv[5]))
    else:
        tyro.cli(main)
