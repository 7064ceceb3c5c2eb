import io
import itertools
import json
import os
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from groupvit.data.shards import CaptionBatches, Sample, captions_of, find_shards, read_shard, write_shards
from groupvit.data.transforms import augment, load_rgb
from groupvit.errors import InputError

# Three workers are not too many for a test on two cores.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
CAPTIONS = Path(os.environ.get("GROUPVIT_DATA", Path(__file__).parents[1] / "../shared/data")) / "captions"


def picture(value, file_format="JPEG"):
    file = io.BytesIO()
    Image.new("RGB", (16, 12), (value % 256, 0, 0)).save(file, file_format)
    return file.getvalue()


def samples(count):
    return [Sample(f"{i:05d}", picture(i), (f"caption {i}", f"another {i}")) for i in range(count)]


def write_tar(path, contents):
    with tarfile.open(path, "w") as shard:
        for name, data in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            shard.addfile(member, io.BytesIO(data))
    return path


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_shards(samples(53), tmp_path_factory.mktemp("shards"), prefix="train", per_shard=10)


def keys_and_draws(batch, generators):
    return [sample.key for sample in batch], [float(generator.random()) for generator in generators]


def crops(batch, generators):
    pairs = zip(batch, generators, strict=True)
    return torch.stack([augment(load_rgb(sample.image, sample.key), 8, generator=g) for sample, g in pairs])


def stream(shards, *, workers=0, count=30, make_batch=keys_and_draws, **options):
    options = {"batch_size": 4, "seed": 0, "shuffle_buffer": 16} | options
    batches = CaptionBatches(shards, make_batch=make_batch, **options)
    return list(itertools.islice(DataLoader(batches, batch_size=None, num_workers=workers), count))


def keys(batches):
    return [key for batch, _ in batches for key in batch]


def test_what_is_written_is_read(shards):
    assert [path.name for path in shards] == [f"train-{i:04d}.tar" for i in range(6)]
    assert [sample for path in shards for sample in read_shard(path)] == samples(53)
    assert list(captions_of(shards)) == [sample.captions for sample in samples(53)]


def test_the_same_samples_make_the_same_bytes(shards, tmp_path):
    again = write_shards(samples(53), tmp_path, prefix="train", per_shard=10)
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in shards]


def test_a_shard_that_fails_is_not_left_half_written(tmp_path):
    with pytest.raises(InputError, match="sample bad: the image is neither"):
        write_shards([*samples(3), Sample("bad", b"GIF89a", ("x",))], tmp_path, prefix="train")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("file_format", "ending"), [("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp")])
def test_images_get_the_ending_of_their_format(tmp_path, file_format, ending):
    (path,) = write_shards([Sample("a", picture(1, file_format), ("x",))], tmp_path, prefix="p")
    with tarfile.open(path) as shard:
        assert shard.getnames() == [f"a.{ending}", "a.txt", "a.json"]


@pytest.mark.parametrize(
    ("contents", "expected"),
    [
        ({"a.txt": b" a dog \n"}, ("a dog",)),
        ({"a.json": b'{"caption": "a cat"}'}, ("a cat",)),
        ({"a.txt": b"a dog", "a.json": b'{"width": 3, "caption": null}'}, ("a dog",)),
        ({"a.txt": b"a dog", "a.json": b'{"captions": ["a cat", " ", "a cow"]}'}, ("a cat", "a cow")),
        ({"a.cls": b"7", "a.txt": "ein Bär".encode()}, ("ein Bär",)),
    ],
)
def test_captions_are_found_wherever_img2dataset_puts_them(tmp_path, contents, expected):
    path = write_tar(tmp_path / "a.tar", {"a.JPG": picture(0), **contents})
    assert [sample.captions for sample in read_shard(path)] == [expected]


def test_members_in_folders_keep_the_folder_in_their_key(tmp_path):
    path = write_tar(tmp_path / "a.tar", {"v1.2/a.png": b"x", "v1.2/a.txt": b"dog", "b/a.png": b"y", "b/a.txt": b"cat"})
    assert [sample.key for sample in read_shard(path)] == ["v1.2/a", "b/a"]


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ({"a.jpg": b"x"}, "sample a has no caption"),
        ({"a.jpg": b"x", "a.txt": b"  "}, "sample a has no caption"),
        ({"a.txt": b"dog"}, "sample a has 0 images"),
        ({"a.jpg": b"x", "a.png": b"x", "a.txt": b"dog"}, "sample a has 2 images"),
        ({"a.jpg": b"x", "b.jpg": b"x", "a.txt": b"dog"}, "sample a has no caption"),
        ({"a.jpg": b"x", "a.txt": b"\xff\xfe"}, r"member a\.txt holds no captions in UTF-8"),
        ({"a.jpg": b"x", "a.json": b"{"}, r"member a\.json holds no captions"),
        ({"a.jpg": b"x", "a.json": b"[1]"}, r"member a\.json holds no captions"),
        ({"a.jpg": b"x", "a.json": b'{"captions": [1]}'}, r"member a\.json holds no captions"),
    ],
)
def test_a_sample_without_image_or_caption_is_named(tmp_path, contents, message):
    path = write_tar(tmp_path / "broken.tar", contents)
    with pytest.raises(InputError, match=rf"broken\.tar: {message}"):
        list(read_shard(path))


def test_two_members_of_one_name_are_refused(tmp_path):
    with tarfile.open(tmp_path / "twice.tar", "w") as shard:
        shard.addfile(tarfile.TarInfo("a.jpg"))
        shard.addfile(tarfile.TarInfo("a.jpg"))
    with pytest.raises(InputError, match=r"two members are called a\.jpg"):
        list(read_shard(tmp_path / "twice.tar"))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.GNUTYPE_SPARSE])
def test_links_and_special_files_are_refused(tmp_path, kind):
    with tarfile.open(tmp_path / "link.tar", "w") as shard:
        member = tarfile.TarInfo("a.jpg")
        member.type, member.linkname = kind, "/etc/passwd"
        shard.addfile(member)
    with pytest.raises(InputError, match=r"link\.tar"):
        list(read_shard(tmp_path / "link.tar"))


@pytest.mark.parametrize("damage", ["empty", "not a tar", "cut in data", "cut between members", "header", "compressed"])
def test_a_damaged_shard_is_an_error_and_never_a_short_epoch(shards, tmp_path, damage):
    data = shards[0].read_bytes()
    with tarfile.open(shards[0]) as shard:
        member = shard.getmembers()[12]
    broken = {
        "empty": b"",
        "not a tar": b"hello " * 1000,
        "cut in data": data[: member.offset_data + member.size // 2],
        "cut between members": data[: member.offset],
        "header": data[: member.offset] + b"\xff" * 512 + data[member.offset + 512 :],
        "compressed": b"\x1f\x8b" + data[2:],
    }
    path = tmp_path / "bad.tar"
    path.write_bytes(broken[damage])
    with pytest.raises(InputError, match=r"bad\.tar: "):
        list(read_shard(path))


def test_a_folder_s_name_may_look_like_a_pattern(tmp_path):
    paths = write_shards(samples(2), tmp_path / "set [1] {a,b}", prefix="train")
    assert find_shards(paths[0].parent) == paths == find_shards(paths[0])


def test_shards_are_found_by_folder_file_glob_braces_and_list(shards):
    folder = shards[0].parent
    assert find_shards(folder) == shards
    assert find_shards(str(shards[2])) == [shards[2]]
    assert find_shards(folder / "train-000[1-3].tar") == shards[1:4]
    assert find_shards(f"{folder}/train-{{0001..0003}}.tar") == shards[1:4]
    assert find_shards(f"{folder}/train-000{{0,4}}.tar") == [shards[0], shards[4]]
    assert find_shards([shards[3], folder]) == [shards[3], *shards[:3], *shards[4:]]


@pytest.mark.parametrize("source", ["", "train-9*.tar", "train-{0000..0009}.tar"])
def test_shards_that_are_not_there_are_named(shards, tmp_path, source):
    folder = shards[0].parent if source else tmp_path
    with pytest.raises(InputError, match="no such shard"):
        find_shards(folder / source)


def test_each_sample_comes_once_in_an_epoch_and_batches_straddle_epochs(shards):
    order = keys(stream(shards, count=40))  # 160 samples of 53
    for epoch in range(3):
        assert sorted(order[epoch * 53 : (epoch + 1) * 53]) == [sample.key for sample in samples(53)]


def test_two_epochs_and_two_seeds_have_different_orders(shards):
    order = keys(stream(shards, count=40))
    assert order[:53] != order[53:106]
    assert order[:53] != keys(stream(shards, count=40, seed=1))[:53]
    assert order[:53] != sorted(order[:53])


@pytest.mark.parametrize("shuffle_buffer", [1, 16, 1000])
def test_a_buffer_of_any_size_loses_nothing(shards, shuffle_buffer):
    order = keys(stream(shards, count=14, shuffle_buffer=shuffle_buffer))
    assert Counter(order[:53]) == Counter(sample.key for sample in samples(53))


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_any_number_of_workers_makes_the_same_batches(shards, workers):
    assert stream(shards, workers=workers) == stream(shards)


def test_pixels_are_the_same_for_any_number_of_workers(shards):
    alone, two = (stream(shards, workers=workers, count=8, make_batch=crops) for workers in (0, 2))
    assert all(torch.equal(a, b) for a, b in zip(alone, two, strict=True))


@pytest.mark.parametrize(("start", "workers"), [(1, 0), (5, 0), (13, 0), (14, 2), (27, 3)])
def test_resuming_at_a_batch_continues_exactly(shards, start, workers):
    whole = stream(shards, count=start + 10)
    assert stream(shards, start_batch=start, workers=workers, count=10) == whole[start:]


def test_randomness_belongs_to_seed_epoch_and_key(shards):
    def draws(**options):
        batches = stream(shards, count=10, **options)
        return {key: draw for batch in batches for key, draw in zip(*batch, strict=True)}

    first = draws()
    shuffled_otherwise = draws(shuffle_buffer=3, batch_size=5)
    common = first.keys() & shuffled_otherwise.keys()
    assert len(common) > 20
    assert all(first[key] == shuffled_otherwise[key] for key in common)
    assert len(set(first.values())) == len(first)
    assert not set(first.values()) & set(draws(seed=1).values())
    assert not set(first.values()) & set(draws(start_batch=14).values())


def test_the_global_generators_do_not_matter(shards):
    first = stream(shards)
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    assert stream(shards) == first


@pytest.mark.parametrize("start_batch", [0, 3])
def test_shards_without_samples_are_refused(tmp_path, start_batch):
    path = write_tar(tmp_path / "none.tar", {})
    with pytest.raises(InputError, match=r"none\.tar: no samples"):
        stream([path], start_batch=start_batch)


@pytest.mark.skipif(not CAPTIONS.is_dir(), reason="needs the caption shards")
def test_real_shards_hold_what_their_readme_says():
    photos = list(captions_of(find_shards(CAPTIONS / "flickr8k-test-*.tar")))
    assert len(photos) == 1000
    assert {len(captions) for captions in photos} == {5}
    sample = next(read_shard(CAPTIONS / "flickr8k-train-0000.tar"))
    assert load_rgb(sample.image, sample.key).size == (176, 176)
    assert json.dumps(sample.captions[0]).startswith('"A dog')
