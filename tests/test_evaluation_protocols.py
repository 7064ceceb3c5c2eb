from dataclasses import FrozenInstanceError, replace

import pytest
from PIL import Image

from groupvit.errors import InputError
from groupvit.evaluation.datasets import BENCHMARKS, open_benchmark, open_masks
from groupvit.evaluation.protocols import (
    CALIBRATED_NATIVE,
    CALIBRATED_VOCABULARY,
    CALIBRATED_WHOLE,
    CONTRAST,
    PAPER_2022,
    PROTOCOLS,
    RELEASE_2022,
    get_protocol,
)
from groupvit.models import RELEASE, ImageEncoderConfig, ModelConfig
from groupvit.segmentation import View
from layouts import LAYOUTS


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    opened = {}
    for name in BENCHMARKS:
        root = tmp_path_factory.mktemp(name)
        LAYOUTS[name](root)
        opened[name] = open_benchmark(name, root)
    return opened


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=list(PROTOCOLS))
@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_class_is_looked_for_under_its_own_name(name, protocol, datasets):
    dataset = datasets[name]
    labels = {label.name: label.words for label in protocol.labels(dataset)}
    assert labels.keys() | {"background"} == {*dataset.classes, "background"}
    assert ("background" in labels) == (name == "folder" or (protocol.contrast is True and name in CONTRAST))
    assert all("background" not in words for words in labels.values())


def test_the_release_renames_and_the_paper_does_not(datasets):
    voc, context = datasets["voc21"], datasets["context60"]

    def words(protocol, dataset):
        return {label.name: label.words for label in protocol.labels(dataset)}

    released = words(RELEASE_2022, voc)
    assert [released[name] for name in ("diningtable", "pottedplant", "tvmonitor")] == [
        ("table",),
        ("plant",),
        ("monitor",),
    ]
    assert words(RELEASE_2022, context)["aeroplane"] == ("airplane",)
    assert sum(own != (name,) for name, own in words(RELEASE_2022, context).items()) == 3
    assert all(own == (name,) for name, own in words(PAPER_2022, voc).items())
    assert words(CALIBRATED_NATIVE, voc)["diningtable"] == ("dining table", "table")
    assert words(CALIBRATED_NATIVE, datasets["folder"])["dog"] == ("dog", "puppy")


def test_thresholds_are_the_published_ones(datasets):
    assert [RELEASE_2022.threshold(datasets[name]) for name in ("voc21", "context60", "coco-object-stuff")] == [
        0.95,
        0.35,
        0.95,
    ]
    assert [PAPER_2022.threshold(datasets[name]) for name in ("voc21", "context60")] == [0.9, 0.5]
    for name in ("voc20", "context59", "camvid11", "folder"):
        assert all(protocol.threshold(datasets[name]) is None for protocol in PROTOCOLS.values())
        assert not CALIBRATED_NATIVE.calibrated(datasets[name])
    assert CALIBRATED_NATIVE.calibrated(datasets["pets"])


@pytest.mark.parametrize(("protocol", "name"), [(RELEASE_2022, "pets"), (PAPER_2022, "coco-object-instances")])
def test_a_threshold_nobody_published_is_not_invented(protocol, name, datasets):
    with pytest.raises(InputError, match=f"{protocol.name} has no background threshold for {name}, only for voc21"):
        protocol.view_of(RELEASE, datasets[name])


def test_lengths_are_the_published_pixels_or_multiples_of_the_training_size(datasets):
    small = ModelConfig(ImageEncoderConfig(image_size=96, patch_size=8))
    for config in (RELEASE, small):
        released = RELEASE_2022.view_of(config, datasets["voc21"])
        assert [released.short_side, released.window, released.stride, released.antialias] == [448, 448, 224, False]
        paper = PAPER_2022.view_of(config, datasets["voc21"])
        assert [paper.short_side, paper.window, paper.maps, paper.scores] == [448, None, "hard", "softmax"]
        native = CALIBRATED_NATIVE.view_of(config, datasets["voc21"])
        size = config.image.image_size
        assert [native.short_side, native.window, native.background] == [2 * size, size, None]


def test_a_record_says_everything_in_plain_values(datasets):
    record = CALIBRATED_NATIVE.record(RELEASE, datasets["pets"])
    assert record["name"] == "calibrated-native"
    assert record["words"]["cat"] == ["cat", "kitten"]
    assert "grass" in record["words"]["background"]
    assert record["options"]["short_side"] == 448


def test_a_record_has_the_fields_that_it_had_when_the_view_was_not_a_record_of_its_own(datasets):
    record = PAPER_2022.record(RELEASE, datasets["voc21"])
    names = "antialias maps scores short_side stride templates window"
    assert (
        " ".join(sorted(record.keys() - {"class_names", "contrast", "name", "options", "thresholds", "unit", "words"}))
        == names
    )
    assert sorted(record["options"]) == sorted([*names.split(), "background"])
    assert (record["short_side"], record["maps"], record["options"]["background"]) == (448, "hard", 0.9)


def test_a_model_s_own_words_are_asked_for_where_there_is_background(datasets):
    protocol, brings = CALIBRATED_VOCABULARY, replace(RELEASE, rivals=("grass", "sky"))
    asked = {name: protocol.view_of(brings, dataset).background for name, dataset in datasets.items()}
    assert {name for name, background in asked.items() if background == "auto"} == {
        name for name, dataset in datasets.items() if dataset.has_background
    }
    assert "background" not in [label.name for label in protocol.labels(datasets["pets"])]
    with pytest.raises(InputError, match="calibrated-vocabulary needs a model that brings its nouns"):
        protocol.view_of(RELEASE, datasets["pets"])


def test_one_label_beside_the_background_takes_words_for_the_rest(tmp_path):
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
        Image.new("L", (64, 48), part == "masks").save(tmp_path / part / "a.png")
    (tmp_path / "classes.txt").write_text("background\ncrack\n")
    dataset = open_masks(tmp_path)
    assert dataset.classes == ("background", "crack")
    for protocol in (CALIBRATED_NATIVE, CALIBRATED_WHOLE):
        with pytest.raises(InputError, match="one label alone fits every pixel: take --protocol calibrated-vocab"):
            protocol.view_of(RELEASE, dataset)
    assert CALIBRATED_VOCABULARY.view_of(replace(RELEASE, rivals=("grass",)), dataset).background == "auto"


def test_protocols_do_not_change():
    with pytest.raises(FrozenInstanceError):
        RELEASE_2022.view = View()  # type: ignore[misc]
    with pytest.raises(InputError, match="no protocol 'release': there are release-2022, paper-2022"):
        get_protocol("release")
    assert get_protocol("paper-2022") is PAPER_2022


def test_a_synonym_that_is_another_class_is_that_class_s(tmp_path):
    LAYOUTS["folder"](tmp_path)
    (tmp_path / "classes.txt").write_text("dog\nPuppy\ncat=cat,boat\nship\nPerson\npedestrian\n")
    labels = {label.name: label.words for label in CALIBRATED_NATIVE.labels(open_benchmark("folder", tmp_path))}
    assert "man" in labels.pop("Person")
    assert labels.pop("pedestrian") == ("pedestrian",)
    assert labels == {"dog": ("dog",), "Puppy": ("Puppy",), "cat": ("cat", "boat"), "ship": ("ship",)}


def test_the_whole_photo_is_shown_at_the_size_that_suits_the_model(datasets):
    trunk = ModelConfig(ImageEncoderConfig(224, 8, stem="efficientnet-lite0"))
    for config, side in ((RELEASE, 224), (trunk, 448)):
        view = CALIBRATED_WHOLE.view_of(config, datasets["voc21"])
        assert (view.short_side, view.window, view.stride) == (side, 2 * side, None)
    native = CALIBRATED_NATIVE.view_of(trunk, datasets["voc21"])
    assert (native.short_side, native.window) == (448, 224)
