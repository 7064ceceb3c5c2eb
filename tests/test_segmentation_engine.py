"""The image encoder in other engines gives what PyTorch gives."""

import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path

import numpy as np
import pytest
import torch

from groupvit import api
from groupvit.errors import InputError
from groupvit.models import GroupViT, ImageFeatures, ModelConfig, Stage, build_model, with_stages
from groupvit.models.config import ImageEncoderConfig, TextEncoderConfig, ViTConfig
from groupvit.segmentation import Segmenter, engine
from groupvit.segmentation.engine import Engine, chosen

SMALL = ModelConfig(
    image=ImageEncoderConfig(image_size=64, dim=32, heads=2, stages=(Stage(1, 8, 8), Stage(1, 4, 4), Stage(1))),
    text=TextEncoderConfig(width=16, heads=2, layers=1),
    embed_dim=16,
    projector_dim=32,
)
PLAIN = with_stages(SMALL, Stage(2))
ALONE = replace(SMALL, image=replace(SMALL.image, assign_logits="cosine", group_residual=False))
VIT = ViTConfig(image_size=32, patch_size=8, dim=24, heads=2, depth=2)
SEEDED = ModelConfig(
    image=ImageEncoderConfig(
        image_size=32, patch_size=8, dim=32, heads=2, stages=(Stage(0, 0, 6, seeded=True),), stem="vit", vit=VIT
    ),
    text=SMALL.text,
    embed_dim=16,
    projector_dim=32,
)
ENGINES: list[Engine] = ["openvino", "onnxruntime"]
SHAPES = ((1, 64, 64), (3, 64, 64), (17, 32, 32), (2, 90, 50), (1, 16, 16), (1, 65, 200))


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder / "groupvit" / "engines"


def model_of(config: ModelConfig) -> GroupViT:
    torch.manual_seed(0)
    return build_model(config).eval()


def assert_close(made: ImageFeatures, wanted: ImageFeatures) -> None:
    assert made.grid == wanted.grid
    torch.testing.assert_close(made.segments, wanted.segments, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(made.pooled, wanted.pooled, atol=1e-4, rtol=1e-4)
    for ours, theirs in zip(made.assignments, wanted.assignments, strict=True):
        assert (ours.joined == theirs.joined).float().mean() >= 0.999
    for ours, theirs in zip(made.ungrouped, wanted.ungrouped, strict=True):
        torch.testing.assert_close(ours.group_tokens, theirs.group_tokens, atol=1e-4, rtol=1e-4)
    assert (made.trunk is None) == (wanted.trunk is None)


@pytest.mark.parametrize("config", [SMALL, PLAIN, SEEDED, ALONE], ids=["two stages", "plain", "seeded", "alone"])
@pytest.mark.parametrize("name", ENGINES)
def test_images_of_any_number_and_size_give_the_features_of_pytorch(name: Engine, config: ModelConfig) -> None:
    model = model_of(config)
    with torch.inference_mode():
        encoder = Segmenter(model, config, device="cpu", precision="fp32", engine=name).encoder
        for batch, height, width in SHAPES:
            images = torch.randn(batch, 3, height, width)
            assert_close(encoder(images), model.image_encoder(images))


@pytest.mark.parametrize("name", ENGINES)
def test_label_maps_are_those_of_pytorch(name: Engine) -> None:
    rng = np.random.default_rng(0)
    photos = [np.kron(rng.integers(0, 256, (6, 5, 3), np.uint8), np.ones((20, 20, 1), np.uint8)) for _ in range(2)]
    photos.append(photos[0][:80])
    other, torch_ = (
        api.load("photos-trunk", precision="fp32", engine=kind).segment(photos, ["cat", "grass"], short_side=64)
        for kind in (name, "torch")
    )
    for ours, theirs in zip(other, torch_, strict=True):
        assert (ours.label_map == theirs.label_map).mean() >= 0.999
        for own, peer in zip(ours.groups, theirs.groups, strict=True):
            assert (own == peer).mean() >= 0.999


def test_openvino_computes_in_the_precision_that_is_asked_for() -> None:
    photo = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    confidences = [
        Segmenter(model_of(SMALL), SMALL, device="cpu", precision=precision, engine="openvino")
        .segment(photo, ["cat", "dog"])
        .confidence
        for precision in ("fp32", "bf16")
    ]
    np.testing.assert_allclose(*confidences, atol=0.05)
    measured = Segmenter(model_of(SMALL), SMALL, device="cpu", engine="openvino").precision
    assert measured in ("fp32", "bf16")


def test_onnxruntime_computes_in_float32_only() -> None:
    assert Segmenter(model_of(SMALL), SMALL, device="cpu", engine="onnxruntime").precision == "fp32"
    with pytest.raises(InputError, match="onnxruntime computes in fp32: drop"):
        Segmenter(model_of(SMALL), SMALL, precision="bf16", engine="onnxruntime")


@pytest.mark.parametrize("name", ENGINES)
def test_other_weights_have_another_graph_and_a_damaged_one_is_written_again(name: Engine, cache: Path) -> None:
    model, images = model_of(PLAIN), torch.zeros(1, 3, 64, 64)
    with torch.no_grad():
        model.image_encoder.norm.bias += 0.5
    before = set(cache.glob("*.onnx"))
    for _ in range(2):
        with torch.inference_mode():
            made = Segmenter(model, PLAIN, device="cpu", precision="fp32", engine=name).encoder(images)
            assert_close(made, model.image_encoder(images))
        files = set(cache.glob("*.onnx")) - before or before
        for file in files:
            file.write_bytes(file.read_bytes()[:1000])


@pytest.mark.parametrize("name", ENGINES)
def test_an_installed_engine_that_does_not_load_is_one_line(name: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    segmenter = Segmenter(model_of(PLAIN), PLAIN, device="cpu", precision="fp32", engine=name)
    monkeypatch.setitem(sys.modules, name, None)  # its import fails
    monkeypatch.setattr(engine, "openvino_core", engine.openvino_core.__wrapped__)
    with pytest.raises(InputError, match=r"cannot run the network.*import.*; take the engine torch"):
        segmenter.encoder(torch.zeros(1, 3, 64, 64))


def test_the_cache_keeps_the_networks_that_were_used_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(engine, "_KEPT", 2)
    cache, models = tmp_path / "groupvit" / "engines", [model_of(PLAIN) for _ in range(3)]
    for i, model in enumerate(models):
        with torch.no_grad():
            next(model.image_encoder.parameters()).fill_(i)

    def use(i: int) -> set[Path]:
        before = {*cache.glob("*.onnx")}
        Segmenter(models[i], PLAIN, precision="fp32", engine="openvino").encoder(torch.zeros(1, 3, 64, 64))
        return {*cache.glob("*.onnx")} - before

    (first,), _ = use(0), use(1)
    assert use(0) == set()
    (third,) = use(2)
    assert {*cache.glob("*.onnx")} == {first, third}
    assert {file.stem for file in cache.iterdir()} == {first.stem, third.stem}


@pytest.mark.parametrize("name", ["torch", *ENGINES])
def test_a_segmenter_goes_to_another_process(name: Engine) -> None:
    segmenter, images = (
        Segmenter(model_of(PLAIN), PLAIN, device="cpu", precision="fp32", engine=name),
        torch.zeros(1, 3, 64, 64),
    )
    segmenter.words.embed(["dog"], ["{}"])
    with torch.inference_mode():
        wanted, there = segmenter.encoder(images), pickle.loads(pickle.dumps(segmenter))
        assert (there.engine, there.precision, there.device) == (name, "fp32", torch.device("cpu"))
        assert_close(there.encoder(images), wanted)


def test_other_options_of_the_same_weights_have_another_graph() -> None:
    images = torch.randn(1, 3, 64, 64)
    for eps in (1.0, 100.0):
        model = model_of(SMALL)
        for stage in model.image_encoder.stages:
            if stage.grouping is not None:
                stage.grouping.assign.eps = eps
        with torch.inference_mode():
            made = Segmenter(model, SMALL, device="cpu", precision="fp32", engine="onnxruntime").encoder(images)
            assert_close(made, model.image_encoder(images))


@pytest.mark.parametrize("name", ENGINES)
def test_a_cache_that_cannot_be_written_is_done_without(
    name: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "groupvit").mkdir()
    (tmp_path / "groupvit" / "engines").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    model, images = model_of(PLAIN), torch.zeros(1, 3, 64, 64)
    with torch.inference_mode():
        made = Segmenter(model, PLAIN, device="cpu", precision="fp32", engine=name).encoder(images)
        assert_close(made, model.image_encoder(images))


def test_each_segmenter_keeps_its_compiled_model(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []
    real = engine._OpenVINO.compiled
    monkeypatch.setattr(engine._OpenVINO, "compiled", lambda self, p: compiled.append(p) or real(self, p))
    segmenters = [Segmenter(model_of(PLAIN), PLAIN, precision="fp32", engine="openvino") for _ in range(3)]
    with torch.inference_mode():
        for segmenter in segmenters * 2:
            segmenter.encoder(torch.zeros(1, 3, 64, 64))
    assert compiled == ["f32"] * 3


def test_a_segmenter_takes_auto_and_refuses_a_device_that_its_engine_does_not_have() -> None:
    assert Segmenter(model_of(PLAIN), PLAIN, precision="fp32", engine="auto").engine == chosen("auto")
    assert Segmenter(model_of(PLAIN), PLAIN, device="meta", precision="fp32", engine="auto").engine == "torch"
    with pytest.raises(InputError, match="the engine openvino computes on the CPU: leave out device='meta'"):
        Segmenter(model_of(PLAIN), PLAIN, device="meta", precision="fp32", engine="openvino")


def present(*packages: str) -> object:
    return lambda name: ModuleSpec(name, None) if name in packages else None


@pytest.mark.parametrize(
    ("packages", "gpu", "expected"),
    [
        (("openvino", "onnx"), False, "openvino"),
        (("openvino", "onnx"), True, "torch"),
        (("openvino",), False, "torch"),
        (("onnxruntime", "onnx"), False, "torch"),
        ((), False, "torch"),
    ],
)
def test_auto_takes_openvino_where_it_can_run(
    packages: tuple[str, ...], gpu: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "find_spec", present(*packages))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    assert chosen("auto") == expected


@pytest.mark.parametrize(
    ("name", "packages", "extra"),
    [
        ("openvino", ("onnx",), "fast"),
        ("openvino", ("openvino",), "fast"),
        ("onnxruntime", ("onnx",), "onnx"),
        ("onnxruntime", ("onnxruntime",), "onnx"),
    ],
)
def test_a_missing_package_is_one_line_with_its_extra(
    name: Engine, packages: tuple[str, ...], extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "find_spec", present(*packages))
    with pytest.raises(InputError, match=rf"{name} is not installed: pip install 'groupvit\[{extra}\]'"):
        chosen(name)


def test_an_unknown_engine_is_refused() -> None:
    with pytest.raises(InputError, match="engine 'tensorrt' must be auto, torch, onnxruntime or openvino"):
        chosen("tensorrt")


def test_pytorch_imports_no_other_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("openvino", "onnxruntime", "onnx"):
        monkeypatch.setitem(sys.modules, package, None)
    photo = np.zeros((64, 64, 3), np.uint8)
    assert Segmenter(model_of(SMALL), SMALL, device="cpu").segment(photo, ["cat", "dog"]).label_map.shape == (64, 64)


def test_openvino_tells_nobody_that_it_is_used() -> None:
    code = "import sys; from groupvit.segmentation import engine; engine.openvino_core(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "openvino.tools.ovc.telemetry_stub" in done.stdout.split()
    assert not [name for name in done.stdout.split() if name.startswith("openvino_telemetry.")]


def test_onnx_runtime_tells_nobody_that_it_is_used(tmp_path: Path) -> None:
    code = "from groupvit.models.tracing import onnx_runtime; print(onnx_runtime().__version__)"
    home = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"} | home
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
