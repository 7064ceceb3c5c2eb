import io
import os
import signal
import tarfile

import numpy as np
import pytest
from PIL import Image

from groupvit.checkpoints import load
from groupvit.data import scenes
from groupvit.data.shards import Sample, write_shards
from groupvit.errors import InputError
from groupvit.evaluation import emergence
from groupvit.evaluation.datasets import open_masks
from groupvit.evaluation.emergence import Emergence, photos_to_watch
from groupvit.evaluation.metrics import mean_iou
from groupvit.evaluation.scoring import score
from groupvit.models import Stage, build_model, with_stages
from groupvit.segmentation import Segmenter, drawing, parse_labels
from groupvit.training.loop import train
from groupvit.training.run import vary
from test_experiments_trunk_baselines import ONE
from test_training_loop import RUN, TINY, weights

WORDS = parse_labels(["red", "green", "blue"])
SQUARES = [Image.new("RGB", (192, 192), colour) for colour in ("red", "green", "blue", "white")]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "scenes"
    scenes.write(folder, train=24, evaluation=5)
    return folder


def strip(file):
    with Image.open(file) as picture:
        return np.asarray(picture)


def test_pictures_change_no_weight_and_a_resumed_strip_is_the_whole_one(data, tmp_path):
    run = vary(RUN, steps=5, batch_size=4)
    watched = photos_to_watch(str(data), "eval", "")
    whole, parts = (
        Emergence(run.model, *watched, tmp_path / name / "emergence.png", every=2, steps=5)
        for name in ("whole", "parts")
    )

    def interrupted(model, step):
        if step == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return parts(model, step)

    train(run, data, tmp_path / "without", workers=0)
    train(run, data, tmp_path / "whole", workers=0, draw=whole)
    assert train(run, data, tmp_path / "parts", workers=0, draw=interrupted).step == 3
    train(run, data, tmp_path / "parts", workers=0, draw=parts, resume=True)
    assert weights(tmp_path / "whole") == weights(tmp_path / "parts") == weights(tmp_path / "without")
    assert strip(whole.file).shape[1] == 5 * 96 + 4 * 4  # photos, steps 0, 2, 4 and 5
    assert (strip(whole.file) == strip(parts.file)).all()


def test_a_strip_grows_by_a_column_and_a_step_taken_again_replaces_its_own(tmp_path):
    draw = Emergence(TINY, SQUARES, WORDS, tmp_path / "strip.png", every=10, steps=25)
    first, second = build_model(TINY).train(), build_model(TINY)
    columns = [draw(first, step) for step in (0, 10, 20, 25)]
    assert first.training
    whole = strip(tmp_path / "strip.png")
    assert (whole[:, 100:196] == columns[0]).all()
    assert (whole[:, -96:] == columns[-1]).all()
    again = draw(second, 10)
    assert (strip(tmp_path / "strip.png") == np.hstack([whole[:, :200], again])).all()
    assert draw(first, 7) is None
    (tmp_path / "strip.png").write_bytes(b"torn")
    draw(first, 20)
    assert strip(tmp_path / "strip.png").shape[1] == 4 * 96 + 3 * 4


def test_held_out_photos_are_read_anew_for_each_score(tmp_path):
    """All at once they might not fit into memory."""
    scenes.write(tmp_path, train=1, evaluation=3)
    with pytest.raises(InputError, match='val: no such folder of held-out photos; name one, or none: --held-out ""'):
        emergence.evaluation_of(TINY, tmp_path, "val")
    evaluate, model = emergence.evaluation_of(TINY, tmp_path, "eval"), build_model(TINY).eval()
    assert evaluate(model)["oracle_miou"] < 100
    for mask in (tmp_path / "eval/masks").iterdir():
        with Image.open(mask) as image:
            Image.fromarray(np.full_like(np.asarray(image), 3)).save(mask)
    assert evaluate(model)["oracle_miou"] == 100


def test_held_out_masks_are_tried_before_the_first_step_and_scored_as_they_are(tmp_path):
    scenes.write(tmp_path, train=1, evaluation=3)
    model = build_model(TINY).eval()
    found, photos = emergence.evaluation_of(TINY, tmp_path, "eval")(model), open_masks(tmp_path / "eval")
    expected = score(Segmenter(model, TINY, precision="fp32"), photos, photos.labels)
    assert found == {"miou": mean_iou(expected.named), "oracle_miou": mean_iou(expected.oracle)}
    assert found["miou"] != found["oracle_miou"]
    mask = min((tmp_path / "eval/masks").iterdir())
    mask.write_bytes(mask.read_bytes()[:50])
    with pytest.raises(InputError, match=mask.name):
        emergence.evaluation_of(TINY, tmp_path, "eval")


def test_tensorboard_shows_the_pictures(data, tmp_path):
    draw = Emergence(TINY, SQUARES, WORDS, tmp_path / "run/emergence.png", every=1, steps=1)
    train(vary(RUN, steps=1), data, tmp_path / "run", workers=0, draw=draw, tensorboard=True)
    (events,) = (tmp_path / "run").glob("events.out.tfevents.*")
    assert events.read_bytes().count(b"PNG") == 2


def test_held_out_photos_are_watched_else_those_of_the_training_and_broken_ones_passed_over(data, tmp_path):
    photos, labels = photos_to_watch(str(data), "eval", "")
    assert [photo.size for photo in photos] == [(192, 192)] * 4
    assert labels == parse_labels(scenes.LABELS)
    file = io.BytesIO()
    Image.new("RGB", (30, 20), "red").save(file, "PNG")
    samples = [
        Sample(str(i), image, ("a ball on a background",), "")
        for i, image in enumerate([b"\x89PNG torn", file.getvalue()])
    ]
    [shard] = write_shards(samples, tmp_path, prefix="some")
    (tmp_path / "alone.png").write_bytes(file.getvalue())
    with tarfile.open(shard, "a") as tar:
        tar.add(tmp_path / "alone.png", "alone.png")  # it has no caption, so a training leaves it out
    for held_out, shards in (("some-*.tar", ""), ("", "some-*.tar")):
        [photo], labels = photos_to_watch(str(tmp_path), held_out, shards)
        assert [label.name for label in labels] == ["background", "ball"]
        assert photo.getpixel((5, 5)) == (255, 0, 0)
    write_shards(samples[:1], tmp_path, prefix="torn")
    with pytest.raises(InputError, match="no photo that can be read"):
        photos_to_watch(str(tmp_path), "", "torn-*.tar")


@pytest.mark.parametrize("every", [0, -5, 4])
def test_a_strip_of_too_many_pictures_is_refused_at_once(tmp_path, every):
    Emergence(TINY, SQUARES, WORDS, tmp_path / "strip.png", 5, steps=999)
    with pytest.raises(InputError, match="at least 5 steps"):
        Emergence(TINY, SQUARES, WORDS, tmp_path / "strip.png", every, steps=999)


@pytest.mark.parametrize("config", [with_stages(TINY, Stage(1)), ONE], ids=["plain", "seeded"])
def test_without_learned_groups_the_strip_shows_words(tmp_path, config):
    model, file = build_model(config), tmp_path / "strip.png"
    column = Emergence(config, SQUARES, WORDS, file, 1, steps=2)(model, 0)
    result = Segmenter(model, config, precision="fp32").segment(SQUARES[3], WORDS, background=None)
    shown = np.asarray(drawing.groups(SQUARES[3], result.label_map).resize((96, 96)))
    assert (column[-96:] == shown).all()


def test_a_strip_that_cannot_be_written_loses_no_step(data, tmp_path, monkeypatch):
    def full(*_):
        raise InputError("no space")

    draw = Emergence(TINY, SQUARES, WORDS, tmp_path / "emergence.png", every=2, steps=6)
    monkeypatch.setattr(emergence, "write_picture", lambda path, picture: full() if picture.width > 300 else None)
    with pytest.raises(InputError, match="no space"):
        train(RUN, data, tmp_path / "run", workers=0, draw=draw)
    assert (tmp_path / "run/latest").read_text() == "step-00000004"
    load(tmp_path / "run")
