import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from groupvit.data.batches import Batch, Batches
from groupvit.data.index import CaptionedPhotos
from groupvit.data.order import BatchSampler, Order
from groupvit.data.shards import Sample, write_shards
from groupvit.errors import InputError
from groupvit.text.tokenizer import Tokenizer

CAPTIONS = ("a dog on the grass", "a cat and a horse", "two boats", "it is running")


def picture(seed, size=(40, 30)):
    pixels = np.random.default_rng(seed).integers(0, 255, (*size[::-1], 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((4, 3)).resize(size).save(file, "JPEG", quality=95)
    return file.getvalue()


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    samples = [Sample(f"{i:02d}", picture(i), (CAPTIONS[i % 4], f"photo number {i}")) for i in range(30)]
    samples[7] = replace(samples[7], image=samples[7].image[:60])
    return CaptionedPhotos.open(write_shards(samples, tmp_path_factory.mktemp("shards"), prefix="t", per_shard=10))


def batches_of(photos, **options):
    settings = {
        "seed": 0,
        "image_size": 16,
        "scale": (0.3, 1.0),
        "augmentation": "color",
        "prompts": 2,
        "noun_style": "paper",
        "vocabulary": ("dog", "cat", "boat"),
        "tokenizer": Tokenizer(16),
    }
    return Batches(photos, **(settings | options))


def stream(photos, count=10, *, workers=0, start=0, batch_size=6, **options):
    sampler = BatchSampler(Order(photos.counts, 0), batch_size, start=start)
    loader = iter(DataLoader(batches_of(photos, **options), sampler=sampler, batch_size=None, num_workers=workers))
    return [next(loader) for _ in range(count)]


def equal(one: Batch, other: Batch) -> bool:
    tensors = (name for name, value in vars(one).items() if isinstance(value, torch.Tensor))
    same = all(torch.equal(getattr(one, name), getattr(other, name)) for name in tensors)
    return same and one.unreadable == other.unreadable


@pytest.mark.parametrize("augmentation", ["crop", "color", "randaugment"])
def test_any_number_of_workers_makes_the_same_batches(photos, augmentation):
    alone, two = (stream(photos, workers=workers, augmentation=augmentation) for workers in (0, 2))
    assert all(map(equal, alone, two))


def test_a_start_in_the_middle_continues_exactly(photos):
    assert all(map(equal, stream(photos, 4, start=18), stream(photos)[3:7]))


def test_what_is_drawn_belongs_to_the_sample_and_not_to_its_batch(photos):
    """Crop, colour, caption and prompts, sample by sample, whatever the batch size."""
    large = stream(photos, 2, batch_size=30)
    small = stream(photos, 20, batch_size=3)
    for name in ("images", "color", "captions", "prompts", "present", "known", "human"):
        together = torch.cat([getattr(batch, name) for batch in large])
        assert torch.equal(torch.cat([getattr(batch, name) for batch in small]), together)


def test_another_seed_and_another_epoch_draw_otherwise(photos):
    (first,) = stream(photos, 1, batch_size=30)
    (seed,) = stream(photos, 1, batch_size=30, seed=1)
    assert not torch.equal(first.images, seed.images)
    place = np.array([[0, 1, 3], [1, 1, 3]])
    epochs = batches_of(photos)[place]
    assert not torch.equal(epochs.images[0], epochs.images[1])
    assert not torch.equal(epochs.color[0], epochs.color[1])


def test_a_photo_is_drawn_otherwise_in_another_shard_and_with_each_of_its_captions(tmp_path):
    samples = [Sample(str(i), picture(3), ("a dog", "a cat")) for i in range(2)]
    photos = CaptionedPhotos.open(write_shards(samples, tmp_path, prefix="t", per_shard=1))
    batch = batches_of(photos)[np.array([[epoch, shard, 0] for shard in (0, 1) for epoch in range(20)])]
    assert not torch.equal(*batch.images.split(20))
    assert all(len(captions.unique(dim=0)) == 2 for captions in batch.captions.split(20))


def test_nouns_of_all_captions_are_present(photos):
    batch = batches_of(photos)[np.array([[0, 0, 0], [0, 0, 1], [0, 0, 2], [0, 0, 3]])]
    assert batch.present.int().tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]]


def test_what_the_source_of_tags_could_not_have_said_is_not_known(tmp_path):
    tagged = [Sample(str(i), picture(i), ("a photo",), tags=tags) for i, tags in enumerate([("boat",), ("woman",)])]
    (tmp_path / "t-vocabulary.txt").write_text("dog\nhorse\nwoman\n")
    photos = CaptionedPhotos.open(write_shards([*tagged, Sample("2", picture(2), ("a cat",))], tmp_path, prefix="t"))
    places, vocabulary = np.array([[0, 0, row] for row in range(3)]), ("dog", "cat", "boat", "person", "traffic light")
    batch = batches_of(photos, vocabulary=vocabulary)[places]
    assert batch.human.tolist() == [False, False, True]
    assert batch.present.int().tolist() == [[0, 0, 1, 0, 0], [0, 0, 0, 1, 0], [0, 1, 0, 0, 0]]
    assert batch.known.int().tolist() == [[1, 0, 1, 0, 0], [1, 0, 1, 1, 0], [1, 1, 1, 1, 0]]
    boat = Tokenizer(16)("boat")[0, 1]
    assert (batch.prompts == boat).any(dim=2).tolist() == [[True, True], [False, False], [False, False]]
    assert batches_of(photos, vocabulary=())[places].human.tolist() == [False, False, True]


def test_what_a_run_does_not_use_is_not_made(photos):
    (batch,) = stream(photos, 1, augmentation="crop", prompts=0, vocabulary=())
    assert batch.images.shape == (6, 3, 16, 16)
    assert [len(batch.rows), len(batch.color)] == [0, 0]
    assert batch.prompts.shape == (6, 0, 16)
    assert batch.present.shape == batch.known.shape == (6, 0)


def test_a_photo_that_cannot_be_decoded_is_named_and_its_neighbour_taken(photos):
    broken = batches_of(photos)[np.array([[0, 0, 7]])]
    assert len(broken.unreadable) == 1
    assert "t-0000.tar: 07: " in broken.unreadable[0]
    assert broken.present.tolist() == [[True, False, False]]  # the eighth photo's
    assert batches_of(photos)[np.array([[0, 0, 8]])].unreadable == ()


def test_the_next_shard_stands_in_for_one_without_a_readable_photo(tmp_path):
    Image.new("RGB", (20, 20), "red").save(file := io.BytesIO(), "JPEG")
    broken = write_shards([Sample("broken", b"\xff\xd8\xff", ("a",))], tmp_path, prefix="z")
    whole = write_shards([Sample("whole", file.getvalue(), ("a hat",))], tmp_path, prefix="a")
    batch = batches_of(CaptionedPhotos.open([*whole, *broken]))[np.array([[0, 1, 0]])]
    assert len(batch.unreadable) == 1
    assert batch.images.any()


def test_a_shard_of_which_nothing_can_be_decoded_is_refused(tmp_path):
    shards = write_shards([Sample(str(i), b"\xff\xd8\xff", ("a",)) for i in range(30)], tmp_path, prefix="t")
    with pytest.raises(InputError, match=r"0: not an image.*; nor can its neighbours be read; groupvit data doctor"):
        batches_of(CaptionedPhotos.open(shards))[np.array([[0, 0, 0]])]
