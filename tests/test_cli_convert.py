import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from PIL import Image

from groupvit import api
from groupvit.checkpoints import LAYOUTS, native
from groupvit.checkpoints import convert as checks
from groupvit.cli.convert import convert
from groupvit.errors import InputError
from groupvit.models import RELEASE, GroupViT, ImageEncoderConfig, Stage, TextEncoderConfig, build_model

RunCli = Callable[..., tuple[int, str, str]]
SMALL = replace(
    RELEASE,
    image=ImageEncoderConfig(image_size=224, patch_size=32, dim=64, heads=1, stages=(Stage(1, 6, 6), Stage(1))),
    text=TextEncoderConfig(width=64, heads=1, layers=1),
    embed_dim=16,
    projector_dim=24,
)
UNUSUAL = replace(SMALL, image=replace(SMALL.image, group_residual=False))


def bits(model: GroupViT) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in model.state_dict().items()}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    native.save(tmp_path / "source", build_model(SMALL), SMALL)
    return tmp_path / "source"


def test_a_round_through_all_layouts_changes_no_bit(source: Path, tmp_path: Path, capsys: Any) -> None:
    path = source
    layouts: list[Any] = ["transformers", "release", "native", "release", "transformers", "native"]
    for step, to in enumerate(layouts):
        convert(str(path), tmp_path / str(step), to=to, verify=True)
        path = tmp_path / str(step)
        assert [name for name, layout in LAYOUTS.items() if layout.recognises(path)] == [to]
    assert bits(api.load_model(path)[0]) == bits(api.load_model(source)[0])
    count = len(build_model(SMALL).state_dict())
    assert capsys.readouterr().out.count(f"{count} tensors are equal bit for bit\n") == 6
    assert sorted(os.listdir(tmp_path)) == ["0", "1", "2", "3", "4", "5", "source"]


def test_a_photo_that_nothing_is_compared_on_is_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--photo is what --verify compares"):
        convert(str(source), tmp_path / "model.pth", to="release", photo=tmp_path / "a.jpg")


def test_the_command_converts(source: Path, tmp_path: Path, run_cli: RunCli) -> None:
    code, out, err = run_cli("convert", "source", "deep/model.pth", "--to", "release", "--verify")
    assert (code, err) == (0, "")
    assert out.endswith("tensors are equal bit for bit\nwrote deep/model.pth\n")
    assert os.listdir(tmp_path / "deep") == ["model.pth"]


@pytest.mark.parametrize("out", ["out", "model.onnx"])
@pytest.mark.parametrize("labels", [(), ("dog", "person=man,woman")])
def test_an_onnx_file_is_written_in_a_folder_or_under_its_name(
    out: str, labels: tuple[str, ...], source: Path, tmp_path: Path, capsys: Any
) -> None:
    convert(str(source), tmp_path / out, to="onnx", labels=labels)
    file = tmp_path / out if out == "model.onnx" else tmp_path / out / "model.onnx"
    metadata = {entry.key: entry.value for entry in onnx.load(file).metadata_props}
    assert json.loads(metadata["labels"]) == [label.partition("=")[0] for label in labels]
    assert metadata["licence"] == f"that of {source}"
    assert "100.00 % of pixels are PyTorch's" in capsys.readouterr().out
    assert (file.parent / "text.onnx").exists() == (out == "out" and not labels)


def test_a_folder_of_onnx_files_is_written_whole_or_not_at_all(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> str:
        raise InputError("ONNX Runtime differs")

    monkeypatch.setattr("groupvit.checkpoints.onnx.save_texts", refuse)
    before = os.listdir(tmp_path)
    with pytest.raises(InputError, match="differs"):
        convert(str(source), tmp_path / "out", to="onnx")
    assert os.listdir(tmp_path) == before


@pytest.mark.parametrize("to", ["native", "release", "transformers"])
def test_labels_go_into_an_onnx_file_only(to: Any, source: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--labels go into an ONNX file"):
        convert(str(source), tmp_path / "out", to=to, labels=("dog",))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["file", "folder", "dangling link"])
def test_nothing_is_overwritten(kind: str, source: Path, tmp_path: Path) -> None:
    path = tmp_path / "there"
    {"file": path.touch, "folder": path.mkdir, "dangling link": lambda: path.symlink_to("nowhere")}[kind]()
    with pytest.raises(InputError, match="there exists"):
        convert(str(source), path, to="native")


@pytest.mark.parametrize("to", ["release", "transformers"])
def test_a_model_that_the_layout_cannot_express_leaves_nothing(to: Any, tmp_path: Path) -> None:
    native.save(tmp_path / "unusual", build_model(UNUSUAL), UNUSUAL)
    with pytest.raises(InputError, match=f"the {to} layout cannot express image.group_residual"):
        convert(str(tmp_path / "unusual"), tmp_path / "out", to=to)
    assert os.listdir(tmp_path) == ["unusual"]


def test_a_source_that_is_nowhere_is_one_line(run_here: RunCli) -> None:
    code, out, err = run_here("convert", "absent.pth", "out", "--to", "native")
    assert (code, out) == (2, "")
    assert err.startswith("groupvit: error: no model 'absent.pth'")
    assert err.count("\n") == 1


def test_a_place_that_cannot_be_written_is_one_line(source: Path, tmp_path: Path, run_here: RunCli) -> None:
    (tmp_path / "file").write_text("precious")
    code, out, err = run_here("convert", source, tmp_path / "file" / "out", "--to", "native")
    assert (code, out) == (2, "")
    assert err.count("\n") == 1


def test_verify_finds_a_changed_bit(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save = LAYOUTS["transformers"].save

    def careless(path: Path, model: GroupViT, config: Any) -> None:
        changed = build_model(SMALL)
        changed.load_state_dict(model.state_dict())
        with torch.no_grad():
            changed.logit_scale.view(torch.int32).add_(1)
        save(path, changed, config)

    monkeypatch.setattr(LAYOUTS["transformers"], "save", careless)
    with pytest.raises(InputError, match="tensor logit_scale changed"):
        convert(str(source), tmp_path / "out", to="transformers", verify=True)
    assert os.listdir(tmp_path) == ["source"]


@pytest.fixture
def published(source: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub that has `source` as one of the published checkpoints, and a photo."""
    monkeypatch.setattr(api, "locate", lambda *_, **__: source)
    Image.radial_gradient("L").resize((640, 480)).save(source.parent / "photo.png")
    return source.parent / "photo.png"


def test_verify_compares_logits_of_a_published_checkpoint(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    with pytest.raises(InputError, match=r"published are \[13.3523, 6.3629\]: nothing was written") as error:
        convert("nvidia/groupvit-gcc-yfcc", tmp_path / "out", to="native", verify=True, photo=published)
    assert not (tmp_path / "out").exists()
    values = tuple(float(x) for x in str(error.value).split(" are [")[1].split("]")[0].split(", "))
    monkeypatch.setitem(checks.GOLDEN, "nvidia/groupvit-gcc-yfcc", values)
    convert("nvidia/groupvit-gcc-yfcc@main", tmp_path / "out", to="native", verify=True, photo=published)
    assert "are the published ones" in capsys.readouterr().out


def test_a_photo_that_cannot_be_fetched_is_one_line(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "PHOTO", "http://127.0.0.1:9/photo.jpg")
    with pytest.raises(InputError, match=r"127.0.0.1:9/photo.jpg cannot be downloaded: .*; give the file with --photo"):
        convert("nvidia/groupvit-gcc-yfcc", tmp_path / "out", to="native", verify=True)


def test_the_photo_is_prepared_as_clip_s_processor_does(published: Path) -> None:
    from transformers import CLIPImageProcessor

    pixels = checks.pixels(published)
    processor = CLIPImageProcessor()
    with Image.open(published) as image:
        wanted = torch.as_tensor(processor(image.convert("RGB"), return_tensors="pt")["pixel_values"])
    assert pixels.shape == wanted.shape == (1, 3, 224, 224)
    assert (pixels - wanted).abs().max() < 0.02  # half a grey level: implementations of bicubic round differently


@pytest.mark.hub
@pytest.mark.parametrize("name", checks.GOLDEN)
def test_the_published_checkpoints_give_the_published_logits(name: str, tmp_path: Path, capsys: Any) -> None:
    try:
        api.locate(name, allow_pickle=True)
        checks.download(checks.PHOTO)
    except InputError as error:
        pytest.skip(str(error))
    convert(name, tmp_path / "out", to="release", verify=True, allow_pickle=True)
    assert "are the published ones" in capsys.readouterr().out
