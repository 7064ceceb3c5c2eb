import numpy as np
import pytest
from PIL import Image

from groupvit.evaluation.baselines import ColourTable, colour_clusters, score_colour_clusters
from groupvit.evaluation.datasets import MaskedPhoto
from groupvit.evaluation.metrics import confusion_matrix, mean_iou, oracle_names
from groupvit.evaluation.scoring import score
from groupvit.models import ImageEncoderConfig, ModelConfig, Stage, TextEncoderConfig, build_model
from groupvit.segmentation import Segmenter

LABELS = ("red", "green=green,lime", "blue")


def photos(count: int) -> list[MaskedPhoto]:
    generator = np.random.default_rng(0)
    colours = np.array([[220, 20, 20], [20, 200, 20], [20, 20, 220]], dtype=np.uint8)
    made = []
    for i in range(count):
        classes = generator.permutation([0, 1, 2, 0, 1, 2]).reshape(2, 3)
        mask = np.repeat(np.repeat(classes, 8, axis=0), 8, axis=1).astype(np.uint8)
        grain = generator.integers(0, 8, (16, 24, 3), dtype=np.uint8)
        made.append(MaskedPhoto(str(i), Image.fromarray(colours[mask] + grain), mask))
    return made


@pytest.fixture(scope="module")
def segmenter():
    config = ModelConfig(
        ImageEncoderConfig(16, 8, 32, 2, stages=(Stage(1, 4, 4),)),
        TextEncoderConfig(16, 2, 1),
        embed_dim=8,
        projector_dim=16,
    )
    return Segmenter(build_model(config), config)


def test_scores_are_what_segmenting_photo_by_photo_gives(segmenter):
    set_of_photos = photos(5)
    scores = score(segmenter, set_of_photos, LABELS)
    named = oracle = 0
    for photo in set_of_photos:
        result = segmenter.segment(photo.image, LABELS)
        named = named + confusion_matrix(photo.mask, result.label_map, 3)
        oracle = oracle + confusion_matrix(photo.mask, oracle_names(result.groups[-1], photo.mask, 3), 3)
    assert np.array_equal(scores.named, named)
    assert np.array_equal(scores.oracle, oracle)
    assert np.diag(scores.oracle).sum() >= np.diag(scores.named).sum()


def test_a_colour_table_learns_colours():
    train, test = photos(4), photos(8)[4:]
    table = ColourTable.fit(train, 3)
    assert mean_iou(sum(confusion_matrix(photo.mask, table(photo.image), 3) for photo in test)) == 100


def test_clusters_of_colours_are_perfect_where_colours_are_classes():
    assert mean_iou(score_colour_clusters(photos(3), 3, 3)) == 100
    assert colour_clusters(photos(1)[0].image, 2).max() == 1
