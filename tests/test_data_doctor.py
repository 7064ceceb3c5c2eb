import io
import json
import pickle
import struct
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from groupvit.data import doctor, scenes
from groupvit.data.doctor import Report, examine
from groupvit.data.report import KINDS, MIN_NOUNS, MOST, Finding, Findings
from groupvit.data.shards import Sample, find_shards, read_shard, write_shards
from groupvit.data.tar import FAULTS
from groupvit.errors import InputError

Members = dict[str, list[tuple[str, bytes]]]
"""Of each sample its members' endings and bytes, in their order."""


def encoded(pixels: np.ndarray, file_format: str = "JPEG", **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, file_format, **options)
    return file.getvalue()


def bomb(side: int = 30_000) -> bytes:
    """A PNG of some 100 bytes that says it has `side` x `side` pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def jpeg_bomb(image: bytes, side: int = 30_000) -> bytes:
    """A JPEG whose frame header says that it has `side` x `side` pixels."""
    at = image.index(b"\xff\xc0") + 5
    return image[:at] + struct.pack(">HH", side, side) + image[at + 4 :]


def scene_samples(count: int) -> list[Sample]:
    drawn = [scenes.draw(0, number) for number in range(count)]
    return [Sample(f"{i:06d}", encoded(scene.image), (scene.caption,)) for i, scene in enumerate(drawn)]


@pytest.fixture(params=["scenes", "flickr8k"])
def samples(request: pytest.FixtureRequest) -> list[Sample]:
    """60 sound samples."""
    if request.param == "scenes":
        return scene_samples(60)
    folder: Path = request.getfixturevalue("data_dir")
    return list(read_shard(folder / "captions/flickr8k-test-0000.tar"))[:60]


def members(samples: list[Sample]) -> Members:
    return {
        sample.key: [
            ("jpg", sample.image),
            ("txt", sample.captions[0].encode()),
            ("json", json.dumps({"key": sample.key, "captions": sample.captions}).encode()),
        ]
        for sample in samples
    }


def write(path: Path, samples: Members, links: tuple[str, ...] = ()) -> Path:
    """A tar in which the members `links` are symbolic links."""
    with tarfile.open(path, "w") as shard:
        for key, parts in samples.items():
            for ending, data in parts:
                member = tarfile.TarInfo(f"{key}.{ending}")
                if member.name in links:
                    member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
                else:
                    member.size = len(data)
                shard.addfile(member, io.BytesIO(data))
    return path


def found(report: Report) -> set[tuple[str, str, str]]:
    return {(finding.kind, Path(finding.shard).name, finding.key) for finding in report.findings}


def header_of(path: Path, number: int) -> int:
    with tarfile.open(path) as shard:
        return shard.getmembers()[number].offset


def test_sound_samples_are_fit_for_training(samples: list[Sample], tmp_path: Path) -> None:
    shards = write_shards(samples, tmp_path, prefix="sound", per_shard=25)
    report = examine(shards)
    assert report.ready
    assert report.findings == ()
    assert (report.shards, report.photos) == (3, 60)
    assert report.captions.captions == sum(len(sample.captions) for sample in samples)
    assert report.nouns.per_batch > MIN_NOUNS
    assert sorted(path.name for path in tmp_path.iterdir()) == [path.name for path in shards]


def test_every_planted_fault_is_found_in_its_place_and_no_other(samples: list[Sample], tmp_path: Path) -> None:
    keys = [sample.key for sample in samples]
    sound = members(samples)
    planted: set[tuple[str, str, str]] = set()

    def plant(kind: str, number: int, change: Callable[[list[tuple[str, bytes]]], list[tuple[str, bytes]]]) -> None:
        sound[keys[number]] = change(sound[keys[number]])
        planted.add((kind, "faults.tar", keys[number]))

    def image(data: bytes) -> Callable[[list[tuple[str, bytes]]], list[tuple[str, bytes]]]:
        return lambda parts: [("jpg", data), *parts[1:]]

    def caption(*texts: tuple[str, bytes]) -> Callable[[list[tuple[str, bytes]]], list[tuple[str, bytes]]]:
        return lambda parts: [parts[0], *texts]

    some = samples[0].image
    swapped = json.dumps({"url": "a dog on the grass", "caption": "https://example.org/dog.jpg"}).encode()
    url = json.dumps({"url": "https://example.org/d.jpg", "caption": "a dog on the grass"}).encode()
    sound[keys[0]] = caption(("txt", b"a dog on the grass"), ("json", url))(sound[keys[0]])
    plant("undecodable", 2, image(some[: len(some) // 2]))
    plant("undecodable", 4, image(b"<html>404 Not Found</html>"))
    plant("bomb", 6, image(bomb()))
    plant("bomb", 8, image(jpeg_bomb(some)))
    plant("tiny", 10, image(encoded(np.full((200, 31, 3), 7, np.uint8))))
    plant("empty-image", 12, image(b""))
    plant("no-caption", 14, caption())
    plant("no-caption", 16, caption(("txt", b"  \n"), ("json", b'{"captions": [""]}')))
    plant("not-utf8", 18, caption(("txt", b"un ch\xe2teau")))
    plant("bad-json", 20, caption(("txt", b"a dog"), ("json", b'{"captions": [')))
    plant("twice", 22, lambda parts: parts * 2)
    plant("url-caption", 24, caption(("txt", b"https://example.org/dog.jpg"), ("json", swapped)))
    plant("url-caption", 26, caption(("txt", b"images/DOG_7.JPEG")))
    plant("no-image", 28, lambda parts: parts[1:])
    plant("two-images", 30, lambda parts: [*parts, ("png", encoded(np.zeros((40, 40, 3), np.uint8), "PNG"))])
    plant("link", 32, lambda parts: parts)
    plant("duplicate", 34, image(samples[33].image))
    plant("in-evaluation", 36, lambda parts: parts)
    plant("link", 38, lambda parts: parts)
    links = (f"{keys[32]}.jpg", f"{keys[38]}.txt")

    held_out = tmp_path / "held-out" / "images"
    held_out.mkdir(parents=True)
    with Image.open(io.BytesIO(samples[36].image)) as photo:
        photo.save(held_out / "same.png")  # other bytes, the same pixels
    Image.fromarray(np.zeros((50, 50, 3), np.uint8)).save(held_out / "other.png")

    tail = tmp_path / "cut.tar"
    whole = write(tmp_path / "whole.tar", members(samples[-8:-4])).read_bytes()
    tail.write_bytes(whole[: header_of(tmp_path / "whole.tar", 10) + 512 + 3])  # within the last sample's caption
    broken = write(tmp_path / "header.tar", members(samples[-4:]))
    at = header_of(broken, 6)
    broken.write_bytes(broken.read_bytes()[:at] + b"\xff" * 512 + broken.read_bytes()[at + 512 :])
    (tmp_path / "whole.tar").unlink()
    (tmp_path / "zero.tar").write_bytes(b"")
    (tmp_path / "page.tar").write_bytes(b"<html>403 Forbidden</html>" * 40)
    sound_last = set(keys[-8:])
    faults = write(
        tmp_path / "faults.tar", {key: parts for key, parts in sound.items() if key not in sound_last}, links
    )
    planted |= {("cut", "cut.tar", ""), ("cut", "header.tar", ""), ("no-samples", "zero.tar", "")}
    planted |= {("unreadable", "page.tar", "")}

    report = examine(sorted(tmp_path.glob("*.tar")), evaluation=[tmp_path / "held-out"])
    assert found(report) == planted
    assert not report.ready
    assert {finding.kind for finding in report.findings if finding.severity == "note"} == {"duplicate"}
    details = {(finding.kind, finding.key): finding.detail for finding in report.findings}
    assert details["tiny", keys[10]] == "31 x 200"
    assert details["no-caption", keys[16]] == "it is empty"
    assert 'its url is "a dog on the grass"' in details["url-caption", keys[24]]
    assert details["duplicate", keys[34]] == f"as {keys[33]} in {faults}"
    assert details["in-evaluation", keys[36]] == str(held_out / "same.png")
    assert details["no-samples", ""] == "the file is empty"


@pytest.mark.parametrize("data", [bomb(), jpeg_bomb(encoded(np.zeros((40, 40, 3), np.uint8)))], ids=["png", "jpeg"])
def test_a_bomb_is_told_by_its_header_without_memory(data: bytes, tmp_path: Path) -> None:
    import tracemalloc

    (shard,) = write_shards([Sample("a", data, ("a dog",))], tmp_path, prefix="bomb")
    examine([shard])
    tracemalloc.start()
    report = examine([shard])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert ("bomb", "bomb-0000.tar", "a") in found(report)
    assert peak < 10e6


def test_few_nouns_a_batch_are_an_error_and_a_common_caption_is_a_note(tmp_path: Path) -> None:
    photos = [
        Sample(sample.key, sample.image, (f"a photo of a {('cat', 'dog')[i % 2]}",))
        for i, sample in enumerate(scene_samples(60))
    ]
    report = examine(write_shards(photos, tmp_path, prefix="pets", per_shard=30))
    assert {finding.kind: finding.severity for finding in report.findings} == {
        "few-nouns": "error",
        "repeated-caption": "note",
    }
    details = {finding.detail for finding in report.findings}
    assert details == {
        '"a photo of a cat", 30 photos, 50%',
        '"a photo of a dog", 30 photos, 50%',
        "3.0 in a batch of 256",
    }
    assert report.nouns.per_batch == report.nouns.distinct == report.nouns.frequent == 3


def test_a_common_caption_is_found_in_shards_that_have_it_once(tmp_path: Path) -> None:
    photos = [
        replace(sample, captions=("a cat",)) if i % 5 == 0 else sample for i, sample in enumerate(scene_samples(60))
    ]
    report = examine(write_shards(photos, tmp_path, prefix="few", per_shard=5))
    details = [finding.detail for finding in report.findings if finding.kind == "repeated-caption"]
    assert details == ['"a cat", 12 photos, 20%']


def test_a_smaller_batch_has_fewer_nouns(tmp_path: Path) -> None:
    shards = write_shards(scene_samples(60), tmp_path, prefix="scenes")
    small, large = (examine(shards, batch_size=size).nouns.per_batch for size in (4, 64))
    assert 3 < small < 16 < large <= 21


def test_nouns_a_batch_are_those_of_one_caption_a_photo(tmp_path: Path) -> None:
    photos = [Sample(sample.key, sample.image, ("a dog", *sample.captions)) for sample in scene_samples(60)]
    nouns = examine(write_shards(photos, tmp_path, prefix="x"), batch_size=2).nouns
    assert 1.5 < nouns.per_batch < 4
    assert nouns.distinct == 22


def test_captions_are_measured_in_tokens(tmp_path: Path) -> None:
    texts = [("dog",), ("a dog",), ("a dog runs",), ("dog " * 75,), ("dog " * 76,), ("dog " * 1000,)]
    photos = [
        Sample(sample.key, sample.image, caption) for sample, caption in zip(scene_samples(6), texts, strict=True)
    ]
    captions = examine(write_shards(photos, tmp_path, prefix="long")).captions
    assert captions.captions == 6
    assert captions.median_length == (5 + 77) / 2
    assert captions.length_95 == 78 + 0.75 * (256 - 78)  # tokens are counted up to 256
    assert captions.cut == pytest.approx(2 / 6)
    assert captions.one_word == pytest.approx(1 / 6)


def test_tags_need_a_vocabulary_that_holds_them_and_their_captions_are_no_captions(tmp_path: Path) -> None:
    photos = [
        replace(sample, tags=("Dogs", "traffic light", f"thing{i % 20}")[: 3 - i % 2]) if i < 40 else sample
        for i, sample in enumerate(scene_samples(60))
    ]
    photos = [replace(photo, captions=("a photo of a dog",)) if photo.tags else photo for photo in photos]
    shards = write_shards(photos, tmp_path, prefix="coco-tags", per_shard=20)
    words = tmp_path / "coco-tags-vocabulary.txt"
    report = examine(shards)
    assert [(f.kind, Path(f.shard).name, f.detail) for f in report.findings] == [
        ("no-vocabulary", shard.name, f"{words} does not exist") for shard in shards[:2]
    ]
    assert (report.photos, report.tagged, report.captions.captions) == (60, 40, 20)
    words.write_text("\n".join(["dog", *(f"thing{i}" for i in range(2, 20))]))
    report = examine(shards)
    assert [(f.kind, Path(f.shard).name, f.detail) for f in report.findings] == [
        (kind, shard.name, detail)
        for shard in shards[:2]
        for kind, detail in (("unlisted-tag", '"thing0", 1 photos'), ("unlisted-tag", '"traffic light", 20 photos'))
    ]
    assert not report.ready
    words.write_text("\n".join(["dog", "traffic light", *(f"thing{i}" for i in range(20))]))
    assert examine(shards).findings == ()


def test_a_photo_without_nouns_is_counted(tmp_path: Path) -> None:
    first, second = scene_samples(2)
    photos = [Sample("a", first.image, ("so very, very",)), Sample("b", second.image, ("so", "a dog"))]
    assert examine(write_shards(photos, tmp_path, prefix="x")).nouns.photos_without == 1


def test_copies_are_found_across_shards_without_their_metadata(tmp_path: Path) -> None:
    photos = scene_samples(4)
    with Image.open(io.BytesIO(photos[2].image)) as image:
        file = io.BytesIO()
        image.save(file, "PNG", dpi=(72, 72))
        smaller = encoded(np.asarray(image.resize((48, 48))))
    copies = [Sample("rewrapped", file.getvalue(), ("a ball",)), Sample("resized", smaller, ("a ball",))]
    report = examine(write_shards([*photos, *copies], tmp_path, prefix="x", per_shard=2), batch_size=6)
    copied = [finding for finding in report.findings if finding.kind == "duplicate"]
    assert [(Path(f.shard).name, f.key) for f in copied] == [("x-0002.tar", "rewrapped")]
    assert copied[0].detail == f"as 000002 in {tmp_path / 'x-0001.tar'}"


def test_what_lies_on_a_bound(tmp_path: Path) -> None:
    """Ten photos make a noun frequent, 32 pixels are enough for a side, a wide photo is not a tall one."""
    sizes = [(32, 40), (31, 40), (60, 40), (40, 60), *((50 + i, 50) for i in range(6))]
    photos = [Sample(f"{i}", encoded(np.full((*size, 3), 90, np.uint8)), ("a dog",)) for i, size in enumerate(sizes)]
    report = examine(write_shards(photos, tmp_path, prefix="x"))
    assert report.nouns.frequent == 1
    assert [(finding.kind, finding.key) for finding in report.findings if finding.key] == [("tiny", "1")]
    assert examine(write_shards(photos[1:], tmp_path, prefix="y")).nouns.frequent == 0


def test_more_findings_than_fit_into_memory_are_counted(tmp_path: Path) -> None:
    findings = Findings()
    findings.add(Finding("tiny", "x.tar", str(number)) for number in range(MOST + 5))
    findings.add([Finding("duplicate")] * 7)
    assert (len(findings.kept), findings.counts) == (MOST + 7, {"tiny": MOST + 5, "duplicate": 7})
    report = replace(
        examine(write_shards(scene_samples(30), tmp_path, prefix="x")),
        findings=tuple(findings.kept),
        counts=dict(findings.counts),
    )
    assert not report.ready
    assert f"error tiny, {MOST + 5:,} x: " in str(report)
    assert f"  and {MOST + 2:,} more (--json names {MOST:,})" in str(report)
    assert f"errors: {MOST + 5:,}; notes: 7; " in str(report)
    assert json.loads(report.json())["counts"] == findings.counts


def test_what_stays_of_a_shard_is_few_bytes_a_photo(tmp_path: Path) -> None:
    photo = scene_samples(1)[0].image
    nouns = ("dog", "cat", "ball", "grass", "tree", "car", "house", "bird", "boat", "chair", "table")
    texts = [(f"a {nouns[i % 11]} and a {nouns[i % 10]} by a {nouns[i % 9]}",) for i in range(500)]
    photos = [Sample(f"{i:09d}", photo, text) for i, text in enumerate(texts)]
    (shard,) = write_shards(photos, tmp_path, prefix="x")
    kept = doctor._examine_shard(shard)
    kept.findings, kept.captions, kept.noun_counts = [], Counter(), Counter()  # of which the whole set has one
    assert len(pickle.dumps(kept)) < 1000 + 20 * 500
    copies, count = doctor._duplicates([kept, kept])
    assert len(list(copies)) == count == 999


def test_processes_find_the_same_in_the_same_order(tmp_path: Path) -> None:
    shards = write_shards(scene_samples(30), tmp_path, prefix="x", per_shard=8)
    shards[1].write_bytes(shards[1].read_bytes()[:5000])
    shards.append(tmp_path / "gone.tar")
    alone, two = (examine(shards, evaluation=[], processes=processes) for processes in (1, 2))
    assert alone == two
    assert [finding.kind for finding in two.findings] == ["cut", "unreadable"]


def test_an_evaluation_without_photos_is_an_error_and_a_broken_photo_a_note(tmp_path: Path) -> None:
    shards = write_shards(scene_samples(30), tmp_path, prefix="x")
    with pytest.raises(InputError, match="empty: no images"):
        examine(shards, evaluation=[tmp_path / "empty"])
    (tmp_path / "a.jpg").write_bytes(b"nonsense")
    report = examine(shards, evaluation=[tmp_path])
    assert report.ready
    assert [(finding.kind, finding.shard) for finding in report.findings] == [
        ("unreadable-evaluation", str(tmp_path / "a.jpg"))
    ]


def test_shards_without_a_single_photo_have_no_statistics(tmp_path: Path) -> None:
    report = examine([write(tmp_path / "none.tar", {})])
    assert found(report) == {("no-samples", "none.tar", "")}
    assert (report.captions.captions, report.nouns.per_batch) == (0, 0)


def test_whatever_a_scan_can_find_has_a_remedy() -> None:
    assert FAULTS.keys() <= KINDS.keys()


@pytest.mark.slow
def test_real_shards_have_nothing_wrong_with_them(data_dir: Path) -> None:
    shards = find_shards("{flickr8k-*,coco-person-*,catdog-*}.tar", below=data_dir / "captions")
    report = examine(shards, evaluation=[data_dir / "eval"], processes=2)
    assert (report.ready, report.shards, report.photos) == (True, 13, 12_074)
    # Two photos of Flickr8k are one file, and half of the cats and dogs have one caption.
    assert [(finding.kind, finding.key) for finding in report.findings] == [
        ("duplicate", "3050606344_af711c726c"),
        ("repeated-caption", ""),
        ("repeated-caption", ""),
    ]


def test_a_batch_larger_than_the_set_has_the_nouns_of_the_set(tmp_path: Path) -> None:
    shards = write_shards(scene_samples(30), tmp_path, prefix="a", per_shard=8)
    whole = examine(shards, batch_size=30).nouns.per_batch
    assert [examine(shards, batch_size=size).nouns.per_batch for size in (31, 100, 10**12)] == [whole] * 3


def test_photos_of_the_evaluation_behind_links_are_compared(tmp_path: Path) -> None:
    samples = scene_samples(3)
    shards = write_shards(samples, tmp_path / "shards", prefix="a")
    (tmp_path / "real/deep").mkdir(parents=True)
    (tmp_path / "real/deep/photo.jpg").write_bytes(samples[1].image)
    (tmp_path / "real/deep/loop").symlink_to(tmp_path / "real")
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation/JPEGImages").symlink_to(tmp_path / "real")
    report = examine(shards, evaluation=[tmp_path / "evaluation"])
    assert ("in-evaluation", "a-0000.tar", samples[1].key) in found(report)
    assert report.counts["in-evaluation"] == 1


def test_a_line_break_in_a_key_makes_no_line_of_the_report(tmp_path: Path) -> None:
    shard = write(tmp_path / "a.tar", {"x\nerrors: 0; training can start": [("jpg", b"x")]})
    assert [line for line in str(examine([shard])).splitlines() if line.startswith("errors: ")] == [
        "errors: 1; notes: 0; training should wait until the errors have been looked at"
    ]
