"""A training on photos for the one time that a GPU is to be had for a quarter of an hour, without a network.

    python -m experiments.gpu_photos pack SHARDS photos.tar.xz        # at home, where the shards are
    python -m experiments.gpu_photos train photos.tar.xz OUT          # on the GPU

`pack` puts the photos of all shards, small, and the weights of the trunk into one file. `train` takes the steps that
fit into its minutes, and leaves of each run, in `OUT/RUN`, its `metrics.jsonl`, whose last line has the scores, and the
model in half precision in parts of 16 MB at most, with their sums. Joined they are a checkpoint for `groupvit`:

    cd OUT/photos-trunk-gpu && cat model.safetensors.part-* > model.safetensors && sha256sum -c sha256sums.txt
"""

import hashlib
import io
import itertools
import json
import os
import shutil
import signal
import tarfile
import tempfile
import time
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Timer
from typing import Annotated

import torch
import tyro
from experiments.command import run_script
from experiments.photos import BENCHMARKS, open_from, retrieved, save_small
from PIL import Image

from groupvit.checkpoints import native
from groupvit.checkpoints.trunks import PUBLISHED, load_efficientnet
from groupvit.data.index import CaptionedPhotos, beside
from groupvit.data.shards import Sample, find_shards, read_shard, write_shards
from groupvit.data.transforms import resize_short_side
from groupvit.errors import InputError
from groupvit.evaluation.benchmark import evaluate
from groupvit.evaluation.metrics import mean_iou
from groupvit.evaluation.protocols import CALIBRATED_WHOLE
from groupvit.machine import cores
from groupvit.models import GroupViT, build_model
from groupvit.photos import load_rgb
from groupvit.segmentation import Segmenter
from groupvit.training import loop
from groupvit.training.run import Run, vary
from groupvit.training.runs import get_run

TRUNK_RUN = "photos-trunk-gpu"
_SAMPLED = 20  # of so many photos one is tried
_PART = 16 * 10**6
_WARM_UP = 30  # steps at most
_SPARE = 0.95  # of the time for steps is planned: a GPU that gets warm gets slower


@dataclass(frozen=True)
class Small:
    """Sample with a photo that is small, but not encoded yet."""

    sample: Sample
    image: Image.Image

    @classmethod
    def of(cls, sample: Sample, side: int) -> "Small":
        image = load_rgb(sample.image, f"{sample.shard}: {sample.key}")
        return cls(sample, resize_short_side(image, side) if min(image.size) > side else image)

    def encoded(self, quality: int) -> Sample:
        file = io.BytesIO()
        self.image.save(file, "WEBP", quality=quality)
        return replace(self.sample, image=file.getvalue())


def _source(shard: Path | str) -> str:
    return Path(shard).stem.rpartition("-")[0]


def _archive(out: Path, samples: Iterable[Sample], extra: Iterable[Path] = ()) -> int:
    """Write shards of the samples, with their old names, and other files into an archive; return its size.

    It is compressed for the sake of the headers and texts, which in the tars are larger than the photos.
    """
    with tempfile.TemporaryDirectory() as folder, tarfile.open(out, "w:xz") as archive:
        for name, own in itertools.groupby(samples, lambda sample: _source(sample.shard)):
            write_shards(own, folder, prefix=name)
        for file in (*sorted(Path(folder).iterdir()), *extra):
            archive.add(file, file.name)
    return out.stat().st_size


def pack(
    captions: Annotated[Path, tyro.conf.Positional],
    out: Annotated[Path, tyro.conf.Positional],
    side: int = 112,
    limit_mb: float = 60.0,
) -> None:
    """Write all photos of a folder of shards, small, and the trunk's weights into one file.

    Args:
        captions: Folder of the shards, and of the vocabularies beside them.
        out: The file to write.
        side: Pixels of the short side of a photo; smaller ones stay as they are.
        limit_mb: The most that the file may have; the WebP quality follows from it.
    """
    shards = sorted(map(Path, find_shards(captions)))
    stem = get_run(TRUNK_RUN).model.image.stem
    limit, partial = limit_mb * 1e6, out.with_name(f"{out.name}.partial")
    with tempfile.TemporaryDirectory() as folder:
        trunk = Path(folder) / f"{stem}.safetensors"
        weights = load_efficientnet(stem).state_dict()
        native.write_safetensors(trunk, {name: tensor.half() for name, tensor in weights.items()}, {"format": "pt"})
        extra = [trunk, *sorted(captions.glob("*-vocabulary.txt"))]

        def photos() -> Iterator[Sample]:
            return itertools.chain.from_iterable(map(read_shard, shards))

        tried = [Small.of(sample, side) for sample in itertools.islice(photos(), 0, None, _SAMPLED)]
        rest = _archive(partial, [], extra)

        def expected(quality: int) -> float:
            size = rest + _SAMPLED * _archive(partial, (small.encoded(quality) for small in tried))
            print(f"quality {quality}: about {size / 1e6:.1f} MB")
            return size

        quality, size = bisect_right(range(1, 96), limit, key=expected), limit + 1
        while quality > 0 and size > limit:
            size = _archive(partial, (Small.of(sample, side).encoded(quality) for sample in photos()), extra)
            print(f"{out}: {size / 1e6:.1f} MB, quality {quality}, {side} px, {rest / 1e6:.1f} MB of it the trunk")
            quality -= 2
    if size > limit:
        partial.unlink()
        raise InputError(f"the photos do not fit into {limit_mb:g} MB at any quality: take a smaller --side")
    partial.replace(out)


@dataclass
class Clock:
    """Called after every step in the place of an evaluation; ends a training that takes more than `longest`
    seconds, but not before the third step."""

    longest: float
    ticks: list[float] = field(default_factory=list)

    def __call__(self, model: GroupViT) -> dict[str, float]:
        self.ticks.append(time.monotonic())
        if len(self.ticks) >= 3 and self.ticks[-1] - self.ticks[0] > self.longest:
            signal.raise_signal(signal.SIGTERM)
        return {}

    def per_step(self) -> float:
        """Return the seconds of the later half: the first steps also choose kernels."""
        later = self.ticks[len(self.ticks) // 2 - 1 :]
        return (later[-1] - later[0]) / (len(later) - 1)


@contextmanager
def _stopped(at: float) -> Iterator[None]:
    """Ask a training that still runs at that time to save and end."""
    before = signal.signal(signal.SIGTERM, lambda *_: None)  # until the training listens
    timer = Timer(max(0.0, at - time.monotonic()), os.kill, (os.getpid(), signal.SIGTERM))
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        signal.signal(signal.SIGTERM, before)


@dataclass(frozen=True)
class Job:
    """A run and everything that its training needs."""

    name: str
    run: Run
    data: Path
    init: Path | None
    evaluation: Path | None
    limit: int
    workers: int

    def scores(self, model: GroupViT) -> dict[str, float]:
        """Return retrieval and mIoU, on the photos and benchmarks that are there."""
        segmenter = Segmenter(model, self.run.model, device=model.logit_scale.device)
        found = retrieved(segmenter, self.data) if list(self.data.glob("flickr8k-test-*.tar")) else {}
        for name, (_, folder) in BENCHMARKS.items():
            if self.evaluation and (self.evaluation / folder).is_dir():
                dataset = open_from(self.evaluation, name, self.limit)
                found[name] = mean_iou(evaluate(segmenter, dataset, CALIBRATED_WHOLE).matrix)
        return found

    def train(self, run: Run, out: Path, clock: Clock | None = None) -> None:
        """Train, evaluate and write the results into `out`."""
        with tempfile.TemporaryDirectory() as folder:
            trained = Path(folder)
            state = loop.train(run, self.data, trained, init=self.init, workers=self.workers, keep=1, evaluate=clock)
            scores = self.scores(state.weights)
            print(f"{self.name}, step {state.step}: " + ", ".join(f"{k} {v:.1f}" for k, v in scores.items()))
            out.mkdir(parents=True)
            lines = (trained / "metrics.jsonl").read_text() + json.dumps({"step": state.step, **scores}) + "\n"
            (out / "metrics.jsonl").write_text(lines)
            metadata = {"run": self.name, "step": str(state.step)}
            save_small(trained, state.weights, run, self.data, metadata)
            write_parts(trained / native.WEIGHTS, out)


def write_parts(file: Path, out: Path) -> None:
    """Write a file in parts into the folder `out`, with the checksums of each and of the whole."""
    whole = file.read_bytes()
    sums = [f"{hashlib.sha256(whole).hexdigest()}  {file.name}\n"]
    for i in range(0, len(whole), _PART):
        part, name = whole[i : i + _PART], f"{file.name}.part-{i // _PART:02d}"
        (out / name).write_bytes(part)
        sums.append(f"{hashlib.sha256(part).hexdigest()}  {name}\n")
    (out / "sha256sums.txt").write_text("".join(sums))


def _initial(run: Run, data: Path, folder: Path) -> Path | None:
    """Write a checkpoint with the packed trunk and random weights around it; None for a run without a trunk."""
    if run.model.image.stem not in PUBLISHED:
        return None
    torch.manual_seed(0)
    model = build_model(run.model)
    packed, _ = native.read_safetensors(data / f"{run.model.image.stem}.safetensors")
    assert model.image_encoder.trunk is not None
    model.image_encoder.trunk.load_state_dict({name: tensor.float() for name, tensor in packed.items()})
    native.save(folder, model, run.model)
    return folder


def within(job: Job, until: float, out: Path, scratch: Path) -> None:
    """Trains a job until a time. A warm-up, which does all that the training does with a few steps, says what a step
    and the rest take."""
    schedule = job.run.schedule
    run = vary(job.run, save_every=schedule.steps, evaluate_every=1)
    began = time.monotonic()
    clock = Clock(0.05 * (until - began))
    job.train(vary(run, steps=_WARM_UP, warmup=0, lr=schedule.lr_start), scratch, clock)
    ended = time.monotonic()
    before, after = clock.ticks[0] - began, ended - clock.ticks[-1]
    steps = max(10, int(_SPARE * (until - ended - before - after) / clock.per_step()))
    print(f"{job.name}: {clock.per_step():.3f} s a step, {before:.0f} s before and {after:.0f} s after: {steps} steps")
    warmup, ema = schedule.warmup * steps // schedule.steps, max(0.0, min(run.optimizer.ema, 1 - 10 / steps))
    with _stopped(until - after):
        job.train(vary(run, steps=steps, warmup=warmup, ema=ema, save_every=steps), out)


def train(
    data: Annotated[Path, tyro.conf.Positional],
    out: Annotated[Path, tyro.conf.Positional],
    minutes: float = 8.0,
    runs: tuple[str, ...] = (TRUNK_RUN, "photos"),
    shares: tuple[float, ...] = (0.6, 0.4),
    batch_size: int | None = None,
    evaluation: Path | None = None,
    limit: int = 100,
    workers: int = max(1, cores() - 1),
) -> None:
    """Train some runs on packed photos within some minutes.

    Args:
        data: The file that `pack` wrote.
        out: Folder for the results, which must not hold any yet.
        minutes: For all runs, evaluations included.
        runs: Their names, one after the other.
        shares: The share of the minutes of each.
        batch_size: Another one than the runs', for a smaller device.
        evaluation: Folder with benchmarks as in `experiments.photos`; those that are missing are left out.
        limit: At most so many photos of each benchmark.
        workers: Processes that read the data.
    """
    now = time.monotonic()
    if len(shares) != len(runs) or sum(shares) > 1.001:
        raise InputError("give each run a share of the time, all together no more than 1")
    if taken := [name for name in runs if (out / name).exists()]:
        raise InputError(f"{out / taken[0]} exists: name another folder")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        try:
            shutil.unpack_archive(data, folder / "data", filter="data")
        except (shutil.ReadError, OSError) as error:
            raise InputError(f"{data} is no file that `pack` wrote, or is damaged: {error}") from error
        until = now
        for name, share in zip(runs, shares, strict=True):
            run = get_run(name)
            run = vary(run, batch_size=batch_size or run.data.batch_size)
            init = _initial(run, folder / "data", folder / f"{name}-init")
            # Indexed here, for the warm-up would take it for what every training takes.
            shards = find_shards(run.data.train, below=folder / "data")
            CaptionedPhotos.open(shards, where=beside, processes=max(1, workers))
            until += 60 * minutes * share
            job = Job(name, run, folder / "data", init, evaluation, limit, workers)
            within(job, until, out / name, folder / f"{name}-warm-up")
    print(f"{out}: {time.monotonic() - now:.0f} of {60 * minutes:.0f} seconds")


if __name__ == "__main__":
    run_script({"pack": pack, "train": train})
