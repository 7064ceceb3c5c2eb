"""ONNX files compute what PyTorch computes, for images of any number and size."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import groupvit
from groupvit.checkpoints.native import forget_unseen
from groupvit.checkpoints.onnx import Groups, _any_size, save, save_texts
from groupvit.errors import InputError
from groupvit.models import PAPER, RELEASE, ModelConfig, build_model
from groupvit.models.grouping import SeededGrouping
from groupvit.text.tokenizer import Tokenizer
from test_segmentation_engine import PLAIN, SEEDED, SMALL, model_of

SHAPES = ((1, 64, 64), (3, 90, 50), (1, 16, 16), (2, 8, 70))
SCRIPT = """
import sys, json, numpy, onnxruntime
from PIL import Image
session = onnxruntime.InferenceSession(sys.argv[1])
labels = json.loads(session.get_modelmeta().custom_metadata_map["labels"])
photo = numpy.asarray(Image.open(sys.argv[2]).convert("RGB"))
label_map, scores = session.run(None, {"photo": photo})
Image.fromarray(label_map.astype("uint8")).save(sys.argv[3])
print([labels[i] for i in numpy.unique(label_map)])
assert not {"torch", "groupvit"} & set(sys.modules)
"""


@pytest.mark.parametrize("config", [SMALL, SEEDED], ids=["two stages", "seeded"])
def test_a_file_takes_images_of_any_number_and_size_and_any_words(config: ModelConfig, tmp_path: Path) -> None:
    model, path = model_of(config), tmp_path / "model.onnx"
    save(path, model, config, licence="a licence")
    session, groups = onnxruntime.InferenceSession(path), Groups(model, config)
    assert [output.name for output in session.get_outputs()] == groups.names()
    assert onnx.load(path).opset_import[0].version >= 17
    assert session.get_modelmeta().custom_metadata_map["licence"] == "a licence"
    for words, (batch, height, width) in enumerate(SHAPES, start=1):
        pixels = torch.randint(256, (batch, 3, height, width), dtype=torch.uint8)
        inputs = {"pixels": pixels, "words": F.normalize(torch.randn(words, config.embed_dim), dim=-1)}
        made = dict(zip(groups.names(), session.run(None, {k: v.numpy() for k, v in inputs.items()}), strict=True))
        with torch.inference_mode():
            wanted = dict(zip(groups.names(), groups(**inputs), strict=True))
        for name, value in wanted.items():
            if name.startswith("groups"):
                assert (made[name].argmax(axis=1) == value.argmax(dim=1).numpy()).mean() >= 0.999
            else:
                np.testing.assert_allclose(made[name][:, : value.shape[1]], value, atol=1e-4)


@pytest.mark.parametrize("texts", [["a photo of a cat."], ["a dog", "", "zebra crossing", "cat " * 50]])
def test_a_file_turns_any_texts_into_vectors_and_tells_unseen_words(texts: list[str], tmp_path: Path) -> None:
    model, path, tokens = model_of(SMALL), tmp_path / "text.onnx", Tokenizer(SMALL.text.context_length)(texts)
    forget_unseen(model, Tokenizer()(["a photo of a cat.", "a dog", "crossing"]).unique())
    assert "PyTorch's within" in save_texts(path, model, SMALL)
    session, longest = onnxruntime.InferenceSession(path), int(tokens.argmax(dim=1).max()) + 1
    for row in (tokens, tokens[:, :longest]):
        words, unseen = session.run(["words", "unseen"], {"tokens": row.numpy()})
        with torch.inference_mode():
            np.testing.assert_allclose(words, model.encode_text(tokens), atol=1e-5)
        assert unseen.tolist() == ["zebra" in text for text in texts]


@pytest.mark.parametrize(("rows", "columns"), [(8, 8), (5, 13), (1, 1), (40, 3), (2, 60), (7, 1)])
@pytest.mark.parametrize("groups", [1, 6, 16])
def test_seeds_of_any_size_are_the_tiles_means(rows: int, columns: int, groups: int) -> None:
    model = model_of(SEEDED)
    model.image_encoder.grouping_stages()[0].seeded = SeededGrouping(groups)
    seeded = _any_size(model).image_encoder.grouping_stages()[0].seeded
    places = torch.randn(2, 4, rows, columns)
    assert seeded is not None
    tiles, made = SeededGrouping(groups).seeds(places, groups), seeded.seeds(places, groups)
    torch.testing.assert_close(made[:, : tiles.shape[1]], tiles)
    assert (made[:, tiles.shape[1] :] == made.amax()).all()


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("labelled") / "model.onnx"
    segmenter = groupvit.load("photos-trunk", engine="torch", precision="fp32")
    parsed = segmenter.words.with_rivals(["motorcycle=motorcycle,motorbike", "grass"])
    labels = {label.name: label.words for label in parsed}
    bank = {name: segmenter.embed_words(words, ("a photo of a {}.",)) for name, words in labels.items()}
    save(path, segmenter.model, segmenter.config, labels=bank)
    return path


@pytest.mark.parametrize("size", [(300, 200), (150, 224)])
def test_a_script_without_groupvit_segments_a_photo(labelled: Path, size: tuple[int, int], tmp_path: Path) -> None:
    photo, out = Image.open(Path(__file__).parents[1] / "docs/photos/motorcycle.jpg"), tmp_path / "out.png"
    photo.resize(size).save(tmp_path / "photo.png")
    command = [sys.executable, "-c", SCRIPT, labelled, tmp_path / "photo.png", out]
    subprocess.run(list(map(str, command)), check=True)
    segmenter = groupvit.load("photos-trunk", engine="torch", precision="fp32")
    wanted = segmenter.segment(tmp_path / "photo.png", ["motorcycle=motorcycle,motorbike", "grass"])
    made = np.asarray(Image.open(out))
    assert made.shape == wanted.label_map.shape
    assert len(np.unique(made)) > 1
    assert (made == wanted.label_map).mean() >= 0.99  # resizing rounds some pixels otherwise
    metadata = {entry.key: entry.value for entry in onnx.load(labelled).metadata_props}
    assert json.loads(metadata["labels"]) == list(wanted.names) == ["background", "motorcycle", "grass"]
    assert (metadata["short_side"], metadata["patch_size"]) == ("448", "8")


def test_a_model_without_groups_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="this model has no groups"):
        save(tmp_path / "model.onnx", model_of(PLAIN), PLAIN)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_a_missing_package_is_one_line(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=r"pip install 'groupvit\[onnx\]'"):
        save(tmp_path / "model.onnx", model_of(SMALL), SMALL)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("scale", [1.0, math.nan])
def test_a_graph_that_differs_is_not_written(scale: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, other = model_of(SMALL), model_of(SMALL)
    torch.nn.init.normal_(other.image_projector.fc2.weight)
    with torch.no_grad():
        other.image_projector.fc2.weight *= scale
    monkeypatch.setattr("groupvit.checkpoints.onnx._any_size", lambda _: other)
    with pytest.raises(InputError, match=r"ONNX Runtime differs: 100.00 % of pixels .* nothing was written"):
        save(tmp_path / "model.onnx", model, SMALL)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("config", [RELEASE, PAPER], ids=["release", "paper"])
def test_published_layouts_convert(config: ModelConfig, tmp_path: Path) -> None:
    assert "of pixels are PyTorch's" in save(tmp_path / "model.onnx", build_model(config).eval(), config)
