import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from experiments import table4
from PIL import Image

from groupvit.checkpoints import native
from groupvit.errors import InputError
from groupvit.evaluation.results import Result
from groupvit.models import ImageEncoderConfig, ModelConfig, Stage, TextEncoderConfig, build_model, with_stages
from groupvit.training.objective import Captions, Nouns
from groupvit.training.runs import RUNS

CONFIG = ModelConfig(
    ImageEncoderConfig(16, 8, 32, 2, stages=(Stage(1, 4, 4), Stage(1))),
    TextEncoderConfig(16, 2, 1),
    embed_dim=8,
    projector_dim=16,
)

TRUNK = replace(
    CONFIG,
    image=ImageEncoderConfig(
        32, 8, 32, 2, stages=(Stage(0, output_groups=4, seeded=True),), drop_path=0.0, stem="efficientnet-lite0"
    ),
)


@pytest.mark.parametrize("nouns", [False, True])
def test_the_plain_run_differs_in_groups_and_losses_only(nouns):
    run = RUNS["scenes"]
    plain = table4.plain_run(run, nouns=nouns)
    assert plain.model.image.stages == (Stage(sum(stage.depth for stage in run.model.image.stages)),)
    assert (plain.data, plain.schedule, plain.optimizer) == (run.data, run.schedule, run.optimizer)
    assert plain.model.segment_loss == nouns
    assert plain.objective == ((run.objective[0], Nouns("segment", 1.0)) if nouns else (Captions(1.0),))


@pytest.fixture
def folder(tmp_path):
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
    for i in range(3):
        Image.effect_noise((32, 24), 40 + 40 * i).convert("RGB").save(tmp_path / "images" / f"{i}.png")
        mask = np.random.default_rng(i).integers(0, 2, (24, 32), dtype=np.uint8)
        Image.fromarray(mask).save(tmp_path / "masks" / f"{i}.png")
    (tmp_path / "classes.txt").write_text("cat\ndog=dog,puppy\n")
    return tmp_path


def test_a_table_has_floors_baselines_and_the_model(folder, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    for name, config in {"model": CONFIG, "plain": with_stages(CONFIG, Stage(2))}.items():
        native.save(tmp_path / name, build_model(config), config)
    out = tmp_path / "out"
    table4.main("folder", data=folder, model=str(tmp_path / "model"), plain=tmp_path / "plain", out=out)
    printed = capsys.readouterr().out.splitlines()
    assert any(line.startswith("GroupViT minus ") for line in printed)
    lines = [line.split("│")[1].strip() for line in printed if line.startswith("│")]
    assert lines[:2] == ["one segment, own label", "centred ellipse, own label"]
    assert lines[2:] == [f"plain ViT, {m}" for m in ("pixel-wise", "k-means", "mean-shift", "spectral")] + ["GroupViT"]
    assert next(line.split("┃")[-2].strip() for line in printed if "┃" in line) == "groups"
    result = Result.load(out / "folder" / "plain-ViT-k-means.json")
    assert len(result.photos) == 3
    assert table4.oracle(result).metrics()["miou"] == pytest.approx(result.metrics()["grouping"][-1]["oracle_miou"])
    assert (out / "folder" / "best.png").is_file()
    figures = table4.figures(result)
    assert figures["groups"] > 1
    json.dumps(figures)


def test_groups_that_learn_nothing_are_compared_with_the_same_weights_without_them(folder, tmp_path):
    pytest.importorskip("matplotlib")
    config = replace(TRUNK, image=replace(TRUNK.image, stages=(Stage(0, output_groups=4, seeded=True),)))
    model = build_model(config)
    native.save(tmp_path / "model", model, config)
    out = tmp_path / "out"
    table4.main("folder", data=folder, model=str(tmp_path / "model"), clusterings=("pixel-wise",), out=out)
    plain, bare = native.load(out / "without-groups")
    assert bare == with_stages(config, Stage(0))
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in model.state_dict().items())
    assert {path.stem for path in (out / "folder").glob("*.json")} >= {"GroupViT", "the-same-weights-pixel-wise"}
    native.save(tmp_path / "learned", build_model(CONFIG), CONFIG)
    assert table4.without_groups(str(tmp_path / "learned"), out / "none") == {}


def test_a_benchmark_without_folder_or_model_is_refused():
    with pytest.raises(InputError, match="needs --data, and --model or --captions"):
        table4.main("pets")
