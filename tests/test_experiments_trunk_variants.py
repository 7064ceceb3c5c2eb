import pytest
import torch
from experiments.trunk_variants import AT_TEST, TRAINED, tags_as_captions

from groupvit.data.index import CaptionedPhotos
from groupvit.models import ImageEncoderConfig, ModelConfig, Stage, TextEncoderConfig, build_model
from groupvit.segmentation import Segmenter
from groupvit.training.objective import Teacher, terms_of
from groupvit.training.runs import get_run

RUN = get_run("photos-trunk")
STAGES = (Stage(0, output_groups=4, seeded=True),)
SMALL = ModelConfig(
    ImageEncoderConfig(32, 8, 32, 2, stages=STAGES, drop_path=0.0, stem="efficientnet-lite0"),
    TextEncoderConfig(width=32, heads=2, layers=1, context_length=24),
    segment_loss=True,
)


def test_every_variant_differs_from_the_run_in_one_thing():
    runs = [variant(RUN) for variant in TRAINED.values()]
    assert [sum(run == other for other in runs) for run in runs] == [2, 1, 2, 1, 1, 1]  # tags are read otherwise
    assert [len(terms_of(run.objective, Teacher)) for run in runs] == [1, 0, 1, 1, 1, 1]


def test_tags_are_captions_within_the_block_alone():
    sayable = CaptionedPhotos.sayable
    with tags_as_captions():
        assert CaptionedPhotos.sayable(None, 0, 0) is None
    assert CaptionedPhotos.sayable is sayable


@pytest.mark.parametrize(("name", "groups"), [("64 groups at test time", 64), ("groups from all maps at test time", 4)])
def test_groups_are_varied_without_a_training(name: str, groups: int) -> None:
    torch.manual_seed(0)
    segmenter = Segmenter(build_model(SMALL).eval(), SMALL)
    images = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    encoder = segmenter.model.image_encoder
    with torch.inference_mode():
        before = encoder(encoder.preprocess(images))
        AT_TEST[name](segmenter)
        after = encoder(encoder.preprocess(images))
    assert after.segments.shape[1] == groups
    assert not torch.equal(before.groups(), after.groups())
