from pathlib import Path

import pytest

from groupvit.files import cache_folder


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
