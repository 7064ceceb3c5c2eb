from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import groupvit
from groupvit import api
from groupvit.checkpoints import LAYOUTS, hub
from groupvit.errors import InputError
from groupvit.models import RELEASE, GroupViT, ImageEncoderConfig, ModelConfig, Stage, TextEncoderConfig, build_model

SMALL = replace(
    RELEASE,
    image=ImageEncoderConfig(image_size=32, patch_size=8, dim=64, heads=1, stages=(Stage(1, 6, 6), Stage(1))),
    text=TextEncoderConfig(width=64, heads=1, layers=1),
    embed_dim=16,
    projector_dim=24,
)


@pytest.fixture
def model() -> GroupViT:
    return build_model(SMALL)


def bits(model: GroupViT) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_layout_is_told_by_the_content(layout: str, model: GroupViT, tmp_path: Path) -> None:
    LAYOUTS[layout].save(tmp_path / "without_a_suffix", model, SMALL)
    for source in (tmp_path / "without_a_suffix", str(tmp_path / "without_a_suffix")):
        loaded, config = api.load_model(source)
        assert bits(loaded) == bits(model)
        assert config == SMALL
        assert not loaded.training


@pytest.mark.parametrize("layout", ["native", "transformers"])
def test_the_weights_file_of_a_folder_will_do(layout: str, model: GroupViT, tmp_path: Path) -> None:
    LAYOUTS[layout].save(tmp_path, model, SMALL)
    assert bits(api.load_model(tmp_path / "model.safetensors")[0]) == bits(model)


def test_load_gives_a_segmenter_that_names_pixels(model: GroupViT, tmp_path: Path) -> None:
    LAYOUTS["native"].save(tmp_path, model, SMALL)
    result = groupvit.load(tmp_path).segment(np.zeros((40, 50, 3), np.uint8), ["dog", "grass"])
    assert result.label_map.shape == (40, 50)
    assert result.names == ("dog", "grass")
    with pytest.raises(InputError, match=r"nosuch"):
        groupvit.load(tmp_path, device="nosuch")
    assert groupvit.load(tmp_path, device="cpu").device == torch.device("cpu")


@pytest.fixture
def downloads(monkeypatch: pytest.MonkeyPatch, model: GroupViT, tmp_path: Path) -> list[Any]:
    """Every request to the hub, which has one model, owner/name."""
    requests = []
    LAYOUTS["transformers"].save(tmp_path / "hub", model, SMALL)

    def download(repo_id: str, revision: str | None = None, *, allow_pickle: bool = False) -> Path:
        requests.append((repo_id, revision, allow_pickle))
        if not repo_id.startswith("owner/name"):
            raise InputError(f"{repo_id} cannot be downloaded")
        return tmp_path / "hub"

    monkeypatch.setattr(hub, "download", download)
    return requests


def test_a_hub_id_is_downloaded(downloads: list[Any], model: GroupViT) -> None:
    loaded: Callable[..., tuple[GroupViT, ModelConfig]] = api.load_model
    assert bits(loaded("owner/name")[0]) == bits(model)
    loaded("owner/name@v1")
    loaded("owner/name", revision="v2")
    assert downloads == [("owner/name", None, False), ("owner/name@v1", None, False), ("owner/name", "v2", False)]


def test_a_folder_comes_before_the_hub(
    downloads: list[Any], model: GroupViT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    LAYOUTS["native"].save(tmp_path / "owner/name", model, SMALL)
    monkeypatch.chdir(tmp_path)
    api.load_model("owner/name")
    assert downloads == []


def test_a_bundled_name_comes_before_everything(
    downloads: list[Any], model: GroupViT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "BUNDLED", ("small",))
    monkeypatch.setattr(api, "__file__", str(tmp_path / "api.py"))
    LAYOUTS["native"].save(tmp_path / "bundled/small", model, SMALL)
    assert bits(api.load_model("small")[0]) == bits(model)


def test_what_is_found_nowhere_names_all_the_places(downloads: list[Any], tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        api.load_model("other/model")
    message = str(error.value)
    assert "bundled models" in message
    assert str(Path("other/model").absolute()) in message
    assert "the hub (other/model cannot be downloaded)" in message
    assert "\n" not in message


def test_a_name_that_is_no_hub_id_is_not_looked_for_there(downloads: list[Any], tmp_path: Path) -> None:
    for source in ("nonsense", "n" * 300, str(tmp_path / "absent.pth"), tmp_path / "absent", Path("n" * 300)):
        with pytest.raises(InputError, match=r"no model .* the hub \(not spelt owner/name\)"):
            api.load_model(source)
    assert downloads == []


def test_a_bundled_model_may_be_a_path_and_has_no_revisions() -> None:
    assert api.locate(Path("photos-trunk")) == api.locate("photos-trunk")
    with pytest.raises(InputError, match="is on this machine and has no revision v1"):
        api.locate("photos-trunk", revision="v1")


def test_a_model_is_loaded_in_float32_whatever_the_default() -> None:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        model, _ = api.load_model("photos-trunk")
    finally:
        torch.set_default_dtype(before)
    assert model.logit_scale.dtype == torch.float32


def test_a_revision_of_something_on_this_machine_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no revision v1"):
        api.load_model(tmp_path, revision="v1")


@pytest.mark.parametrize("content", [None, b"", b"words", b"{}"], ids=str)
def test_what_is_no_checkpoint_is_an_error(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "thing"
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(InputError, match="thing is no checkpoint"):
        api.load_model(path)


@pytest.mark.parametrize(
    ("config", "weights", "said"),
    [
        ('{"model_type": "clip"}', b"", "is no checkpoint: it holds a 'clip', no GroupViT$"),
        ('{"architecture": "vit_small"}', b"", r"it holds a 'vit_small', no GroupViT$"),
        ("{", b"", "config.json"),
        ("{}", b"cut", r"model.safetensors cannot be read, it is no safetensors file or was cut off"),
    ],
)
def test_a_folder_of_something_else_says_of_what(config: str, weights: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(config)
    if weights:
        (tmp_path / "model.safetensors").write_bytes(weights)
    with pytest.raises(InputError, match=said):
        api.load_model(tmp_path)
