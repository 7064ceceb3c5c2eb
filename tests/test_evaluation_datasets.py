import numpy as np
import pytest
from PIL import Image

from groupvit.errors import InputError
from groupvit.evaluation.datasets import MaskFolder


@pytest.fixture
def folder(tmp_path):
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
    for name in ("b", "a"):
        Image.new("RGB", (6, 4), "red").save(tmp_path / "images" / f"{name}.jpg")
        Image.fromarray(np.full((4, 6), ord(name) - ord("a"), np.uint8)).save(tmp_path / "masks" / f"{name}.png")
    (tmp_path / "classes.txt").write_text("cat\ndog=dog,puppy\n")
    return tmp_path


def test_photos_come_in_the_order_of_their_names_with_their_masks(folder):
    photos = MaskFolder.open(folder)
    assert photos.labels == ("cat", "dog=dog,puppy")
    read = list(photos)
    assert [photo.name for photo in read] == ["a", "b"]
    assert [int(photo.mask.max()) for photo in read] == [0, 1]
    assert read[0].image.size == (6, 4)


@pytest.mark.parametrize("part", ["images", "masks", "classes.txt"])
def test_a_missing_part_is_named(folder, part):
    (folder / part).rename(folder / "elsewhere")
    with pytest.raises(InputError, match=f"no {part}"):
        MaskFolder.open(folder)


def test_a_photo_without_a_mask_is_named(folder):
    (folder / "masks" / "b.png").unlink()
    with pytest.raises(InputError, match=r"b.jpg has no mask"):
        list(MaskFolder.open(folder))


def test_a_mask_of_another_size_is_named(folder):
    Image.new("L", (5, 4)).save(folder / "masks" / "a.png")
    with pytest.raises(InputError, match=r"a.png is not an 8-bit index mask of the size"):
        list(MaskFolder.open(folder))


def test_an_unknown_index_is_named_and_255_is_not_one(folder):
    mask = np.zeros((4, 6), np.uint8)
    mask[0] = 255
    Image.fromarray(mask).save(folder / "masks" / "a.png")
    assert len(list(MaskFolder.open(folder))) == 2
    mask[1] = 2
    Image.fromarray(mask).save(folder / "masks" / "a.png")
    with pytest.raises(InputError, match=r"a.png has class 2"):
        list(MaskFolder.open(folder))
