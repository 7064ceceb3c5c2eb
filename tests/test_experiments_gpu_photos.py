"""What is to run for minutes on a rare GPU is tried for seconds, from the packing to the joined checkpoint."""

import hashlib
import io
import json
import re
import signal
import tarfile
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from experiments import gpu_photos
from PIL import Image

import layouts
from groupvit.checkpoints import native
from groupvit.data import scenes
from groupvit.data.shards import find_shards, read_shard, read_vocabulary, write_shards
from groupvit.errors import InputError
from groupvit.models import ImageEncoderConfig, Stage, trunks
from groupvit.models.trunks import EfficientNetLite
from groupvit.training.objective import Captions, Nouns
from groupvit.training.run import Run, vary
from groupvit.training.runs import RUNS

TRUNK = RUNS["photos-trunk-gpu"]
SMALL = vary(
    TRUNK,
    model=replace(
        TRUNK.model,
        teacher_loss=False,
        image=ImageEncoderConfig(
            32,
            8,
            32,
            2,
            stages=(Stage(0, output_groups=4, seeded=True),),
            stem="efficientnet-lite0",
            group_residual=False,
        ),
        text=replace(TRUNK.model.text, width=32, heads=2, layers=1),
    ),
    train="{flickr8k-train,toys-tags}-*.tar",
    batch_size=8,
    min_count=2,
    objective=(Captions(0.5), Nouns("segment", 0.1, prior=0.6), Nouns("patch", 0.1, prior=0.6)),
)


def trunk(variant: str) -> EfficientNetLite:
    torch.manual_seed(1)
    return EfficientNetLite("efficientnet-lite0").eval()


@pytest.fixture
def shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(gpu_photos, "load_efficientnet", trunk)
    monkeypatch.setattr(trunks, "_HEAD", 32)
    monkeypatch.setitem(trunks._SCALES, "efficientnet-lite0", (0.25, 0.4))
    monkeypatch.setitem(RUNS, "photos-trunk-gpu", SMALL)
    samples = [scenes.sample(index, scenes.draw(0, index)) for index in range(60)]
    write_shards(samples[:44], tmp_path / "shards", prefix="flickr8k-train", per_shard=30)
    write_shards(samples[44:52], tmp_path / "shards", prefix="flickr8k-test")
    tagged = [replace(sample, captions=("a photo of a ball",), tags=("ball",)) for sample in samples[52:]]
    write_shards(tagged, tmp_path / "shards", prefix="toys-tags")
    (tmp_path / "shards" / "toys-tags-vocabulary.txt").write_text("ball\ncrate\n")
    return tmp_path / "shards"


def test_photos_travel_small_and_are_trained_on(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    packed = tmp_path / "photos.tar.xz"
    gpu_photos.pack(shards, packed, side=40, limit_mb=1)
    assert packed.stat().st_size < 1e6
    with tarfile.open(packed) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    found = {Path(shard).name: list(read_shard(shard)) for shard in find_shards(tmp_path / "unpacked")}
    assert {name: len(samples) for name, samples in found.items()} == {
        "flickr8k-test-0000.tar": 8,
        "flickr8k-train-0000.tar": 44,
        "toys-tags-0000.tar": 8,
    }
    [first, *_] = found["toys-tags-0000.tar"]
    assert (first.captions, first.tags) == (("a photo of a ball",), ("ball",))
    assert read_vocabulary(tmp_path / "unpacked" / "toys-tags-0000.tar") == ("ball", "crate")
    photo = Image.open(io.BytesIO(first.image))
    assert (photo.format, photo.size) == ("WEBP", (40, 40))

    layouts.camvid(tmp_path / "evaluation" / "camvid")
    out = tmp_path / "out"
    gpu_photos.train(
        packed, out, 0.2, ("photos-trunk-gpu",), (1.0,), evaluation=tmp_path / "evaluation", limit=2, workers=0
    )
    *steps, scores = map(json.loads, (out / "photos-trunk-gpu" / "metrics.jsonl").read_text().splitlines())
    assert set(scores) > {"step", "text_to_image_r10", "camvid5"}
    assert scores["step"] > 2
    assert scores["step"] - 10 < steps[-1]["step"] <= scores["step"], "the clock may end it between two reports"
    [planned] = map(int, re.findall(r"after: (\d+) steps", capsys.readouterr().out))
    schedule = replace(SMALL.schedule, steps=planned, warmup=SMALL.schedule.warmup * planned // SMALL.schedule.steps)
    last = schedule.rate(steps[-1]["step"] - 1)
    assert steps[-1]["lr"] == pytest.approx(last), "the schedule ends with the planned steps"
    joined = tmp_path / "joined"
    joined.mkdir()
    parts = sorted((out / "photos-trunk-gpu").glob("model.safetensors.part-*"))
    (joined / native.WEIGHTS).write_bytes(b"".join(part.read_bytes() for part in parts))
    sums = (out / "photos-trunk-gpu" / "sha256sums.txt").read_text()
    assert hashlib.sha256((joined / native.WEIGHTS).read_bytes()).hexdigest() in sums
    model, config = native.load(joined)
    assert config == replace(SMALL.model, rivals=config.rivals)
    assert "ball" in config.rivals
    kept, given = model.image_encoder.trunk.state_dict(), trunk("").state_dict()
    assert all(torch.equal(kept[name], tensor.half().float()) for name, tensor in given.items())


def test_as_many_steps_are_planned_as_end_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    now, lengths = [100.0], []
    monkeypatch.setattr(gpu_photos.time, "monotonic", lambda: now[0])

    def pretend(job: gpu_photos.Job, run: Run, out: Path, clock: gpu_photos.Clock | None = None) -> None:
        lengths.append(run.schedule.steps)
        now[0] += 7.0
        for step in range(run.schedule.steps):
            now[0] += 1.0 if step == 0 else 0.1  # the first one is slow
            if clock:
                clock(torch.nn.Identity())
        now[0] += 12.0

    monkeypatch.setattr(gpu_photos.Job, "train", pretend)
    job = gpu_photos.Job("photos-trunk-gpu", TRUNK, tmp_path, None, None, 1, 0)
    gpu_photos.within(job, until=400.0, out=tmp_path, scratch=tmp_path)
    assert lengths[0] == 30
    assert 0.94 * 300 < now[0] - 100 < 300


def test_a_training_that_is_late_is_asked_to_stop():
    received: list[int] = []
    with gpu_photos._stopped(at=time.monotonic() + 0.05):
        signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
        time.sleep(0.5)
    assert received == [signal.SIGTERM]


def test_photos_that_cannot_fit_are_refused_and_nothing_is_left(shards: Path, tmp_path: Path):
    with pytest.raises(InputError, match="take a smaller --side"):
        gpu_photos.pack(shards, tmp_path / "none.tar.xz", side=40, limit_mb=0.01)
    assert not list(tmp_path.glob("none*"))


def test_a_file_is_cut_into_parts_that_join_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(gpu_photos, "_PART", 10)
    (tmp_path / "file").write_bytes(bytes(range(25)))
    (tmp_path / "out").mkdir()
    gpu_photos.write_parts(tmp_path / "file", tmp_path / "out")
    parts = sorted((tmp_path / "out").glob("file.part-*"))
    assert [part.stat().st_size for part in parts] == [10, 10, 5]
    assert b"".join(part.read_bytes() for part in parts) == bytes(range(25))


def test_each_run_needs_a_share_of_the_time(tmp_path: Path):
    with pytest.raises(InputError, match="a share of the time"):
        gpu_photos.train(tmp_path, tmp_path, runs=("photos",), shares=(0.6, 0.4))
