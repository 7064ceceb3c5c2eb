import pytest

from groupvit.errors import InputError
from groupvit.segmentation.labels import BACKGROUND, Label, parse_labels


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


def test_background_with_words_comes_first() -> None:
    labels = parse_labels(["dog", "Background=wall,floor"])
    assert labels == (Label(BACKGROUND, ("wall", "floor")), Label("dog", ("dog",)))


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([], "no labels"),
        ("dog", "no labels"),
        ([" "], "blank"),
        (["dog", "_"], "blank"),
        (["=dog"], "blank"),
        (["dog="], "'dog' has a blank word"),
        (["dog=puppy,,hound"], "'dog' has a blank word"),
        (["dog", "Dog"], "'Dog' is given twice"),
        (["dog", "pet=cat,dog"], "word 'dog' of label 'pet' is in 'dog' already"),
        (["pet=dog,Dog"], "'Dog' of label 'pet' is in 'pet' already"),
        (["dog,cat"], "comma"),
        (["dog", "background"], "threshold"),
        ([Label("dog", ())], "blank word"),
    ],
)
def test_labels_that_cannot_be_told_apart_are_refused(labels: list[str | Label], said: str) -> None:
    with pytest.raises(InputError, match=said):
        parse_labels(labels)
