import bz2
import errno
import gzip
import io
import json
import lzma
import os
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from groupvit.cli.data import index
from groupvit.cli.data import pack as command
from groupvit.data.doctor import examine
from groupvit.data.index import CaptionedPhotos, beside, index_shards
from groupvit.data.pack import pack
from groupvit.data.shards import Sample, find_shards, read_shard, write_shards
from groupvit.errors import InputError


def photo(value: int, file_format: str = "JPEG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (40, 40), (value, 0, 0)).save(file, file_format)
    return file.getvalue()


def put(folder: Path, **files: bytes | str) -> Path:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return folder


def packed(out: Path) -> list[tuple[str, bytes, tuple[str, ...]]]:
    return [(s.key, s.image, s.captions) for shard in find_shards(out) for s in read_shard(shard)]


def kinds(faults: list[Any]) -> list[tuple[str, str]]:
    return [(fault.key, fault.kind) for fault in faults]


def test_a_folder_of_photos_with_captions_becomes_shards(tmp_path: Path) -> None:
    meta = {"caption": "a cow", "key": "000000000", "status": "success", "url": "http://x.org/a.jpg"}
    source = put(
        tmp_path / "photos",
        **{
            "00000/000000000.jpg": photo(0),
            "00000/000000000.txt": "a cow",
            "00000/000000000.json": json.dumps(meta),
            "00000_stats.json": "{}",
            "00000.parquet": b"x",
            "my trip/img_2.1.PNG": photo(1, "PNG"),
            "my trip/img_2.1.TXT": "\ufeffa dog\r\n",
            "my trip/._img_2.1.PNG": b"x",
            "my trip/.thumbnails/img_2.1.jpg": photo(1),
            "my trip/.thumbnails/img_2.1.txt": "a dog",
            ".trash/a.parquet": b"x",
        },
    )
    assert pack(source, tmp_path / "mine").faults == []
    assert [path.name for path in find_shards(tmp_path / "mine")] == ["mine-0000.tar"]
    assert packed(tmp_path / "mine") == [
        ("00000/000000000", photo(0), ("a cow",)),
        ("my trip/img_2.1", photo(1, "PNG"), ("a dog",)),
    ]
    assert examine(find_shards(tmp_path / "mine")).counts.keys() == {"few-nouns"}


def test_what_is_left_out_of_a_folder_is_counted(tmp_path: Path) -> None:
    source = put(
        tmp_path / "photos",
        **{
            "a.jpg": photo(0), "a.txt": "a dog", "b.jpg": photo(1), "c.txt": "a cat", "d.jpg": b"", "d.txt": "a cow",
            "e.jpg": b"<html>", "e.txt": "a cow", "f.jpg": photo(2), "f.txt": b"\xff\xfe", "g.jpg": photo(2),
            "g.png": photo(2, "PNG"), "g.txt": "a cow", "h.jpg": photo(2), "h.json": "{", "i.JPG": photo(2),
            "i.jpg": photo(2), "i.txt": "a cow",
        },
    )  # fmt: skip
    (source / "k.jpg").symlink_to("gone")
    faults = pack(source, tmp_path / "out").faults
    assert sorted(kinds(faults)) == [
        ("b", "no-caption"), ("c", "no-image"), ("d", "empty-image"), ("e", "undecodable"), ("f", "not-utf8"),
        ("g", "two-images"), ("h", "bad-json"), ("i.jpg", "twice"), ("k.jpg", "unreadable"),
    ]  # fmt: skip
    assert [key for key, _, _ in packed(tmp_path / "out")] == ["a", "i"]


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("a.csv", "file,caption\na.jpg,a dog\nb.png,\"a cat, a cow\"\nb.png,a cat\n"),
        ("captions.txt", "image,caption\r\na.jpg,a dog\r\nb.png,\"a cat, a cow\"\r\nb.png,a cat\r\n"),
        ("a.csv", "\ufefffilepath\ttitle\tx\na.jpg\ta dog\t1\nb.png\ta cat, a cow\t2\nb.png\ta cat\t3\n"),
        ("a.tsv", "Caption\tFile\na dog\ta.jpg\na cat, a cow\tb.png\na cat\tb.png\n"),
        ("a.csv", "file_name;text\na.jpg;a dog\nb.png;a cat, a cow\nb.png;a cat\n"),
        ("a.csv", "file,caption\na.jpg,a dog\nb.png,\"a cat, a cow\"\nb.png,a cat\n,\n ,\n\n"),
        ("r.tsv", '"file"\t"caption"\n"a.jpg"\t"a dog"\n"b.png"\t"a cat, a cow"\nb.png\ta cat\n'),
        ("results.csv", "image_name| number| comment\na.jpg| 0| a dog\nb.png| 0| a cat, a cow\nb.png|1|a cat\n"),
    ],
)  # fmt: skip
def test_a_table_of_files_becomes_shards(tmp_path: Path, name: str, table: str) -> None:
    source = put(tmp_path, **{name: table, "a.jpg": photo(0), "b.png": photo(1, "PNG")}) / name
    assert pack(source, tmp_path / "out", image_column="image_name" * (name == "results.csv")).faults == []
    assert packed(tmp_path / "out") == [
        ("000000000", photo(0), ("a dog",)),
        ("000000001", photo(1, "PNG"), ("a cat, a cow", "a cat")),
    ]


def test_photos_of_a_table_may_lie_elsewhere_and_missing_ones_are_counted(tmp_path: Path) -> None:
    put(tmp_path / "Images", **{"a.jpg": photo(0), "b.jpg": photo(1)})
    rows = f"where,what\na.jpg,a dog\ngone.jpg,a cat\n,a cow\n{tmp_path}/Images/b.jpg,\n\0,x\n../Images,x\n"
    table = put(tmp_path / "lists", **{"a.csv": rows}) / "a.csv"
    options = {"photos": tmp_path / "Images", "image_column": "where", "caption_column": "What"}
    faults = pack(table, tmp_path / "out", **options).faults
    assert [fault.kind for fault in faults] == ["no-image", "unreadable", "no-caption", "unreadable", "unreadable"]
    assert faults[1].key == "gone.jpg"
    assert [captions for _, _, captions in packed(tmp_path / "out")] == [("a dog",)]


def test_a_file_is_one_photo_and_a_text_that_no_reader_takes_is_told(tmp_path: Path) -> None:
    rows = ["a.jpg,a dog", "./a.jpg,a cat", "x/../a.jpg,a cow", f"b.jpg,{'x' * 200_000}", "c.jpg,a dog\0 runs"]
    rows += [f"d.jpg,{i} {'word ' * 1900}" for i in range(120)]
    photos = {f"{name}.jpg": photo(0) for name in "abcd"}
    source = put(tmp_path, **photos, **{"x/y": "", "a.csv": "\n".join(["file,caption", *rows])}) / "a.csv"
    found = pack(source, tmp_path / "out")
    assert kinds(found.faults) == [("b.jpg", "long-text"), ("c.jpg", "not-utf8"), ("d.jpg", "long-text")]
    assert packed(tmp_path / "out") == [("000000000", photo(0), ("a dog", "a cat", "a cow"))]


@pytest.mark.parametrize(
    ("name", "table", "message"),
    [
        ("a.csv", 'file,caption\na.jpg,a dog\na.jpg,"a cat\na.jpg,a cow\n', "a.csv, after line 2: unexpected end"),
        ("a.csv", 'file,caption\na.jpg,"Big" cat\n', "a.csv, after line 1: ',' expected after '\"'; put double quotes"),
        ("a.csv", "file,caption,caption\na.jpg,a dog,a cat\n", "several of its columns are caption"),
        (
            "a.csv",
            "url,caption\nhttp://x.org/a.jpg,a dog\n",
            "--image-column, or download the photos of its URLs first",
        ),
        ("a.csv", f"{'x' * 9999},caption\n", "x) is image-column"),
        ("a.json", '{"images": []}', "a.json is no table: give a folder"),
        ("a.xlsx", "PK", "a.xlsx is no table: give a folder"),
        ("a.jpg", "x", "a.jpg is no table: give a folder"),
    ],
)
def test_a_table_that_would_lose_rows_is_one_line(tmp_path: Path, name: str, table: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        pack(put(tmp_path, **{"a.jpg": photo(0), name: table}) / name, tmp_path / "out")
    assert message in str(error.value)
    assert len(str(error.value)) < len(str(tmp_path)) + 400
    assert not (tmp_path / "out").exists()


def test_cells_of_tabs_are_read_as_written_or_as_quoted(tmp_path: Path) -> None:
    cells = ('"a ""big"" dog, sitting"', '"Big" dog', '"a dog', '"', '["a cow", "a hen"]')
    rows = "file\tcaption\n" + "".join(f"a.jpg\t{cell}\n" for cell in cells)
    table = put(tmp_path, **{"a.jpg": photo(0), "a.tsv": rows}) / "a.tsv"
    quoted = put(tmp_path, **{"b.csv": 'file,caption\na.jpg,"""Hi"""\n'}) / "b.csv"
    pack(quoted, tmp_path / "csv")
    assert packed(tmp_path / "csv")[0][2] == ('"Hi"',)
    pack(table, tmp_path / "out")
    assert packed(tmp_path / "out")[0][2] == ('a "big" dog, sitting', '"Big" dog', '"a dog', "a cow", "a hen")


def test_rows_without_a_file_are_counted_each_with_its_line(tmp_path: Path) -> None:
    rows = "file,caption\na.jpg,a dog\na.jpg,a cow\n,a cat\n,a hen\n,\n,a cat,x\n"
    faults = pack(put(tmp_path, **{"a.jpg": photo(0), "a.csv": rows}) / "a.csv", tmp_path / "out").faults
    assert kinds(faults) == [("line 4", "no-image"), ("line 5", "no-image"), ("line 7", "no-caption")]


def test_rows_with_commas_that_are_not_quoted_are_counted(tmp_path: Path) -> None:
    rows = "file,caption\na.jpg,a cat, sitting\na.jpg,a cat\nb.jpg,a dog, too\na.jpg,a cow,\n"
    source = put(tmp_path, **{"a.jpg": photo(0), "b.jpg": photo(1), "a.csv": rows}) / "a.csv"
    faults = pack(source, tmp_path / "out").faults
    assert list(map(str, faults)) == [
        f"{name}: no caption (more cells than the header has: quote commas)" for name in ("a.jpg", "b.jpg")
    ]
    assert [captions for _, _, captions in packed(tmp_path / "out")] == [("a cat", "a cow")]


def test_links_pipes_and_unreadable_folders_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = put(tmp_path / "in", **{"a.jpg": photo(0), "a.txt": "a dog", "b.jpg": photo(1), "c.jpg": photo(2)})
    put(source, **{"c.txt": "a" * 10_001, "d.jpg": photo(3), "sub/e.jpg": photo(4), "sub/e.txt": "a cat"})
    os.mkfifo(source / "b.txt")
    (source / "d.txt").symlink_to("/dev/zero")
    (source / "linked").symlink_to(tmp_path)
    faults = pack(source, tmp_path / "out").faults
    assert sorted(kinds(faults)) == [
        *[("b", "no-caption"), ("b.txt", "unreadable"), ("c", "long-text")],
        *[("d", "no-caption"), ("d.txt", "unreadable"), ("linked", "link")],
    ]
    os.mkfifo(tmp_path / "pipe.jpg")
    table = put(tmp_path, **{"a.csv": "file,caption\npipe.jpg,a dog\nin/a.jpg,a dog\n"}) / "a.csv"
    assert kinds(pack(table, tmp_path / "out2").faults) == [("pipe.jpg", "unreadable")]
    scan = os.scandir

    def refused(path: str) -> Any:
        if str(path).endswith("sub"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(InputError, match="sub cannot be read: Permission denied"):
        pack(source, tmp_path / "out3")


def test_names_that_are_not_utf_8_stay_apart(tmp_path: Path) -> None:
    source = put(tmp_path / "in", **{f"{name}.{end}": data for name in ("\udce8", "\udce9")
                                    for end, data in (("jpg", photo(0)), ("txt", "a dog"))})  # fmt: skip
    assert pack(source, tmp_path / "out").faults == []
    assert [key for key, _, _ in packed(tmp_path / "out")] == ["\\xe8", "\\xe9"]


def test_empty_groups_of_rows_do_not_end_a_parquet_file(tmp_path: Path) -> None:
    table = pa.table({"jpg": [photo(0)], "caption": ["a dog"]})
    with parquet.ParquetWriter(tmp_path / "a.parquet", table.schema) as writer:
        for part in (table, table[:0], table):
            writer.write_table(part)
    assert pack(tmp_path / "a.parquet", tmp_path / "out").photos == 2


def test_captions_in_parquet_that_are_not_utf_8_are_one_line(tmp_path: Path) -> None:
    texts = pa.Array.from_buffers(pa.string(), 1, pa.array([b"\xff"], pa.binary()).buffers())
    parquet.write_table(pa.table({"jpg": [photo(0)], "caption": texts}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"a\.parquet cannot be read: 'utf-8' codec"):
        pack(tmp_path / "a.parquet", tmp_path / "out")


IMG2DATASET = {
    "url": ["http://x.org"] * 3, "caption": ["a dog", "a cat", None], "key": ["0", "1", "2"],
    "status": ["success", "failed_to_download", "success"], "jpg": [photo(0), None, photo(2)],
    "txt": ["a dog", None, ""],
}  # fmt: skip
DATASETS = {
    "image": [{"bytes": photo(0), "path": "a"}, {"bytes": None, "path": "b"}, {"bytes": photo(2), "path": None}],
    "text": [["a dog"], ["a cat"], []],
}


HUB = {"filename": ["a.jpg"] * 3, "caption": ["a dog", "a cat", "&nbsp;"], "img": DATASETS["image"]}


@pytest.mark.parametrize("columns", [IMG2DATASET, DATASETS, HUB], ids=["img2dataset", "datasets", "hub"])
def test_parquet_with_photos_becomes_shards(tmp_path: Path, columns: dict[str, Any]) -> None:
    (tmp_path / "in").mkdir()
    for name in ("00000.parquet", "00001.parquet"):
        parquet.write_table(pa.table(columns), tmp_path / "in" / name)
    faults = pack(tmp_path / "in", tmp_path / "out").faults
    assert [fault.kind for fault in faults] == ["no-image", "no-caption"] * 2
    assert packed(tmp_path / "out") == [(key, photo(0), ("a dog",)) for key in ("000000000", "000000003")]
    (tmp_path / "in/00001.parquet").rename(tmp_path / "in/1.PQ")
    one = pack(tmp_path / "in/1.PQ", tmp_path / "one")
    assert [fault.key for fault in one.faults] == [f"{tmp_path}/in/1.PQ: row {row}" for row in (1, 2)]
    put(tmp_path, **{"in/teaser.png": photo(1, "PNG"), "in/dataset_infos.json": "{}"})
    assert pack(tmp_path / "in", tmp_path / "two").photos == 2


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.csv", b"", "none of its columns () is image-column; name it: --image-column"),
        ("a.csv", b"url,caption\nhttp://x.org,a dog\n", "none of its columns (url, caption) is image-column"),
        ("a.csv", b'url,"two\nlines"\n', "none of its columns (url, two lines) is image-column"),
        ("a.csv", b"file,words\na.jpg,a dog\n", "none of its columns (file, words) is caption-column"),
        ("a.csv", b"file,caption\na.jpg,\xff\n", "cannot be read as a table in UTF-8"),
        ("a.csv", b"file,caption\ngone.jpg,a dog\n", "1 of 1 left out are like this: gone.jpg: a"),
        ("a.parquet", b"x", "not a parquet file that can be read"),
        ("a/x.jpg", b"\xff\xd8\xff", "no photo with a caption; 1 of 1 left out are like this: x: no caption"),
        ("a/x.html", b"x", "neither photos nor parquet in it"),
        ("b", b"x", "no such file or folder"),
        ("a/0.tar", b"x", "a holds shards already: train on it as it is"),
        ("a.tar", b"x", "a.tar is a shard already: train on it as it is"),
        ("a.csv", b"a.jpg,a dog\nb.jpg,a cat\n", "its first row (a.jpg, a dog) is no header: put one above it"),
        ("a.tsv", b"a dog\thttp://x.org/1\n", "its first row (a dog, http://x.org/1) is no header"),
    ],
)
def test_a_source_that_cannot_be_packed_is_one_line_and_leaves_nothing(
    tmp_path: Path, name: str, data: bytes, message: str
) -> None:
    put(tmp_path, **{name: data})
    if name == "a/0.tar":
        put(tmp_path, **{"a/0.parquet": b"x"})
        with pytest.raises(InputError, match=r"0\.parquet is no shard but lists one; name the folder"):
            find_shards(tmp_path / "a/*")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError) as error:
        pack(tmp_path / (name.partition("/")[0] if name != "b" else "c"), tmp_path / "out")
    assert message in str(error.value)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("option", ["photos", "image_column", "caption_column"])
def test_an_option_that_would_do_nothing_is_refused(tmp_path: Path, option: str) -> None:
    put(tmp_path, **{"in/a.jpg": photo(0), "in/a.txt": "a dog", "b.parquet": b"x"})
    asked: Any = {option: tmp_path if option == "photos" else "there"}
    sources = (tmp_path / "in", tmp_path / "b.parquet") if option == "photos" else (tmp_path / "in",)
    for source in sources:
        with pytest.raises(InputError, match=f"--{option.replace('_', '-')} does nothing with such a source"):
            pack(source, tmp_path / "out", **asked)


def test_the_usual_fault_of_a_table_is_named_and_where_its_photos_may_lie(tmp_path: Path) -> None:
    put(tmp_path, **{"a.csv": "file,caption\n,a cat\ngone.jpg,a dog\nlost.jpg,a cow\n"})
    with pytest.raises(InputError, match=r"2 of 3 left out are like this: gone.jpg: .*lie elsewhere: --photos FOLDER$"):
        pack(tmp_path / "a.csv", tmp_path / "out")


def test_a_folder_that_is_closed_is_not_called_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "in", **{"a.jpg": photo(0), "a.txt": "a dog"})

    def closed(path: object) -> None:  # root may open everything
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", closed)
    with pytest.raises(InputError, match="in cannot be read: Permission denied"):
        pack(tmp_path / "in", tmp_path / "out")


def test_a_photo_with_a_dot_in_its_name_is_counted_beside_a_whole_one(tmp_path: Path) -> None:
    files = {"a.jpg": photo(0), "a.txt": "a dog", "a.1.jpg": photo(1), "a.2.txt": "a cat"}
    packed = pack(put(tmp_path / "in", **files), tmp_path / "out")
    assert kinds(packed.faults) == [("a.1", "no-caption"), ("a.2", "no-image")]


def test_out_may_be_a_link_but_no_hidden_name_and_no_source_a_pipe(tmp_path: Path) -> None:
    source = put(tmp_path / "in", **{"a.jpg": photo(0), "a.txt": "a dog"})
    (tmp_path / "big").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "big")
    assert pack(source, tmp_path / "link").photos == 1
    assert [path.name for path in (tmp_path / "big").iterdir()] == ["link-0000.tar"]
    os.mkfifo(tmp_path / "p.csv")
    for given, out, message in (
        (source, ".mine", r"\.mine: shards of a hidden name are not found"),
        (tmp_path / "p.csv", "out", "p.csv: a pipe or a device"),
        (tmp_path / ("x" * 300), "out", "x cannot be read: File name too long"),
    ):
        with pytest.raises(InputError, match=message):
            pack(given, tmp_path / out)


def test_a_shard_without_a_whole_sample_is_named_by_index(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_shards([Sample("a", photo(0), ("a dog",))], tmp_path, prefix="x")
    with tarfile.open(tmp_path / "y.tar", "w") as shard:
        shard.add(tmp_path / "x-0000.tar", "inner.tar")
    assert index((str(tmp_path),), processes=1) == 1
    assert "left out: 1 x the shard holds no whole sample\n" in capsys.readouterr().out
    CaptionedPhotos.open(find_shards(tmp_path))
    assert examine(find_shards(tmp_path)).counts["no-samples"] == 1


def test_rows_of_a_photo_need_not_be_neighbours_and_a_table_beside_photos_is_named(tmp_path: Path) -> None:
    rows = "file,caption\na.jpg,a dog\nb.jpg,a cat\na.jpg,a cow\n"
    folder = put(tmp_path / "in", **{"a.jpg": photo(0), "b.jpg": photo(1), "captions.txt": rows})
    assert pack(folder / "captions.txt", tmp_path / "out").faults == []
    assert [captions for _, _, captions in packed(tmp_path / "out")] == [("a dog", "a cow"), ("a cat",)]
    with pytest.raises(InputError, match=r"if captions.txt has the captions: groupvit data pack .*in/captions.txt"):
        pack(folder, tmp_path / "other")


def test_captions_of_a_folder_without_photos_are_counted(tmp_path: Path) -> None:
    files = {"a/1.jpg": photo(0), "a/1.txt": "a dog", "b/2.txt": "a cat", "b/3.json": "{}", "README.txt": "of the set"}
    packed = pack(put(tmp_path / "in", **files), tmp_path / "out")
    assert [(fault.key, fault.kind) for fault in packed.faults] == [("b/2", "no-image")]


def test_nothing_is_overwritten_and_the_command_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = put(tmp_path / "in", **{"a.jpg": photo(0), "a.txt": "a dog", "b.jpg": photo(1)})
    assert command(source, tmp_path / "out") == 1
    out = capsys.readouterr().out
    assert out == f"{tmp_path / 'out'}: 1 shards, 1 photos, 1 captions\nleft out: 1 x no caption\n  b: no caption\n"
    for existing in (tmp_path / "out", tmp_path / "in/a.txt", Path(".")):
        with pytest.raises(InputError, match="is there already; name a new folder"):
            pack(source, existing)


@pytest.mark.parametrize("name", ["00000/0.jpg", "0.webp", "00000.parquet"])
def test_photos_that_are_no_shards_yet_are_said_to_be_packed(tmp_path: Path, name: str) -> None:
    put(tmp_path / "d", **{name: b"x"})
    for given in (tmp_path / "d", tmp_path / "d" / "*.tar"):
        with pytest.raises(InputError, match=rf"no such shard, but photos; .*: groupvit data pack {tmp_path}/d OUT"):
            find_shards(given)
    with pytest.raises(InputError, match="typo: no such file or folder"):
        find_shards(tmp_path / "d" / "typo")
    with pytest.raises(InputError, match="typo: no such folder"):
        find_shards("*.tar", below=tmp_path / "typo")
    if name.endswith("parquet"):
        with pytest.raises(InputError, match="is no shard; make some of it: groupvit data pack"):
            find_shards(tmp_path / "d" / name)


@pytest.mark.parametrize("name", ["x.tar.gz", "x.tgz", "x.TAR.GZ", "x.tar.bz2", "x.tar.xz", "x.txz"])
def test_a_compressed_shard_is_unpacked_once_by_index(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (tar,) = write_shards([Sample("a", photo(0), ("a dog",))], tmp_path / "in", prefix="x")
    compress = {"bz2": bz2.compress, "xz": lzma.compress, "txz": lzma.compress}.get(
        name[-3:].lstrip("."), gzip.compress
    )
    shard = put(tmp_path / "d", **{name: compress(tar.read_bytes())}) / name
    assert find_shards(tmp_path / "d") == find_shards(shard) == [shard]
    with pytest.raises(InputError, match=rf"{name} is compressed; .*: groupvit data index "):
        CaptionedPhotos.open([shard])
    assert "groupvit data index" in examine([shard]).findings[0].detail
    assert index((str(tmp_path / "d"),), processes=1) == 0
    assert find_shards(tmp_path / "d") == find_shards(shard) == [tmp_path / "d/x.tar"]
    assert CaptionedPhotos.open(find_shards(shard)).read(0, 0).captions == ("a dog",)
    assert index((str(shard),), processes=1) == 0
    assert "(1 were up to date): 1 photos" in capsys.readouterr().out
    assert beside(tmp_path / "d/x.tar").is_file()
    os.utime(tmp_path / "d/x.tar", (shard.stat().st_mtime // 1,) * 2)  # as bunzip2 leaves it
    assert find_shards(shard) == [tmp_path / "d/x.tar"]
    os.utime(shard, (2**32, 2**32))
    assert find_shards(tmp_path / "d") == find_shards(shard) == [shard]
    assert index((str(shard),), processes=1) == 1  # which of the two is wanted, nobody knows
    assert "x.tar is older than" in capsys.readouterr().err


def test_a_compressed_file_that_is_no_tar_leaves_none(tmp_path: Path) -> None:
    put(tmp_path, **{"x.tgz": gzip.compress(b"no tar at all" * 99)})
    [error] = index_shards(find_shards(tmp_path), where=beside)
    assert "not a tar in it" in str(error)
    assert not (tmp_path / "x.tar").exists()


def test_a_compressed_shard_that_is_cut_leaves_nothing(tmp_path: Path) -> None:
    damaged = lzma.compress(os.urandom(9999))[:99] + bytes(999)
    put(tmp_path, **{"x.tar.gz": gzip.compress(bytes(9999))[:-9], "y.tar.zst": b"no", "z.tar.xz": damaged})
    errors = index_shards(find_shards(tmp_path), where=beside)
    assert [" cannot be unpacked: " in str(error) for error in errors] == [True, True, True]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.tar.gz", "y.tar.zst", "z.tar.xz"]
