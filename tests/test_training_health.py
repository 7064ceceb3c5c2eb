import math

import pytest
import torch

from groupvit.models import ImageEncoderConfig, ModelConfig, Stage, TextEncoderConfig, build_model, noise
from groupvit.models.grouping import Assignment
from groupvit.models.image_encoder import ImageFeatures, Ungrouped
from groupvit.training.health import Alarm, group_health
from groupvit.training.runs import SCENES, Run

RUN = Run(SCENES.model, "", steps=1000, batch_size=32, warmup=20)
HEALTHY = {
    "loss": 5.0,
    "caption": 2.0,
    "grad_norm": 10.0,
    "logit_scale": 16.0,
    "stage1/usage_entropy": 0.97,
    "stage1/dead_groups": 0.0,
    "stage1/largest_share": 0.15,
    "stage1/similarity": 0.4,
}


def features(*choices: list[list[int]], groups: int, segments: torch.Tensor | None = None) -> ImageFeatures:
    """One list for each stage: the group that each segment of each image joins."""
    hard = [torch.nn.functional.one_hot(torch.tensor(choice), groups).float().mT for choice in choices]
    batch = len(choices[0])
    outputs = torch.randn(batch, groups, 16) if segments is None else segments
    given = [Ungrouped(torch.randn(batch, choice.shape[2], 16), torch.randn(batch, groups, 16)) for choice in hard]
    assignments = tuple(Assignment(choice, choice) for choice in hard)
    return ImageFeatures(outputs.mean(dim=1), outputs, tuple(given), assignments, (1, hard[0].shape[2]))


def health(given: ImageFeatures) -> dict[str, float]:
    return {name: float(value) for name, value in group_health(given).items()}


def told(alarm: Alarm, steps: range, **changes: float) -> list[str]:
    """The warnings of log steps whose values are healthy but for the changes ("stage1/" is spelt "stage1_")."""
    values = HEALTHY | {name.replace("stage1_", "stage1/"): value for name, value in changes.items()}
    return [warning for step in steps if (warning := alarm.check(step, values))]


def test_groups_used_alike_have_an_entropy_of_one():
    values = health(features([[0, 1, 2, 3], [3, 2, 1, 0]], groups=4))
    assert values["stage1/usage_entropy"] == pytest.approx(1.0)
    assert values["stage1/dead_groups"] == 0
    assert values["stage1/largest_share"] == pytest.approx(0.25)


def test_one_group_that_takes_all_is_seen():
    values = health(features([[2, 2, 2, 2], [2, 2, 2, 2]], groups=4))
    assert values == {
        "stage1/usage_entropy": 0,
        "stage1/dead_groups": 3,
        "stage1/largest_share": 1,
        "stage1/similarity": 1,
    }


def test_images_that_are_one_group_each_use_all_groups_but_are_not_divided():
    values = health(features([[0, 0], [1, 1]], groups=2))
    assert values["stage1/usage_entropy"] == pytest.approx(1.0)
    assert values["stage1/largest_share"] == 1


def test_largest_share_is_averaged_over_images():
    values = health(features([[0, 0, 0, 1], [1, 1, 0, 0]], groups=3))
    assert values["stage1/largest_share"] == pytest.approx(0.625)
    assert values["stage1/dead_groups"] == 1
    entropy = -(0.625 * math.log(0.625) + 0.375 * math.log(0.375)) / math.log(3)
    assert values["stage1/usage_entropy"] == pytest.approx(entropy)


def test_similarity_is_one_for_groups_that_are_the_same_in_an_image_or_everywhere():
    choice = [[0, 1, 2, 0], [2, 1, 0, 0]]
    everywhere = torch.randn(16).expand(2, 3, 16)
    assert health(features(choice, groups=3, segments=everywhere))["stage1/similarity"] == pytest.approx(1)
    in_image = torch.randn(2, 1, 16).expand(2, 3, 16)
    assert health(features(choice, groups=3, segments=in_image))["stage1/similarity"] == pytest.approx(1)


def test_similarity_is_the_mean_cosine_over_pairs_less_what_all_share():
    segments = torch.randn(2, 3, 16, dtype=torch.float64)
    units = torch.nn.functional.normalize(segments - 0.99 * segments.mean(dim=(0, 1)), dim=-1)
    expected = sum(units[i, j] @ units[i, k] for i in range(2) for j, k in ((0, 1), (0, 2), (1, 2))) / 6
    choice = [[0, 1, 2], [2, 1, 0]]
    assert health(features(choice, groups=3, segments=segments))["stage1/similarity"] == pytest.approx(float(expected))
    shifted = health(features(choice, groups=3, segments=segments + 5))["stage1/similarity"]
    assert shifted == pytest.approx(float(expected), abs=0.1)


def test_similarity_leaves_out_groups_without_patches():
    segments = torch.randn(2, 3, 16)
    expected = health(features([[0, 1], [1, 0]], groups=3, segments=segments))
    segments[:, 2] = segments[:, 1] + 1
    assert health(features([[0, 1], [1, 0]], groups=3, segments=segments)) == expected


def test_every_stage_has_its_numbers_and_the_first_is_compared_as_the_next_groups_it():
    given = features([[0, 0, 1, 1], [1, 1, 0, 0]], [[0, 0], [0, 0]], groups=2)
    alike = Ungrouped(torch.ones(2, 2, 16), given.ungrouped[1].group_tokens)
    values = health(ImageFeatures(given.pooled, given.segments, (given.ungrouped[0], alike), given.assignments, (1, 4)))
    assert values["stage1/largest_share"] == 0.5 and values["stage2/largest_share"] == 1
    assert values["stage1/similarity"] == pytest.approx(1) and len(values) == 8


def build(*stages: Stage) -> ImageFeatures:
    config = ModelConfig(ImageEncoderConfig(16, 8, 32, 2, stages=stages), TextEncoderConfig(32, 2, 1))
    encoder = build_model(config).train().image_encoder
    return encoder(torch.randn(2, 3, 16, 16), noise.sample_keys(0, 0, torch.arange(2)))


def test_a_plain_vit_has_no_groups():
    assert group_health(build(Stage(1))) == {}


def test_a_model_in_training_is_measured_without_a_gradient():
    values = group_health(build(Stage(1, 4, 4), Stage(1, 2, 2), Stage(1)))
    assert len(values) == 8
    assert not any(value.requires_grad for value in values.values())
    assert all(torch.isfinite(value) for value in values.values())


@pytest.mark.parametrize(
    "sign, said",
    [
        ({"stage1_usage_entropy": 0.1}, "stage1: nearly all segments join very few groups"),
        ({"stage1_largest_share": 0.95}, "stage1: nearly all segments join very few groups"),
        ({"stage1_similarity": 0.999}, "stage1: the groups of an image are alike"),
        ({"caption": math.log(32)}, "the caption loss is that of chance"),
        ({"logit_scale": 100.0}, "temperature"),
        ({"grad_norm": 1e15}, "gradient"),
        ({"grad_norm": math.nan}, "gradient"),
    ],
)
def test_a_sign_is_told_once_when_it_has_held_for_five_log_steps(sign: dict[str, float], said: str):
    alarm = Alarm(RUN)
    assert told(alarm, range(30, 80, 10), **sign)[-1:] == []
    assert said in told(alarm, range(80, 90, 10), **sign)[0]
    assert told(alarm, range(90, 500, 10), **sign) == []


def test_nothing_is_told_before_the_warm_up_is_over():
    alarm = Alarm(RUN)
    assert told(alarm, range(0, 21), stage1_similarity=1.0, grad_norm=1e9, caption=9.0, logit_scale=100.0) == []
    assert told(alarm, range(21, 25), stage1_similarity=1.0) == []


def test_captions_have_as_long_again_to_be_learnt():
    alarm = Alarm(RUN)
    assert told(alarm, range(21, 41), caption=math.log(32)) == []
    assert len(told(alarm, range(41, 50), caption=math.log(32))) == 1


@pytest.mark.parametrize("loss_form, chance", [("release", 0.5 * math.log(32)), ("paper", math.log(32))])
def test_chance_follows_the_form_and_the_weight_of_the_loss(loss_form: str, chance: float):
    run = replace(RUN, loss_form=loss_form, caption_weight=0.5)
    assert told(Alarm(run), range(100, 200, 10), caption=0.98 * chance) == []
    assert len(told(Alarm(run), range(100, 200, 10), caption=chance)) == 1


def test_a_sign_that_comes_and_goes_is_not_told():
    alarm = Alarm(RUN)
    for step in range(30, 300, 10):
        assert told(alarm, range(step, step + 1), stage1_similarity=0.5 if step % 50 == 0 else 1.0) == []


def test_a_sign_is_told_again_after_recovery_and_relapse_only():
    alarm = Alarm(RUN)
    assert len(told(alarm, range(30, 100, 10), stage1_similarity=1.0)) == 1
    assert told(alarm, range(100, 140, 10)) == []
    assert told(alarm, range(140, 200, 10), stage1_similarity=1.0) == []  # four good log steps are no recovery
    assert told(alarm, range(200, 250, 10)) == []
    assert len(told(alarm, range(250, 300, 10), stage1_similarity=1.0)) == 1


def test_signs_of_one_log_step_make_one_line():
    (warning,) = told(Alarm(RUN), range(30, 80, 10), stage1_similarity=1.0, grad_norm=1e9)
    assert "alike" in warning and "gradient" in warning and "\n" not in warning


@pytest.mark.parametrize("loss", [15.1, math.inf, math.nan])
def test_a_jump_of_the_loss_is_told_at_once_and_once(loss: float):
    alarm = Alarm(RUN)
    assert told(alarm, range(30, 100, 10)) == []
    assert "jumped" in told(alarm, range(100, 110, 10), loss=loss)[0]
    assert told(alarm, range(110, 160, 10), loss=4.0) + told(alarm, range(160, 170, 10), loss=14.0) == []


def test_a_plain_vit_is_judged_by_what_it_has():
    alarm = Alarm(replace(RUN, caption_weight=0.0))
    assert [alarm.check(step, {"loss": 1.0}) for step in range(30, 200, 10)] == [None] * 17


def test_a_healthy_training_gives_no_warning():
    """Steps 10 to 150 of a short `scenes`, and of a `scenes-release` whose last groups are not used alike."""
    for run, names, rows in ((SCENES, SCENES_NAMES, SCENES_ROWS), (RELEASE_RUN, RELEASE_NAMES, RELEASE_ROWS)):
        alarm = Alarm(replace(run, warmup=20, batch_size=32))
        recorded = [dict(zip(names, row, strict=True)) for row in rows]
        assert [alarm.check(10 * (i + 1), values) for i, values in enumerate(recorded)] == [None] * 15


def test_a_collapse_is_told_while_it_happens():
    """The same `scenes-release` with a learning rate of 0.01."""
