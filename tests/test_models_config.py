import json

import pytest

from groupvit.errors import InputError
from groupvit.models import PAPER, RELEASE, ModelConfig


@pytest.mark.parametrize("config", [RELEASE, PAPER], ids=["release", "paper"])
def test_configurations_survive_json(config):
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda c: c.update(colour="red"), "model.colour"),
        (lambda c: c["image"].pop("dim"), "model.image.dim"),
        (lambda c: c["image"].update(dim="384"), "model.image.dim"),
        (lambda c: c["image"]["stages"][1].update(depth=1.5), r"model.image.stages\[1\].depth"),
        (lambda c: c.update(text=3), "model.text"),
    ],
)
def test_a_wrong_field_is_named(change, named):
    values = json.loads(json.dumps(ModelConfig().to_dict()))
    change(values)
    with pytest.raises(InputError, match=named):
        ModelConfig.from_dict(values)


def test_a_configuration_from_before_a_field_was_added_means_its_default():
    values = RELEASE.to_dict()
    del values["teacher_loss"], values["rivals"]
    assert ModelConfig.from_dict(values) == RELEASE
