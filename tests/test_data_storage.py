import os

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from groupvit.data import storage
from groupvit.data.shards import find_shards, scan_shard
from groupvit.data.storage import is_url, read_range, stamp
from groupvit.errors import InputError

URL = "memory://storage/a.tar"


@pytest.fixture(autouse=True)
def remote():
    filesystem = fsspec.filesystem("memory")
    filesystem.pipe("/storage/a.tar", b"0123456789")
    return filesystem


def test_urls_are_told_from_paths(tmp_path):
    assert is_url(URL)
    assert is_url("s3://bucket/{000..123}.tar")
    assert not is_url(tmp_path / "a.tar")


def test_a_range_is_read_and_a_stamp_changes_with_the_file(tmp_path):
    (tmp_path / "a").write_bytes(b"0123456789")
    for file in (tmp_path / "a", URL):
        before = stamp(file)
        assert before == stamp(file)
        assert before[0] == 10
        assert read_range(file, 3, 4, before) == b"3456"
    (tmp_path / "a").write_bytes(b"0123456780")
    assert stamp(tmp_path / "a") != before


def test_a_file_stays_open_while_it_is_read(tmp_path, monkeypatch):
    """Though other threads open so many that it is no longer one of the last."""
    file, pread = tmp_path / "a", os.pread
    file.write_bytes(b"0123456789")

    def overtaken(*place):
        storage._opened.cache_clear()
        return pread(*place)

    monkeypatch.setattr(os, "pread", overtaken)
    assert read_range(file, 3, 4, stamp(file)) == b"3456"


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), ValueError("no credentials")])
def test_whatever_a_server_refuses_is_one_line_that_names_the_file(monkeypatch, error):
    def refuse(*given, **options):
        raise error

    for name in ("info", "open", "cat_file", "glob"):
        monkeypatch.setattr(MemoryFileSystem, name, refuse)
    for read in (stamp, scan_shard, lambda url: read_range(url, 0, 1, (10, ""))):
        with pytest.raises(InputError, match=f"{URL} cannot be read: .*(denied|credentials)"):
            read(URL)
    with pytest.raises(InputError, match="cannot be read"):
        find_shards("memory://storage/*.tar")


def test_a_server_that_does_not_tell_the_size_is_refused(monkeypatch):
    monkeypatch.setattr(MemoryFileSystem, "info", lambda *given, **options: {"name": "a.tar", "size": None})
    with pytest.raises(InputError, match="does not tell its size"):
        stamp(URL)


def test_an_error_of_our_own_is_not_called_an_error_of_the_disk(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="does not exist"):
        stamp(tmp_path / "none")
    (file := tmp_path / "a").touch()
    with pytest.raises(TypeError):
        read_range(file, "start", 1, stamp(file))
