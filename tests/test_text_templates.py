import pytest

from groupvit.text.templates import IMAGENET_TEMPLATES_7, IMAGENET_TEMPLATES_80, SIMPLE_TEMPLATE

ALL = (IMAGENET_TEMPLATES_80, IMAGENET_TEMPLATES_7, (SIMPLE_TEMPLATE,))


@pytest.mark.parametrize("templates", ALL)
def test_every_template_has_one_place_for_the_label(templates):
    for template in templates:
        assert template.count("{}") == 1
        assert template.count("{") == 1
        assert template.format("dog").count("dog") == 1
        assert template == template.strip()


def test_the_sets_have_their_sizes_and_no_repetition():
    assert [len(set(templates)) for templates in ALL] == [80, 7, 1]


def test_the_small_sets_are_part_of_the_large_one():
    assert {*IMAGENET_TEMPLATES_7, SIMPLE_TEMPLATE} <= set(IMAGENET_TEMPLATES_80)
