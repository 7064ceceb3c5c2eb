"""Trainings on top of a trunk, at random weights: nothing is downloaded."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from groupvit.checkpoints import latest, load
from groupvit.checkpoints.trunks import load_vit, read_vit_config
from groupvit.data import scenes
from groupvit.errors import InputError
from groupvit.models import ImageEncoderConfig, ModelConfig, Stage, TextEncoderConfig
from groupvit.models.trunks import EfficientNetLite
from groupvit.training import prepare
from groupvit.training.loop import train
from groupvit.training.objective import Captions, Nouns, Teacher, terms_of
from groupvit.training.optim import Optimizer, Schedule
from groupvit.training.run import Data, Run, vary, with_vit

RUN = Run(
    model=ModelConfig(
        image=ImageEncoderConfig(
            32, 8, 32, 2, stages=(Stage(0, output_groups=4, seeded=True),), drop_path=0.0, stem="efficientnet-lite0"
        ),
        text=TextEncoderConfig(width=32, heads=2, layers=1, context_length=24),
        embed_dim=16,
        projector_dim=32,
        segment_loss=True,
        teacher_loss=True,
    ),
    data=Data("train/*.tar", batch_size=8, cached_crops=2, min_count=2),
    objective=(Captions(), Nouns("segment", 1.0, prior=1.0), Nouns("patch", 0.5, prior=1.0), Teacher()),
    schedule=Schedule(steps=2, warmup=1, save_every=1),
    optimizer=Optimizer(muon=4.0, ema=0.5),
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "scenes"
    scenes.write(folder, train=16, evaluation=1)
    return folder


def published(name: str = "efficientnet-lite0", folder: Path | None = None) -> EfficientNetLite:
    with torch.random.fork_rng():
        torch.manual_seed(9)
        return EfficientNetLite("efficientnet-lite0").eval()


def weights(out: Path) -> dict[str, bytes]:
    folder = latest(out)
    assert folder
    return {name: tensor.numpy().tobytes() for name, tensor in load_file(folder / "model.safetensors").items()}


def test_a_training_on_a_trunk_resumes_to_the_bit_and_leaves_it_as_it_was(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(prepare, "load_trunk", published)
    state = train(RUN, data, tmp_path / "whole", workers=0)
    assert "caching the trunk's maps of 32 crops" in capsys.readouterr().err
    for name, tensor in published().state_dict().items():
        for model in (state.model, state.weights):
            assert torch.equal(model.state_dict()[f"image_encoder.stem.trunk.{name}"], tensor)
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "step-00000002")
    (tmp_path / "cut" / "latest").write_text("step-00000001")
    monkeypatch.setattr(prepare, "load_trunk", lambda *_: pytest.fail("the weights are in the checkpoint"))
    train(RUN, data, tmp_path / "cut", workers=0, resume=True)
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")
    assert "caching" not in capsys.readouterr().err
    other = train(RUN, data, tmp_path / "other", workers=0, init=tmp_path / "whole", cache=tmp_path / "whole" / "cache")
    assert other.step == 2  # neither the package nor a cache of its own was needed
    assert "caching" not in capsys.readouterr().err
    assert not (tmp_path / "other" / "cache").exists()


@pytest.mark.parametrize("cached_crops", [2, 0])
def test_a_trunk_is_tuned_at_a_rate_of_its_own_but_for_cached_maps_classifier_and_statistics(
    cached_crops: int, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(prepare, "load_trunk", published)
    run = vary(RUN, optimizer=Optimizer(muon=4.0, ema=0.5, trunk=0.1), cached_crops=cached_crops)
    state = train(run, data, tmp_path / "run", workers=0)
    trunk = state.model.image_encoder.trunk
    assert isinstance(trunk, EfficientNetLite)
    before, after = published().state_dict(), trunk.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    late = {name for name, _ in trunk.named_parameters() if name.startswith(("blocks.15.", "head."))}
    assert late <= moved
    assert not any(name.startswith("classifier.") or "running" in name for name in moved)
    assert any(name.startswith(("stem.", "blocks.0.")) for name in moved) == (not cached_crops)
    *_, muon, tuned = state.optimizer.param_groups
    assert muon["lr"] == pytest.approx(40 * tuned["lr"])
    assert tuned["weight_decay"] == 0
    capsys.readouterr()
    train(vary(run, steps=2), data, tmp_path / "run", workers=0, resume=True)
    assert "caching" not in capsys.readouterr().err  # the cached maps do not depend on what was tuned


def test_what_cached_crops_and_teachers_cannot_do_is_said_before_anything_is_written(data, tmp_path):
    plain = replace(RUN.model, image=replace(RUN.model.image, stem="conv", stages=(Stage(1, 4, 4),)))
    for run, complaint in (
        (vary(RUN, augment="color"), "their colours cannot be changed"),
        (replace(RUN, model=plain), "only an EfficientNet-Lite"),
        (vary(RUN, model=plain, cached_crops=0), "a classifier to learn from"),
    ):
        with pytest.raises(InputError, match=complaint):
            train(run, data, tmp_path / "run", workers=0)
    assert not (tmp_path / "run").exists()


def test_a_vit_that_transformers_saved_takes_the_place_of_the_trunk(data, tmp_path):
    sizes: Any = {"image_size": 32, "patch_size": 16, "hidden_size": 24, "num_attention_heads": 2}
    config = transformers.ViTConfig(**sizes, num_hidden_layers=2, intermediate_size=48)
    transformers.ViTModel(config).save_pretrained(tmp_path / "vit")
    (tmp_path / "vit" / "preprocessor_config.json").write_text('{"image_mean": [0.1, 0.2, 0.3]}')
    run = with_vit(vary(RUN, steps=1), read_vit_config(tmp_path / "vit"))
    assert (terms_of(run.objective, Teacher), run.data.cached_crops, run.model.image.patch_size) == ([], 0, 16)
    with pytest.raises(InputError, match="add --trunk or --init"):
        train(run, data, tmp_path / "run", workers=0)
    train(run, data, tmp_path / "run", workers=0, trunk=tmp_path / "vit")
    model, found = load(tmp_path / "run")
    assert found.image.vit is not None
    assert found.image.vit.mean == (0.1, 0.2, 0.3)
    assert model.image_encoder.trunk is not None
    trained = model.image_encoder.trunk.state_dict()
    for name, tensor in load_vit(tmp_path / "vit").state_dict().items():
        assert torch.equal(trained[name], tensor)
