import numpy as np
import pytest
import torch
from PIL import Image

from groupvit.errors import InputError
from groupvit.evaluation.whole_photos import ClassFolder, classify, embed_photos, similarities
from groupvit.models import ImageEncoderConfig, ModelConfig, Stage, TextEncoderConfig, build_model
from groupvit.segmentation import Segmenter
from groupvit.text.imagenet import imagenet_names
from groupvit.text.templates import IMAGENET_TEMPLATES_7, IMAGENET_TEMPLATES_80

CONFIG = ModelConfig(
    ImageEncoderConfig(16, 8, 32, 2, stages=(Stage(1, 4, 4),)),
    TextEncoderConfig(16, 2, 1),
    embed_dim=8,
    projector_dim=16,
)


@pytest.fixture(scope="module")
def segmenter():
    torch.manual_seed(0)
    return Segmenter(build_model(CONFIG), CONFIG)


@pytest.fixture
def root(tmp_path):
    for name, colours in {"traffic_light": ["red", "green"], "bus": ["blue"]}.items():
        (tmp_path / name).mkdir()
        for colour in colours:
            Image.new("RGB", (40, 30), colour).save(tmp_path / name / f"{colour}.png")
        (tmp_path / name / ".hidden").touch()
    (tmp_path / ".hidden").mkdir()
    return tmp_path


def test_each_folder_is_a_class(root):
    folder = ClassFolder.open(root)
    assert folder.names == ("bus", "traffic light")
    assert [file.name for file in folder.files] == ["blue.png", "green.png", "red.png"]
    assert folder.targets == (0, 1, 1)
    assert [image.getpixel((0, 0)) for image in folder] == [(0, 0, 255), (0, 128, 0), (255, 0, 0)]


def test_a_list_names_the_folders(root):
    (root / "classes.txt").write_text("omnibus\nsemaphore\n\n")
    assert ClassFolder.open(root).names == ("omnibus", "semaphore")
    (root / "classes.txt").write_text("omnibus\n")
    with pytest.raises(InputError, match=r"classes.txt has 1 names for 2 folders"):
        ClassFolder.open(root)


def test_numbered_folders_come_in_the_order_of_their_numbers(tmp_path):
    for number in range(11):
        (tmp_path / str(number)).mkdir()
        Image.new("RGB", (4, 4)).save(tmp_path / str(number) / "x.png")
    folder = ClassFolder.open(tmp_path)
    assert [file.parent.name for file in folder.files] == [str(number) for number in range(11)]
    (tmp_path / "classes.txt").write_text("".join(f"class {'abcdefghijk'[i]}\n" for i in range(11)))
    with pytest.raises(InputError, match="orders by name and by number differ: pad the folders' numbers with zeros"):
        ClassFolder.open(tmp_path)


def test_a_folder_above_those_of_the_classes_is_named(root):
    (root / "train").mkdir()
    for name in ("bus", "traffic_light"):
        (root / name).rename(root / "train" / name)
    with pytest.raises(InputError, match=r"train holds folders \(bus, traffic_light\) and no photos: name one of them"):
        ClassFolder.open(root)


def test_classes_of_one_name_are_told(root):
    (root / "Traffic light").mkdir()
    Image.new("RGB", (40, 30)).save(root / "Traffic light/x.png")
    with pytest.warns(UserWarning, match="2 classes are called 'traffic light', and the first gets all photos"):
        ClassFolder.open(root)


def test_a_list_is_read_as_other_lists_are(root):
    (root / "classes.txt").write_text("0: 'omnibus'\n1: traffic_light\n")
    assert ClassFolder.open(root).names == ("omnibus", "traffic light")
    (root / "classes.txt").write_text("bus=bus,coach\nsemaphore\n")
    with pytest.raises(InputError, match=r"classes.txt gives a class several words \(=\)"):
        ClassFolder.open(root)


def test_files_that_are_no_photos_are_passed_over_and_said(root):
    (root / "bus/Thumbs.db").touch()
    (root / "bus/more").mkdir()
    (root / "bus/blue.json").touch()
    with pytest.warns(UserWarning, match=r"bus: passed over 2 files that are no photos \(Thumbs.db, more\)"):
        assert len(ClassFolder.open(root)) == 3


def test_imagenet_has_the_names_of_clip(tmp_path):
    names = imagenet_names()
    assert len(names) == 1000
    assert len(set(names)) == 998
    assert (names[0], names[999]) == ("tench", "toilet paper")
    for i in range(1000):
        (tmp_path / f"n{i:08}").mkdir()
        (tmp_path / f"n{i:08}" / "a.jpg").touch()
    assert ClassFolder.open(tmp_path).names == names
    (tmp_path / "n00000000" / "a.jpg").unlink()
    (tmp_path / "n00000000").rmdir()
    with pytest.raises(InputError, match="999 of ImageNet's 1000 folders"):
        ClassFolder.open(tmp_path)


def test_what_is_no_folder_of_classes_is_named(tmp_path):
    with pytest.raises(InputError, match="holds no folders"):
        ClassFolder.open(tmp_path)
    (tmp_path / "cat").mkdir()
    with pytest.raises(InputError, match="cat holds no photos"):
        ClassFolder.open(tmp_path)


@pytest.mark.parametrize("templates", [IMAGENET_TEMPLATES_7, IMAGENET_TEMPLATES_80[:9]])
def test_a_photo_is_compared_with_the_mean_of_each_names_prompts(segmenter, root, templates):
    photos = embed_photos(segmenter, ClassFolder.open(root))
    cosines = similarities(segmenter, photos, ["cat", "missile", "missile"], templates)
    assert cosines.shape == (3, 3)
    assert cosines.abs().max() <= 1 + 1e-6
    torch.testing.assert_close(cosines[:, 1], cosines[:, 2])
    torch.testing.assert_close(
        cosines[1:2], similarities(segmenter, photos[1:2], ["cat", "missile", "missile"], templates)
    )
    reordered = similarities(segmenter, photos, ["missile", "cat"], templates[::-1])
    torch.testing.assert_close(cosines[:, :2], reordered.flip(1))


def test_a_model_that_knows_the_photos_is_right_and_one_that_confuses_them_is_not(segmenter, root, monkeypatch):
    folder = ClassFolder.open(root)
    vectors = torch.eye(8)[:2]
    monkeypatch.setattr(segmenter, "embed_words", lambda words, templates: vectors)
    encoded = []

    def encode(pixels):
        encoded.extend(pixels)
        return vectors[list(folder.targets)]

    def scores(top1):
        return {f"top{k}, {count} templates": value for count in (7, 80) for k, value in ((1, top1), (5, 100))}

    monkeypatch.setattr(segmenter.model, "encode_image", encode)
    assert classify(segmenter, folder) == scores(100)
    assert len(encoded) == len(folder)  # once for both sets of templates
    monkeypatch.setattr(segmenter.model, "encode_image", lambda pixels: 1 - vectors[list(folder.targets)])
    assert classify(segmenter, folder) == scores(0)


def test_a_photo_is_seen_without_an_eighth_of_its_sides(segmenter):
    size = segmenter.config.image.image_size
    side = size * 8 // 7
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    margin = (side - size) // 2
    middle = torch.from_numpy(pixels[margin : margin + size, margin : margin + size]).permute(2, 0, 1)
    with torch.inference_mode():
        expected = segmenter.model.encode_image(segmenter.model.image_encoder.preprocess(middle[None]))
    torch.testing.assert_close(embed_photos(segmenter, [Image.fromarray(pixels)]), expected)


def test_a_list_that_is_no_text_is_named(root):
    (root / "classes.txt").write_bytes(b"caf\xe9\nbus\n")
    with pytest.raises(InputError, match=r"classes.txt cannot be read"):
        ClassFolder.open(root)


def test_another_photo_makes_other_data(root):
    before = ClassFolder.open(root).digest
    assert ClassFolder.open(root).digest == before
    Image.new("RGB", (40, 30), "white").save(root / "bus/blue.png")
    assert ClassFolder.open(root).digest != before
