import errno
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest

from groupvit.checkpoints.convert import convert
from groupvit.data.pack import pack
from groupvit.data.storage import stamp
from groupvit.errors import InputError
from groupvit.evaluation.class_lists import read_text
from groupvit.evaluation.masks import read_values
from groupvit.evaluation.pictures import make_folder
from groupvit.evaluation.results import Result
from groupvit.files import cache_folder, new_folder, write_atomically
from groupvit.photos import load_rgb
from groupvit.segmentation.labels import read_labels
from groupvit.training.state import locked


@pytest.mark.parametrize(("cache", "home"), [("", "home"), ("relative", "home"), ("file", "home"), ("", "relative")])
def test_the_cache_is_the_first_folder_that_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: str, home: str
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / cache) if cache == "file" else cache)
    monkeypatch.setenv("HOME", home if home == "relative" else str(tmp_path / home))
    folder = cache_folder()
    assert folder.is_dir()
    expected = tmp_path / "home/.cache/groupvit" if (cache, home) == ("", "home") else tmp_path / "tmp"
    assert folder.is_relative_to(expected)
    assert not (tmp_path / "relative").exists()


def test_the_user_s_choice_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "mine"))
    assert cache_folder() == tmp_path / "mine/groupvit"


def test_a_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to("there/file")
    for data in (b"new", b"replaced"):
        write_atomically(tmp_path / "link", data)
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "there/file").read_bytes() == data
    assert [*(tmp_path / "there").iterdir()] == [tmp_path / "there/file"]
    (tmp_path / "loop").symlink_to("loop")
    write_atomically(tmp_path / "loop", b"whole")
    assert (tmp_path / "loop").read_bytes() == b"whole"


@pytest.mark.parametrize(("number", "refused"), [(errno.EINVAL, False), (errno.EIO, True)])
def test_file_systems_that_cannot_sync_a_folder_are_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, refused: bool
) -> None:
    sync, calls = os.fsync, []

    def fsync(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 2:  # first the file, then its folder
            raise OSError(number, os.strerror(number))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    if refused:
        with pytest.raises(InputError, match=r"cannot write a in .*: Input/output error"):
            write_atomically(tmp_path / "a", b"x")
    else:
        write_atomically(tmp_path / "a", b"x")
    assert len(calls) == 2


def test_a_mounted_disk_is_refused_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "is_mount", lambda path: path == tmp_path)
    with pytest.raises(InputError, match=r"a disk is mounted there.*name one in it"), new_folder(tmp_path):
        raise AssertionError
    monkeypatch.chdir(tmp_path)
    for place in (Path(), tmp_path):
        with pytest.raises(InputError, match="is the folder you are in"), new_folder(place):
            raise AssertionError
    (tmp_path / "y.partial").mkdir()
    with pytest.raises(InputError, match=r"y.partial is there already"), new_folder(tmp_path / "y"):
        raise AssertionError
    assert (tmp_path / "y.partial").is_dir()
    for _ in range(2):
        with new_folder(tmp_path / "x", locked=True) as folder:
            (folder / "a").touch()
        (tmp_path / "x/a").unlink()
        (tmp_path / "x.partial").mkdir()
    assert (tmp_path / "x").is_dir()


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 123456\n"


def test_a_message_is_one_line_whatever_it_quotes() -> None:
    error = InputError("a\r\n\x1b[2Jb\x85c\u2028d\tfile")
    assert str(error) == str(pickle.loads(pickle.dumps(error))) == "a [2Jb c d file"


def test_nothing_is_written_to_an_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="s3://bucket/x: only data is read from an address"):
        write_atomically(Path("s3://bucket/x"), b"")
    with pytest.raises(InputError, match="gs://x"), new_folder(Path("gs://x")):
        pass
    with pytest.raises(InputError, match="GS://x"), locked(Path("GS://x")):
        pass
    with pytest.raises(InputError, match="s3://b/p"):
        make_folder(Path("s3://b/p"))
    with pytest.raises(InputError, match="s3://b/m"):
        convert(Path("photos"), Path("s3://b/m"), "native")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("photo.jpg", lambda file: load_rgb(file, str(file))),
        ("mask.png", read_values),
        ("classes.txt", read_text),
        ("labels.txt", read_labels),
        ("result.json", Result.load),
        ("shard.tar", stamp),
        ("captions.csv", lambda file: pack(file, file.with_name("shards"))),
    ],
)
def test_a_pointer_of_git_lfs_is_told_wherever_a_file_is_read(
    tmp_path: Path, name: str, read: Callable[[Path], object]
) -> None:
    (tmp_path / name).write_bytes(POINTER)
    with pytest.raises(InputError, match=rf"^[^:]*{name} is a pointer of git-lfs, not the file: run `git lfs pull`"):
        read(tmp_path / name)
