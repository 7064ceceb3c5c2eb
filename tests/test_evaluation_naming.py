import numpy as np
import pytest
import torch

from groupvit.evaluation.naming import patch_shares, segments_of
from groupvit.models import Stage
from groupvit.segmentation.windows import covered, plan, resized
from test_models_image_encoder import encoder, images, on_trunk


@pytest.mark.parametrize("options", [{}, {"group_residual": False}, {"assign_eps": 0.0}])
@pytest.mark.parametrize("stages", [(Stage(1, 3, 3),), (Stage(1, 4, 4), Stage(1, 3, 3))])
def test_given_its_own_groups_as_regions_a_stage_makes_the_segments_it_makes_anyway(stages, options):
    module = encoder(stages, **options, assign_logits="cosine")  # with others, one group would win everything
    features = module(images(64, 64, batch=16))
    several = 0
    for image in range(16):
        if not features.assignments[0].hard[image].any(dim=1).all():
            continue  # an empty segment lies in no region
        occupied = features.occupied()[image]
        own = features.groups(hard=True)[image].flatten(1)[occupied]
        again = segments_of(module, features.image(image), own, stage=len(stages) - 1)
        torch.testing.assert_close(again, features.segments[image][occupied])
        several += len(own) > 1
    assert several


def test_regions_that_earlier_stages_are_given_stay_apart():
    """Two regions that one group would join, given to the first of two stages, end as two segments, whose order is
    that of the regions; blocks after the last grouping included."""
    module = encoder((Stage(1, 6, 6), Stage(1, 1, 1), Stage(1)))
    features = module(images(32, 24))
    regions = torch.zeros(2, 12)
    regions[0, :5], regions[1, 5:] = 1, 1
    segments = segments_of(module, features.image(0), regions, stage=0)
    assert segments.shape == (2, 32)
    assert (segments[0] - segments[1]).abs().max() > 1e-3
    torch.testing.assert_close(segments_of(module, features.image(0), regions.flip(0), stage=0), segments.flip(0))


def test_a_plain_vit_names_a_region_by_the_mean_of_its_patches():
    module = encoder((Stage(2),))
    features = module(images(16, 16))
    shares = torch.tensor([[1.0, 0.5, 0, 0], [0, 0.5, 1, 1]])
    expected = torch.stack([(features.segments[1] * own[:, None]).sum(dim=0) / own.sum() for own in shares])
    torch.testing.assert_close(segments_of(module, features.image(1), shares), expected)


@torch.no_grad()
def test_seeded_groups_given_as_regions_are_the_segments_they_are_anyway():
    module = on_trunk()
    features = module(module.preprocess(torch.randint(256, (2, 3, 37, 50), dtype=torch.uint8)))
    regions = features.assignments[0].hard[1][features.occupied()[1]]
    own = segments_of(module, features.image(1), regions)
    torch.testing.assert_close(own, features.segments[1][features.occupied()[1]])


@pytest.mark.parametrize("photo", [(37, 50), (9, 70), (200, 160)])
@pytest.mark.parametrize("window", [16, 32])
def test_regions_share_out_the_patches_of_every_window(photo: tuple[int, int], window: int) -> None:
    """Each labelled pixel lies in one region: shares are positive, and add up to that of all labelled pixels."""
    regions = np.random.default_rng(0).choice([0, 3, 255], photo, p=[0.6, 0.395, 0.005]).astype(np.uint8)
    size = resized(photo[::-1], 30)
    step = (size[0] / photo[0], size[1] / photo[1])
    for _, place in plan([size], window, None):
        part = regions[covered(place, step)]
        found, shares = patch_shares(part, place[2:], 8)
        assert set(found) == set(part.ravel().tolist()) - {255}
        assert (shares.sum(dim=1) > 0).all()
        _, known = patch_shares((part != 255).astype(np.uint8), place[2:], 8)
        everything = known[-1] if (part != 255).any() else torch.zeros(0)
        torch.testing.assert_close(shares.sum(dim=0), everything)


def test_a_part_without_regions_has_none() -> None:
    assert patch_shares(np.full((4, 4), 255, np.uint8), (16, 16), 8)[0] == ()
