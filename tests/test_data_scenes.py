import hashlib
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from experiments.colours import ColourTable
from PIL import Image

from groupvit.data import scenes
from groupvit.data.shards import find_shards, read_shard
from groupvit.errors import InputError
from groupvit.evaluation.datasets import MaskedPhoto
from groupvit.evaluation.metrics import confusion_matrix, iou
from groupvit.text.nouns import nouns_of_photo

MANY = [scenes.draw(0, index) for index in range(600)]


def test_the_generator_is_frozen():
    """Another digest means other pictures or captions: then raise VERSION and measure every table again."""
    digest = hashlib.sha256()
    for scene in MANY[:50]:
        digest.update(scene.mask.tobytes() + scene.caption.encode())
        digest.update((scene.image.reshape(-1, 3).mean(axis=0).round(0)).astype(np.uint8).tobytes())
    assert (scenes.VERSION, digest.hexdigest()[:16]) == (1, "2974e1264c9a7fe9")


def test_a_scene_is_a_pure_function_of_seed_and_index():
    again, other = scenes.draw(0, 7), scenes.draw(1, 7)
    assert np.array_equal(again.image, MANY[7].image)
    assert again.caption == MANY[7].caption
    assert not np.array_equal(other.image, MANY[7].image)


def test_every_class_is_drawn_and_each_pixel_has_one():
    counts = np.bincount(np.concatenate([scene.mask.ravel() for scene in MANY]))
    assert len(counts) == len(scenes.CLASSES) == 16
    assert counts.min() > 0.01 * counts.sum() / 16
    assert max(np.unique(scene.mask[scene.mask >= 10]).size for scene in MANY) == 1


def test_captions_name_only_what_can_be_seen_and_leave_things_out():
    words = {name: {name, scenes.SYNONYMS.get(name, name)} for name in scenes.CLASSES}
    named = shown = synonyms = 0
    for scene in MANY:
        nouns = nouns_of_photo([scene.caption])
        visible = {scenes.CLASSES[i] for i in np.unique(scene.mask)}
        for name in scenes.CLASSES:
            if nouns & words[name]:
                assert name in visible
                named += 1
                synonyms += name not in nouns
        shown += len(visible)
    assert 0.7 < named / shown < 0.9
    assert synonyms > 50


def test_things_cannot_be_told_by_colour_even_with_masks():
    photos = [MaskedPhoto(str(i), Image.fromarray(s.image), s.mask) for i, s in enumerate(MANY)]
    table = ColourTable.fit(photos[:400], 16)
    matrix = sum(confusion_matrix(photo.mask, table(photo.image), 16) for photo in photos[400:])
    things = iou(matrix)[:10].mean()
    assert things < 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("scenes") / "set"
    scenes.write(path, train=30, evaluation=4)
    return path


def test_training_shards_hold_pictures_and_captions_and_no_mask(folder):
    for shard in find_shards(folder / "train"):
        with tarfile.open(shard) as tar:
            for member in tar:
                ending = member.name.split(".")[-1]
                assert ending in ("jpg", "txt", "json")
                if ending == "json":
                    file = tar.extractfile(member)
                    assert file
                    assert set(json.load(file)) == {"key", "captions"}
        for sample in read_shard(shard):
            with Image.open(io.BytesIO(sample.image)) as image:
                assert image.size == (64, 64)
                assert image.mode == "RGB"
                assert not image.info.get("comment")


def test_training_pictures_are_not_the_evaluation_pictures(folder):
    trained = {sample.image for shard in find_shards(folder / "train") for sample in read_shard(shard)}
    assert len(trained) == 30
    evaluated = {path.read_bytes() for path in (folder / "eval" / "images").iterdir()}
    assert len(evaluated) == 4
    assert trained.isdisjoint(evaluated)


def test_where_scenes_cannot_be_written_is_said(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("precious")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match=r"cannot write scenes to .*: Not a directory"):
            scenes.write(place, train=1, evaluation=1)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "scenes.json").write_text("{")
    with pytest.raises(InputError, match="other is not empty"):
        scenes.write(tmp_path / "other", train=1, evaluation=1)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(InputError, match="is the folder you are in"):
        scenes.write(Path(), train=1, evaluation=1)


def test_the_same_set_is_left_alone_and_another_is_not_overwritten(folder, tmp_path):
    before = sorted((p, p.stat().st_mtime_ns) for p in folder.rglob("*"))
    scenes.write(folder, train=30, evaluation=4)
    assert sorted((p, p.stat().st_mtime_ns) for p in folder.rglob("*")) == before
    with pytest.raises(InputError, match="not empty"):
        scenes.write(folder, train=31, evaluation=4)
    assert sorted((p, p.stat().st_mtime_ns) for p in folder.rglob("*")) == before
