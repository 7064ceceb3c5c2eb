from dataclasses import replace

import pytest
import torch

from groupvit.models import ImageEncoderConfig, ModelConfig, Stage, TextEncoderConfig, build_model, noise
from groupvit.models.config import ViTConfig
from groupvit.models.image_encoder import ImageEncoder, occupied
from groupvit.models.stems import ConvStem, ResidualBlock

TWO_STAGES = (Stage(2, 6, 6), Stage(1, 3, 3), Stage(1))
ONE_STAGE = (Stage(2, 6, 3), Stage(1))
NO_BLOCK_AFTER = (Stage(2, 6, 3),)
PLAIN = (Stage(2),)


def encoder(stages=TWO_STAGES, **options) -> ImageEncoder:
    torch.manual_seed(0)
    image = replace(ImageEncoderConfig(image_size=32, patch_size=8, dim=32, heads=2, stages=stages), **options)
    text = TextEncoderConfig(width=16, heads=2, layers=1, vocab_size=50)
    module = build_model(ModelConfig(image, text, 16, 32)).image_encoder.double().eval()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return module


def images(height: int, width: int, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("stages", "segments", "groups"), [(TWO_STAGES, 3, [6, 3]), (ONE_STAGE, 3, [3]), (NO_BLOCK_AFTER, 3, [3])]
)
@pytest.mark.parametrize("hard", [True, False])
def test_stages_say_how_many_segments_come_out(stages, segments, groups, hard):
    features = encoder(stages, hard_assignment=hard)(images(32, 32))
    assert features.segments.shape == (2, segments, 32)
    assert [a.hard.shape[1] for a in features.assignments] == groups
    for stage, count in enumerate(groups):
        for maps in (features.groups(stage), features.groups(stage, hard=True)):
            assert maps.shape == (2, count, 4, 4)
            torch.testing.assert_close(maps.sum(dim=1), torch.ones(2, 4, 4, dtype=torch.float64))
    assert torch.equal(features.groups(), features.groups(len(groups) - 1))


def test_plain_vit_has_one_segment_per_patch():
    features = encoder(PLAIN)(images(32, 48))
    assert features.segments.shape == (2, 24, 32)
    assert features.assignments == ()
    assert torch.equal(features.groups().flatten(2)[0], torch.eye(24, dtype=torch.float64))
    assert features.occupied().all()
    torch.testing.assert_close(features.pooled, features.segments.mean(dim=1))


@pytest.mark.parametrize(
    ("height", "width", "grid"), [(32, 32, (4, 4)), (64, 40, (8, 5)), (33, 50, (5, 7)), (5, 7, (1, 1))]
)
@pytest.mark.parametrize("stem", ["patch", "conv", "residual"])
def test_any_size_runs_and_is_padded_to_whole_patches(height, width, grid, stem):
    module = encoder(stem=stem)
    features = module(images(height, width))
    assert features.grid == grid
    padded = torch.zeros(2, 3, grid[0] * 8, grid[1] * 8, dtype=torch.float64)
    padded[..., :height, :width] = images(height, width)
    torch.testing.assert_close(module(padded).pooled, features.pooled)


@pytest.mark.parametrize(("patch_size", "blocks"), [(4, 4), (8, 5), (32, 5)])
def test_a_residual_stem_adds_blocks_where_the_picture_is_small(patch_size, blocks):
    stem = ConvStem(patch_size, 64, residual=True)
    assert sum(isinstance(module, ResidualBlock) for module in stem) == blocks
    assert not any(isinstance(module, ResidualBlock) for module in ConvStem(patch_size, 64))


def test_images_of_a_batch_do_not_see_each_other():
    module, batch = encoder(), images(32, 32, batch=3)
    keys = noise.sample_keys(0, 0, torch.arange(3))
    whole = module(batch, keys)
    single = module(batch[1:2], keys[1:2])
    torch.testing.assert_close(single.pooled, whole.pooled[1:2])
    assert torch.equal(single.assignments[0].hard, whole.assignments[0].hard[1:2])


def test_every_stage_draws_its_own_noise(monkeypatch):
    drawn, gumbel = [], noise.gumbel
    monkeypatch.setattr(noise, "gumbel", lambda keys, *shape: drawn.append(keys) or gumbel(keys, *shape))
    encoder()(images(32, 32), noise.sample_keys(0, 0, torch.arange(2)))
    assert len(drawn) == 2
    assert not torch.equal(*drawn)


def test_without_keys_nothing_is_random_and_with_keys_something_is():
    module = encoder(drop_path=0.5)
    batch = images(32, 32)
    assert torch.equal(module(batch).pooled, module(batch).pooled)
    first, second = (module(batch, noise.sample_keys(0, step, torch.arange(2))).pooled for step in (0, 1))
    assert not torch.allclose(first, second)


def test_permuting_group_tokens_of_the_first_stage_permutes_its_groups():
    module = encoder(((Stage(2, 6, 6)),), token_mixer=False)
    before = module(images(32, 32))
    order = torch.tensor([2, 0, 1, 5, 4, 3])
    module.stages[0].group_tokens.data = module.stages[0].group_tokens.data[:, order]
    after = module(images(32, 32))
    torch.testing.assert_close(after.groups(), before.groups()[:, order])
    torch.testing.assert_close(after.pooled, before.pooled)


def test_without_the_group_residual_empty_groups_are_left_out_of_the_pooled_feature():
    module = encoder((Stage(1, 6, 6),), group_residual=False)
    features = module(images(16, 16))
    occupied = features.occupied()
    assert not occupied.all()
    for b in range(2):
        torch.testing.assert_close(features.pooled[b], features.segments[b][occupied[b]].mean(dim=0))


def test_without_the_group_residual_empty_groups_do_not_go_on_into_the_next_stage():
    """What an empty group of the first stage is made of changes nothing but its own values as a context."""
    options = {"group_residual": False, "assign_logits": "cosine", "token_mixer": False, "pre_assign_attention": False}
    module = encoder((Stage(1, 12, 12), Stage(0, 3, 3)), **options)
    features = module(images(16, 16))  # of 4 patches
    exist = occupied(features.assignments[:1])
    assert not exist.all()
    again = features.ungrouped[1].segments.masked_fill(~exist[:, :, None], 5.0)
    last, tokens = module.grouping_stages()[1].grouping, features.ungrouped[1].group_tokens
    merged, made = last(tokens, again, None, None, exist)
    torch.testing.assert_close(module.norm(merged), features.segments)
    real = exist[:, None].expand_as(made.hard)
    assert torch.equal(made.hard[real], features.assignments[1].hard[real])
    assert torch.equal(module.patches_occupied(features, module.patches_alone(features)), exist)
    single = encoder((Stage(1, 12, 12),), **options)
    features = single(images(16, 16))
    assert single.patches_occupied(features, single.patches_alone(features)).shape == (2, 0)  # all do
    whole = encoder((Stage(1, 12, 12), Stage(0, 3, 3)), **options | {"group_residual": True})
    assert not whole.leaves_out_empty


def test_only_its_own_patches_reach_a_segment_when_nothing_mixes_after_grouping():
    """Values of other patches must not change a segment: attention before grouping is switched off by depth 0."""
    options = {"group_residual": False, "token_mixer": False, "pre_assign_attention": False}
    module = encoder((Stage(0, 4, 4),), **options)
    batch = images(32, 32, batch=1)
    before = module(batch)
    patch = 0
    owner = int(before.assignments[0].hard[0, :, patch].argmax())
    batch[:, :, :8, :8] += 1e-6
    after = module(batch)
    assert torch.equal(after.assignments[0].hard, before.assignments[0].hard)
    changed = (after.segments - before.segments).abs().amax(dim=-1)[0]
    assert changed[owner] > 0
    others = [g for g in range(4) if g != owner and before.occupied()[0, g]]
    assert others
    torch.testing.assert_close(changed[others], torch.zeros(len(others), dtype=torch.float64), atol=1e-12, rtol=0)


def test_drop_path_grows_with_depth():
    rates = [block.drop_path for stage in encoder(drop_path=0.3).stages for block in stage.blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3])


def test_patch_dropout_leaves_out_patches_of_each_image_in_training_alone():
    module = encoder(patch_dropout=0.75)
    batch, keys = images(32, 32, batch=3), noise.sample_keys(0, 0, torch.arange(3))
    assert module(batch).assignments[0].hard.shape[2] == 16
    features = module(batch, keys)
    assert features.assignments[0].hard.shape[2] == 4
    patches = module.embed(batch)[0]
    kept = module._some(patches, keys)
    chosen = [
        {int((patch == all_).all(dim=1).nonzero()) for patch in some} for some, all_ in zip(kept, patches, strict=True)
    ]
    assert [len(each) for each in chosen] == [4, 4, 4]
    assert len(set(map(frozenset, chosen))) > 1
    torch.testing.assert_close(module(batch[1:2], keys[1:2]).pooled, features.pooled[1:2])


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_a_patch_dropout_that_is_no_share_is_refused(share):
    with pytest.raises(ValueError, match="share of patches"):
        encoder(patch_dropout=share)


@pytest.mark.parametrize("stages", [(Stage(1), Stage(-1, 2, 2)), (Stage(1, -2, 2),), (Stage(1, 2, -2),)])
def test_negative_numbers_of_a_stage_are_refused(stages):
    with pytest.raises(ValueError, match="a stage has a negative number"):
        encoder(stages)


def test_a_trunk_keeps_all_its_patches():
    with pytest.raises(ValueError, match="0 on a trunk"):
        on_trunk(patch_dropout=0.5)


def test_a_patch_alone_is_what_a_group_of_that_patch_would_be():
    options = {"group_residual": False, "token_mixer": False, "pre_assign_attention": False, "assign_eps": 0.0}
    module = encoder((Stage(0, 32, 32),), **options)
    features = module(images(24, 24))
    alone = module.patches_alone(features)
    single = features.assignments[0].hard.sum(dim=-1) == 1
    assert single.any()
    for b, group in single.nonzero().tolist():
        patch = int(features.assignments[0].hard[b, group].argmax())
        torch.testing.assert_close(alone[b, patch], features.segments[b, group])


def test_patches_alone_need_segments_that_are_made_of_patches_only():
    for module in (encoder((Stage(1, 4, 4),)), encoder((Stage(1, 4, 4), Stage(1)), group_residual=False)):
        with pytest.raises(ValueError, match="segment of its own"):
            module.patches_alone(module(images(16, 16)))


def on_trunk(stem="efficientnet-lite0", **options) -> ImageEncoder:
    torch.manual_seed(0)
    stages = (Stage(0, output_groups=6, seeded=True),)
    image = ImageEncoderConfig(32, 8, 32, 2, stages=stages, drop_path=0.0, stem=stem, **options)
    return build_model(ModelConfig(image, TextEncoderConfig(16, 2, 1, vocab_size=50), 16, 32)).image_encoder.eval()


@torch.no_grad()
@pytest.mark.parametrize(("height", "width", "grid"), [(32, 32, (4, 4)), (37, 50, (5, 7)), (8, 90, (1, 12))])
def test_early_maps_of_photos_of_any_size_take_their_place(height, width, grid):
    module = on_trunk()
    pixels = torch.randint(256, (2, 3, height, width), dtype=torch.uint8)
    whole = module(module.preprocess(pixels))
    early = module(module.preprocess(pixels[:0]), early=module.early(pixels))
    assert whole.grid == early.grid == grid
    assert torch.equal(whole.segments, early.segments)
    assert torch.equal(whole.pooled, early.pooled)
    assert torch.equal(whole.assignments[0].hard, early.assignments[0].hard)
    assert whole.groups().shape[2:] == grid
    assert len(module.patches_alone(whole)) == 2


@torch.no_grad()
def test_half_and_twice_as_many_seeded_groups_are_those_of_a_model_with_so_many():
    module, pixels = on_trunk(), torch.randint(256, (2, 3, 64, 96), dtype=torch.uint8)
    again = list(module.regrouped(module(module.preprocess(pixels))))
    assert [features.segments.shape[1] for features in again] == [3, 12]
    for groups, features in zip((3, 12), again, strict=True):
        module.stages[0].seeded.groups = groups
        other = module(module.preprocess(pixels))
        assert torch.equal(features.segments, other.segments)
        assert torch.equal(features.groups(), other.groups())


def test_groups_without_seeds_come_in_one_number():
    module = encoder(NO_BLOCK_AFTER)
    assert not list(module.regrouped(module(images(32, 32, batch=1))))


def test_a_trunk_has_no_positions_but_its_own_and_photos_as_it_was_trained_with():
    module, vit = on_trunk(), on_trunk("vit", vit=ViTConfig(32, 8, 24, 2, 2, mean=(0.5,) * 3, std=(0.25,) * 3))
    assert module.pos_embed is vit.pos_embed is None
    pixels = torch.tensor([[[[0]], [[127]], [[255]]]], dtype=torch.uint8)
    assert module.preprocess(pixels).flatten().tolist() == [-127 / 128, 0, 1]
    assert vit.preprocess(pixels).flatten().tolist() == pytest.approx([-2, 0, 2], abs=0.02)
    with torch.no_grad():
        assert vit(vit.preprocess(torch.zeros(1, 3, 37, 50, dtype=torch.uint8))).grid == (5, 7)
