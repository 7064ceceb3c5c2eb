"""The rivals' losses against naive ones, and their trainings through the loop on scenes of a few pixels."""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from groupvit.checkpoints import latest
from groupvit.data import scenes
from groupvit.errors import InputError
from groupvit.models import ImageEncoderConfig, ModelConfig, Stage, TextEncoderConfig, build_model
from groupvit.models.noise import sample_keys
from groupvit.training import loop, self_supervised
from groupvit.training.health import Alarm
from groupvit.training.loop import train
from groupvit.training.objective import Captions
from groupvit.training.optim import Optimizer, Schedule
from groupvit.training.run import Data, Run, vary
from groupvit.training.self_supervised import (
    Classify,
    Dino,
    Moco,
    MocoModule,
    classify_loss,
    dino_loss,
    moco_loss,
    modules_of,
    spread,
)
from groupvit.training.views import draw_view

MODEL = ModelConfig(
    ImageEncoderConfig(32, 8, 32, 2, stages=(Stage(2),), drop_path=0.1),
    TextEncoderConfig(width=32, heads=2, layers=1, context_length=24),
    embed_dim=16,
    projector_dim=32,
)
TERMS: dict[str, Any] = {
    "dino": Dino(prototypes=64, local_crops=2, hidden=64),
    "moco": Moco(hidden=64),
    "classify": Classify(),
}
RUN = Run(
    model=MODEL,
    data=Data("train/*.tar", batch_size=8, min_count=2, crop=(1.0, 1.0)),
    objective=(),
    schedule=Schedule(steps=4, warmup=1, save_every=2),
)


def run_of(name: str) -> Run:
    return replace(RUN, objective=(TERMS[name],))


ALL = replace(RUN, objective=tuple(TERMS.values()))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "scenes"
    scenes.write(folder, train=24, evaluation=1)
    return folder


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "draw_curves", lambda *_: None)  # matplotlib takes seconds


def weights(out: Path) -> dict[str, bytes]:
    folder = latest(out)
    assert folder
    return {name: tensor.numpy().tobytes() for name, tensor in load_file(folder / "model.safetensors").items()}


def test_dinos_loss_is_that_of_every_pair_of_different_views() -> None:
    student, teacher, centre = torch.randn(5, 3, 7), torch.randn(2, 3, 7), torch.randn(7)
    pairs = []
    for t in range(2):
        for s in range(5):
            if s == t:
                continue
            for photo in range(3):
                target = [math.exp(float(x)) for x in (teacher[t, photo] - centre) / 0.04]
                exps = [math.exp(float(x)) for x in student[s, photo] / 0.1]
                pairs.append(-sum(w / sum(target) * math.log(e / sum(exps)) for w, e in zip(target, exps, strict=True)))
    assert float(dino_loss(student, teacher, centre)) == pytest.approx(sum(pairs) / len(pairs), rel=1e-4)


def test_mocos_loss_is_the_likelihood_of_ones_own_key() -> None:
    queries, keys = (torch.nn.functional.normalize(torch.randn(4, 6), dim=1) for _ in range(2))
    total = 0.0
    for i in range(4):
        likely = [math.exp(float(queries[i] @ keys[j]) / 0.3) for j in range(4)]
        total -= math.log(likely[i] / sum(likely)) / 4
    assert float(moco_loss(queries, keys, 0.3)) == pytest.approx(2 * 0.3 * total, rel=1e-5)


def test_what_is_not_known_of_a_photo_does_not_count() -> None:
    logits, present = torch.randn(3, 5), torch.rand(3, 5) < 0.5
    known = torch.rand(3, 5) < 0.6
    each = [
        -math.log(1 / (1 + math.exp(-float(x if there else -x))))
        for x, there, counts in zip(logits.flatten(), present.flatten(), known.flatten(), strict=True)
        if counts
    ]
    assert float(classify_loss(logits, present, known)) == pytest.approx(sum(each) / len(each), rel=1e-5)
    assert classify_loss(logits, present, torch.zeros_like(known)) == 0


def test_a_view_is_a_function_of_its_key_and_no_bigger_than_its_area() -> None:
    ramp = torch.linspace(0, 255, 64).round().to(torch.uint8).expand(1, 3, 64, 64).repeat(16, 1, 1, 1)
    keys = sample_keys(0, 0, torch.arange(16))
    view = draw_view(ramp, keys, 32, (0.04, 0.05), blurred=0.0)
    assert view.shape == (16, 3, 32, 32)
    assert torch.equal(view[3:5], draw_view(ramp[3:5], keys[3:5], 32, (0.04, 0.05), blurred=0.0))
    assert len({photo.numpy().tobytes() for photo in view}) == 16
    flat = draw_view(torch.full_like(ramp, 128), keys, 32, (0.4, 1.0), blurred=1.0)
    assert (flat.flatten(2).amax(dim=2) - flat.flatten(2).amin(dim=2)).max() <= 1  # blur and crop keep what is even
    span = view.float().mean(dim=(1, 2)).amax(dim=1) - view.float().mean(dim=(1, 2)).amin(dim=1)
    assert span.max() < 255 * 1.4 * 1.4 * 0.26 + 2  # at most sqrt(0.05 x 4/3) of the width
    kept = []
    for side in (64, 224):  # blur is as published at 224 px, and narrower for smaller photos
        noisy = torch.randint(256, (16, 3, side, side), dtype=torch.uint8)
        blurred, sharp = (draw_view(noisy, keys, side, (1.0, 1.0), blurred=b).float().var() for b in (1.0, 0.0))
        kept.append(float(blurred / sharp))
    assert kept[1] < 0.5 < kept[0] < 0.9


def test_moco_leaves_a_stem_of_convolutions_to_learn() -> None:
    for stem, frozen in (("conv", False), ("patch", True)):
        encoder = build_model(replace(MODEL, image=replace(MODEL.image, stem=stem))).image_encoder
        MocoModule(encoder, Moco(hidden=8), 0)
        assert all(parameter.requires_grad != frozen for parameter in encoder.stem.parameters())


def teacher_and_student(state: Any, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    teacher = state.extras[name].teacher.copies[0].stages[0].blocks[0].mlp.fc1.weight
    return teacher, state.model.image_encoder.stages[0].blocks[0].mlp.fc1.weight.detach()


@pytest.mark.parametrize("beside", [(), (Captions(),)], ids=["alone", "beside captions"])
def test_rivals_trainings_resume_to_the_bit(beside: tuple[Any, ...], data: Path, tmp_path: Path) -> None:
    run = replace(ALL, objective=(*ALL.objective, *beside))
    state = train(run, data, tmp_path / "whole", workers=0)
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "step-00000004")
    (tmp_path / "cut" / "latest").write_text("step-00000002")
    again = train(run, data, tmp_path / "cut", workers=0, resume=True)
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")
    for key, tensor in state.extras.state_dict().items():
        assert torch.equal(tensor, again.extras.state_dict()[key]), key
    with pytest.raises(InputError, match="is another training: objective"):
        train(replace(run, objective=(replace(run.objective[0], weight=2.0),)), data, tmp_path / "cut", resume=True)


@pytest.mark.parametrize("name", ["dino", "moco"])
def test_the_teacher_follows_and_has_no_gradient(name: str, data: Path, tmp_path: Path) -> None:
    term = replace(TERMS[name], momentum=0.5)
    state = train(replace(vary(RUN, steps=2), objective=(term,)), data, tmp_path, workers=0)
    teacher, student = teacher_and_student(state, name)
    follow: Any = state.extras[name].teacher.follow
    assert not teacher.requires_grad
    assert not torch.equal(teacher, student)
    step = (teacher - student).abs().max()
    follow(0.0)  # half of the way
    assert float((teacher - student).abs().max()) == pytest.approx(float(step / 2), rel=1e-3)
    follow(1.0)  # at the end it stands
    assert float((teacher - student).abs().max()) == pytest.approx(float(step / 2), rel=1e-3)
    torch.manual_seed(0)
    before = build_model(MODEL).image_encoder.stem.state_dict()["weight"]
    assert torch.equal(before, state.model.image_encoder.stem.state_dict()["weight"]) == (name == "moco")
    if name == "dino":
        assert state.extras.state_dict()["dino.centre"].abs().max() > 0


def test_dino_sees_two_global_and_several_local_crops(data: Path, tmp_path: Path, monkeypatch: Any) -> None:
    seen: list[tuple[int, Any]] = []

    def noted(images: Any, keys: Any, size: int, area: Any, **options: float) -> Any:
        seen.append((size, area))
        return draw_view(images, keys, size, area, **options)

    monkeypatch.setattr(self_supervised, "draw_view", noted)
    train(vary(run_of("dino"), steps=1), data, tmp_path, workers=0)
    assert seen == [(32, (0.4, 1.0))] * 2 + [(16, (0.05, 0.4))] * 2


def test_numbers_that_tell_a_collapse_are_written_and_an_average_is_shipped(data: Path, tmp_path: Path) -> None:
    run = replace(vary(ALL, steps=10, save_every=10), optimizer=Optimizer(ema=0.5))
    state = train(run, data, tmp_path, workers=0)
    (line,) = [json.loads(each) for each in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    health = {key: value for key, value in line.items() if "/" in key}
    assert all(0 <= value <= 1.01 for value in health.values())
    assert health.keys() == {"dino/entropy", "dino/variety", "moco/spread", "classify/spread"}
    averaged = state.weights.state_dict()
    assert weights(tmp_path) == {name: tensor.numpy().tobytes() for name, tensor in averaged.items()}


COLLAPSES: list[tuple[dict[str, float], str]] = [
    ({"dino/entropy": 0.999}, "dino: every photo has all prototypes alike"),
    ({"dino/variety": 0.01}, "dino: all photos have the same prototypes"),
    ({"moco/spread": 0.001}, "moco: all photos have the same feature"),
    ({"classify/spread": 0.0001}, "classify: all photos have the same answer"),
]


@pytest.mark.parametrize(("values", "text"), COLLAPSES)
def test_a_collapse_is_told_after_five_signs(values: dict[str, float], text: str) -> None:
    alarm = Alarm(warmup=10, chance=0.0)
    told = [alarm.check(step, {"loss": 1.0, **values}) for step in range(10, 80, 10)]
    assert told == [None] * 5 + [text, None]
    healthy = {"dino/entropy": 0.9, "dino/variety": 0.8, "moco/spread": 0.9, "classify/spread": 0.2}
    alarm = Alarm(warmup=10, chance=0.0)
    assert not any(alarm.check(step, {"loss": 1.0, **healthy}) for step in range(10, 200, 10))


def test_collapsed_networks_have_the_numbers_of_a_collapse() -> None:
    assert spread(torch.nn.functional.normalize(torch.ones(8, 5), dim=1)) < 1e-3
    assert spread(torch.nn.functional.normalize(torch.randn(64, 256), dim=1)) > 0.9
    module: Any = modules_of([Dino(prototypes=64, local_crops=0)], build_model(MODEL), 0)["dino"]
    same = torch.zeros(2, 8, 64)
    same[..., 3] = 1
    for teacher, entropy, variety in ((same * 0, 1.0, None), (same, 0.0, 0.0)):
        module._watch(teacher)
        assert float(module.health["dino/entropy"]) == pytest.approx(entropy, abs=1e-3)
        assert variety is None or float(module.health["dino/variety"]) == pytest.approx(variety, abs=1e-3)


@pytest.mark.parametrize("change", [lambda run: vary(run, chunk=2), lambda run: vary(run, cached_crops=1)])
def test_chunks_and_cached_crops_are_refused(change: Callable[[Run], Run], data: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no chunks and no cached crops|only an EfficientNet-Lite"):
        train(change(run_of("dino")), data, tmp_path / "run", workers=0)
    assert not (tmp_path / "run").exists()
