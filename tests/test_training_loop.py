import io
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from experiments import kills
from PIL import Image
from safetensors.torch import load_file

from groupvit.checkpoints import latest, load
from groupvit.data import scenes, storage
from groupvit.data.batches import Batches
from groupvit.data.index import CaptionedPhotos
from groupvit.data.shards import Sample, find_shards, read_shard, write_shards
from groupvit.errors import InputError
from groupvit.evaluation.emergence import evaluation_of
from groupvit.models import Stage, build_model, with_stages
from groupvit.models.layers import resampled
from groupvit.text.tokenizer import Tokenizer
from groupvit.training import loop
from groupvit.training.loader import make_vocabulary
from groupvit.training.loop import train
from groupvit.training.objective import Captions, MultiLabel, Nouns
from groupvit.training.optim import Schedule
from groupvit.training.run import Data, Run, vary
from groupvit.training.state import differences, locked, save

TINY = kills.RUN.model
SEGMENTS = Nouns("segment", 1.0)
PROMPTS = MultiLabel(prompts=2)
RUN = Run(
    model=TINY,
    data=Data("train/*.tar", batch_size=8, min_count=2),
    objective=(Captions(), PROMPTS, SEGMENTS),
    schedule=Schedule(steps=6, warmup=2, evaluate_every=3, save_every=3),
)
NO_NOUNS = (Captions(), PROMPTS)


_file = io.BytesIO()
Image.new("RGB", (40, 30), (200, 90, 30)).save(_file, "JPEG")
PICTURE = _file.getvalue()


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
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGTERM):  # of schedulers, which send more than one
            os.kill(os.getpid(), number)
        return {}

    never = vary(RUN, save_every=100)
    stopped = train(never, data, tmp_path / "cut", workers=0, evaluate=interrupt)
    assert stopped.step == 3
    resumed = train(never, data, tmp_path / "cut", workers=1, resume=True)
    assert resumed.step == 6
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")


def test_a_training_whose_newest_checkpoint_was_moved_away_is_saved(data, tmp_path):
    train(RUN, data, tmp_path / "whole", workers=0)

    def move(model: torch.nn.Module, step: int) -> None:
        if step == 5:
            (tmp_path / "run/step-00000004").rename(tmp_path / "elsewhere")
            os.kill(os.getpid(), signal.SIGINT)

    assert train(vary(RUN, save_every=4), data, tmp_path / "run", workers=0, draw=move).step == 5
    assert train(RUN, data, tmp_path / "run", workers=0, resume=True).step == 6
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")


def test_a_device_without_kernels_is_refused_before_anything_is_written(data, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nCompile with")

    monkeypatch.setattr(torch, "ones", refuse)
    with pytest.raises(InputError, match=r"on the device cpu: CUDA error: no kernel image .* device; with"):
        train(RUN, data, tmp_path / "run", workers=0, device=torch.device("cpu"))
    assert not (tmp_path / "run").exists()


def test_a_second_ctrl_c_interrupts_at_once():
    with loop.stop_requests() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop == [signal.SIGINT]
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_readers_that_the_signal_to_stop_reaches_too_are_no_fault(data, tmp_path, monkeypatch):
    make = loop.batches_from

    def stopped(*given: Any) -> Any:
        yield next(make(*given))
        os.kill(os.getpid(), signal.SIGTERM)
        raise InputError("a process that reads data was killed")

    with monkeypatch.context() as patch:
        patch.setattr(loop, "batches_from", stopped)
        assert train(RUN, data, tmp_path / "cut", workers=0).step == 1
    train(RUN, data, tmp_path / "cut", workers=0, resume=True)
    train(RUN, data, tmp_path / "whole", workers=0)
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")


def test_the_folder_of_a_transfer_is_no_place_for_a_training(data, tmp_path):
    (tmp_path / "transfer.pt").touch()
    with pytest.raises(InputError, match="holds a transfer; name another --out"):
        train(RUN, data, tmp_path, workers=0)


def test_another_seed_trains_another_model(data, tmp_path):
    run = vary(RUN, steps=1)
    train(run, data, tmp_path / "a", workers=0)
    train(run, data, tmp_path / "b", workers=0, seed=1)
    assert weights(tmp_path / "a") != weights(tmp_path / "b")


def test_masks_do_not_reach_the_training(data, tmp_path):
    """Bit for bit the same model, whether it is scored against masks on the way or the masks do not even exist."""
    evaluate = evaluation_of(TINY, data, "eval")
    train(RUN, data, tmp_path / "watched", workers=0, evaluate=evaluate)
    assert [line for line in metrics(tmp_path / "watched") if "miou" in line]
    shutil.copytree(data / "train", tmp_path / "captions-only" / "train")
    train(RUN, tmp_path / "captions-only", tmp_path / "plain", workers=0)
    assert weights(tmp_path / "watched") == weights(tmp_path / "plain")


def test_a_thread_trains_into_a_folder_by_its_name_and_scores_are_any_numbers(data, tmp_path):
    """As a server does, with paths as text, and a score of NumPy's or torch's."""
    scores = iter([np.float32(0.25), torch.tensor(0.5)])
    run = vary(RUN, steps=2, evaluate_every=1)
    with ThreadPoolExecutor(1) as threads:
        given = {"evaluate": lambda _: {"score": next(scores)}, "cache": str(tmp_path / "cache")}
        state = threads.submit(lambda: train(run, str(data), str(tmp_path / "run"), **given)).result()
    assert state.step == 2
    assert [line["score"] for line in metrics(tmp_path / "run") if "score" in line] == [0.25, 0.5]
    begun = train(vary(RUN, steps=1), data, tmp_path / "again", workers=0, init=str(tmp_path / "run"))
    assert begun.step == 1


def test_a_batch_has_no_photo_twice(data, tmp_path):
    with pytest.raises(InputError, match=r"a batch of 41 photos, of which there are 40: make it smaller"):
        train(vary(RUN, batch_size=41), data, tmp_path / "run", workers=0)
    assert not (tmp_path / "run").exists()


def test_photos_to_train_on_are_not_scored(data, tmp_path):
    run = vary(RUN, held_out="tr*/scenes-*.tar")
    with pytest.raises(InputError, match=r"scenes-0000.tar is among --train and among --held-out: score other photos"):
        train(run, data, tmp_path / "run", workers=0, evaluate=lambda _: {"score": 1.0})
    assert not (tmp_path / "run").exists()


def test_a_model_without_groups_has_no_score_of_its_groups(data):
    config = with_stages(TINY, Stage(1))
    assert evaluation_of(config, data, "eval")(build_model(config).eval()).keys() == {"miou"}


def test_a_damaged_training_is_one_line_that_names_the_file(data, tmp_path):
    run = vary(RUN, steps=1)
    train(run, data, tmp_path, workers=0)
    state = tmp_path / "step-00000001" / "training.pt"
    whole = state.read_bytes()
    for damage in (b"", b"nonsense", whole[: len(whole) // 2]):
        state.write_bytes(damage)
        with pytest.raises(InputError, match=r"training.pt is damaged"):
            train(run, data, tmp_path, workers=0, resume=True)
    document = torch.load(io.BytesIO(whole), weights_only=True)
    for other in ({"optimizer": {}}, {"extras": {"a": 1}}, {"identity": {**document["identity"], "nouns": None}}):
        torch.save(document | other, state)
        with pytest.raises(InputError, match=r"training.pt is damaged|nouns"):
            train(run, data, tmp_path, workers=0, resume=True)
    for gone in ("optimizer", "extras", "unscored", "held_out"):
        torch.save({key: value for key, value in document.items() if key != gone}, state)
        said = f"training.pt is damaged or missing: '{gone}'; resume from another step"
        with pytest.raises(InputError, match=said):
            train(run, data, tmp_path, workers=0, resume=True)
    (tmp_path / "latest").write_text("step-00000099")
    with pytest.raises(InputError, match=r"latest names no checkpoint"):
        train(run, data, tmp_path, workers=0, resume=True)


def test_captions_alone_learn_nothing_from_tags(data, tmp_path):
    tagged = [replace(sample, tags=("sky",)) for shard in find_shards(data / "train") for sample in read_shard(shard)]
    write_shards(tagged, tmp_path, prefix="train")
    (tmp_path / "train-vocabulary.txt").write_text("sky\n")
    run = vary(RUN, train="*.tar", objective=(Captions(),))
    with pytest.raises(InputError, match=r"\*.tar: all photos have tags, and this run learns from captions alone"):
        train(run, tmp_path, tmp_path / "run", workers=0)
    assert not (tmp_path / "run").exists()


def test_captions_and_tags_train_together(data, tmp_path):
    """Half of the photos have captions, and half tags of a source that knows two things and neither ball nor colour."""
    samples = list(read_shard(*find_shards(data / "train")))
    made_up, tags = ("a photo of a sky",), ("sky", "hot dog")
    tagged = [replace(sample, key=f"{sample.key}t", captions=made_up, tags=tags) for sample in samples]
    write_shards([sample for pair in zip(samples, tagged, strict=True) for sample in pair], tmp_path, prefix="train")
    run = vary(RUN, train="*.tar", objective=(Captions(), PROMPTS, Nouns("segment", 1.0, prior=1.0)), steps=10)
    with pytest.raises(InputError, match=r"train-vocabulary.txt does not exist; .*train-0000.tar has tags"):
        train(run, tmp_path, tmp_path / "run", workers=0)
    (tmp_path / "train-vocabulary.txt").write_text("sky\nhot dog\n")
    state = train(run, tmp_path, tmp_path / "run", workers=0)
    assert {"sky", "hot dog", "ball"} <= set(state.nouns)
    (line,) = metrics(tmp_path / "run")
    assert min(line[name] for name in ("caption", "multi_label", "segment_nouns")) > 0
    assert line["distinct_captions"] == 1


def test_photos_whose_source_could_not_say_a_noun_do_not_make_it_rare(data, tmp_path):
    captions = find_shards(data / "train")
    tagged = [replace(sample, tags=("sky",)) for sample in read_shard(*captions)]
    (tmp_path / "t-vocabulary.txt").write_text("sky")
    tags, tokenizer = write_shards(tagged, tmp_path, prefix="t"), Tokenizer(16)
    alone, both = (
        make_vocabulary(RUN.data, RUN.objective, CaptionedPhotos.open(shards), tokenizer)
        for shards in (captions, captions + tags)
    )
    assert (both.nouns[0], set(both.nouns)) == ("sky", {"sky", *alone.nouns})
    own, again = (words.nouns.index("ball") for words in (alone, both))
    assert both.log_odds[again] == alone.log_odds[own]
    rates = both.log_odds.sigmoid().rsqrt()
    torch.testing.assert_close(both.weights, rates / rates.mean(), rtol=1e-3, atol=0)


def test_half_a_line_in_the_curve_does_not_hinder_resuming(data, tmp_path):
    train(vary(RUN, steps=2), data, tmp_path, workers=0)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('\n{"step": 2, "lo')
    train(vary(RUN, steps=2), data, tmp_path, workers=0, resume=True)
    assert [line["step"] for line in metrics(tmp_path)] == [2]


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("CUDA out of memory. Tried to allocate 2 GiB.")])
def test_a_lack_of_memory_is_one_line_that_says_how_to_go_on(data, tmp_path, monkeypatch, error):
    monkeypatch.setattr(loop, "step", Mock(side_effect=error))
    with pytest.raises(InputError, match="out of memory: encode fewer photos at a time with --chunk"):
        train(RUN, data, tmp_path, workers=0)


def test_the_curve_holds_every_term_and_no_step_twice(data, tmp_path):
    train(vary(RUN, save_every=2), data, tmp_path / "run", workers=0, evaluate=lambda model: {"score": 1.0})
    (tmp_path / "run" / "latest").write_text("step-00000004")
    train(
        vary(RUN, save_every=2),
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
    run = vary(RUN, steps=60, warmup=5, lr=3e-3, min_count=1, crop=(1.0, 1.0), objective=(Captions(), SEGMENTS))
    train(run, tmp_path / "data", tmp_path / "run", workers=0)
    curve = [line["caption"] for line in metrics(tmp_path / "run")]
    assert min(curve[-2:]) < 0.5  # guessing among eight costs log(8) = 2.1


@pytest.mark.parametrize("changes", [{"ema": 0.9}, {"augment": "color"}, {"augment": "randaugment"}, {"muon": 4.0}])
def test_every_option_resumes_to_the_bit_with_another_number_of_workers(data, tmp_path, changes):
    run = vary(RUN, save_every=2, steps=4, **changes)
    train(run, data, tmp_path / "whole", workers=2)
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "step-00000004")
    (tmp_path / "cut" / "latest").write_text("step-00000002")
    train(run, data, tmp_path / "cut", workers=0, resume=True)
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")


def test_options_change_what_is_learnt(data, tmp_path):
    found = []
    for number, changes in enumerate([{}, {"ema": 0.9}, {"augment": "color"}, {"augment": "randaugment"}]):
        train(vary(RUN, steps=2, **changes), data, tmp_path / str(number), workers=0)
        found.append(weights(tmp_path / str(number))["text_encoder.token_embedding.weight"])
    assert len(set(found)) == 4


def test_the_average_follows_the_weights_and_copies_the_buffers(data, tmp_path):
    state = train(vary(RUN, steps=3, ema=0.5), data, tmp_path / "run", workers=0)
    assert state.average is not None
    shipped = load_file(latest(tmp_path / "run") / "model.safetensors")
    buffers = dict(state.model.named_buffers())
    assert buffers
    assert all(torch.equal(shipped[name], value) for name, value in buffers.items())
    raw = dict(state.model.named_parameters())
    assert not torch.equal(shipped["text_encoder.token_embedding.weight"], raw["text_encoder.token_embedding.weight"])


def test_the_best_checkpoint_is_kept_and_pointed_at(data, tmp_path):
    scores = iter([0.1, 0.9, 0.3, 0.4, 0.9, 0.2])

    def evaluate(model: torch.nn.Module) -> dict[str, float]:
        return {"score": next(scores), "other": 5.0}

    train(vary(RUN, evaluate_every=1, save_every=100), data, tmp_path / "run", workers=0, keep=1, evaluate=evaluate)
    assert (tmp_path / "run" / "best").read_text() == "step-00000002"
    assert sorted(path.name for path in (tmp_path / "run").glob("step-*")) == ["step-00000002", "step-00000006"]


def test_a_folder_in_which_another_training_runs_is_left_alone(data, tmp_path):
    with locked(tmp_path / "run"), pytest.raises(InputError, match=r"another training is writing to .*run"):
        train(RUN, data, tmp_path / "run", workers=0)
    assert latest(tmp_path / "run") is None


def test_only_the_newest_two_checkpoints_are_kept(data, tmp_path):
    train(vary(RUN, save_every=1), data, tmp_path / "run", workers=0)
    assert sorted(path.name for path in (tmp_path / "run").glob("step-*")) == ["step-00000005", "step-00000006"]


def test_a_full_disk_leaves_the_old_checkpoint_intact(data, tmp_path, monkeypatch):
    state = train(vary(RUN, steps=3), data, tmp_path, workers=0)
    before = weights(tmp_path)

    def full(document: object, file: object) -> None:
        write(document, Full(file))

    class Full:
        def __init__(self, file: Any):
            self.file, self.flush, self.fileno = file, file.flush, file.fileno

        def write(self, data: bytes) -> int:
            if self.file.tell() + len(data) > 2000:
                raise OSError(28, "No space left on device")
            return self.file.write(data)

    write = torch.save
    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(InputError, match=r"cannot save.*No space left.*step-00000003"):
        save(tmp_path, state.advance())
    assert weights(tmp_path) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "lock", "metrics.jsonl", "step-00000003"]


def test_resuming_with_other_settings_names_them(data, tmp_path):
    run = vary(RUN, steps=1)
    train(run, data, tmp_path / "run", workers=0)
    deeper = replace(TINY, image=replace(TINY.image, dim=64))
    other = vary(run, lr=2e-3, crop=(0.5, 1.0), model=deeper, evaluate_every=7, held_out="elsewhere")
    with pytest.raises(InputError) as error:
        train(other, data, tmp_path / "run", workers=0, seed=5, resume=True)
    for named in (
        "model.image.dim was 32 and is 64",
        "schedule.lr was 0.001 and is 0.002",
        "data.crop was",
        "seed was 0 and is 5",
    ):
        assert named in str(error.value)
    assert "held_out" not in str(error.value)
    assert "evaluate_every" not in str(error.value)
    assert train(vary(run, evaluate_every=7), data, tmp_path / "run", workers=0, resume=True).step == 1


def test_a_finished_training_goes_on_for_more_steps_at_their_rates_and_no_other_one_does(data, tmp_path):
    run, longer = (vary(RUN, steps=steps, save_every=1, objective=(Captions(),)) for steps in (2, 4))
    train(run, data, tmp_path, workers=0)
    with pytest.raises(InputError, match=r"schedule.steps was 2 and is 1; resume with the same"):
        train(vary(run, steps=1), data, tmp_path, workers=0, resume=True)
    state = train(longer, data, tmp_path, workers=0, resume=True)
    assert state.step == 4
    lines = [(line["step"], line["lr"]) for line in metrics(tmp_path)]
    assert lines == [(2, run.schedule.rate(1)), (4, longer.schedule.rate(3))]
    (tmp_path / "latest").write_text("step-00000003")  # not finished any more
    for steps in (3, 5):
        with pytest.raises(InputError, match=rf"schedule.steps was 4 and is {steps}; resume with the same"):
            train(vary(run, steps=steps), data, tmp_path, workers=0, resume=True)


def test_a_training_saved_before_a_setting_came_had_its_default(data, tmp_path):
    run = vary(RUN, steps=1, objective=(Captions(),))
    train(run, data, tmp_path, workers=0)
    file = tmp_path / "step-00000001" / "training.pt"
    saved = torch.load(file, weights_only=True)
    del saved["identity"]["optimizer"]["ema"]
    torch.save(saved, file)
    with pytest.raises(InputError, match=r"optimizer.muon was 0.0 and is 2.0; resume"):
        train(vary(run, muon=2.0), data, tmp_path, workers=0, resume=True)
    assert train(run, data, tmp_path, workers=0, resume=True).step == 1


def test_data_that_moved_are_the_same_data(data, tmp_path):
    run = vary(RUN, train="{a,b}/*.tar", objective=NO_NOUNS)
    for name in ("a", "b"):
        shutil.copytree(data / "train", tmp_path / "here" / name)
    train(vary(run, steps=1), tmp_path / "here", tmp_path / "run", workers=0)
    (tmp_path / "here").rename(tmp_path / "there")
    train(vary(run, steps=1), tmp_path / "there", tmp_path / "run", workers=0, resume=True)
    (tmp_path / "there" / "b").rename(tmp_path / "there" / "c")
    with pytest.raises(InputError, match=r"shards.b/scenes-0000.tar was 40 photos with hash \w+ and is None"):
        train(vary(run, steps=1, train="{a,c}/*.tar"), tmp_path / "there", tmp_path / "run", workers=0, resume=True)


def test_resuming_with_other_data_names_the_shard(data, tmp_path):
    run = vary(RUN, steps=1, objective=NO_NOUNS)
    shutil.copytree(data, tmp_path / "data")
    train(run, tmp_path / "data", tmp_path / "run", workers=0)
    (tmp_path / "data/train/scenes-0000.tar").unlink()
    others = [Sample(str(number), PICTURE, ("a dog",)) for number in range(9)]
    write_shards(others, tmp_path / "data" / "train", prefix="scenes")
    with pytest.raises(InputError, match=r"shards.scenes-0000.tar was 40 photos with hash \w+ and is 9 photos"):
        train(run, tmp_path / "data", tmp_path / "run", workers=0, resume=True)


def test_a_folder_with_a_training_is_not_overwritten_and_an_empty_one_not_resumed(data, tmp_path):
    train(vary(RUN, steps=1), data, tmp_path / "run", workers=0)
    with pytest.raises(InputError, match="--resume"):
        train(vary(RUN, steps=1), data, tmp_path / "run", workers=0)
    with pytest.raises(InputError, match="no checkpoint"):
        train(vary(RUN, steps=1), data, tmp_path / "empty", workers=0, resume=True)
    (tmp_path / "run" / "latest").unlink()  # as copying the checkpoints alone does
    with pytest.raises(InputError, match="step-00000001; add --resume"):
        train(vary(RUN, steps=1), data, tmp_path / "run", workers=0)
    assert train(vary(RUN, steps=2), data, tmp_path / "run", workers=0, resume=True).step == 2


def test_the_vocabulary_needs_enough_photos(data, tmp_path):
    with pytest.raises(InputError, match="no noun"):
        train(vary(RUN, min_count=1000), data, tmp_path / "run", workers=0)


def test_photos_of_which_none_can_be_read_are_one_clear_line(tmp_path):
    samples = [Sample(f"{i:03d}", b"\xff\xd8\xff not a jpeg", ("a dog",)) for i in range(10)]
    write_shards(samples, tmp_path / "train", prefix="bad")
    with pytest.raises(InputError) as error:
        train(vary(RUN, objective=NO_NOUNS), tmp_path, tmp_path / "run", workers=1)
    assert re.search(r"bad-0000.tar: 00\d: not an image", str(error.value))


def test_a_photo_that_cannot_be_read_is_counted_named_and_replaced(data, tmp_path, capsys):
    (shard,) = (data / "train").glob("*.tar")
    broken = [replace(s, image=s.image[:100]) if s.key == "00000007" else s for s in read_shard(shard)]
    write_shards(broken, tmp_path / "data" / "train", prefix="t")
    train(RUN, tmp_path / "data", tmp_path / "run", workers=0)  # 48 photos of 40
    assert metrics(tmp_path / "run")[-1]["unreadable"] in (1, 2)
    assert re.search(r"left out, its neighbour stands in: .*t-0000.tar: 00000007", capsys.readouterr().err)


def test_a_worker_that_is_killed_is_one_line_and_loses_nothing(data, tmp_path, monkeypatch):
    def kill(model: torch.nn.Module) -> dict[str, float]:
        for child in multiprocessing.active_children():
            os.kill(child.pid or 0, signal.SIGKILL)
        return {}

    run = vary(RUN, steps=100, evaluate_every=5, save_every=100)
    with pytest.raises(InputError, match="a process that reads data was killed"):
        train(run, data, tmp_path / "run", workers=1, evaluate=kill)
    folder = latest(tmp_path / "run")
    assert folder
    assert folder.name >= "step-00000005"


def test_data_that_vanish_during_a_training_lose_nothing(data, tmp_path):
    shutil.copytree(data / "train", tmp_path / "data" / "train")
    write_shards([Sample(f"{i}", PICTURE, ("a dog",)) for i in range(2)], tmp_path / "data" / "train", prefix="late")

    def vanish(model: torch.nn.Module) -> dict[str, float]:
        for shard in (tmp_path / "data" / "train").iterdir():
            shard.rename(shard.with_suffix(".gone"))
        storage._opened.cache_clear()
        return {}

    run = vary(RUN, steps=20, evaluate_every=2, save_every=100, objective=NO_NOUNS)
    with pytest.raises(InputError, match=r"tar does not exist"):
        train(run, tmp_path / "data", tmp_path / "run", workers=0, evaluate=vanish)
    assert latest(tmp_path / "run") == tmp_path / "run" / "step-00000002"
    for shard in (tmp_path / "data" / "train").iterdir():
        shard.rename(shard.with_suffix(".tar"))
    assert train(run, tmp_path / "data", tmp_path / "run", workers=0, resume=True).step == 20


def spoil(monkeypatch: pytest.MonkeyPatch, steps: range) -> None:
    """Let the gradients of some steps be infinite."""
    norm, calls = torch.nn.utils.clip_grad_norm_, []

    def clip(parameters: Any, limit: float) -> torch.Tensor:
        calls.append(1)
        return norm(parameters, limit) * (torch.nan if len(calls) - 1 in steps else 1)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", clip)


def test_a_step_without_a_finite_gradient_changes_nothing_and_is_counted(data, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        spoil(patch, range(2, 3))
        spoilt = train(vary(RUN, steps=3), data, tmp_path / "a", workers=0)
    whole = train(vary(RUN, steps=3, save_every=1), data, tmp_path / "b", workers=0)
    assert spoilt.step == whole.step == 3
    before = load_file(tmp_path / "b" / "step-00000002" / "model.safetensors")
    assert all(torch.equal(value, before[name]) for name, value in spoilt.model.state_dict().items())
    assert metrics(tmp_path / "a")[-1]["skipped"] == 1


def test_gradients_that_stay_infinite_end_the_training_with_the_last_checkpoint(data, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        spoil(patch, range(4, 100))
        with pytest.raises(InputError, match=r"no finite gradient in 10 steps up to 13; the last .*step-00000012"):
            train(vary(RUN, steps=100, save_every=6), data, tmp_path, workers=0)


def test_without_a_checkpoint_the_last_one_is_not_called_none(data, tmp_path, monkeypatch):
    spoil(monkeypatch, range(100))
    with pytest.raises(InputError, match=r"no finite gradient in 10 steps up to 9; there is no checkpoint yet"):
        train(vary(RUN, steps=100, save_every=100), data, tmp_path, workers=0)


def test_counts_of_the_metrics_go_on_after_a_resume(data, tmp_path, monkeypatch):
    run = vary(RUN, steps=12, save_every=10)
    with monkeypatch.context() as patch:
        spoil(patch, range(2, 4))
        train(run, data, tmp_path, workers=0)
    (tmp_path / "latest").write_text("step-00000010")
    train(run, data, tmp_path, workers=0, resume=True)
    assert [line["skipped"] for line in metrics(tmp_path)] == [2, 2]


def test_an_evaluation_that_fails_loses_no_step(data, tmp_path):
    def evaluate(_: object) -> dict[str, float]:
        raise InputError("no photos any more")

    with pytest.raises(InputError, match="no photos any more"):
        train(RUN, data, tmp_path, workers=0, evaluate=evaluate)
    assert (tmp_path / "latest").read_text() == "step-00000003"


def test_a_process_that_is_killed_while_it_evaluates_loses_no_step(data, tmp_path):
    run, seen = vary(RUN, steps=3, save_every=100), []

    def killed(_: object) -> dict[str, float]:
        seen.append((tmp_path / "latest").read_text())
        raise KeyboardInterrupt  # which nothing catches, as nothing catches a kill

    with pytest.raises(KeyboardInterrupt):
        train(run, data, tmp_path, workers=0, evaluate=killed)
    assert seen == ["step-00000003"]
    before = (tmp_path / "step-00000003" / "model.safetensors").stat().st_mtime_ns
    train(run, data, tmp_path, workers=0, evaluate=lambda _: {"score": 0.5}, resume=True)
    assert (tmp_path / "best").read_text() == "step-00000003"
    assert (tmp_path / "step-00000003" / "model.safetensors").stat().st_mtime_ns == before
    assert not list(tmp_path.rglob("*.partial"))


def test_a_picture_that_fails_leaves_no_evaluation_out(data, tmp_path):
    def draw(_: object, step: int) -> None:
        if step == 3:
            raise InputError("no picture")

    with pytest.raises(InputError, match="no picture"):
        train(RUN, data, tmp_path, workers=0, evaluate=lambda _: {"score": 0.5}, draw=draw)
    assert (tmp_path / "best").read_text() == "step-00000003"


def test_an_evaluation_that_failed_is_made_up_for(data, tmp_path):
    answers: Any = iter([{"score": 0.1}, InputError("a mask is gone"), InputError("still"), {"score": 0.3}])

    def evaluate(_: object) -> dict[str, float]:
        if isinstance(answer := next(answers), InputError):
            raise answer
        return answer

    run = vary(RUN, steps=4, evaluate_every=2)
    for message in ("a mask is gone", "still"):
        with pytest.raises(InputError, match=message):
            train(run, data, tmp_path, workers=0, evaluate=evaluate, resume=message == "still")
        assert (tmp_path / "best").read_text() == "step-00000002"
    for _ in range(2):  # once
        train(run, data, tmp_path, workers=0, evaluate=evaluate, resume=True)
        assert (tmp_path / "best").read_text() == "step-00000004"
    assert [line["score"] for line in metrics(tmp_path) if "score" in line] == [0.1, 0.3]


def test_a_first_ctrl_c_says_what_a_second_one_does_and_a_closed_terminal_stops(capfd: Any) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup may have had it ignored
    try:
        with loop.stop_requests() as received:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert received == [signal.SIGINT, signal.SIGHUP]
    assert "stops after this step; Ctrl-C again: at once" in capfd.readouterr().err


def test_labels_that_training_cannot_be_measured_with_are_said_at_once(data, tmp_path):
    shutil.copytree(data / "eval", tmp_path / "eval")
    names = (tmp_path / "eval" / "classes.txt").read_text().splitlines()
    (tmp_path / "eval" / "classes.txt").write_text("\n".join(["background", *names[1:]]))
    with pytest.raises(InputError, match=r"eval: .*background"):
        evaluation_of(TINY, tmp_path, "eval")


def test_a_training_that_came_while_the_data_were_indexed_is_not_erased(data, tmp_path, monkeypatch):
    indexed = loop.open_photos

    def meanwhile(*given: Any) -> Any:
        monkeypatch.setattr(loop, "open_photos", indexed)
        train(vary(RUN, steps=3), data, tmp_path / "run", workers=0)
        return indexed(*given)

    monkeypatch.setattr(loop, "open_photos", meanwhile)
    with pytest.raises(InputError, match="--resume"):
        train(RUN, data, tmp_path / "run", workers=0)
    assert latest(tmp_path / "run") == tmp_path / "run" / "step-00000003"
    assert metrics(tmp_path / "run")


def test_only_checkpoints_are_dropped_and_none_that_cannot_be_ends_the_training(data, tmp_path, monkeypatch):
    (tmp_path / "step-00000001-my-copy").mkdir()
    (tmp_path / "step-notes.txt").write_text("keep")
    remove = shutil.rmtree

    def busy(path: Path, ignore_errors: bool = False) -> None:
        if path.name == "step-00000002" and not ignore_errors:
            raise OSError(39, "Directory not empty")
        remove(path, ignore_errors)

    monkeypatch.setattr(shutil, "rmtree", busy)
    train(vary(RUN, save_every=1), data, tmp_path, workers=0)
    assert (tmp_path / "step-00000001-my-copy").is_dir()
    assert (tmp_path / "step-notes.txt").read_text() == "keep"


def test_after_a_step_back_the_best_checkpoint_is_one_that_is_there(data, tmp_path):
    run = vary(RUN, steps=4, evaluate_every=1, save_every=1)
    scores = iter([0.1, 0.5, 0.4, 0.9])
    train(run, data, tmp_path, workers=0, keep=4, evaluate=lambda model: {"score": next(scores)})
    assert (tmp_path / "best").read_text() == "step-00000004"
    shutil.rmtree(tmp_path / "step-00000002")
    (tmp_path / "latest").write_text("step-00000003")
    train(run, data, tmp_path, workers=0, keep=4, resume=True, evaluate=lambda model: {"score": 0.2})
    assert (tmp_path / "best").read_text() == "step-00000004"
    assert torch.load(tmp_path / "step-00000004" / "training.pt", weights_only=True)["best_score"] == 0.2


def test_scores_of_other_photos_are_not_compared_with_the_best(data, tmp_path):
    run, scores = vary(RUN, evaluate_every=2), iter((40.0, 30.0, 1.0))
    train(vary(run, steps=4), data, tmp_path, workers=0, evaluate=lambda _: {"score": next(scores)})
    assert (tmp_path / "best").read_text() == "step-00000002"
    longer = vary(run, steps=6, held_out="others")
    train(longer, data, tmp_path, workers=0, resume=True, evaluate=lambda _: {"score": next(scores)})
    assert (tmp_path / "best").read_text() == "step-00000006"


def test_after_a_step_back_behind_all_evaluations_none_is_best(data, tmp_path):
    run = vary(RUN, steps=4, evaluate_every=4, save_every=2)
    train(run, data, tmp_path, workers=0, evaluate=lambda model: {"score": 0.5})
    assert (tmp_path / "best").read_text() == "step-00000004"
    (tmp_path / "latest").write_text("step-00000002")
    train(run, data, tmp_path, workers=0, resume=True)
    assert not (tmp_path / "best").exists()


@pytest.mark.parametrize("obstacle", ["lock", "metrics.jsonl", "file", "long"])
def test_a_folder_that_cannot_be_written_is_one_line(data, tmp_path, obstacle):
    out = {"file": tmp_path / "file" / "run", "long": tmp_path / ("x" * 300)}.get(obstacle, tmp_path)
    if obstacle == "file":
        (tmp_path / "file").write_text("")
    elif obstacle != "long":
        (tmp_path / obstacle).mkdir()
    with pytest.raises(InputError):
        train(vary(RUN, steps=1), data, out, workers=0)


def test_a_bug_in_a_worker_is_not_taken_for_its_death(data, tmp_path, monkeypatch):
    def broken(self: Any, places: Any) -> Any:
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(Batches, "__getitem__", broken)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        train(vary(RUN, steps=1), data, tmp_path, workers=1)


def test_data_behind_a_url_train_the_same_model(data, tmp_path):
    run = vary(RUN, steps=2)
    shutil.copytree(data, tmp_path / "my [data] {x}")
    train(run, tmp_path / "my [data] {x}", tmp_path / "disk", workers=0)
    train(run, f"file://{data}/", tmp_path / "url", workers=1)
    assert weights(tmp_path / "disk") == weights(tmp_path / "url")


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


def test_a_training_starts_with_the_weights_of_another(data, tmp_path):
    train(RUN, data, tmp_path / "first", workers=0)
    longer = vary(RUN, steps=7, lr=0.0, lr_start=0.0, lr_end=0.0)
    train(longer, data, tmp_path / "second", workers=0, init=tmp_path / "first")
    first, second = weights(tmp_path / "first"), weights(tmp_path / "second")
    same = {name for name in first if first[name] == second[name]}
    assert {name for name in first if "projector.norm" not in name} <= same  # BatchNorm saw other photos


def test_positions_are_resampled_for_images_of_another_size(data, tmp_path):
    train(RUN, data, tmp_path / "first", workers=0)
    larger = replace(TINY, image=replace(TINY.image, image_size=TINY.image.image_size + TINY.image.patch_size))
    run = vary(RUN, model=larger, steps=1, lr=0.0, lr_start=0.0, lr_end=0.0)
    second = train(run, data, tmp_path / "second", workers=0, init=tmp_path / "first")
    model, _ = load(tmp_path / "first")
    side = larger.image.image_size // larger.image.patch_size
    expected = resampled(model.image_encoder.pos_embed, side, side)
    torch.testing.assert_close(second.model.image_encoder.pos_embed, expected)


def test_weights_of_another_architecture_are_refused_before_anything_is_written(data, tmp_path):
    train(RUN, data, tmp_path / "first", workers=0)
    wider = vary(RUN, model=replace(TINY, embed_dim=TINY.embed_dim + 1))
    with pytest.raises(InputError, match=r"another architecture's weights: .*first: tensor .* has shape"):
        train(wider, data, tmp_path / "second", workers=0, init=tmp_path / "first")
    assert latest(tmp_path / "second") is None


def test_each_tenth_step_says_how_the_groups_are(data, tmp_path):
    train(vary(RUN, steps=11), data, tmp_path / "run", workers=0)
    tenth, last = [line for line in metrics(tmp_path / "run") if "loss" in line]
    assert (tenth["step"], last["step"]) == (10, 11)
    for name in ("usage_entropy", "dead_groups", "largest_share", "similarity"):
        assert f"stage1/{name}" in tenth
    assert 0 < tenth["stage1/usage_entropy"] <= 1
    assert 0 < tenth["distinct_captions"] <= 1
    assert tenth["memory_gb"] > 0.05
    assert {"logit_scale", "multi_label_logit_scale", "segment_logit_scale"} <= set(tenth)


def test_a_collapse_is_said_on_the_terminal_and_in_the_metrics(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(loop.Alarm, "check", lambda self, step, values: f"ill at {values['loss'] > 0}")
    train(vary(RUN, steps=10), data, tmp_path / "run", workers=0)
    assert "step 10: warning: ill at True" in capsys.readouterr().err
    assert next(line for line in metrics(tmp_path / "run") if "loss" in line)["warning"] == "ill at True"


def test_curves_are_drawn_and_go_to_tensorboard_on_demand(data, tmp_path):
    train(vary(RUN, steps=11), data, tmp_path / "run", workers=0, tensorboard=True)
    with Image.open(tmp_path / "run" / "curves.png") as picture:
        assert picture.format == "PNG"
    (events,) = (tmp_path / "run").glob("events.out.tfevents.*")
    assert b"stage1/usage_entropy" in events.read_bytes()
    train(vary(RUN, steps=1), data, tmp_path / "plain", workers=0)
    assert not list((tmp_path / "plain").glob("events*"))


@pytest.mark.parametrize("native", [True, False])
def test_a_training_goes_on_where_there_is_no_bfloat16_and_back(data, tmp_path, native, monkeypatch, capsys):
    run = vary(RUN, steps=2, save_every=1)
    for here, last in ((native, "step-00000001"), (not native, "step-00000002")):
        monkeypatch.setattr(loop, "bfloat16_is_faster", lambda device, here=here: here)
        train(run, data, tmp_path, workers=0, resume=not last.endswith("1"))
        assert ("so the training is in float32" in capsys.readouterr().err) != here
        if last.endswith("1"):
            shutil.rmtree(tmp_path / "step-00000002")
            (tmp_path / "latest").write_text(last)


def test_a_checkpoint_carries_the_nouns_that_were_learnt(data, tmp_path):
    state = train(vary(RUN, steps=1), data, tmp_path, workers=0)
    assert state.nouns
    assert load(tmp_path / "step-00000001")[1].rivals == state.nouns
    told = [list(differences({"nouns": ["dog", "cat"]}, {"nouns": now})) for now in (["cat", "dog"], ["dog", "cow"])]
    assert "another order" in told[0][0]
    assert told[1] == ["1 nouns of its vocabulary are gone and 1 are new"]
    [long] = differences({"photos": ["some photo.jpg"] * 5000}, {"photos": []})
    assert len(long) <= 300


def test_a_training_of_an_earlier_format_says_how_to_go_on(data, tmp_path):
    run = vary(RUN, steps=1)
    train(run, data, tmp_path / "run", workers=0)
    folder = tmp_path / "run" / "step-00000001"
    saved = torch.load(folder / "training.pt")
    torch.save(saved | {"format_version": 1, "identity": {"model": {}, "lr": 1e-3}}, folder / "training.pt")
    with pytest.raises(InputError, match=r"has format 1, and .* reads 2: .* --init .*step-00000001$"):
        train(run, data, tmp_path / "run", workers=0, resume=True)
    assert train(run, data, tmp_path / "new", workers=0, init=folder).step == 1
