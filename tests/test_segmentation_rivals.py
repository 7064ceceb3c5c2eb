import numpy as np
import pytest

from groupvit.segmentation.rivals import STUFF, choose_rivals, kin
from groupvit.text.nouns import PERSON_WORDS

VOCABULARY = ("person", "man", "dog", "cat", "puppy", "animal", "sky", "grass", "tree", "car", "vehicle", "wing")


@pytest.mark.parametrize(
    ("word", "relatives"),
    [
        ("dog", {"animal", "poodle"}),
        ("tabby cat", {"cat", "animal"}),
        ("man", PERSON_WORDS),
        ("car", {"vehicle"}),
        ("tall trees", {"tree"}),
        ("Skies", {"sky"}),
        ("bushes", {"bush"}),
        ("leaves", {"leaf"}),
        ("dogs", {"dog", "animal"}),
        ("ｇｒａｓｓ", {"grass"}),
    ],
)
def test_kin_are_never_rivals(word: str, relatives: set[str]) -> None:
    assert {word.lower(), *relatives} <= kin([word]) | {word.lower()}
    vocabulary = [*VOCABULARY, *sorted(relatives)]
    assert not kin([word]) & {*choose_rivals([word], vocabulary, np.zeros(len(vocabulary)))}


def test_a_dog_is_no_relative_of_a_cat_though_both_are_animals() -> None:
    assert "cat" not in kin(["dog"])
    assert "dog" not in kin(["Cat"])


def test_stuff_and_what_is_unlike_compete_unless_they_are_asked_for() -> None:
    alike = {"cat": 0.1, "wing": 0.19, "grass": 0.6, "car": 0.5, "vehicle": 0.3, "person": -0.2, "man": 0.2}

    def chosen(*words: str) -> tuple[str, ...]:
        return choose_rivals(words, VOCABULARY, np.array([alike.get(noun, 0.9) for noun in VOCABULARY]))

    assert chosen("dog") == ("person", "cat", "sky", "grass", "tree", "wing")
    assert chosen("dog", "Grass", "cat") == ("person", "sky", "tree", "wing")
    assert chosen("man") == ("cat", "sky", "grass", "tree", "wing")
    assert chosen("green grass") == ("person", "cat", "sky", "tree", "wing")
    assert choose_rivals(["sofa"], ("chair", "couch", "wall"), np.array([0.4, 0.0, 0.4])) == ("wall",)
    assert choose_rivals(["dog"], (), np.zeros(0)) == ()
    assert {"sky", "grass"} <= STUFF
