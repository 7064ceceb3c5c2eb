"""The model in the package does what its card says."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from experiments import demo
from experiments.photos import open_from
from PIL import Image

import groupvit
from groupvit import api
from groupvit.errors import InputError
from groupvit.evaluation.benchmark import evaluate
from groupvit.evaluation.metrics import mean_iou
from groupvit.evaluation.protocols import CALIBRATED_WHOLE
from groupvit.evaluation.whole_photos import Retrieval
from groupvit.segmentation import Segmenter
from groupvit.text.templates import SIMPLE_TEMPLATE

RESULTS = json.loads((Path(__file__).parents[1] / "docs/results.json").read_text())
CLOSE = 0.2
"""Points: what another processor's rounding may change."""


@pytest.fixture(scope="module")
def photos() -> Segmenter:
    return groupvit.load("photos-trunk", precision="fp32")


def test_the_weights_are_small_enough_for_a_package() -> None:
    weights = [*(Path(api.__file__).parent / "bundled" / "photos-trunk").iterdir()]
    assert weights
    assert sum(path.stat().st_size for path in weights) < 24e6


@pytest.mark.parametrize("row", RESULTS["demo"]["rows"], ids=lambda row: row["photo"])
def test_photographs_are_named_as_the_card_says(row: dict[str, str], photos: Segmenter) -> None:
    result = demo.named(photos, row["photo"])
    found = dict(entry.rsplit(" ", 1) for entry in row["found, % of the photo"].split(", "))
    assert list(found) == list(result.names)
    for share, value in zip(result.shares, found.values(), strict=True):
        assert 100 * share == pytest.approx(float(value), abs=CLOSE)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:this model knows aeroplane by airplane")
@pytest.mark.parametrize("name", ["voc2012", "pets"])
def test_benchmarks_score_as_the_card_says(name: str, data_dir: Path) -> None:
    photos = groupvit.load("photos-trunk", precision="bf16")
    row = RESULTS[f"photos_trunk_{name}"]["rows"][0]
    found = evaluate(photos, open_from(data_dir / "eval", name), CALIBRATED_WHOLE)
    assert mean_iou(found.matrix) == pytest.approx(float(row["mIoU"]), abs=CLOSE)


@pytest.mark.slow
def test_captions_find_their_photos_as_the_card_says(photos: Segmenter, data_dir: Path) -> None:
    found = Retrieval(data_dir / "captions/flickr8k-test-*.tar", photos.config)(photos.model)
    row = RESULTS["photos_trunk_retrieval"]["rows"][0]
    assert row["from"] == "text to image"
    assert found["text_to_image_r10"] == pytest.approx(float(row["R@10"]), abs=CLOSE)


def test_it_brings_the_embeddings_that_it_gives_its_nouns(photos: Segmenter) -> None:
    nouns = photos.config.rivals
    asked = photos.embed_words(nouns[::40], (SIMPLE_TEMPLATE,))
    given = photos.words._encode(nouns[::40], (SIMPLE_TEMPLATE,))
    assert photos.model.rivals is not None
    assert torch.equal(asked, photos.model.rivals[::40])
    torch.testing.assert_close(asked, given, atol=2e-3, rtol=0)
    assert torch.equal(photos.embed_words(["dog"]), photos.embed_words(("dog",), (SIMPLE_TEMPLATE,)))
    for words in (("dog",), (["dog"], SIMPLE_TEMPLATE)):
        with pytest.raises(InputError, match="words and templates are lists of texts"):
            photos.embed_words(*words)
    for words, said in (
        (([],), "no words"),
        ((["dog"], []), "with {} in the place of the word"),
        ((["dog"], ["a photo"]), "with {} in the place of the word"),
    ):
        with pytest.raises(InputError, match=said):
            photos.embed_words(*words)


def test_words_that_it_never_saw_are_named(photos: Segmenter) -> None:
    photo = np.zeros((40, 50, 3), np.uint8)
    with pytest.warns(UserWarning, match="never saw: theodolite"):
        photos.segment(photo, ["dog", "theodolite"])


def test_a_word_that_it_hardly_knows_does_not_spoil_a_label(photos: Segmenter) -> None:
    labels = ["aeroplane=aeroplane,airplane,plane", "cat=cat,kitten"]
    with pytest.warns(UserWarning, match="knows aeroplane by airplane, not by aeroplane$"):
        plane, cat = photos.words.without_strangers(labels)
    assert (plane.words, cat.words) == (("airplane", "plane"), ("cat", "kitten"))


def test_segment_needs_no_model_and_no_network(run_cli, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    Image.fromarray(np.full((60, 80, 3), 90, np.uint8)).save(tmp_path / "my.jpg")
    code, out, err = run_cli("segment", "my.jpg", "--labels", "person", "dog", "grass")
    assert code == 0, err
    assert "my.jpg.overlay.jpg" in out
