import bz2
import gzip
import io
import json
import lzma
import os
import tarfile
from pathlib import Path

import fsspec
import pytest
from PIL import Image

from groupvit.data.shards import Sample, find_shards, read_shard, read_vocabulary, scan_shard, write_shards
from groupvit.errors import InputError
from groupvit.photos import load_rgb


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


def test_what_is_written_is_read(shards):
    assert [path.name for path in shards] == [f"train-{i:04d}.tar" for i in range(6)]
    assert [sample for path in shards for sample in read_shard(path)] == samples(53)
    assert [row.captions for path in shards for row in scan_shard(path)[0]] == [s.captions for s in samples(53)]


def test_the_same_samples_make_the_same_bytes(shards, tmp_path):
    again = write_shards(samples(53), tmp_path, prefix="train", per_shard=10)
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in shards]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (Sample("bad", b"%PDF-1", ("x",)), "sample bad: the image is of no format"),
        (samples(3)[2], r"two samples of a shard have the key"),
    ],
)
def test_shards_are_written_all_or_none(tmp_path, bad, message):
    with pytest.raises(InputError, match=message):
        write_shards([*samples(3), bad], tmp_path, prefix="train", per_shard=2)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({"captions": "a cat"}, r"sample a cannot be written: .*\(captions are one text"),
        ({"captions": (1, "a dog")}, r"captions or tags are no texts \(1 is no text"),
        ({"tags": "dog"}, "tags are no list"),
    ],
)
def test_texts_of_another_type_are_not_written(tmp_path, texts, message):
    with pytest.raises(InputError, match=message):
        write_shards([Sample("a", picture(0), **{"captions": ("a dog",)} | texts)], tmp_path, prefix="train")


@pytest.mark.parametrize("settings", [{"per_shard": 0}, {"prefix": "a/b"}, {"prefix": ".b"}])
def test_shards_that_could_not_be_written_or_found_are_refused(tmp_path, settings):
    with pytest.raises(InputError, match="samples a shard of the prefix"):
        write_shards(samples(2), tmp_path / "new", **{"prefix": "train"} | settings)
    assert not (tmp_path / "new").exists()


def test_a_disk_that_fails_between_two_shards_leaves_none(tmp_path, monkeypatch):
    placed, replace = [], os.replace

    def fails(*paths):
        if placed:
            raise OSError(28, "No space left on device")
        placed.append(replace(*paths))

    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(OSError, match="No space"):
        write_shards(samples(4), tmp_path, prefix="train", per_shard=2)
    assert list(tmp_path.iterdir()) == []


def test_shards_do_not_mix_with_others_of_their_prefix(tmp_path):
    write_shards(samples(1), tmp_path, prefix="train")
    with pytest.raises(InputError, match=r"train-0000\.tar is there already"):
        write_shards(samples(3), tmp_path, prefix="train")
    write_shards(samples(3), tmp_path, prefix="train-2012")
    write_shards(samples(2), tmp_path, prefix="t")
    assert {file.name for file in tmp_path.iterdir()} == {f"{name}-0000.tar" for name in ("train", "train-2012", "t")}


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
        ({"a.txt": b"a dog", "a.json": b'{"captions": [" "]}'}, ("a dog",)),
        ({"a.cls": b"7", "a.txt": "ein Bär".encode()}, ("ein Bär",)),
        ({"a.txt": "\ufeffa dog".encode()}, ("a dog",)),
        ({"a.json": '\ufeff{"caption": ["a dog", "a cat"]}'.encode()}, ("a dog", "a cat")),
    ],
)
def test_captions_are_found_wherever_img2dataset_puts_them(tmp_path, contents, expected):
    path = write_tar(tmp_path / "a.tar", {"a.JPG": picture(0), **contents})
    assert [sample.captions for sample in read_shard(path)] == [expected]


def test_tags_are_read_where_the_kind_says_so(tmp_path):
    texts = [b'{"kind": "tags", "tags": ["dog", " "]}', b'{"kind": "captions", "tags": ["dog"]}', b'{"tags": ["dog"]}']
    contents = {
        f"{i}.{ending}": data
        for i, json in enumerate(texts)
        for ending, data in (("jpg", picture(i)), ("txt", b"a dog"), ("json", json))
    }
    read = list(read_shard(write_tar(tmp_path / "a.tar", contents)))
    assert [sample.tags for sample in read] == [("dog",), None, None]
    assert list(read_shard(*write_shards(read, tmp_path, prefix="again"))) == read


@pytest.mark.parametrize(
    ("shard", "file"),
    [
        ("coco-tags-0001.tar", "coco-tags-vocabulary.txt"),
        ("00000.tar", "vocabulary.txt"),
        ("voc2012.tar", "voc2012-vocabulary.txt"),
        ("coco-0001.TAR", "coco-vocabulary.txt"),
    ],
)
def test_a_vocabulary_is_named_as_its_shards(tmp_path, shard, file):
    (tmp_path / file).write_bytes("\ufeffdog\r\n\n traffic light \r\n".encode())
    assert read_vocabulary(tmp_path / shard) == ("dog", "traffic light")
    fsspec.filesystem("memory").pipe(f"/words/{file}", b"dog\ncat")
    assert read_vocabulary(f"memory://words/{shard}") == ("dog", "cat")
    with pytest.raises(InputError, match=rf"http://127.0.0.1:9/{file}\?key=a/b"):
        read_vocabulary(f"http://127.0.0.1:9/{shard}?key=a/b")


def test_members_in_folders_keep_the_folder_in_their_key(tmp_path):
    path = write_tar(tmp_path / "a.tar", {"v1.2/a.png": b"x", "v1.2/a.txt": b"dog", "b/a.png": b"y", "b/a.txt": b"cat"})
    assert [sample.key for sample in read_shard(path)] == ["v1.2/a", "b/a"]


@pytest.mark.parametrize("key", ["img_2.1", "2024.01.31 12.30", "v1.0/a.b", "a.jpg", "a...b", "dog."])
@pytest.mark.parametrize("ending", ["jpg", "JPG", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm"])
def test_a_key_may_have_dots_and_a_photo_any_ending_that_segment_reads(tmp_path, key, ending):
    path = write_tar(
        tmp_path / "a.tar", {f"{key}.{ending}": b"x", f"{key}.txt": b"dog", "z.jpg": b"y", "z.txt": b"cat"}
    )
    assert [(sample.key, sample.image) for sample in read_shard(path)] == [(key, b"x"), ("z", b"y")]


def test_members_that_are_no_sample_are_passed_over(tmp_path):
    others = {"a.seg.png": b"s", "a.cls": b"7", "a.depth.npy": b"d", "README.md": b"x", "LICENSE": b"x"}
    hidden = {"._a.jpg": b"x", "._a.txt": b"\xff", "d/._b.txt": b"\0", ".DS_Store": b"x", ".gitignore": b"x"}
    path = write_tar(tmp_path / "a.tar", others | {"./a.jpg": b"x", "a.txt": b"dog"} | hidden)
    assert [(sample.key, sample.captions) for sample in read_shard(path)] == [("a", ("dog",))]


@pytest.mark.parametrize(
    ("contents", "faults"),
    [
        ({"a.heix": b"x", "a.cap": b"dog"}, {("a", "no-image")}),
        ({"a.jpg": b"x", "a.cap": b"dog"}, {("a", "no-caption")}),
        ({"a.left.jpg": b"x", "a.right.jpg": b"x", "a.txt": b"dog"},
         {("a.left", "no-caption"), ("a.right", "no-caption"), ("a", "no-image")}),
        ({"z.1.jpg": b"x", "z.1.txt": b""}, {("z.1", "no-caption")}),
        ({"a.jpg": b"x", "A.txt": b"dog"}, {("a", "no-caption"), ("A", "no-image")}),
    ],
)  # fmt: skip
def test_whatever_is_left_out_is_counted(tmp_path, contents, faults):
    rows, found = scan_shard(write_tar(tmp_path / "a.tar", GOOD | contents))
    assert [row.key for row in rows] == ["z"]
    assert {(fault.key, fault.kind) for fault in found} == faults


@pytest.mark.parametrize("zeros", [1, 2, 20, 4097])
def test_tars_that_were_joined_are_read_to_the_last(shards, tmp_path, zeros):
    tars = [path.read_bytes().rstrip(b"\0") for path in shards[:3]]
    tars = [data + bytes(-len(data) % 512) for data in tars]
    (tmp_path / "joined.tar").write_bytes(b"".join(data + bytes(zeros * 512) for data in tars))
    assert list(read_shard(tmp_path / "joined.tar")) == samples(53)[:30]


@pytest.mark.parametrize("tail", [b"x" * 3, b"<html>" * 200, bytes(700) + b"\x1f\x8b", b"\xff" * 512])
def test_what_follows_the_end_of_a_tar_and_is_none_is_told(shards, tmp_path, tail):
    (tmp_path / "tail.tar").write_bytes(shards[0].read_bytes() + tail)
    rows, faults = scan_shard(tmp_path / "tail.tar")
    assert (len(rows), [fault.kind for fault in faults]) == (10, ["cut"])


def test_a_header_that_was_zeroed_is_told(shards, tmp_path):
    with tarfile.open(shards[0]) as shard:
        at = shard.getmembers()[12].offset
    data = shards[0].read_bytes()
    (tmp_path / "hole.tar").write_bytes(data[:at] + bytes(512) + data[at + 512 :])
    rows, faults = scan_shard(tmp_path / "hole.tar")
    assert (len(rows), [fault.kind for fault in faults]) == (4, ["cut"])


@pytest.mark.parametrize("file_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_and_folders_of_every_format_are_read(tmp_path, file_format):
    keys = [f"{'long ' * 18}/{'name' * 20}", "1/a", "2/a"]
    with tarfile.open(tmp_path / "a.tar", "w", format=file_format) as shard:
        folder = tarfile.TarInfo("1")
        folder.type = tarfile.DIRTYPE
        shard.addfile(folder)
        for key in keys:
            for ending in ("JPEG", "TXT"):
                member = tarfile.TarInfo(f"./{key}.{ending}")
                member.size = 3
                shard.addfile(member, io.BytesIO(b"dog"))
    assert [sample.key for sample in read_shard(tmp_path / "a.tar")] == keys


GOOD = {"z.jpg": b"x", "z.txt": b"dog"}


@pytest.mark.parametrize(
    ("contents", "kind"),
    [
        ({"a.jpg": b"x"}, "no-caption"),
        ({"a.jpg": b"x", "a.txt": b"  "}, "no-caption"),
        ({"a.txt": b"dog"}, "no-image"),
        ({"a.jpg": b"", "a.txt": b"dog"}, "empty-image"),
        ({"a.jpg": b"x", "a.png": b"x", "a.txt": b"dog"}, "two-images"),
        ({"a.jpg": b"x", "a.txt": b"\xff\xfe"}, "not-utf8"),
        ({"a.jpg": b"x", "a.json": b'{"caption": "\xff"}'}, "not-utf8"),
        ({"a.jpg": b"x", "a.json": b"{"}, "bad-json"),
        ({"a.jpg": b"x", "a.json": b"[1]"}, "bad-json"),
        ({"a.jpg": b"x", "a.json": b'{"captions": [1]}'}, "bad-json"),
        ({"a.jpg": b"x", "a.json": b'{"captions": {"x": 1}}'}, "bad-json"),
        ({"a.jpg": b"x", "a.json": b'{"caption": 7}'}, "bad-json"),
        ({"a.jpg": b"x", "a.json": b"[" * 200_000}, "bad-json"),
        ({"a.jpg": b"x", "a.txt": b"dog", "a.json": b'{"kind": "tags"}'}, "bad-json"),
        ({"a.jpg": b"x", "a.txt": b"dog", "a.json": b'{"kind": "tags", "tags": "dog"}'}, "bad-json"),
        ({"a.jpg": b"x", "a.txt": b"dog", "a.json": b'{"kind": "tags", "tags": [1]}'}, "bad-json"),
        ({"a.jpg": b"x", "a.txt": b"dog", "a.json": b'{"kind": "tags", "tags": ["\\ud800"]}'}, "not-utf8"),
        ({"a.jpg": b"x", "a.json": b'{"caption": "a \\ud800 dog"}'}, "not-utf8"),
        ({"a.jpg": b"x", "a.txt": b"&nbsp; &amp;nbsp;\0"}, "no-caption"),
        ({"a.jpg": b"x", "a.json": b'{"caption": "\\ufeff\\u200b"}'}, "no-caption"),
        ({"a.jpg": b"x", "a.txt": b"..."}, "no-caption"),
        ({"a.jpg": b"x", "a.json": b'{"text": "a dog"}'}, "no-caption"),
        ({"a.jpg": b"x", "a.json": b'["a dog"]'}, "bad-json"),
        ({"a.jpg": b"x", "a.json": b'{"caption": 3}'}, "bad-json"),
        ({"a.jpg": b"x", "a.txt": "a dog".encode("utf-16-le")}, "not-utf8"),
        ({"a.jpg": b"x", "a.txt": b"<a" + b"=" * 10_000}, "long-text"),
        ({"a.jpg": b"x", "a.json": b'{"captions": ["a dog", "' + b"<!--x" * 9999 + b'"]}'}, "long-text"),
        ({"a.jpg": b"x", "a.txt": b"dog", "a.json": b'{"x": "' + bytes(2**20) + b'"}'}, "long-text"),
    ],
)
def test_a_sample_without_image_or_caption_is_left_out_and_named(tmp_path, contents, kind):
    path = write_tar(tmp_path / "broken.tar", contents | GOOD)
    rows, faults = scan_shard(path)
    assert [row.key for row in rows] == ["z"]
    assert [(fault.key, fault.kind) for fault in faults] == [("a", kind)]
    with pytest.raises(InputError, match=r"broken\.tar: a: .+; repair the shard"):
        list(read_shard(path))


def test_members_of_a_sample_need_not_be_neighbours(tmp_path):
    path = write_tar(tmp_path / "apart.tar", {"a.jpg": b"1", "b.jpg": b"22", "a.txt": b"dog", "b.txt": b"cat"})
    assert [(s.key, s.image, s.captions) for s in read_shard(path)] == [("a", b"1", ("dog",)), ("b", b"22", ("cat",))]


def test_a_name_that_is_not_utf8_does_no_harm(tmp_path):
    with tarfile.open(tmp_path / "old.tar", "w", format=tarfile.USTAR_FORMAT, encoding="latin-1") as shard:
        for name, data in (("b\xe4r.jpg", b"x"), ("b\xe4r.txt", b"ein B\xc3\xa4r")):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            shard.addfile(member, io.BytesIO(data))
    (row,), faults = scan_shard(tmp_path / "old.tar")
    assert (row.key, row.captions, faults) == (r"b\xe4r", ("ein Bär",), [])  # another letter makes another key


def test_headers_that_lead_nowhere_are_one_line(tmp_path):
    def header(name, size, kind=tarfile.REGTYPE):
        member = tarfile.TarInfo(name)
        member.size, member.type = size, kind
        return member.tobuf(tarfile.GNU_FORMAT)

    whole = b"".join(header(f"a.{name}", 1) + b"x".ljust(512, b"\0") for name in ("jpg", "txt"))
    for number, more in enumerate(
        (
            header("x", 2**62, tarfile.GNUTYPE_LONGNAME),
            header("x", 2**62, tarfile.XHDTYPE),
            bytes(512) + header("x", -1024),
            (header("x", 1, tarfile.GNUTYPE_LONGNAME) + b"y".ljust(512, b"\0")) * 2000,
        )
    ):
        path = tmp_path / f"{number}.tar"
        path.write_bytes(whole + more)
        rows, faults = scan_shard(path)
        assert [row.key for row in rows] == ["a"]
        assert {fault.kind for fault in faults} == {"cut"}


def test_a_folder_that_may_not_be_read_is_one_line(tmp_path, monkeypatch):
    def forbidden(self, **options):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "stat", forbidden)
    with pytest.raises(InputError, match=r"cannot be read: Permission denied"):
        find_shards(tmp_path / "*.tar")


def test_of_two_members_of_one_name_the_first_is_used(tmp_path):
    with tarfile.open(tmp_path / "twice.tar", "w") as shard:
        for name, data in (("a.jpg", b"first"), ("a.txt", b"dog"), ("a.jpg", b"other")):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            shard.addfile(member, io.BytesIO(data))
    rows, faults = scan_shard(tmp_path / "twice.tar")
    assert [(fault.key, fault.kind) for fault in faults] == [("a.jpg", "twice")]
    assert [row.size for row in rows] == [5]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.GNUTYPE_SPARSE])
def test_links_and_special_files_are_refused(tmp_path, kind):
    with tarfile.open(tmp_path / "link.tar", "w") as shard:
        member = tarfile.TarInfo("a.jpg")
        member.type, member.linkname = kind, "/etc/passwd"
        shard.addfile(member)
    assert [fault.kind for fault in scan_shard(tmp_path / "link.tar")[1]] == ["link"]
    with pytest.raises(InputError, match=r"link\.tar: a\.jpg: a link, or a sparse or special file"):
        list(read_shard(tmp_path / "link.tar"))


@pytest.fixture
def damaged(shards, tmp_path):
    """A shard damaged at its fifth sample."""

    def damage(kind):
        data = shards[0].read_bytes()
        with tarfile.open(shards[0]) as shard:
            member = shard.getmembers()[12]
        broken = {
            "empty": b"",
            "cut in data": data[: member.offset_data + member.size // 2],
            "cut between members": data[: member.offset],
            "header": data[: member.offset] + b"\xff" * 512 + data[member.offset + 512 :],
            "not a tar": b"hello " * 1000,
            "compressed": b"\x1f\x8b" + data[2:],
        }
        path = tmp_path / "bad.tar"
        path.write_bytes(broken[kind])
        return path

    return damage


@pytest.mark.parametrize("kind", ["empty", "cut in data", "cut between members", "header"])
def test_the_samples_before_the_damage_are_kept_and_the_damage_is_told(damaged, kind):
    path = damaged(kind)
    rows, faults = scan_shard(path)
    assert [row.key for row in rows] == [f"{i:05d}" for i in range(0 if kind == "empty" else 4)]
    assert [fault.kind for fault in faults] == ["cut"]
    with pytest.raises(InputError, match=r"bad\.tar: the tar ends too early or is damaged"):
        list(read_shard(path))


@pytest.mark.parametrize("kind", ["not a tar", "compressed"])
def test_what_is_no_tar_is_refused(damaged, kind):
    with pytest.raises(InputError, match=r"bad\.tar: not an uncompressed tar file"):
        scan_shard(damaged(kind))


def test_shards_behind_a_url_are_found_and_read(shards):
    remote = fsspec.filesystem("memory")
    for path in shards:
        remote.pipe(f"/bucket/{path.name}", path.read_bytes())
    urls = [f"memory://bucket/{path.name}" for path in shards]
    assert find_shards("memory://bucket/train-{0000..0005}.tar") == urls
    assert [url.replace(":///", "://") for url in find_shards("memory://bucket/*.tar")] == urls
    assert list(read_shard(urls[2])) == samples(53)[20:30]
    with pytest.raises(InputError, match="no such shard"):
        find_shards("memory://bucket/none-*.tar")
    with pytest.raises(InputError, match=r"memory://bucket/none.tar does not exist"):
        list(read_shard("memory://bucket/none.tar"))
    with pytest.raises(InputError, match="nonsense"):
        list(read_shard("nonsense://bucket/none.tar"))


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


@pytest.mark.parametrize("source", ["", "train-9*.tar", "train-{0000..0009}.tar", "train-{0003..0001}.tar"])
def test_shards_that_are_not_there_are_named(shards, tmp_path, source):
    folder = shards[0].parent if source else tmp_path
    with pytest.raises(InputError, match="no such shard"):
        find_shards(folder / source)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("d", "d/A.TAR d/b.tar"),
        ("{d,e}", "d/A.TAR d/b.tar e/c.tar"),
        ("?", "d/A.TAR d/b.tar e/c.tar"),
        ("**/*.tar", "d/b.tar e/c.tar e/f/g.tar"),
        (f"e/{{c,{','.join('x' * 20 for _ in range(20))}}}.tar", ""),
        ("e/{" + "c," * 200 + "c}.tar", "e/c.tar"),
    ],
)
def test_patterns_may_name_folders_and_what_macos_puts_there_is_none(tmp_path, pattern, expected):
    for name in ("d/A.TAR", "d/b.tar", "d/._b.tar", "e/c.tar", "e/f/g.tar"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    if expected:
        assert find_shards(tmp_path / pattern) == [tmp_path / name for name in expected.split()]
    else:
        with pytest.raises(InputError, match=r"xxxx\.tar: no such shard"):
            find_shards(tmp_path / pattern)


@pytest.mark.parametrize("pattern", ["000?.tar", "000[12].tar", "*.tar", "", "*", "**/*.tar"])
def test_patterns_and_folders_behind_a_url_are_as_on_a_disk(pattern):
    remote = fsspec.filesystem("memory")
    for name in ("0001.tar", "0002.tar", "more/readme.md"):
        remote.pipe(f"/patterns/{name}", b"")
    names = [url.replace(":///", "://") for url in find_shards(f"memory://patterns/{pattern}")]
    assert names == [f"memory://patterns/000{i}.tar" for i in (1, 2)]


def test_an_address_with_a_signature_is_a_name():
    url = "https://host.invalid/a.tar?X-Amz-Signature=0a1b*&x=[1]"
    assert find_shards(url) == [url]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "of which an unset variable may be the cause"),
        (" ", "of which an unset variable may be the cause"),
        ("x{0..99999999999}.tar", "more than 1,000 names"),
        ("x{0..9999}{0..9999}.tar", "more than 1,000 names"),
        ("00000.json", "is no shard; name the folder"),
        ("00000.tar.arrow", "is no shard; name the folder"),
        ("*.txt", "vocabulary.txt is no shard; name the folder"),
    ],
)
def test_names_that_are_no_shards_are_one_line(tmp_path, monkeypatch, name, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("groupvit.data.storage._MOST_NAMES", 1000)
    for file in ("00000.json", "00000.tar.arrow", "vocabulary.txt", "a.tar"):
        Path(file).touch()
    with pytest.raises(InputError, match=message):
        find_shards(name)


def test_a_folder_without_a_name_is_not_the_root():
    with pytest.raises(InputError, match="an unset variable may be the cause"):
        find_shards("tmp", below="")


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.tar")
    for name in (tmp_path / "a.tar", Path("/dev/zero"), tmp_path):
        with pytest.raises(InputError, match="cannot be read: it is a folder, a pipe or a device"):
            scan_shard(name)
    os.mkfifo(tmp_path / "b-vocabulary.txt")
    with pytest.raises(InputError, match=r"cannot be read: it is a folder, a pipe or a device.*; .* has tags"):
        read_vocabulary(tmp_path / "b.tar")


def test_a_label_and_a_list_of_names_are_no_samples(shards, tmp_path):
    whole = shards[0].read_bytes()
    for kind in (b"V", b"D"):
        head = tarfile.TarInfo("label")
        head.type = kind
        (tmp_path / "a.tar").write_bytes(head.tobuf(tarfile.GNU_FORMAT) + whole)
        assert [len(rows) for rows in scan_shard(tmp_path / "a.tar")] == [len(scan_shard(shards[0])[0]), 0]


@pytest.mark.parametrize(("module", "ending"), [(gzip, "gz"), (bz2, "bz2"), (lzma, "xz")])
def test_a_compressed_tar_by_another_name_is_told(shards, tmp_path, module, ending):
    (tmp_path / "a.tar").write_bytes(module.compress(shards[0].read_bytes()))
    with pytest.raises(InputError, match=rf"a\.tar: not an uncompressed tar file: add \.{ending} to its name"):
        scan_shard(tmp_path / "a.tar")


@pytest.mark.parametrize("key", ["", ".", "a/", "a/..", "._a", "a/._b", "a\0b"])
def test_a_key_that_readers_would_pass_over_is_not_written(tmp_path, key):
    with pytest.raises(InputError, match="no reader would find this key"):
        write_shards([Sample(key, picture(0), ("a dog",))], tmp_path, prefix="a")


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (Sample("a", b"\xff\xd8\xff", (" ",)), "sample a cannot be written: no caption"),
        (Sample("a", b"\xff\xd8\xff", ("x " * 6000,)), "a caption of more than 10,000 characters"),
        (Sample("a", b"\xff\xd8\xff", ("word " * 1900,) * 120), "a text of more than 1 MB"),
        (Sample("a", b"\xff\xd8\xff", ("a dog\0",)), "sample a cannot be written: the caption is not UTF-8"),
        (Sample("a", b"\xff\xd8\xff", ("\udcff",)), "sample 'a' cannot be written: 'utf-8' codec"),
        (Sample("\udcff", b"\xff\xd8\xff", ("x",)), "cannot be written: 'utf-8' codec"),
        (Sample("a", b"\xff\xd8\xff", ("x",), tags=("\udcff",)), "sample 'a' cannot be written: 'utf-8' codec"),
    ],
)
def test_what_could_not_be_read_again_is_not_written(tmp_path, sample, message):
    with pytest.raises(InputError, match=message):
        write_shards([sample], tmp_path, prefix="a")
    assert not list(tmp_path.iterdir())


def test_links_that_lead_back_bring_no_shard_twice(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d/a.tar").touch()
    (tmp_path / "d/loop").symlink_to(tmp_path)
    assert find_shards(tmp_path / "**/*.tar") == find_shards(tmp_path / "**") == [tmp_path / "d/a.tar"]


def test_real_shards_hold_what_their_readme_says(data_dir):
    (shard,) = find_shards(data_dir / "captions" / "flickr8k-test-*.tar")
    rows, faults = scan_shard(shard)
    assert (len(rows), faults) == (1000, [])
    assert {len(row.captions) for row in rows} == {5}
    sample = next(read_shard(data_dir / "captions" / "flickr8k-train-0000.tar"))
    assert load_rgb(sample.image, sample.key).size == (176, 176)
    assert json.dumps(sample.captions[0]).startswith('"A dog')


@pytest.mark.parametrize("size", [b"\x80" + b"\x7f" * 11, b"\xff" * 12, b"\x80\0\0\0\x7f" + b"\xff" * 7])
@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE])
def test_a_header_that_names_a_place_no_file_has_is_damage(tmp_path, size, kind):
    (whole,) = write_shards([Sample("a", b"\xff\xd8\xff", ("a dog",))], tmp_path, prefix="a")
    data = bytearray(whole.read_bytes())
    start = 512 * 2  # of the second member
    data[start + 124 : start + 136], data[start + 156 : start + 157] = size, kind
    total = sum(data[start : start + 148]) + 256 + sum(data[start + 156 : start + 512])
    data[start + 148 : start + 156] = b"%06o\0 " % total
    whole.write_bytes(data)
    _, faults = scan_shard(whole)
    assert "cut" in [fault.kind for fault in faults]
