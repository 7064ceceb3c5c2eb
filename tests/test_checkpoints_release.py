import os
import sys
import types
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from groupvit.checkpoints import load, names, release
from groupvit.errors import InputError
from groupvit.models import (
    RELEASE,
    GroupViT,
    ImageEncoderConfig,
    ModelConfig,
    Stage,
    TextEncoderConfig,
    build_model,
    with_stages,
)

SMALL = replace(
    RELEASE,
    image=ImageEncoderConfig(image_size=48, patch_size=8, dim=64, heads=1, stages=(Stage(2, 6, 5), Stage(1, 4, 3))),
    text=TextEncoderConfig(width=128, heads=2, layers=2, context_length=8, vocab_size=60),
    embed_dim=16,
    projector_dim=24,
)
PLAIN = with_stages(SMALL, Stage(3))
ONE_STAGE = with_stages(SMALL, Stage(2, 6, 3), Stage(1))
CONFIGS = [SMALL, PLAIN, ONE_STAGE, replace(SMALL, multi_label_scale=False)]


def bits(model: GroupViT) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in model.state_dict().items()}


def write(path: Path, **changes: Tensor | None) -> Path:
    """A small release file with some tensors exchanged (None takes one away)."""
    state = release.encode(build_model(SMALL).state_dict()) | changes
    torch.save({"model": {name: tensor for name, tensor in state.items() if tensor is not None}}, path)
    return path


@pytest.mark.parametrize("multi_label_scale", [True, False])
def test_names_and_shapes_are_those_of_the_published_files(multi_label_scale: bool) -> None:
    with torch.device("meta"):
        model = build_model(replace(RELEASE, multi_label_scale=multi_label_scale))
    lines = (Path(__file__).parent / "data/release_tensors.txt").read_text().splitlines()
    expected = dict(line.split("\t") for line in lines)
    if not multi_label_scale:
        del expected["multi_label_logit_scale"]
    assert len(expected) == 406 + multi_label_scale
    assert {name: str(tuple(tensor.shape)) for name, tensor in release.encode(model.state_dict()).items()} == expected


def test_every_name_goes_there_and_back() -> None:
    for name in build_model(SMALL).state_dict():
        theirs = names.translate(name, release.TABLE)
        assert theirs is not None
        assert names.translate(theirs, names.inverse(release.TABLE)) == name


@pytest.mark.parametrize("config", CONFIGS, ids=["2-stage", "plain ViT", "1-stage", "one temperature"])
def test_there_and_back_changes_no_bit_and_finds_the_configuration(config: ModelConfig, tmp_path: Path) -> None:
    model = build_model(config)
    release.save(tmp_path / "a.pth", model, config)
    loaded, loaded_config = release.load(tmp_path / "a.pth")
    assert bits(loaded) == bits(model)
    assert loaded_config == config
    assert not loaded.training
    assert os.listdir(tmp_path) == ["a.pth"]


def test_the_published_configuration_is_told_by_the_shapes() -> None:
    with torch.device("meta"):
        state = release.encode(build_model(RELEASE).state_dict())
    assert release.infer_config(release.decode(state, Path("a.pth")), Path("a.pth")) == RELEASE


def test_a_bare_state_dict_and_half_precision_are_read(tmp_path: Path) -> None:
    model = build_model(SMALL).half()
    torch.save(release.encode(model.state_dict()), tmp_path / "a.pth")
    assert bits(release.load(tmp_path / "a.pth")[0]) == bits(model.float())


def itself(state: dict[str, Tensor]) -> dict[str, Any]:
    wrapped: dict[str, Any] = {}
    wrapped["model"] = wrapped
    return wrapped


@pytest.mark.parametrize(
    "change",
    [
        lambda state: {"state_dict_ema": state, "epoch": 3},
        lambda state: {"ema": {"module": state}},
        lambda state: {**state, "epoch": 3, "args": None},
        lambda state: {"module": {f"module.{name}": tensor for name, tensor in state.items()}, "optimizer": {}},
        lambda state: {f"_forward_module._orig_mod.{name}": tensor for name, tensor in state.items()},
        lambda state: {name.replace("encoder.", "encoder._orig_mod."): tensor for name, tensor in state.items()},
        lambda state: {name.replace(".0.", ".0._fsdp_wrapped_module."): tensor for name, tensor in state.items()},
        lambda state: {"state_dict": {f"model.{n}": t for n, t in state.items()} | {"loss.weight": torch.ones(2)}},
        lambda state: {name: tensor.half().float() for name, tensor in state.items()},  # counters, too
    ],
)
def test_weights_are_found_however_a_trainer_wraps_them(change: Any, tmp_path: Path) -> None:
    model = build_model(SMALL).half().float()
    torch.save(change(release.encode(model.state_dict())), tmp_path / "a.pth")
    assert bits(load(tmp_path / "a.pth")[0]) == bits(model)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (itself, "holds no state dict, but model"),
        (lambda state: {"student": state, "epoch": 3}, "holds no state dict, but student, epoch"),
        (lambda state: {n: t * float("nan") for n, t in state.items()}, "tensor logit_scale has numbers that are not"),
        (lambda state: {n: t.to_sparse() if t.ndim == 2 else t for n, t in state.items()}, "is missing"),
    ],
)
def test_weights_that_are_none_are_named(change: Any, said: str, tmp_path: Path) -> None:
    torch.save(change(release.encode(build_model(SMALL).state_dict())), tmp_path / "a.pth")
    with pytest.raises(InputError, match=said):
        load(tmp_path / "a.pth")


@pytest.mark.parametrize(
    ("changes", "option"),
    [
        ({"stem": "conv"}, "image.stem = 'conv'"),
        ({"assign_logits": "cosine"}, "image.assign_logits"),
        ({"group_residual": False}, "image.group_residual"),
        ({"hard_assignment": False}, "image.hard_assignment"),
        ({"assign_eps": 0.0}, "image.assign_eps"),
        ({"token_mixer": False}, "image.token_mixer"),
        ({"project_group_tokens": False}, "image.project_group_tokens"),
        ({"heads": 2}, "image.heads"),
        ({"mlp_ratio": 2.0}, "image.mlp_ratio"),
        ({"image_size": 50}, "image.image_size"),
    ],
    ids=str,
)
def test_an_option_that_the_layout_cannot_express_is_named(
    changes: dict[str, Any], option: str, tmp_path: Path
) -> None:
    config = replace(SMALL, image=replace(SMALL.image, **changes))
    with pytest.raises(InputError, match=f"the release layout cannot express {option}"):
        release.save(tmp_path / "a.pth", build_model(config), config)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("option", ["segment_loss", "teacher_loss"])
def test_so_is_one_of_the_whole_model(option: str, tmp_path: Path) -> None:
    config = replace(SMALL, **{option: True})
    with pytest.raises(InputError, match=f"cannot express {option}"):
        release.save(tmp_path / "a.pth", build_model(config), config)


@pytest.mark.parametrize(
    ("name", "tensor", "complaint"),
    [
        ("img_encoder.norm.weight", None, "tensor img_encoder.norm.weight is missing"),
        ("img_encoder.pos_embed", None, "tensor img_encoder.pos_embed is missing"),
        ("img_encoder.pos_embed", torch.tensor(1.0), "tensor img_encoder.pos_embed is missing or a scalar"),
        ("head.weight", torch.zeros(1), "tensor head.weight does not belong"),
        ("img_enc\noder\x1b[2J", torch.zeros(1), r"^[^\n\x1b]*img_enc oder \[2J does not belong"),
        ("img_encoder.surplus", torch.zeros(1), "tensor img_encoder.surplus does not belong"),
        ("img_encoder.layers.0.downsample.surplus", torch.zeros(1), "downsample.surplus does not belong"),
        ("img_projector.linear_out.weight", torch.zeros(16, 24), r"linear_out.weight has shape \(16, 24\)"),
        ("logit_scale", torch.tensor(1.0).double(), "tensor logit_scale has dtype float64"),
    ],
)
def test_a_deviating_tensor_is_named_as_in_the_file(
    name: str, tensor: Tensor | None, complaint: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=complaint) as error:
        release.load(write(tmp_path / "a.pth", **{name: tensor}))
    assert "a.pth" in str(error.value)


class Plant:
    """Leaves a file when a pickle is executed."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.marker}'",)


class Evaluate(Plant):
    def __reduce__(self) -> tuple[Any, ...]:
        return eval, (f"__import__('pathlib').Path({str(self.marker)!r}).touch()",)


@pytest.mark.parametrize("kind", [Plant, Evaluate])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_pickle_that_wants_to_run_code_is_refused(kind: type[Plant], zipped: bool, tmp_path: Path) -> None:
    marker, path = tmp_path / "executed", tmp_path / "a.pth"
    torch.save({"model": {}, "config": kind(marker)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match="nothing in it was executed"):
        release.load(path)
    assert not marker.exists()
    kind(marker).__reduce__()[0](*kind(marker).__reduce__()[1])  # the trap itself works
    assert marker.exists()


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04nothing", b"\x80\x02.", "truncated", "list", "tensors"])
def test_a_file_that_is_no_checkpoint_is_an_error_of_one_line(content: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "a.pth")
    if content in ("list", "tensors"):
        torch.save([1, 2] if content == "list" else {"model": {"a": 1}}, path)
    else:
        path.write_bytes(path.read_bytes()[:-1000] if content == "truncated" else content)
    with pytest.raises(InputError, match=r"a\.pth"):
        release.load(path)


def foreign_class(name: str) -> type:
    """A class that pickles as one of a package that is not installed."""
    module, _, qualname = name.rpartition(".")
    made = type(qualname, (), {"__module__": module})
    for package in ("omegaconf", module):
        sys.modules.setdefault(package, types.ModuleType(package))
    setattr(sys.modules[module], qualname, made)
    return made


def omegaconf_object() -> Any:
    """What OmegaConf 2 puts into a pickle: containers, nodes and metadata that refer to one another and to types."""
    made = {
        name: foreign_class(f"omegaconf.{name}")()
        for name in ("dictconfig.DictConfig", "listconfig.ListConfig", "base.ContainerMetadata", "nodes.AnyNode")
    }
    config, items, metadata, node = made.values()
    metadata.__dict__.update(ref_type=Any, object_type=dict, key_type=int, resolver_cache=defaultdict(dict))
    node.__dict__.update(_metadata=metadata, _val=3, _parent=config)
    items.__dict__.update(_metadata=metadata, _content=[node])
    config.__dict__.update(_metadata=metadata, _content={"items": items}, _parent=None)
    return config


def test_a_checkpoint_with_the_training_script_s_configuration_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.pth")
    state = torch.load(path)["model"]
    before = set(sys.modules)
    try:
        document = {"model": state, "config": omegaconf_object(), "metrics": {"max_miou": np.float64(1.5)}, "epoch": 3}
        torch.save(document, path)
    finally:
        for module in set(sys.modules) - before:
            del sys.modules[module]
    assert bits(release.load(path)[0]).keys() == build_model(SMALL).state_dict().keys()
    read = release.read_pickle(path)
    assert read["epoch"] == 3
    assert vars(read["config"]) == {}  # the stand-in keeps nothing
    assert not set(torch.serialization.get_safe_globals()) & set(release._HARMLESS)  # and is known only while reading


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.pth")
    old = path.read_bytes()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="No space left on device"):
        release.save(path, build_model(SMALL), SMALL)
    assert path.read_bytes() == old
    assert os.listdir(tmp_path) == ["a.pth"]


@pytest.mark.parametrize("wrappers", [(), ("state_dict",), ("model", "state_dict"), ("model_state_dict",)])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "model."])
def test_wrapped_weights_are_read_as_those_of_a_release_file(wrappers, prefix, tmp_path):
    model = build_model(ONE_STAGE)
    saved: Any = {prefix + name: tensor for name, tensor in release.encode(model.state_dict()).items()}
    if prefix == "module.":
        saved["n_averaged"] = torch.tensor(7)
    for wrapper in reversed(wrappers):
        saved = {"epoch": 3, wrapper: saved}
    torch.save(saved, tmp_path / "a.pth")
    assert bits(load(tmp_path / "a.pth")[0]) == bits(model)
