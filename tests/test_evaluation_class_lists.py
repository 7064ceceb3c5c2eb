import pytest

from groupvit.errors import InputError
from groupvit.evaluation.class_lists import read_classes, read_labels

WORDS = ["background", "dog", "traffic light"]


@pytest.mark.parametrize(
    "text",
    [
        "background\ndog\ntraffic light\n",
        "\ufeffbackground\r\ndog\r\ntraffic light\r\n\r\n",
        "# of our masks\nbackground\ndog\ntraffic light",
        "background # the rest\ndog\t# puppies too\ntraffic light\n",
        "- background\n- dog\n- traffic light\n",
        "* background\n* dog\n* traffic light\n",
        "0 -> background\n1 -> dog\n2 -> traffic light\n",
        "background 0\ndog 1\ntraffic light 2\n",
        "__ignore__\nbackground\ndog\ntraffic light",
        "0 background\n1 dog\n2 traffic light\n",
        "0\tbackground\n1\tdog\n2\ttraffic light\n",
        "0: background\n1: dog\n2: traffic light\n",
        "0,background\n1,dog\n2, traffic light\n",
        "000. background\n001. dog\n002. traffic light\n",
        "[0] background\n[1] dog\n[2] traffic light\n",
        "2 traffic light\n0 background\n1 dog\n",
        "background,0\ndog,1\ntraffic light,2\n",
        "background: 0\ndog: 1\ntraffic light: 2\n",
    ],
)
def test_labels_are_read_without_their_numbers(text, tmp_path):
    (tmp_path / "classes.txt").write_text(text, encoding="utf-8", newline="")
    assert read_classes(tmp_path / "classes.txt") == WORDS


@pytest.mark.parametrize(
    "text",
    [
        "2 wheeler\ncar\n",
        "level 0\nlevel 1\n",
        "area 51\ndog\n",
        "7up\n3d printer\n",
        "type 1\ntype 2\n",
        "'2 euro'\n'1 euro'\n",
    ],
)
def test_numbers_of_a_name_stay(text, tmp_path):
    (tmp_path / "classes.txt").write_text(text)
    assert read_classes(tmp_path / "classes.txt") == text.splitlines()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("1 dog\n2 cat\n", "numbers from 1 to 2 beside 2 labels, not all from 0: write the label alone"),
        ("0 dog\n2 cat\n", "numbers from 0 to 2"),
        ("0 dog\n0 cat\n", "numbers from 0 to 0"),
        ("background\n1 dog\n2 cat\n", "numbers from 1 to 2"),
        ("id name\n0 dog\n1 cat\n", "numbers from 0 to 1"),
        ("dog\n# cat\nbird\n", "a comment"),
        ("dog\n\nbird\n", "a blank line"),
        ("# nothing\n", "a blank line"),
        ("dog:250,0,0::\ncat:0,0,9::\n", "has a comma"),
        ("background 0 0 0\ndog 128 0 0\n", "colours behind the labels: write them into labelmap.txt"),
    ],
)
def test_lists_that_would_move_indices_are_refused(text, said, tmp_path):
    (tmp_path / "classes.txt").write_text(text)
    with pytest.raises(InputError, match=rf"classes.txt.*{said}"):
        read_labels(tmp_path)


def test_only_an_end_of_line_ends_a_label(tmp_path):
    (tmp_path / "classes.txt").write_text("traffic\u2028light\nwind\x0csock\n", encoding="utf-8")
    assert read_labels(tmp_path)[0] == ("traffic light", "wind sock")


@pytest.mark.parametrize(
    ("text", "labels", "colours"),
    [
        ("Cat:1,2,3::\nbackground:0,0,0::\nDog:3,2,1::", ("background", "Cat", "Dog"), {0: 0, 66051: 1, 197121: 2}),
        ("dog=dog,puppy:1,2,3::\ncat:0,0,9::", ("dog=dog,puppy", "cat"), {66051: 0, 9: 1}),
        (
            "background:::\naeroplane:::\nbird:::",
            ("background", "aeroplane", "bird"),
            {0: 0, 2**23: 1, 2**15: 2},
        ),
    ],
)
def test_a_labelmap_has_names_and_their_colours(text, labels, colours, tmp_path):
    (tmp_path / "labelmap.txt").write_text(text)
    assert read_labels(tmp_path) == (labels, colours, "labelmap.txt")


def test_a_background_in_colours_that_is_no_label_does_not_count(tmp_path):
    (tmp_path / "labelmap.txt").write_text("background:0,0,0::\ndog:1,2,3::\ncat:3,2,1::")
    (tmp_path / "classes.txt").write_text("dog\ncat\n")
    assert read_labels(tmp_path) == (("dog", "cat"), {0: 255, 66051: 0, 197121: 1}, "classes.txt")


def test_a_labelmap_of_names_alone_beside_a_list_is_not_needed(tmp_path):
    (tmp_path / "labelmap.txt").write_text("dog\ncat\n")
    (tmp_path / "classes.txt").write_text("dog\ncat\n")
    assert read_labels(tmp_path) == (("dog", "cat"), {}, "classes.txt")


def test_text_that_is_not_utf_8_is_named(tmp_path):
    (tmp_path / "classes.txt").write_text("dog\ncat\n", encoding="utf-16")
    with pytest.raises(InputError, match=r"classes.txt cannot be read as UTF-8"):
        read_labels(tmp_path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("dog\n", "'dog' is not name:r,g,b::"),
        ("dog:1,2,3::\ncat:1,2,3::\n", "gives two names one colour"),
        ("dog:1,2,3::\ndog:3,2,1::\n", "gives dog two colours"),
        ("dog:1,2,300::\n", "is not name:r,g,b:: .numbers up to 255"),
        ("# label:color_rgb:parts:actions\n", "has no line name:r,g,b::"),
        ("dog:1,2,3::\n", "has one label, which all pixels would have: put background before it"),
        ("background:0,0,0::\ndog:2,2,2::\nbackground=wall:1,1,1::\n", "names background twice"),
    ],
)
def test_a_labelmap_that_is_none_is_named(text, said, tmp_path):
    (tmp_path / "labelmap.txt").write_text(text)
    with pytest.raises(InputError, match=rf"labelmap.txt.*{said}"):
        read_labels(tmp_path)
