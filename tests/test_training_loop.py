import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from groupvit.checkpoints import latest
from groupvit.data import scenes
from groupvit.data.shards import Sample, write_shards
from groupvit.errors import InputError
from groupvit.evaluation.training import evaluation_of
from groupvit.models import ImageEncoderConfig, ModelConfig, Stage, TextEncoderConfig, build_model
from groupvit.training.loop import train
from groupvit.training.runs import RUNS, Run
from groupvit.training.state import save

TINY = ModelConfig(
    image=ImageEncoderConfig(32, 8, 32, 2, stages=(Stage(1, 4, 4),), drop_path=0.1, stem="conv"),
    text=TextEncoderConfig(width=32, heads=2, layers=1, context_length=24),
    embed_dim=16,
    projector_dim=32,
    segment_loss=True,
)
RUN = Run(
    model=TINY,
    train="train/*.tar",
    steps=6,
    batch_size=8,
    warmup=2,
    prompts=2,
    segment_weight=1.0,
    min_count=2,
    evaluate_every=3,
    save_every=3,
)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "scenes"
    scenes.write(folder, train=40, evaluation=4)
    return folder


def weights(out: Path) -> dict[str, bytes]:
    """The tensors' bytes: equal means equal to the bit."""
    folder = latest(out)
    assert folder
    return {name: tensor.numpy().tobytes() for name, tensor in load_file(folder / "model.safetensors").items()}


def metrics(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_a_resumed_training_equals_an_uninterrupted_one_to_the_bit(data, tmp_path):
    train(RUN, data, tmp_path / "whole", workers=0)

    def interrupt(model: torch.nn.Module) -> dict[str, float]:
        os.kill(os.getpid(), signal.SIGINT)
        return {}

    never = replace(RUN, save_every=100)
    stopped = train(never, data, tmp_path / "cut", workers=0, evaluate=interrupt)
    assert stopped.step == 3
    resumed = train(never, data, tmp_path / "cut", workers=1, resume=True)
    assert resumed.step == 6
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")


def test_another_seed_trains_another_model(data, tmp_path):
    run = replace(RUN, steps=1)
    train(run, data, tmp_path / "a", workers=0)
    train(run, data, tmp_path / "b", workers=0, seed=1)
    assert weights(tmp_path / "a") != weights(tmp_path / "b")


def test_masks_do_not_reach_the_training(data, tmp_path):
    """Bit for bit the same model, whether it is scored against masks on the way or the masks do not even exist."""
    evaluate = evaluation_of(TINY, data / "eval")
    train(RUN, data, tmp_path / "watched", workers=0, evaluate=evaluate)
    assert [line for line in metrics(tmp_path / "watched") if "miou" in line]
    shutil.copytree(data / "train", tmp_path / "captions-only" / "train")
    train(RUN, tmp_path / "captions-only", tmp_path / "plain", workers=0)
    assert weights(tmp_path / "watched") == weights(tmp_path / "plain")


def test_a_damaged_training_is_one_line_that_names_the_file(data, tmp_path):
    run = replace(RUN, steps=1)
    train(run, data, tmp_path, workers=0)
    state = tmp_path / "step-00000001" / "training.pt"
    whole = state.read_bytes()
    for damage in (b"", b"nonsense", whole[: len(whole) // 2]):
        state.write_bytes(damage)
        with pytest.raises(InputError, match=r"training.pt is damaged"):
            train(run, data, tmp_path, workers=0, resume=True)
    (tmp_path / "latest").write_text("step-00000099")
    with pytest.raises(InputError, match=r"latest names no checkpoint"):
        train(run, data, tmp_path, workers=0, resume=True)


def test_half_a_line_in_the_curve_does_not_hinder_resuming(data, tmp_path):
    train(replace(RUN, steps=2), data, tmp_path, workers=0)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('\n{"step": 2, "lo')
    train(replace(RUN, steps=2), data, tmp_path, workers=0, resume=True)
    assert [line["step"] for line in metrics(tmp_path)] == [2]


def test_the_curve_holds_every_term_and_no_step_twice(data, tmp_path):
    train(replace(RUN, save_every=2), data, tmp_path / "run", workers=0, evaluate=lambda model: {"score": 1.0})
    (tmp_path / "run" / "latest").write_text("step-00000004")
    train(
        replace(RUN, save_every=2),
        data,
        tmp_path / "run",
        workers=0,
        resume=True,
        evaluate=lambda model: {"score": 2.0},
    )
    lines = metrics(tmp_path / "run")
    assert [line["score"] for line in lines if "score" in line] == [1.0, 2.0]
    last = lines[-2]
    assert last["step"] == 6
    assert last["loss"] == pytest.approx(last["caption"] + last["multi_label"] + last["segment_nouns"], rel=1e-5)


def test_a_handful_of_scenes_is_learnt_by_heart(tmp_path):
    scenes.write(tmp_path / "data", train=8, evaluation=1)
    run = replace(RUN, steps=60, warmup=5, lr=3e-3, min_count=1, crop=(1.0, 1.0), prompts=0, caption_weight=1.0)
    train(run, tmp_path / "data", tmp_path / "run", workers=0)
    curve = [line["caption"] for line in metrics(tmp_path / "run")]
    assert min(curve[-2:]) < 0.5  # guessing among eight costs log(8) = 2.1


def test_only_the_newest_two_checkpoints_are_kept(data, tmp_path):
    train(replace(RUN, save_every=1), data, tmp_path / "run", workers=0)
    assert sorted(path.name for path in (tmp_path / "run").glob("step-*")) == ["step-00000005", "step-00000006"]


def test_a_full_disk_leaves_the_old_checkpoint_intact(data, tmp_path, monkeypatch):
    state = train(replace(RUN, steps=3), data, tmp_path, workers=0)
    before = weights(tmp_path)

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(InputError, match=r"cannot save.*No space left.*step-00000003"):
        save(tmp_path, state.advance())
    assert weights(tmp_path) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "metrics.jsonl", "step-00000003"]


def test_resuming_with_other_settings_names_them(data, tmp_path):
    train(replace(RUN, steps=1), data, tmp_path / "run", workers=0)
    with pytest.raises(InputError, match=r"another lr"):
        train(replace(RUN, steps=1, lr=2e-3), data, tmp_path / "run", workers=0, resume=True)
    with pytest.raises(InputError, match=r"another seed"):
        train(replace(RUN, steps=1), data, tmp_path / "run", workers=0, seed=5, resume=True)


def test_a_folder_with_a_training_is_not_overwritten_and_an_empty_one_not_resumed(data, tmp_path):
    train(replace(RUN, steps=1), data, tmp_path / "run", workers=0)
    with pytest.raises(InputError, match="--resume"):
        train(replace(RUN, steps=1), data, tmp_path / "run", workers=0)
    with pytest.raises(InputError, match="no checkpoint"):
        train(replace(RUN, steps=1), data, tmp_path / "empty", workers=0, resume=True)


def test_the_vocabulary_needs_enough_photos(data, tmp_path):
    with pytest.raises(InputError, match="no noun"):
        train(replace(RUN, min_count=1000), data, tmp_path / "run", workers=0)


def test_a_broken_photo_in_a_worker_is_one_clear_line(tmp_path):
    samples = [Sample(f"{i:03d}", b"\xff\xd8\xff not a jpeg", ("a dog",)) for i in range(10)]
    write_shards(samples, tmp_path / "train", prefix="bad")
    with pytest.raises(InputError) as error:
        train(replace(RUN, segment_weight=0.0), tmp_path, tmp_path / "run", workers=1)
    assert "\n" not in str(error.value)
    assert re.search(r"bad-0000.tar: 00\d: not an image", str(error.value))


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_every_run_builds_on_the_meta_device(run):
    with torch.device("meta"):
        build_model(run.model)
    assert 0 <= run.warmup < run.steps


def test_a_gradient_that_is_not_finite_stops_the_training_and_keeps_the_checkpoint(data, tmp_path, monkeypatch):
    norm, calls = torch.nn.utils.clip_grad_norm_, []

    def break_at_the_fourth(*given: Any) -> torch.Tensor:
        calls.append(1)
        return norm(*given) * (torch.nan if len(calls) > 3 else 1)

    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.utils, "clip_grad_norm_", break_at_the_fourth)
        with pytest.raises(InputError, match="not finite at step 3"):
            train(RUN, data, tmp_path, workers=0)
    assert latest(tmp_path) == tmp_path / "step-00000003"
    train(RUN, data, tmp_path / "whole", workers=0)
    train(RUN, data, tmp_path, workers=0, resume=True)
    assert weights(tmp_path) == weights(tmp_path / "whole")


def test_sigterm_to_the_whole_process_group_saves_and_says_how_to_go_on(data, tmp_path):
    command = [sys.executable, "-m", "groupvit", "train", "debug", "--data", str(data), "--steps", "5000"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True, start_new_session=True)
    curve = tmp_path / "runs" / "debug" / "metrics.jsonl"
    while not (curve.exists() and curve.read_text()):
        assert process.poll() is None
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGTERM)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    assert "--steps 5000" in out
    assert out.endswith("--resume\n")
    folder = latest(tmp_path / "runs" / "debug")
    assert folder
    assert (folder / "training.pt").is_file()
