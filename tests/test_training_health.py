import math

import pytest
import torch

from groupvit.models import ImageEncoderConfig, ModelConfig, Stage, TextEncoderConfig, build_model, noise
from groupvit.models.grouping import Assignment
from groupvit.models.image_encoder import ImageFeatures, Ungrouped
from groupvit.training.health import Alarm, distinct_share, group_health
from groupvit.training.losses import Form, contrastive_loss
from groupvit.training.objective import Captions

CHANCE = math.log(32)
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
    assert len(values) == 8
    assert (values["stage1/largest_share"], values["stage2/largest_share"]) == (0.5, 1)
    assert values["stage1/similarity"] == pytest.approx(1)


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
    ("sign", "said"),
    [
        ({"stage1_usage_entropy": 0.1}, "stage1: nearly all segments join very few groups"),
        ({"stage1_largest_share": 0.95}, "stage1: nearly all segments join very few groups"),
        ({"stage1_similarity": 0.999}, "stage1: the groups of an image are alike"),
        ({"caption": math.log(32)}, "the caption loss is that of chance"),
        ({"logit_scale": 100.0}, "temperature"),
        ({"grad_norm": 1e15}, "gradient"),
        ({"grad_norm": math.nan}, "gradient"),
        ({"distinct_captions": 0.2}, "share their caption"),
    ],
)
def test_a_sign_is_told_once_when_it_has_held_for_five_log_steps(sign: dict[str, float], said: str):
    alarm = Alarm(20, CHANCE)
    assert told(alarm, range(50, 90, 10), **sign) == []
    (warning,) = told(alarm, range(90, 100, 10), **sign)
    assert said in warning
    assert told(alarm, range(100, 500, 10), **sign) == []


def test_nothing_is_told_before_the_warm_up_is_over():
    alarm = Alarm(20, CHANCE)
    assert told(alarm, range(21), stage1_similarity=1.0, grad_norm=1e9, caption=9.0, logit_scale=100.0) == []
    assert told(alarm, range(21, 25), stage1_similarity=1.0) == []


def test_captions_have_as_long_again_to_be_learnt():
    alarm = Alarm(20, CHANCE)
    assert told(alarm, range(21, 41), caption=math.log(32)) == []
    assert len(told(alarm, range(41, 50), caption=math.log(32))) == 1


@pytest.mark.parametrize(("loss_form", "directions"), [("release", 1), ("paper", 2)])
def test_chance_is_the_caption_loss_of_embeddings_that_are_all_the_same(loss_form: Form, directions: int):
    same = torch.nn.functional.normalize(torch.ones(8, 4), dim=-1)
    loss = contrastive_loss(same, same, torch.tensor(10.0), loss_form)
    assert (
        Captions(0.5, loss_form).chance(8.0)
        == pytest.approx(0.5 * float(loss))
        == pytest.approx(0.5 * directions * math.log(8))
    )


def test_captions_that_are_hardly_learnt_give_no_warning():
    assert told(Alarm(20, CHANCE), range(100, 200, 10), caption=0.97 * CHANCE) == []


def test_a_sign_that_comes_and_goes_is_not_told():
    alarm = Alarm(20, CHANCE)
    for step in range(30, 300, 10):
        assert told(alarm, range(step, step + 1), stage1_similarity=0.5 if step % 50 == 0 else 1.0) == []


def test_a_sign_is_told_again_after_recovery_and_relapse_only():
    alarm = Alarm(20, CHANCE)
    assert len(told(alarm, range(30, 100, 10), stage1_similarity=1.0)) == 1
    assert told(alarm, range(100, 140, 10)) == []
    assert told(alarm, range(140, 200, 10), stage1_similarity=1.0) == []  # four good log steps are no recovery
    assert told(alarm, range(200, 250, 10)) == []
    assert len(told(alarm, range(250, 300, 10), stage1_similarity=1.0)) == 1


def test_signs_of_one_log_step_make_one_line():
    (warning,) = told(Alarm(20, CHANCE), range(30, 80, 10), stage1_similarity=1.0, grad_norm=1e9)
    assert "alike" in warning
    assert "gradient" in warning
    assert "\n" not in warning


def test_equal_captions_and_a_rising_loss_are_told_during_the_warm_up():
    alarm = Alarm(1000, CHANCE)
    assert told(alarm, range(0, 40, 10), distinct_captions=0.1) == []
    assert "caption" in told(alarm, range(40, 50, 10), distinct_captions=0.1)[0]
    assert told(alarm, range(50, 100, 10), loss=4.0) + told(alarm, range(100, 140, 10), loss=5.3) == []
    assert "risen" in told(alarm, range(140, 150, 10), loss=5.3)[0]


def test_a_loss_that_rises_by_less_than_a_quarter_gives_no_warning():
    alarm = Alarm(0, CHANCE)
    assert told(alarm, range(0, 50, 10)) + told(alarm, range(50, 100, 10), loss=2.0) == []
    assert told(alarm, range(100, 200, 10), loss=3.2) == []
    assert told(Alarm(0, CHANCE), range(0, 100, 10), loss=0.0) == []


def test_skipped_steps_are_told_at_once_but_a_single_one_is_not():
    alarm = Alarm(1000, CHANCE)
    assert told(alarm, range(10, 20, 10), skipped=1) + told(alarm, range(20, 30, 10), skipped=2) == []
    assert "not finite" in told(alarm, range(30, 40, 10), skipped=4)[0]
    assert told(alarm, range(40, 50, 10), skipped=8) == []


def test_distinct_captions_are_counted():
    captions = torch.tensor([[1, 2], [1, 3], [1, 2], [1, 2]])
    assert float(distinct_share(captions)) == 0.5


@pytest.mark.parametrize("loss", [15.1, math.inf, math.nan])
def test_a_jump_of_the_loss_is_told_at_once_and_once(loss: float):
    alarm = Alarm(20, CHANCE)
    assert told(alarm, range(30, 100, 10)) == []
    assert "jumped" in told(alarm, range(100, 110, 10), loss=loss)[0]
    assert told(alarm, range(110, 160, 10), loss=4.0) + told(alarm, range(160, 170, 10), loss=14.0) == []


def test_losses_that_are_no_numbers_leave_the_median_alone():
    alarm = Alarm(20, CHANCE)
    assert len(told(alarm, range(30, 100, 10)) + told(alarm, range(100, 400, 10), loss=math.nan)) == 1
    assert told(alarm, range(400, 450, 10)) == []
    assert "jumped" in told(alarm, range(450, 460, 10), loss=15.1)[0]


def test_a_plain_vit_is_judged_by_what_it_has():
    alarm = Alarm(20, 0.0)
    assert [alarm.check(step, {"loss": 1.0}) for step in range(30, 200, 10)] == [None] * 17


# Steps 10, 20, … 150 of short trainings of 32 photos a step: loss, caption, grad_norm, entropy, share, similarity.
SCENES_STEPS = (
    (6.65, 0.344, 52.1, 0.995, 0.131, 0.463),
    (5.99, 0.319, 33.7, 0.964, 0.202, 0.511),
    (6.23, 0.286, 31.0, 0.987, 0.164, 0.521),
    (5.77, 0.302, 28.9, 0.974, 0.166, 0.544),
    (5.47, 0.223, 22.7, 0.975, 0.203, 0.598),
    (5.08, 0.207, 31.2, 0.987, 0.165, 0.521),
    (5.14, 0.233, 9.86, 0.968, 0.195, 0.492),
    (5.92, 0.245, 14.0, 0.989, 0.152, 0.561),
    (4.98, 0.215, 13.2, 0.993, 0.165, 0.607),
    (5.47, 0.204, 26.5, 0.951, 0.2, 0.586),
    (5.11, 0.218, 9.66, 0.959, 0.236, 0.573),
    (5.07, 0.19, 9.54, 0.975, 0.203, 0.553),
    (4.99, 0.219, 14.2, 0.938, 0.222, 0.539),
    (3.8, 0.174, 14.2, 0.936, 0.24, 0.505),
    (4.99, 0.171, 11.7, 0.944, 0.26, 0.497),
)
RELEASE_STEPS = (
    (7.36, 3.2, 39.6, 0.997, 0.277, 0.113),
    (6.99, 2.9, 13.6, 0.997, 0.277, 0.351),
    (6.68, 2.89, 12.4, 0.998, 0.248, 0.331),
    (6.0, 2.38, 3.54, 0.991, 0.266, 0.342),
    (6.28, 2.62, 8.52, 0.982, 0.299, 0.432),
    (6.22, 2.54, 3.47, 0.949, 0.33, 0.71),
    (5.78, 2.25, 3.22, 0.892, 0.391, 0.711),
    (5.9, 2.34, 3.61, 0.873, 0.367, 0.652),
    (5.7, 2.2, 4.33, 0.878, 0.418, 0.616),
    (5.86, 2.38, 5.02, 0.813, 0.523, 0.453),
    (5.81, 2.27, 3.36, 0.874, 0.457, 0.458),
    (5.81, 2.26, 3.18, 0.852, 0.475, 0.462),
    (5.53, 2.08, 2.17, 0.838, 0.49, 0.4),
    (5.39, 2.05, 1.13, 0.856, 0.438, 0.525),
    (5.76, 2.2, 1.44, 0.836, 0.459, 0.514),
)
COLLAPSE_STEPS = (  # as before, with a learning rate of 0.01
    (8.18, 3.77, 13.9, 0.999, 0.12, 0.397),
    (7.73, 3.55, 3.66, 0.998, 0.143, 0.954),
    (7.57, 3.53, 1.55, 0.905, 0.227, 0.998),
    (7.47, 3.46, 0.347, 0.452, 0.412, 1.0),
    (7.55, 3.51, 4.22, 0.394, 0.405, 1.0),
    (7.47, 3.46, 0.216, 0.393, 0.411, 1.0),
    (7.47, 3.46, 0.076, 0.391, 0.423, 1.0),
    (7.48, 3.47, 0.0444, 0.392, 0.408, 1.0),
    (7.47, 3.46, 0.0596, 0.393, 0.408, 1.0),
    (7.48, 3.47, 0.0434, 0.393, 0.405, 1.0),
    (7.48, 3.46, 0.0743, 0.392, 0.421, 1.0),
    (7.48, 3.46, 0.0856, 0.391, 0.423, 1.0),
    (7.48, 3.47, 0.0749, 0.392, 0.413, 1.0),
    (7.48, 3.46, 0.0564, 0.392, 0.406, 1.0),
    (7.48, 3.46, 0.0618, 0.392, 0.414, 1.0),
)


def replayed(alarm: Alarm, rows: tuple[tuple[float, ...], ...]) -> dict[int, str]:
    told = {}
    for step, row in zip(range(10, 160, 10), rows, strict=True):
        names = ["loss", "caption", "grad_norm", "stage1/usage_entropy", "stage1/largest_share", "stage1/similarity"]
        if warning := alarm.check(step, dict(zip(names, row, strict=True))):
            told[step] = warning
    return told


def test_healthy_trainings_give_no_warning():
    assert replayed(Alarm(20, Captions(0.1).chance(32.0)), SCENES_STEPS) == {}
    assert replayed(Alarm(20, Captions().chance(32.0)), RELEASE_STEPS) == {}


def test_a_collapse_is_told_while_it_happens():
    told = replayed(Alarm(20, math.log(32)), COLLAPSE_STEPS)
    assert list(told) == [70, 90]
    assert "alike" in told[70]
    assert "chance" in told[90]
    assert "few groups" in told[90]
