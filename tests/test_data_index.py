import os
import pickle
import threading
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest
from torch.utils.data import DataLoader

from groupvit.data import index as module
from groupvit.data.index import CaptionedPhotos, Index, beside, find_index, in_cache, index_shards
from groupvit.data.shards import Sample, write_shards
from groupvit.data.workers import mapped
from groupvit.errors import InputError
from groupvit.text.nouns import nouns, nouns_of_photo

CAPTIONS = ("A man rides two horses", "dogs run on the grass", "a cat", "It is running.")


def samples(count):
    return [Sample(f"{i:05d}", b"\xff\xd8\xff" + bytes([i]), (CAPTIONS[i % 4], f"{i} dogs")) for i in range(count)]


@pytest.fixture
def shards(tmp_path):
    return write_shards(samples(23), tmp_path / "shards", prefix="train", per_shard=10)


def rewrite(shards, samples):
    for shard in shards:
        shard.unlink()
    write_shards(samples, shards[0].parent, prefix="train", per_shard=9)


def test_every_sample_is_one_read_away(shards):
    photos = CaptionedPhotos.open(shards)
    assert photos.counts.tolist() == [10, 10, 3]
    assert len(photos) == 23
    found = [photos.read(*photos.place(number)) for number in range(23)]
    assert found == samples(23)
    assert {sample.shard for sample in found} == {str(path) for path in shards}
    assert [photos.captions(*photos.place(n)) for n in range(23)] == [sample.captions for sample in samples(23)]


def test_nouns_are_those_of_the_captions(shards):
    photos = CaptionedPhotos.open(shards)
    for number, sample in enumerate(samples(23)):
        place = photos.place(number)
        for style in ("paper", "release"):
            found = tuple(photos.nouns(*place, i, style) for i in range(len(sample.captions)))
            assert found == tuple(nouns(caption, style=style) for caption in sample.captions)
        assert set(photos.nouns_of_photo(*place)) == nouns_of_photo(sample.captions)
    counts, known = photos.noun_counts()
    assert counts == {"dog": 23, "man": 6, "person": 6, "horse": 6, "grass": 6, "cat": 6}
    assert known == dict.fromkeys(counts, 23)


def test_several_processes_make_the_same_indexes(shards):
    alone = index_shards(shards, where=lambda shard: shard.with_suffix(".alone"))
    several = index_shards(shards, where=lambda shard: shard.with_suffix(".several"), processes=2)
    assert [one.path.read_bytes() for one in alone] == [one.path.read_bytes() for one in several]


def test_names_need_not_be_utf_8(tmp_path):
    shards = write_shards(samples(3), tmp_path / "caf\udce9", prefix="\udce9", per_shard=3)
    for where in (in_cache, beside):
        index_shards(shards, where=where)
        assert find_index(shards[0], where).samples == 3
    assert CaptionedPhotos.open(shards).read(0, 2) == samples(3)[2]


def test_a_name_may_be_too_long_for_an_index_beside_it(tmp_path):
    (shard,) = write_shards(samples(2), tmp_path, prefix="n" * 200)
    shard = shard.rename(tmp_path / f"{'n' * 250}.tar")
    assert len(CaptionedPhotos.open([shard])) == 2
    (error,) = index_shards([shard], where=beside)
    assert "cannot write" in str(error)
    assert "File name too long" in str(error)


def test_a_training_writes_nothing_beside_its_data(shards):
    before = sorted(shards[0].parent.iterdir())
    CaptionedPhotos.open(shards)
    assert sorted(shards[0].parent.iterdir()) == before
    assert find_index(shards[0]).path == in_cache(shards[0])


def test_an_index_beside_its_shard_is_used(shards, monkeypatch):
    index_shards(shards, where=beside)
    assert [find_index(shard).path for shard in shards] == [shard.with_name(f"{shard.name}.arrow") for shard in shards]
    monkeypatch.setattr(module, "build_index", None)
    assert len(CaptionedPhotos.open(shards)) == 23


def test_what_is_up_to_date_is_not_made_again(shards, monkeypatch):
    made = []
    build = module.build_index
    monkeypatch.setattr(module, "build_index", lambda shard, path: made.append(shard) or build(shard, path))
    index_shards(shards)
    index_shards(shards)
    assert made == shards
    os.utime(shards[1], ns=(0, 0))
    index_shards(shards)
    assert made == [*shards, shards[1]]
    monkeypatch.setattr(module, "_VERSION", 8)
    index_shards(shards)
    assert made == [*shards, shards[1], *shards]


def test_a_shard_that_is_indexed_anew_is_read_anew(shards):
    assert CaptionedPhotos.open(shards[:1]).captions(0, 1) == samples(2)[1].captions
    rewrite(shards, samples(23)[::-1])
    photos = CaptionedPhotos.open(shards[:1])
    assert photos.captions(0, 1) == samples(23)[21].captions
    assert photos.noun_counts()[0]["dog"] == 9


def test_the_hash_of_an_index_is_that_of_what_it_lists(shards, tmp_path):
    first = [index.content for index in index_shards(shards)]
    copies = write_shards(samples(23), tmp_path / "copy", prefix="train", per_shard=10)
    assert [index.content for index in index_shards(copies)] == first
    assert len(set(first)) == 3


def test_the_hash_of_an_index_is_that_of_images_and_tags_too(tmp_path):
    def content(name, samples):
        shards = write_shards(samples, tmp_path / name, prefix="t")
        (tmp_path / name / "t-vocabulary.txt").write_text("dog\ncat\n")
        return [index.content for index in index_shards(shards)]

    plain = samples(3)
    assert content("a", plain) != content("b", [replace(plain[0], image=plain[0].image + b"more"), *plain[1:]])
    tagged = [replace(sample, tags=tags) for sample, tags in zip(plain, [("dog",), ("cat",), ()], strict=True)]
    assert content("c", tagged) != content("d", [replace(tagged[0], tags=("cat",)), *tagged[1:]])


def test_an_index_in_the_cache_does_not_count_for_one_beside_the_shard(shards):
    CaptionedPhotos.open(shards)
    index_shards(shards, where=beside)
    assert all(beside(shard).is_file() for shard in shards)


@pytest.mark.parametrize("damage", [b"", b"nonsense", "half"])
def test_a_damaged_index_is_made_again(shards, damage):
    index_shards(shards, where=beside)
    path = beside(shards[0])
    path.write_bytes(path.read_bytes()[:600] if damage == "half" else damage)
    assert find_index(shards[0]) is None
    assert CaptionedPhotos.open(shards).read(0, 0) == samples(1)[0]


def test_a_shard_that_changed_after_indexing_is_refused_while_reading(shards):
    photos = CaptionedPhotos.open(shards)
    photos.read(0, 0)
    rewrite(shards, samples(23)[::-1])
    with pytest.raises(InputError, match=r"train-0001.tar has changed since it was indexed"):
        photos.read(1, 0)


def test_a_header_that_moved_is_noticed_even_if_size_and_time_are_the_same(shards):
    photos = CaptionedPhotos.open(shards)
    data, times = shards[0].read_bytes(), shards[0].stat()
    shards[0].write_bytes(data[512:] + data[:512])
    os.utime(shards[0], ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(InputError, match=r"train-0000.tar has changed"):
        photos.read(0, 0)


def test_a_shard_that_vanished_is_one_line(shards):
    photos = CaptionedPhotos.open(shards)
    shards[2].unlink()
    with pytest.raises(InputError, match=r"train-0002.tar does not exist"):
        photos.read(2, 0)
    with pytest.raises(InputError, match=r"train-0002.tar does not exist"):
        CaptionedPhotos.open(shards)


def test_links_are_refused_and_the_others_indexed(shards, tmp_path):
    import tarfile

    with tarfile.open(tmp_path / "link.tar", "w") as shard:
        member = tarfile.TarInfo("a.jpg")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        shard.addfile(member)
    first, error, last = index_shards([shards[0], tmp_path / "link.tar", shards[2]])
    assert isinstance(first, Index)
    assert isinstance(last, Index)
    assert "link.tar: a.jpg: a link" in str(error)
    with pytest.raises(InputError, match=r"link.tar"):
        CaptionedPhotos.open([shards[0], tmp_path / "link.tar"])


def test_faults_are_remembered_with_the_index(tmp_path):
    (shard,) = write_shards([*samples(4), Sample("bad", b"\xff\xd8\xff", ("x",))], tmp_path, prefix="t")
    data = shard.read_bytes()
    shard.write_bytes(data[: data.index(b"bad.txt")])
    for _ in range(2):
        (index,) = index_shards([shard])
        assert (index.samples, [fault.kind for fault in index.faults]) == (4, ["cut", "no-caption"])


def test_shards_without_any_sample_are_refused(tmp_path):
    (tmp_path / "none.tar").write_bytes(bytes(1024))
    with pytest.raises(InputError, match=r"none\.tar: no samples"):
        CaptionedPhotos.open([tmp_path / "none.tar"])


def test_a_shard_behind_a_url_is_read_by_ranges(shards, monkeypatch):
    remote = fsspec.filesystem("memory")
    remote.pipe("/indexed/train.tar", shards[1].read_bytes())
    photos = CaptionedPhotos.open(["memory://indexed/train.tar"])
    assert photos.indexes[0].path == in_cache("memory://indexed/train.tar")
    ranges = []
    cat = type(remote).cat_file

    def counted(self, path, start, end):
        ranges.append(end - start)
        return cat(self, path, start, end)

    monkeypatch.setattr(type(remote), "cat_file", counted)
    assert photos.read(0, 5).image == samples(23)[15].image
    assert ranges == [512 + 4]


def test_a_copy_for_another_process_is_small_and_reads_the_same(shards):
    photos = CaptionedPhotos.open(shards)
    photos.noun_counts()
    copy = pickle.dumps(photos)
    assert len(copy) < 3000
    assert pickle.loads(copy).read(1, 3) == photos.read(1, 3)


TAGS = (("dogs", "traffic light"), ("woman",), (), ("sofa",))


@pytest.fixture
def tagged(tmp_path):
    """Two shards of a source that could have said four words, and used a fifth, after one with captions."""
    made_up = [replace(sample, tags=TAGS[i % 4]) for i, sample in enumerate(samples(10))]
    (tmp_path / "coco-tags-vocabulary.txt").write_text("dog\nTraffic light\nwoman\nzebras\n")
    human = write_shards(samples(3), tmp_path, prefix="captions")
    return human + write_shards([*made_up, *samples(2)], tmp_path, prefix="coco-tags", per_shard=6)


def test_nouns_of_a_photo_with_tags_are_these_and_not_those_of_its_caption(tagged):
    photos = CaptionedPhotos.open(tagged)
    assert [photos.nouns_of_photo(1, row) for row in range(4)] == [
        ["dog", "traffic light"],
        ["person", "woman"],
        [],
        ["sofa"],
    ]
    for style in ("paper", "release"):
        assert [photos.nouns(1, 0, caption, style) for caption in (0, 1)] == [("dog", "traffic light")] * 2
        assert photos.nouns(1, 1, 0, style) == ("woman",)
    assert [photos.read(1, row).tags for row in range(4)] == list(TAGS)
    assert photos.read(0, 0).tags is None
    assert photos.nouns_of_photo(2, 5) == sorted(nouns_of_photo(samples(2)[1].captions))


def test_what_a_source_could_have_said_is_its_vocabulary_and_what_it_did_say(tagged):
    photos = CaptionedPhotos.open(tagged)
    said = {"dog", "traffic light", "woman", "zebra", "sofa"}
    assert [photos.sayable(1, row) for row in range(6)] == [said] * 6
    assert photos.sayable(0, 0) is None
    assert [photos.sayable(2, row) for row in range(6)] == [said] * 4 + [None] * 2
    assert photos.sayable(1, 0) is photos.sayable(2, 0)  # there may be thousands of shards


def test_a_noun_is_counted_among_the_photos_whose_source_could_have_said_it(tagged):
    counts, known = CaptionedPhotos.open(tagged).noun_counts()
    assert counts["dog"] == 3 + 2 + 3
    assert (counts["traffic light"], counts["sofa"], counts["cat"], counts["zebra"]) == (3, 2, 1, 0)
    assert known.keys() == counts.keys()
    # No caption has a noun of two words.
    assert (known["dog"], known["traffic light"], known["sofa"]) == (15, 10, 15)
    assert known["cat"] == known["grass"] == 5
    assert counts["person"] == 2 + 3
    assert known["person"] == 5 + 3  # every woman is one, and who the others are this source could not say


def test_a_vocabulary_that_is_edited_makes_the_index_of_its_shards_anew(tagged):
    index_shards(tagged, where=beside)
    before = [index.content for index in index_shards(tagged, where=beside)]
    with (tagged[1].parent / "coco-tags-vocabulary.txt").open("a") as file:
        file.write("cat\n")
    assert [find_index(shard) is None for shard in tagged] == [False, True, True]
    photos = CaptionedPhotos.open(tagged)
    assert photos.noun_counts()[1]["cat"] == 15
    after = [index.content for index in photos.indexes]
    assert [one == other for one, other in zip(before, after, strict=True)] == [True, False, False]


def test_the_share_of_photos_with_captions_by_people_is_known(tagged):
    photos = CaptionedPhotos.open(tagged)
    made_of_tags = [
        photos.sayable(shard, row) is not None for shard in range(len(tagged)) for row in range(photos.counts[shard])
    ]
    assert 0 < sum(made_of_tags) < len(photos)
    assert photos.human_share() == pytest.approx(1 - sum(made_of_tags) / len(photos))


def test_tags_without_a_vocabulary_are_refused_whether_indexed_before_or_not(tagged):
    words = tagged[1].parent / "coco-tags-vocabulary.txt"
    listed = words.read_bytes()
    for damage, reason in ((None, "does not exist"), (b"\xff", "is not UTF-8")):
        words.unlink() if damage is None else words.write_bytes(damage)
        human, *errors = index_shards(tagged)
        assert isinstance(human, Index)
        for error, shard in zip(errors, tagged[1:], strict=True):
            assert str(error).startswith(f"{words} {reason}; {shard} has tags: write there all words")
            assert "\n" not in str(error)
        words.write_bytes(listed)
        assert all(isinstance(index, Index) for index in index_shards(tagged))


def test_a_vocabulary_behind_a_url_is_read_there(tagged):
    remote = fsspec.filesystem("memory")
    remote.pipe("/tagged/coco-tags-0000.tar", tagged[1].read_bytes())
    with pytest.raises(InputError, match=r"memory://tagged/coco-tags-vocabulary.txt does not exist"):
        CaptionedPhotos.open(["memory://tagged/coco-tags-0000.tar"])
    remote.pipe("/tagged/coco-tags-vocabulary.txt", b"dog")
    photos = CaptionedPhotos.open(["memory://tagged/coco-tags-0000.tar"])
    assert photos.sayable(0, 0) == {"dog", "traffic light", "woman", "sofa"}


def test_an_index_that_cannot_be_written_is_one_line(shards, tmp_path):
    (tmp_path / "file").write_text("")
    (error,) = index_shards(shards[:1], where=lambda shard: Path(tmp_path / "file" / "x.arrow"))
    assert "cannot write x.arrow in " in str(error)


def test_a_process_that_may_have_no_threads_is_one_line(shards, monkeypatch):
    def refuse(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(InputError, match="cannot look for indexes: can't start new thread; let this process have more"):
        index_shards(shards)
    monkeypatch.setattr(DataLoader, "__iter__", refuse)
    with pytest.raises(InputError, match=r"cannot start the processes that read data \(can't start new thread\)"):
        list(mapped(str, [1, 2], processes=2))


def test_missing_pyarrow_is_said_in_one_line(shards, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(InputError, match="pip install pyarrow"):
        index_shards(shards)
