import json
from dataclasses import replace

import pytest
import torch
from PIL import Image

from groupvit.checkpoints import native
from groupvit.data import scenes
from groupvit.data.transforms import jitter_color
from groupvit.evaluation.benchmark import evaluate
from groupvit.evaluation.datasets import open_masks
from groupvit.evaluation.protocols import CALIBRATED_NATIVE
from groupvit.models import ImageEncoderConfig, Stage, build_model, noise
from groupvit.models.dense import DenseClassifier
from groupvit.segmentation import Segmenter
from groupvit.training import loop
from groupvit.training.loop import train
from groupvit.training.run import vary
from groupvit.training.runs import RUNS
from groupvit.training.transfer import Transfer, finetune

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def test_noise_is_the_same_on_every_device():
    keys = noise.sample_keys(3, 5, torch.arange(64))
    assert torch.equal(keys, noise.sample_keys(3, 5, torch.arange(64, device="cuda")).cpu())
    assert torch.equal(noise.uniform(keys, 8, 100), noise.uniform(keys.cuda(), 8, 100).cpu())


@pytest.mark.parametrize("run", ["debug", "scenes-release"])
def test_a_training_runs_resumes_and_learns_on_a_gpu(tmp_path, run):
    scenes.write(tmp_path / "data", train=200, evaluation=4)
    settings = vary(RUNS[run], steps=40, batch_size=16, warmup=5, min_count=2, evaluate_every=100, save_every=20)
    state = train(settings, tmp_path / "data", tmp_path / "run", device=torch.device("cuda"))
    assert state.step == 40
    assert next(state.model.parameters()).is_cuda
    (tmp_path / "run" / "latest").write_text("step-00000020")
    assert train(settings, tmp_path / "data", tmp_path / "run", resume=True, device=torch.device("cuda")).step == 40


@pytest.mark.parametrize("changes", [{"augment": "color"}, {"ema": 0.9}, {"augment": "randaugment"}])
def test_every_option_of_a_run_works_on_a_gpu(tmp_path, changes):
    scenes.write(tmp_path / "data", train=100, evaluation=4)
    run = vary(RUNS["debug"], min_count=2, **changes)
    assert train(run, tmp_path / "data", tmp_path / "run", device=torch.device("cuda")).step == run.schedule.steps


@pytest.mark.parametrize("run", ["photos-dino", "photos-moco", "photos-classify"])
def test_rivals_without_captions_train_and_resume_on_a_gpu(tmp_path, run):
    scenes.write(tmp_path / "data", train=60, evaluation=1)
    changes = {"train": "train/*.tar", "steps": 4, "batch_size": 16, "min_count": 2, "warmup": 1, "save_every": 2}
    settings, device = vary(RUNS[run], **changes), torch.device("cuda")
    assert train(settings, tmp_path / "data", tmp_path / "run", device=device).step == 4
    (tmp_path / "run" / "latest").write_text("step-00000002")
    assert train(settings, tmp_path / "data", tmp_path / "run", resume=True, device=device).step == 4


@pytest.mark.parametrize("options", [{"chunk": 4}, {"compiled": True}])
def test_chunks_and_compiled_blocks_learn_the_same_on_a_gpu(tmp_path, monkeypatch, options, capsys):
    scenes.write(tmp_path / "data", train=60, evaluation=1)
    monkeypatch.setattr(loop, "bfloat16_is_faster", lambda _: False)
    losses = []
    for name, changes in (("plain", {}), ("other", options)):
        run = vary(RUNS["debug"], min_count=2, steps=3, chunk=changes.get("chunk", 0))
        compiled = changes.get("compiled", False)
        train(run, tmp_path / "data", tmp_path / name, device=torch.device("cuda"), compiled=compiled)
        losses.append(json.loads((tmp_path / name / "metrics.jsonl").read_text().splitlines()[-1])["loss"])
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert "cannot compile" not in capsys.readouterr().err


def test_a_transfer_learns_and_resumes_on_a_gpu(tmp_path):
    scenes.write(tmp_path / "data", train=1, evaluation=8)
    photos = open_masks(tmp_path / "data" / "eval")
    transfer = Transfer({"benchmark": "scenes"}, steps=3, batch_size=4)
    networks = [DenseClassifier(build_model(RUNS["debug"].model).image_encoder, len(photos.classes)) for _ in range(2)]
    for network, resume in zip(networks, (False, True), strict=True):
        assert finetune(network, photos, tmp_path / "out", transfer, resume=resume) == 3
    assert all(map(torch.equal, *(network.parameters() for network in networks)))


def test_a_model_with_a_trunk_learns_the_same_on_both_devices(tmp_path, monkeypatch):
    scenes.write(tmp_path / "data", train=60, evaluation=1)
    run = RUNS["photos-trunk-gpu"]
    seeded = (Stage(0, output_groups=4, seeded=True),)
    image = ImageEncoderConfig(64, 8, 32, 2, stages=seeded, stem="efficientnet-lite0", group_residual=False)
    changes = {"train": "train/*.tar", "steps": 3, "batch_size": 16, "min_count": 2}
    text = replace(run.model.text, width=32, heads=2, layers=1)
    run = vary(run, model=replace(run.model, image=image, text=text), **changes)
    native.save(tmp_path / "init", build_model(run.model), run.model)  # its trunk at random weights, too
    losses = []
    for device, precision in (("cpu", "float32"), ("cuda", "float32"), ("cuda", "bfloat16")):
        out = tmp_path / f"{device}-{precision}"
        monkeypatch.setattr(loop, "bfloat16_is_faster", lambda _, precision=precision: precision == "bfloat16")
        train(run, tmp_path / "data", out, init=tmp_path / "init", device=torch.device(device))
        losses.append(json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])["loss"])
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert losses[2] == pytest.approx(losses[0], rel=0.1)


def test_colours_are_the_same_on_every_device():
    generator = torch.Generator().manual_seed(0)
    photos = torch.randint(0, 256, (300, 3, 24, 24), dtype=torch.uint8, generator=generator)
    color = 0.6 + 0.8 * torch.rand(300, 3, generator=generator)
    assert (jitter_color(photos, color).int() - jitter_color(photos.cuda(), color).cpu().int()).abs().max() <= 1


def test_a_photo_is_segmented_the_same_on_both_devices():
    config = RUNS["debug"].model
    torch.manual_seed(0)
    model = build_model(config)
    photo = scenes.draw(0, 0).image
    cpu = Segmenter(model, config, device="cpu", precision="fp32").segment(photo, ["ball", "grass", "snow"])
    gpu = Segmenter(model, config, device="cuda", precision="fp32").segment(photo, ["ball", "grass", "snow"])
    assert (cpu.label_map == gpu.label_map).mean() > 0.99


def test_the_command_segments_on_a_gpu(tmp_path, run_here):
    Image.fromarray(scenes.draw(0, 0).image).save(tmp_path / "photo.png")
    torch.manual_seed(0)
    native.save(tmp_path / "model", build_model(RUNS["debug"].model), RUNS["debug"].model)
    code, _, errors = run_here(
        "segment", "photo.png", "--model", "model", "--labels", "ball", "grass", "--out", "out", "--precision", "bf16"
    )
    assert code == 0, errors
    assert Image.open(tmp_path / "out" / "photo.png.labels.png").size == (64, 64)
    assert json.loads((tmp_path / "out" / "photo.png.json").read_text())["engine"] == "torch"


def test_an_evaluation_counts_the_same_on_both_devices(tmp_path):
    scenes.write(tmp_path / "data", train=1, evaluation=6)
    dataset = open_masks(tmp_path / "data" / "eval")
    torch.manual_seed(0)
    model = build_model(RUNS["debug"].model)
    counts = []
    for device in ("cpu", "cuda"):
        segmenter = Segmenter(model, RUNS["debug"].model, device=device, precision="fp32")
        counts.append(evaluate(segmenter, dataset, CALIBRATED_NATIVE).matrix)
    assert abs(counts[0] - counts[1]).sum() < 0.02 * counts[0].sum()
