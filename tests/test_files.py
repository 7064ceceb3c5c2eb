import errno
import os
from pathlib import Path

import pytest

from groupvit.errors import InputError
from groupvit.files import cache_folder, new_folder, write_atomically


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
    with new_folder(tmp_path / "x") as folder:
        folder.mkdir()
    assert (tmp_path / "x").is_dir()
