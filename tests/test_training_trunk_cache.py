import io
from collections.abc import Iterable, Iterator
from contextlib import redirect_stderr
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from groupvit.data.batches import Batches, RandomCrops
from groupvit.data.index import CaptionedPhotos
from groupvit.data.shards import Sample, write_shards
from groupvit.errors import InputError
from groupvit.models import ImageEncoderConfig, ModelConfig, Stage, build_model
from groupvit.models.image_encoder import ImageEncoder
from groupvit.text.tokenizer import Tokenizer
from groupvit.training import trunk_cache
from groupvit.training.trunk_cache import TrunkCache, cached

CPU = torch.device("cpu")


def photos_in(folder: Path, count: int = 5, broken: int = 3) -> CaptionedPhotos:
    """Photos of random pixels, one of which cannot be decoded."""
    random, samples = np.random.default_rng(0), []
    for i in range(count):
        file = io.BytesIO()
        Image.fromarray(random.integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(file, "PNG")
        samples.append(Sample(f"{i:02}", file.getvalue()[: 100 if i == broken else None], (f"a thing {i}",)))
    return CaptionedPhotos.open(write_shards(samples, folder, prefix="t"))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> CaptionedPhotos:
    return photos_in(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def encoder() -> ImageEncoder:
    torch.manual_seed(0)
    image = ImageEncoderConfig(24, 8, 32, 2, stages=(Stage(0, 0, 4, seeded=True),), stem="efficientnet-lite0")
    return build_model(ModelConfig(image)).image_encoder


@pytest.fixture(autouse=True)
def float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trunk_cache, "bfloat16_is_faster", lambda device: False)


def crops_of(photos: CaptionedPhotos, **changes: Any) -> RandomCrops:
    return replace(RandomCrops(photos, 0, 24, (0.3, 1.0), 2), **changes)


def make(encoder: ImageEncoder, crops: RandomCrops, folder: Path) -> tuple[TrunkCache, int]:
    """The cache, and how often one was made."""
    with redirect_stderr(io.StringIO()) as said:
        cache = cached(encoder, crops, folder, CPU, workers=0)
    return cache, said.getvalue().count("caching the trunk's maps")


def test_rows_are_the_early_maps_of_the_crops_to_half_precision(photos, encoder, tmp_path):
    crops = crops_of(photos)
    cache, _ = make(encoder, crops, tmp_path)
    assert cache.rows.tolist() == [[0, 1], [2, 3], [4, 5], [-1, -1], [8, 9]]
    rows, mirrored = torch.tensor([9, 0, 5]), torch.tensor([False, True, False])
    maps = cache.read(rows, mirrored)
    with torch.no_grad():
        expected = encoder.early(torch.stack([crops[row][0] for row in rows.tolist()]))
    assert [tuple(each.shape[2:]) for each in maps] == [(3, 3), (2, 2)]  # of sides that do not divide, too
    for found, whole in zip(maps, expected, strict=True):
        whole[1] = whole[1].flip(-1)
        torch.testing.assert_close(found, whole, rtol=1e-3, atol=1e-4)
    assert maps[0].std() > 0.1
    assert not torch.equal(crops[0][0], crops[1][0])


def test_a_whole_cache_of_the_same_crops_is_used_again_and_any_other_made_anew(photos, encoder, tmp_path):
    folder, other = tmp_path / "cache", photos_in(tmp_path / "other", count=4)
    crops = crops_of(photos)
    assert [make(encoder, crops, folder)[1] for _ in range(2)] == [1, 0]
    for change in ({"seed": 1}, {"scale": (0.5, 1.0)}, {"count": 1}, {"side": 32}, {"photos": other}):
        assert make(encoder, replace(crops, **change), folder)[1] == 1
    assert make(encoder, crops, folder)[1] == 1
    weight = encoder.stem.trunk.stem.norm.bias
    with torch.no_grad():
        weight += 1
    assert [make(encoder, crops, folder)[1] for _ in range(2)] == [1, 0]
    with torch.no_grad():
        weight -= 1


@pytest.mark.parametrize("damage", ["cut", "missing", "no JSON", "another document", "rows beyond the end"])
def test_a_damaged_cache_is_made_anew(damage, photos, encoder, tmp_path):
    crops = crops_of(photos)
    make(encoder, crops, tmp_path)
    done, file = tmp_path / "done.json", tmp_path / "stride-16.float16"
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-2])
    elif damage == "missing":
        file.unlink()
    else:
        texts = {"no JSON": "{", "another document": "[1]"}
        done.write_text(texts.get(damage, done.read_text().replace("[6, 7]", "[6, 77]")))
    cache, made = make(encoder, crops, tmp_path)
    assert made == 1
    assert cache.rows[3].tolist() == [-1, -1]


def test_a_training_keeps_the_maps_it_reads_when_another_makes_others(photos, encoder, tmp_path):
    (tmp_path / ".0123.tmp").write_text("of a process that was killed")
    cache, _ = make(encoder, crops_of(photos), tmp_path)
    before = [np.array(file) for file in cache.files]
    make(encoder, crops_of(photos, seed=1, count=1), tmp_path)
    assert all(np.array_equal(one, two) for one, two in zip(cache.files, before, strict=True))
    assert not list(tmp_path.glob(".*.tmp"))


def test_an_interruption_leaves_nothing_that_counts_as_done(photos, encoder, tmp_path, monkeypatch):
    crops = crops_of(photos)
    whole, _ = make(encoder, crops, tmp_path / "whole")

    def interrupted(title: str, batches: Iterable[Any], *_: Any) -> Iterator[Any]:
        yield next(iter(batches))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(trunk_cache, "tracked", interrupted)
        with pytest.raises(KeyboardInterrupt):
            make(encoder, crops, tmp_path / "cut")
    assert [path.name for path in (tmp_path / "cut").iterdir() if path.name != "cache.lock"] == []
    again, made = make(encoder, crops, tmp_path / "cut")
    assert made == 1
    assert all(np.array_equal(one, two) for one, two in zip(again.files, whole.files, strict=True))


def test_a_full_disk_is_one_line_that_names_the_folder(photos, encoder, tmp_path, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(trunk_cache.os, "fsync", full)
    with pytest.raises(InputError, match=r"cannot cache .* in .*cache: No space left on device; name another --cache"):
        make(encoder, crops_of(photos), tmp_path / "cache")
    assert [path.name for path in (tmp_path / "cache").iterdir() if path.name != "cache.lock"] == []
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot cache"):
        make(encoder, crops_of(photos), tmp_path / "file")


def test_a_photo_that_cannot_be_decoded_is_named_and_replaced_by_its_neighbour_and_caption(photos, encoder, tmp_path):
    cache, _ = make(encoder, crops_of(photos), tmp_path)
    batches = Batches(photos, 0, 24, (0.3, 1.0), "crop", 0, "release", ("thing",), Tokenizer(16), cached=cache.rows)
    batch = batches[np.array([[0, 0, 1], [0, 0, 3]])]
    assert batch.rows[0] in cache.rows[1]
    assert batch.rows[1] in cache.rows[4]
    assert batch.captions[1].equal(Tokenizer(16)(["a thing 4"])[0])
    assert len(batch.unreadable) == 1
    assert "photo 3 of" in batch.unreadable[0]
    assert len(batch.images) == 0
    drawn = [batches[np.array([[epoch, 0, 1]])] for epoch in range(20)]
    assert {int(each.rows) for each in drawn} == {2, 3}
    assert {bool(each.mirrored) for each in drawn} == {False, True}
