from pathlib import Path

import numpy as np
import pytest

from groupvit.errors import InputError
from groupvit.segmentation.labels import BACKGROUND, Label, parse_labels, read_labels


def test_a_label_without_words_stands_for_itself() -> None:
    assert parse_labels(["dog", "grass"]) == (Label("dog", ("dog",)), Label("grass", ("grass",)))


def test_a_label_may_have_several_words() -> None:
    assert parse_labels(["person=man,woman, child"]) == (Label("person", ("man", "woman", "child")),)


@pytest.mark.parametrize(
    "text", ["traffic_light", " traffic  light ", "'traffic light'", '"traffic_light"', "“traffic light”"]
)
def test_underscores_quotes_and_white_space_do_not_matter(text: str) -> None:
    assert parse_labels([text]) == (Label("traffic light", ("traffic light",)),)


def test_ready_made_labels_are_taken_as_they_are() -> None:
    label = Label("Door, wooden", ("door, wooden", "gate"))
    assert parse_labels([label, "sky"])[0] is label


def test_a_dictionary_has_names_and_their_words() -> None:
    listed = parse_labels(["Background=wall", "person=man,old woman", "dog=dog"])
    assert parse_labels({"person": ["man", "old_woman"], "dog": "dog", "background": ("wall",)}) == listed


def test_names_of_a_dictionary_stay_as_they_are() -> None:
    given = {"class_1": "fire_hydrant", " 'Bus' ": ["bus"]}
    assert parse_labels(given) == (Label("class_1", ("fire hydrant",)), Label(" 'Bus' ", ("bus",)))


@pytest.mark.parametrize("text", ["St. Bernard", "Mr. Bean", "vitamin C", "dog (pet)", "T-shirt", "rock 'n' roll"])
def test_signs_inside_of_a_word_stay(text: str) -> None:
    assert parse_labels([text, "sky"])[0].name == text


def test_labels_come_from_a_file(tmp_path: Path) -> None:
    text = "# animals\n\ndog\r\nperson=man,woman  # people\n  traffic_light\t\nC# sharp\n犬"
    (tmp_path / "labels.txt").write_bytes(b"\xef\xbb\xbf" + text.encode())
    labels = read_labels(tmp_path / "labels.txt")
    assert labels == ["dog", "person=man,woman", "traffic_light", "C# sharp", "犬"]


@pytest.mark.parametrize("text", ["- dog\n- cat", "0: dog\n1: cat", "1 cat\n0 dog", "dog (0)\ncat (1)", "0 dog\n1 cat"])
def test_bullets_and_numbers_of_a_file_are_no_part_of_its_labels(tmp_path: Path, text: str) -> None:
    (tmp_path / "labels.txt").write_text(text)
    assert read_labels(tmp_path / "labels.txt") == ["dog", "cat"]


@pytest.mark.parametrize("text", ["[0] dog\n[1] cat", "1 dog\n2 cat"])
def test_numbers_of_a_file_may_begin_with_one_or_lie_in_brackets(tmp_path: Path, text: str) -> None:
    (tmp_path / "labels.txt").write_text(text)
    assert read_labels(tmp_path / "labels.txt") == ["dog", "cat"]


def test_numbers_that_are_a_part_of_labels_stay(tmp_path: Path) -> None:
    for labels in (["car", "2 wheeler"], ["1 dollar bill", "2 dollar bill"]):
        (tmp_path / "labels.txt").write_text("\n".join(labels))
        assert read_labels(tmp_path / "labels.txt") == labels


@pytest.mark.parametrize(
    ("data", "said"),
    [(b'[\n"dog"\n]', "labels.txt is JSON: write the labels alone"),
     (b"0 background\n1 dog", "'background' needs words"),
     (b"names:\n- dog\n- cat", "labels.txt: label 'names:' is no word"), (b"name\ndog\ncat", "'name', is a heading"),
     (b"1\n2", "numbers alone"), (b"0 0 0 sky\n9 9 9 dog", "colours before the labels"),
     (None, "labels.txt.*No such file"), (b"# none\n", "labels.txt: no labels"), (b"caf\xe9", "labels.txt.*UTF-8"),
     ("dog".encode("utf-16"), "labels.txt.*UTF-8"), (b"dog\ncat,cow", "labels.txt: label 'cat,cow' has a comma"),
     (b"dog\nDog", "labels.txt: label 'Dog' is given twice"), (b"a\0b", "labels.txt: label .* no letter")],
)  # fmt: skip
def test_a_file_without_labels_is_named(tmp_path: Path, data: bytes | None, said: str) -> None:
    if data is not None:
        (tmp_path / "labels.txt").write_bytes(data)
    with pytest.raises(InputError, match=said):
        read_labels(tmp_path / "labels.txt")


def test_background_with_words_comes_first() -> None:
    labels = parse_labels(["dog", "Background=wall,floor"])
    assert labels == (Label(BACKGROUND, ("wall", "floor")), Label("dog", ("dog",)))


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([], "no labels"),
        ("dog", "labels are a list of words: .'dog'., not 'dog'"),
        ([" "], "blank"),
        (["dog", "_"], "blank"),
        (["=dog"], "blank"),
        (["dog="], "'dog' has a blank word"),
        (["dog=puppy,,hound"], "'dog' has a blank word"),
        (["dog", "Dog"], "'Dog' is given twice"),
        (["dog", "pet=cat,dog"], "word 'dog' of label 'pet' is in 'dog' already"),
        (["pet=dog,Dog"], "'Dog' of label 'pet' is in 'pet' already"),
        (["dog,cat"], "comma"),
        (["dog . cat ."], "is no word but a list"),
        (["dog;cat"], "is no word but a list"),
        (["dog|cat"], "is no word but a list"),
        (["[dog", "cat]"], "is no word but a list"),
        (["names:", "- dog"], "'names:' is no word but a list"),
        (["dog\tgrass"], "has a tab"),
        (["dog", "\u200edog"], "given twice"),
        (["dog", "d\u00adog"], "given twice"),
        (["pet=dog=cat"], "has two ="),
        (["dog=puppy", "caf\udce9"], "no letter: write labels in UTF-8"),
        (["pet=dog,c\x1bt"], "no letter"),
        ({"dog": ["a\x7f"]}, "no letter"),
        (["dog", "background"], "threshold"),
        ([Label("dog", ())], "blank word"),
        (["black &amp; white", "black & white"], "'black & white' is given twice .* 'black &amp; white'"),
        (["farmer’s dog", "farmer's dog"], "given twice"),
        (["rock 'n' roll", "rock 'n'roll"], "given twice"),
        (["café", "cafe\u0301"], "given twice"),
        (["ｄｏｇ", "dog"], "given twice"),
        (["dog", "dog\u200b"], "given twice"),
        (["pet=it’s,cat", "toy=ball,it's"], "word \"it's\" of label 'toy' is in 'pet' already"),
        (["toy=tom &amp; jerry,TOM & Jerry"], "in 'toy' already"),
        ([f"{'very ' * 80}big", f"{'very ' * 80}small"], "given twice"),
        (["dog", "&nbsp;"], "blank"),
        (["dog=puppy,&nbsp;"], "blank word"),
        (["<|endoftext|>"], "blank"),
        (b"dog", "a dictionary of names and words, no bytes"),
        (None, "labels are a list of words, or .*, no NoneType"),
        ({"dog", "cat"}, "labels are a list of words, or .*, no set"),
        (np.array(["dog", "cat"]), "labels are a list of words, or .*, no ndarray"),
        ({}, "no labels"),
        (["dog", 3], "3 is a int"),
        ([["dog", "cat"]], "is a list"),
        ({"dog": 3}, "'dog' has the words 3"),
        ({"dog": ["puppy", 3]}, "a list of texts"),
        ({"dog": []}, "blank word"),
        ({3: ["dog"]}, "label 3"),
        ({"pet": ["dog"], "hound": ["Dog"]}, "in 'pet' already"),
    ],
)
def test_labels_that_cannot_be_told_apart_are_refused(labels: object, said: str) -> None:
    with pytest.raises(InputError, match=said):
        parse_labels(labels)
