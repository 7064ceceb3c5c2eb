import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from groupvit.segmentation import drawing

NAMES = ("dog", "grass", "sky")


def stripes(height: int = 48, width: int = 60, count: int = 3) -> np.ndarray:
    return np.broadcast_to(np.arange(width) * count // width, (height, width)).astype(np.uint8)


def test_256_colours_are_all_different_and_the_first_ones_far_apart() -> None:
    assert len(np.unique(drawing.palette(256), axis=0)) == 256
    few = drawing.palette(21).astype(float)
    distance = np.linalg.norm(few[:, None] - few[None], axis=-1) + 1e9 * np.eye(21)
    assert distance.min() > 40


def test_a_colour_does_not_depend_on_how_many_there_are() -> None:
    assert (drawing.palette(5) == drawing.palette(60)[:5]).all()


def test_background_is_grey_and_shifts_no_colour() -> None:
    colours = drawing.label_colours(("background", *NAMES))
    assert len(set(colours[0].tolist())) == 1
    assert (colours[1:] == drawing.label_colours(NAMES)).all()


@pytest.mark.parametrize("count", [3, 256, 257])
def test_an_indexed_png_keeps_every_index(tmp_path: Path, count: int) -> None:
    label_map = (np.arange(48 * 60).reshape(48, 60) % count).astype(np.min_scalar_type(count - 1))
    drawing.indexed(label_map, [str(i) for i in range(count)]).save(tmp_path / "map.png")
    with Image.open(tmp_path / "map.png") as image:
        assert image.mode == ("P" if count <= 256 else "I;16")
        assert (np.asarray(image) == label_map).all()
        if count <= 256:
            shown = np.asarray(image.convert("RGB"))
            assert (shown == drawing.palette(count)[label_map]).all()


def test_an_overlay_shows_the_photo_in_the_labels_colours_above_a_legend() -> None:
    photo = Image.new("RGB", (600, 480))
    picture = drawing.overlay(photo, stripes(480, 600), NAMES)
    assert picture.width == 600
    assert picture.height > 480
    pixel = np.array(picture.getpixel((100, 100)))
    assert np.abs(pixel - drawing.label_colours(NAMES)[0] / 2).max() <= 1
    legend = np.asarray(picture.crop((0, 480, 600, picture.height))).reshape(-1, 3).tolist()
    assert all(colour in legend for colour in drawing.label_colours(NAMES).tolist())


def test_a_legend_names_only_what_occurs() -> None:
    picture = np.asarray(drawing.overlay(Image.new("RGB", (600, 480)), stripes(480, 600, 2), NAMES))
    assert drawing.label_colours(NAMES)[2].tolist() not in picture[480:].reshape(-1, 3).tolist()


@pytest.mark.parametrize("size", [(1, 7), (7, 1), (64, 64), (333, 500)])
def test_pictures_of_any_size_can_be_read(size: tuple[int, int]) -> None:
    label_map = np.zeros(size[::-1], np.uint8)
    for picture in (
        drawing.overlay(Image.new("RGB", size), label_map, NAMES),
        drawing.groups(Image.new("RGB", size), label_map),
    ):
        assert max(picture.size) >= 320


def test_long_and_foreign_names_fit_into_the_legend() -> None:
    names = ["a very long name " * 20, "Straße", "кот", "猫", "🐈", "two\nlines"]
    picture = drawing.overlay(Image.new("RGB", (640, 480)), stripes(480, 640, len(names)), names)
    assert picture.width == 640


def test_borders_between_groups_are_light() -> None:
    picture = np.asarray(drawing.groups(Image.new("RGB", (600, 480)), stripes(480, 600)))
    assert (picture[:, [199, 399]] == 255).all()
    assert not (picture[:, [100, 300, 500]] == 255).all(axis=-1).any()


def test_a_panel_puts_pictures_side_by_side_under_their_titles() -> None:
    photo = Image.new("RGB", (400, 300), "red")
    picture = drawing.panel(
        [photo, drawing.groups(photo, stripes(300, 400)), Image.new("L", (64, 64))], ["photo", "groups " * 99, "Wörter"]
    )
    assert picture.width > 400 + 400 + 320
    assert picture.getpixel((10, picture.height - 30)) == (255, 0, 0)


def test_a_very_long_name_is_cut_at_once() -> None:
    began = time.process_time()
    picture = drawing.overlay(Image.new("RGB", (60, 48)), stripes(), ("a" * 50_000, "grass", "sky"))
    assert picture.width == drawing.overlay(Image.new("RGB", (60, 48)), stripes(), NAMES).width
    assert time.process_time() - began < 5
