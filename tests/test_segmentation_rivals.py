import pytest

from groupvit.segmentation.rivals import STUFF, choose_rivals, kin
from groupvit.text.nouns import PERSON_WORDS

VOCABULARY = ("person", "man", "dog", "cat", "puppy", "animal", "sky", "grass", "tree", "car", "vehicle", "wing")


@pytest.mark.parametrize(
    ("word", "relatives"),
    [("dog", {"animal", "poodle"}), ("tabby cat", {"cat", "animal"}), ("man", PERSON_WORDS), ("car", {"vehicle"})],
)
def test_kin_are_never_rivals(word: str, relatives: set[str]) -> None:
    assert {word, *relatives} <= kin([word])
    assert not kin([word]) & {*choose_rivals([word], [*VOCABULARY, *sorted(relatives)])}


def test_a_dog_is_no_relative_of_a_cat_though_both_are_animals() -> None:
    assert "cat" not in kin(["dog"])
    assert "dog" not in kin(["Cat"])


def test_stuff_siblings_and_people_compete_unless_they_are_asked_for() -> None:
    assert choose_rivals(["dog"], VOCABULARY) == ("person", "cat", "sky", "grass", "tree")
    assert choose_rivals(["dog", "Grass", "cat"], VOCABULARY) == ("person", "sky", "tree")
    assert choose_rivals(["man"], VOCABULARY) == ("sky", "grass", "tree")
    assert choose_rivals(["green grass"], VOCABULARY) == ("person", "sky", "tree")
    assert choose_rivals(["sofa"], ("chair", "couch", "wall")) == ("wall",)
    assert choose_rivals(["dog"], ()) == ()
    assert {"sky", "grass"} <= STUFF
