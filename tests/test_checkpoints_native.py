import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from groupvit import checkpoints
from groupvit.checkpoints import LAYOUTS, native
from groupvit.errors import InputError
from groupvit.models import (
    PAPER,
    RELEASE,
    GroupViT,
    ImageEncoderConfig,
    ModelConfig,
    Stage,
    TextEncoderConfig,
    build_model,
    with_stages,
)
from groupvit.models.config import ViTConfig

SMALL = replace(
    RELEASE,
    image=ImageEncoderConfig(image_size=32, patch_size=8, dim=32, heads=2, stages=(Stage(1, 4, 4), Stage(1))),
    text=TextEncoderConfig(width=32, heads=1, layers=1, context_length=8, vocab_size=60),
    embed_dim=16,
    projector_dim=24,
)
ODD = replace(
    SMALL,
    image=replace(SMALL.image, stem="conv", assign_logits="cosine", group_residual=False, hard_assignment=False),
    segment_loss=True,
)

TRUNK = replace(
    SMALL,
    image=ImageEncoderConfig(
        32, 8, 32, 2, stages=(Stage(0, output_groups=4, seeded=True),), drop_path=0.0, stem="efficientnet-lite0"
    ),
    teacher_loss=True,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    native.save(tmp_path / "model", build_model(SMALL), SMALL)
    return tmp_path / "model"


def bits(model: GroupViT) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in model.state_dict().items()}


def rewrite(folder: Path, tensors: dict[str, Tensor | None] | None = None, **document: Any) -> None:
    """Exchanges tensors (None takes one away) and fields of the configuration (... takes one away)."""
    state, metadata = native.read_safetensors(folder / native.WEIGHTS)
    state = {name: tensor for name, tensor in (state | (tensors or {})).items() if tensor is not None}
    values = json.loads(metadata["groupvit"]) | document
    metadata["groupvit"] = json.dumps({name: value for name, value in values.items() if value is not ...})
    native.write_safetensors(folder / native.WEIGHTS, state, metadata)


@pytest.mark.parametrize("config", [SMALL, ODD, with_stages(SMALL, Stage(2))], ids=["release", "odd", "plain ViT"])
def test_what_was_saved_is_loaded_bit_for_bit(config: ModelConfig, tmp_path: Path) -> None:
    model = build_model(config)
    native.save(tmp_path, model, config, metadata={"run": "demo"})
    loaded, loaded_config = native.load(tmp_path)
    assert bits(loaded) == bits(model)
    assert loaded_config == config
    assert not loaded.training
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    assert sorted(os.listdir(tmp_path)) == ["config.json", "model.safetensors"]


def test_config_json_tells_people_what_the_weights_are(folder: Path) -> None:
    document = json.loads((folder / "config.json").read_text())
    assert document["format_version"] == 1
    assert document["model"] == json.loads(json.dumps(SMALL.to_dict()))
    assert "copy" in document["note"]


@pytest.mark.parametrize(
    ("name", "tensor", "complaint"),
    [
        ("image_encoder.norm.weight", None, "tensor image_encoder.norm.weight is missing"),
        ("surplus", torch.zeros(1), "tensor surplus does not belong"),
        ("image_encoder.norm.weight", torch.zeros(3), r"image_encoder.norm.weight has shape \(3,\), expected \(32,\)"),
        ("image_encoder.norm.weight", torch.zeros(32).half(), "weight has dtype float16, expected float32"),
    ],
    ids=["missing", "extra", "misshaped", "wrong dtype"],
)
def test_a_deviating_tensor_is_named(folder: Path, name: str, tensor: Tensor | None, complaint: str) -> None:
    rewrite(folder, {name: tensor})
    with pytest.raises(InputError, match=complaint) as error:
        native.load(folder)
    assert "model.safetensors" in str(error.value)


@pytest.mark.parametrize(
    ("document", "complaint"),
    [
        ({"format_version": 3}, "format_version 3, newer than .* upgrade groupvit"),
        ({"format_version": "1"}, "no format_version"),
        ({"surprise": 1}, "field surprise of its configuration is unknown"),
        ({"metadata": ...}, "field metadata of its configuration is unknown or missing"),
        ({"model": SMALL.to_dict() | {"depth": 3}}, "unknown field model.depth"),
        ({"model": [1]}, "field model.image is missing"),
        ({"model": SMALL.to_dict() | {"embed_dim": -1}}, "no model can be built"),
        ({"model": SMALL.to_dict() | {"embed_dim": "16"}}, "field model.embed_dim"),
        ({"image": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}}, "image normalisation"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_deviating_configuration_is_named(folder: Path, document: dict[str, Any], complaint: str) -> None:
    rewrite(folder, **document)
    with pytest.raises(InputError, match=complaint):
        native.load(folder)


def test_a_configuration_that_is_no_json_is_an_error(folder: Path) -> None:
    state, _ = native.read_safetensors(folder / native.WEIGHTS)
    native.write_safetensors(folder / native.WEIGHTS, state, {"groupvit": "{"})
    with pytest.raises(InputError, match="not JSON"):
        native.load(folder)


def test_weights_of_another_program_are_an_error(folder: Path) -> None:
    safetensors.torch.save_file({"a": torch.zeros(1)}, folder / native.WEIGHTS)
    with pytest.raises(InputError, match="written by another program"):
        native.load(folder)


@pytest.mark.parametrize("damage", ["truncated", "text", "empty", "absent", "folder"])
def test_a_damaged_file_is_an_error_of_one_line(folder: Path, damage: str) -> None:
    weights = folder / native.WEIGHTS
    data = weights.read_bytes()
    weights.unlink()
    if damage == "folder":
        weights.mkdir()
    elif damage != "absent":
        weights.write_bytes({"truncated": data[:-100], "text": b"hello world, no weights", "empty": b""}[damage])
    with pytest.raises(InputError, match=r"model\.safetensors"):
        native.load(folder)


def test_a_model_of_another_configuration_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="tensor"):
        native.save(tmp_path, build_model(SMALL), PAPER)
    with pytest.raises(InputError, match="dtype float64"):
        native.save(tmp_path, build_model(SMALL).double(), SMALL)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_checkpoint(folder: Path, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    old, listing = bits(native.load(folder)[0]), sorted(os.listdir(folder))

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, call, full)
    with pytest.raises(InputError, match=f"in {folder}: No space left on device"):
        native.save(folder, build_model(SMALL), SMALL)
    assert bits(native.load(folder)[0]) == old
    assert sorted(os.listdir(folder)) == listing


def test_a_crash_between_the_two_files_leaves_the_new_checkpoint(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, config = build_model(ODD), ODD

    def crash(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(native, "write_json", crash)
    with pytest.raises(KeyboardInterrupt):
        native.save(folder, model, config)
    loaded, loaded_config = native.load(folder)
    assert (bits(loaded), loaded_config) == (bits(model), config)


def test_a_real_limit_on_file_size_leaves_the_old_file(tmp_path: Path) -> None:
    pytest.importorskip("resource")
    program = """
import resource, sys
from pathlib import Path
from groupvit.errors import InputError
from groupvit.files import write_atomically
path = Path(sys.argv[1])
write_atomically(path, b"old")
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    write_atomically(path, bytes(2000))
except InputError as error:
    print(error)
"""
    path = tmp_path / "file"
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout == f"cannot write file in {tmp_path}: File too large\n"
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        native.save(tmp_path / "file/model", build_model(SMALL), SMALL)


def test_a_compact_checkpoint_holds_the_rows_that_training_saw_in_half_precision(tmp_path: Path) -> None:
    model = build_model(SMALL)
    native.forget_unseen(model, torch.tensor([3, 59, 4]))
    native.save(tmp_path / "whole", model, SMALL)
    native.save(tmp_path / "compact", model, SMALL, compact=True)
    state, _ = native.read_safetensors(tmp_path / "compact" / native.WEIGHTS)
    assert state["text_encoder.token_embedding.weight"].shape == (3, 32)
    assert state["text_encoder.token_embedding.rows"].tolist() == [3, 4, 59]
    whole, compact = (native.load(tmp_path / name)[0].state_dict() for name in ("whole", "compact"))
    for name, tensor in whole.items():
        expected = tensor.half().float() if tensor.is_floating_point() else tensor
        assert torch.equal(compact[name], expected)
        assert compact[name].dtype == tensor.dtype
    embedding = compact["text_encoder.token_embedding.weight"]
    assert embedding.any(dim=1).nonzero()[:, 0].tolist() == [3, 4, 59]


@pytest.mark.parametrize("rows", [[0, 1], [0, 1, 60], [0, -1, 2]], ids=["too few", "beyond the end", "negative"])
def test_rows_that_fit_no_vocabulary_are_refused(rows: list[int], tmp_path: Path) -> None:
    model = build_model(SMALL)
    native.forget_unseen(model, torch.tensor([1, 2, 3]))
    native.save(tmp_path, model, SMALL, compact=True)
    rewrite(tmp_path, {"text_encoder.token_embedding.rows": torch.tensor(rows, dtype=torch.int32)})
    with pytest.raises(InputError, match=r"token_embedding.rows does not number the rows"):
        native.load(tmp_path)


def test_the_embeddings_of_rivals_come_along_where_there_are_any(tmp_path: Path) -> None:
    model, config = build_model(SMALL), replace(SMALL, rivals=("grass", "sky", "wall"))
    native.save(tmp_path / "none", model, config, compact=True)
    assert native.load(tmp_path / "none")[0].rivals is None
    model.rivals = torch.randn(3, config.embed_dim)
    native.save(tmp_path / "some", model, config, compact=True)
    loaded, _ = native.load(tmp_path / "some")
    assert loaded.rivals is not None
    assert torch.equal(loaded.rivals, model.rivals.half().float())
    rewrite(tmp_path / "some", {"rivals": torch.zeros(2, config.embed_dim)})
    with pytest.raises(InputError, match=r"tensor rivals has shape \(2, "):
        native.load(tmp_path / "some")


def test_what_half_precision_cannot_hold_is_refused(tmp_path: Path) -> None:
    model = build_model(SMALL)
    model.image_projector.norm.running_var[0] = 1e5
    with pytest.raises(InputError, match=r"image_projector.norm.running_var has numbers"):
        native.save(tmp_path, model, SMALL, compact=True)
    assert not list(tmp_path.iterdir())


def test_a_model_with_a_trunk_and_its_statistics_comes_back_to_the_bit_and_compact_in_half_precision(
    tmp_path: Path,
) -> None:
    model = build_model(TRUNK)
    for name, buffer in model.named_buffers():
        if name.endswith("running_var"):
            buffer.copy_(torch.rand_like(buffer) * 1000)
    native.save(tmp_path / "whole", model, TRUNK)
    loaded, config = native.load(tmp_path / "whole")
    assert config == TRUNK
    assert bits(loaded) == bits(model)
    native.save(tmp_path / "compact", model, TRUNK, compact=True)
    compact, _ = native.load(tmp_path / "compact")
    for name, tensor in compact.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name].half().float() if tensor.is_floating_point() else tensor)


def test_no_random_weights_are_drawn_where_a_model_is_loaded(tmp_path: Path) -> None:
    native.save(tmp_path, build_model(TRUNK), TRUNK)
    called: list[str] = []

    class Recorder(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            called.append(getattr(func, "__name__", ""))
            return func(*args, **(kwargs or {}))

    with Recorder():
        native.load(tmp_path)
    assert called
    assert not {"normal_", "uniform_", "trunc_normal_", "erfinv_"}.intersection(called)  # PyTorch compiles each


def test_a_model_on_a_vit_knows_the_size_and_statistics_of_it(tmp_path: Path) -> None:
    vit = ViTConfig(32, 8, 24, 2, 2, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 0.125))
    config = replace(TRUNK, image=replace(TRUNK.image, stem="vit", vit=vit), teacher_loss=False)
    model = build_model(config)
    native.save(tmp_path, model, config)
    loaded, found = native.load(tmp_path)
    assert found == config
    assert bits(loaded) == bits(model)
    pixels = torch.randint(256, (1, 3, 9, 9), dtype=torch.uint8)
    assert torch.equal(loaded.image_encoder.preprocess(pixels), model.image_encoder.preprocess(pixels))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"stem": "patch"}, "seeded groups need a trunk"),
        (
            {"stages": (Stage(1, 4, 4), Stage(0, output_groups=4, seeded=True))},
            "seeded groups need a trunk",
        ),
        (
            {"stages": (Stage(1, 4, 4, seeded=True),)},
            "seeded groups .* no group tokens",
        ),
        ({"patch_size": 16}, "the trunk has patches of 8 pixels, not of 16"),
        ({"stem": "vit"}, "a trunk 'vit' needs its sizes"),
    ],
)
def test_a_trunk_that_fits_no_model_is_one_line(changes: dict[str, Any], complaint: str, tmp_path: Path) -> None:
    native.save(tmp_path, build_model(TRUNK), TRUNK)
    values = replace(TRUNK, image=replace(TRUNK.image, **changes)).to_dict()
    rewrite(tmp_path, model=values)
    with pytest.raises(InputError, match=f"no model can be built from its configuration: {complaint}"):
        native.load(tmp_path)


@pytest.mark.parametrize("layout", ["release", "transformers"])
@pytest.mark.parametrize("stages", [(Stage(0, output_groups=4, seeded=True),), (Stage(1, 4, 4), Stage(1))])
def test_other_layouts_refuse_a_model_with_a_trunk(layout: str, stages: tuple[Stage, ...], tmp_path: Path) -> None:
    config = replace(TRUNK, image=replace(TRUNK.image, stages=stages))
    with pytest.raises(InputError, match=f"the {layout} layout cannot express"):
        LAYOUTS[layout].save(tmp_path / "a", build_model(config), config)
    assert not list(tmp_path.iterdir())


def test_other_weights_in_a_model_s_folder_are_not_taken_for_the_model_s(tmp_path: Path) -> None:
    native.save(tmp_path, build_model(SMALL), SMALL)
    (tmp_path / "ema.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes())
    assert checkpoints.load(tmp_path / "model.safetensors")[1] == SMALL
    with pytest.raises(InputError, match=r"ema.safetensors is no checkpoint"):
        checkpoints.load(tmp_path / "ema.safetensors")


@pytest.mark.parametrize(("part", "heads"), [("image", 3), ("image", 0), ("text", 5)])
def test_heads_that_do_not_divide_the_channels_are_one_line(part: str, heads: int, tmp_path: Path) -> None:
    native.save(tmp_path, build_model(SMALL), SMALL)
    rewrite(tmp_path, model=replace(SMALL, **{part: replace(getattr(SMALL, part), heads=heads)}).to_dict())
    with pytest.raises(InputError, match=rf"32 channels cannot be divided among {heads} heads"):
        native.load(tmp_path)


@pytest.mark.parametrize("layout", ["release", "transformers"])
def test_other_layouts_leave_out_what_training_alone_needs(layout: str, tmp_path: Path) -> None:
    image = ImageEncoderConfig(32, 16, 64, 1, stages=(Stage(1, 4, 4), Stage(1, 2, 2)), drop_path=0.3, patch_dropout=0.5)
    config = replace(RELEASE, image=image, text=TextEncoderConfig(64, 1, 1, vocab_size=60), projector_dim=24)
    LAYOUTS[layout].save(tmp_path / "a", build_model(config), config)
    assert LAYOUTS[layout].load(tmp_path / "a")[1].image == replace(image, drop_path=0.1, patch_dropout=0.0)


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        *(("text", "layers", value) for value in (10**9, 10**30)),
        *(("text", "width", value) for value in (10**30, -8)),
        *((None, "projector_dim", value) for value in (10**30, 10**12, -1)),
        ("image", "stages", [{"depth": 10**9, "group_tokens": 2, "output_groups": 2}]),
    ],
)
def test_a_configuration_of_impossible_size_is_refused_at_once_in_one_line(tmp_path, part, name, value):
    native.save(tmp_path, build_model(SMALL), SMALL)
    state, metadata = native.read_safetensors(tmp_path / native.WEIGHTS)
    document = json.loads(metadata["groupvit"])
    (document["model"][part] if part else document["model"])[name] = value
    native.write_safetensors(tmp_path / native.WEIGHTS, state, {"groupvit": json.dumps(document)})
    with pytest.raises(InputError, match=re.escape(str(tmp_path / native.WEIGHTS))) as refusal:
        native.load(tmp_path)
    assert "\n" not in str(refusal.value)
