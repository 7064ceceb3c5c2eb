import errno
import json
import threading
from dataclasses import replace
from functools import partialmethod
from unittest.mock import Mock

import numpy as np
import pytest

from groupvit.errors import InputError
from groupvit.evaluation.benchmark import count_into
from groupvit.evaluation.datasets import Dataset
from groupvit.evaluation.partial import PartialResult
from groupvit.evaluation.results import Result
from groupvit.evaluation.scoring import score_prediction
from test_evaluation_scoring import made, masked

IDENTITY = {"benchmark": "voc21", "protocol": {"name": "none"}}


def scored(index: int):
    photo = masked(index)
    return score_prediction(photo, made(photo, 0.2, index), 4, [made(photo, 0.1, index)])


def test_what_was_added_is_there_after_a_stop(tmp_path):
    out = tmp_path / "new folder" / "a.json"
    with PartialResult(out, IDENTITY) as first:
        first.add(scored(0))
        first.add(scored(1))
    with PartialResult(out, IDENTITY) as second:
        assert second.scores.keys() == {"photo 0", "photo 1"}
        assert np.array_equal(second.scores["photo 1"].matrix, scored(1).matrix)
        assert second.scores["photo 1"].stages[0].ari == scored(1).stages[0].ari
        second.add(scored(2))
    with PartialResult(out, IDENTITY) as third:
        assert len(third.scores) == 3


@pytest.mark.parametrize("cut", [1, 30])
def test_a_line_that_was_cut_off_is_counted_again(cut, tmp_path):
    out = tmp_path / "a.json"
    with PartialResult(out, IDENTITY) as parts:
        parts.add(scored(0))
        parts.add(scored(1))
    file = tmp_path / "a.json.part-0"
    file.write_bytes(file.read_bytes()[:-cut])
    with PartialResult(out, IDENTITY) as again:
        assert again.scores.keys() == {"photo 0"}
        again.add(scored(1))
    with PartialResult(out, IDENTITY) as whole:
        assert whole.scores.keys() == {"photo 0", "photo 1"}


def test_a_header_that_was_cut_off_is_written_again(tmp_path):
    (tmp_path / "a.json.part-0").write_text('{"evalu')
    with PartialResult(tmp_path / "a.json", IDENTITY) as parts:
        parts.add(scored(0))
    with PartialResult(tmp_path / "a.json", IDENTITY) as again:
        assert len(again.scores) == 1


class Full:
    """A file on a full disk, whose buffer cannot be written when it is closed either."""

    name = "a.json.part-0"

    def write(self, _: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    close = partialmethod(write, b"")


def test_a_full_disk_is_one_line(tmp_path):
    def add() -> None:
        with PartialResult(tmp_path / "a.json", IDENTITY) as parts:
            parts._file.close()
            parts._file = Full()
            parts.add(scored(0))

    with pytest.raises(InputError, match=r"part-0: No space left.*; the same command goes on"):
        add()


def test_processes_see_each_other_s_photos(tmp_path):
    out = tmp_path / "a.json"
    with PartialResult(out, IDENTITY, 0) as first, PartialResult(out, IDENTITY, 1) as second:
        first.add(scored(0))
        waiting = threading.Thread(target=first.wait_for, args=(["photo 0", "photo 1"],))
        waiting.start()
        waiting.join(0.3)
        assert waiting.is_alive()
        second.add(scored(1))
        waiting.join(5)
        assert not waiting.is_alive()
        first.remove()
    assert not list(tmp_path.iterdir())


def test_parts_of_another_evaluation_are_not_mixed_in(tmp_path):
    with PartialResult(tmp_path / "a.json", IDENTITY):
        pass
    with pytest.raises(
        InputError, match=r"a.json.part-0 is of an evaluation with another protocol \(name\): delete it"
    ):
        PartialResult(tmp_path / "a.json", IDENTITY | {"protocol": {"name": "other"}})


@pytest.mark.parametrize("text", ["nonsense\n", "[]\n", "{}\n", '{"evaluation":3}\n', '{"evaluation":"x"}\n'])
def test_a_file_of_something_else_is_named(text, tmp_path):
    (tmp_path / "a.json.part-0").write_text(text)
    with pytest.raises(InputError, match=r"a.json.part-0 is no part of an evaluation"):
        PartialResult(tmp_path / "a.json", IDENTITY)


def test_a_damaged_line_is_named(tmp_path):
    (tmp_path / "a.json.part-0").write_text(json.dumps({"evaluation": IDENTITY}) + '\n{"name": 3}\n')
    with pytest.raises(InputError, match=r"a.json.part-0 is damaged"):
        PartialResult(tmp_path / "a.json", IDENTITY)


@pytest.mark.parametrize(
    "damage",
    [
        {"matrix": [[99, 0, 5]]},
        {"matrix": [[0, 0, -5]]},
        {"boundary": [[0, 1, 2.9, 3]]},
        {"stages": []},
        {"pending": {"levels": [], "maps": ""}},
    ],
    ids=str,
)
def test_counts_that_no_evaluation_wrote_are_refused_before_the_others_are_made(damage, tmp_path):
    photos = {f"photo {i}": masked(i) for i in range(3)}
    dataset = Dataset("folder", tmp_path, tuple("abcd"), tuple(photos), photos.__getitem__)
    result, out, counted = Result("folder", tuple("abcd"), {"name": "none"}, {}), tmp_path / "a.json", []

    def count(names):
        for name in names:
            counted.append(name)
            yield scored(int(name[-1]))
            if len(counted) == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        count_into(out, result, dataset, count, lambda photos: replace(result, photos=tuple(photos)))
    part = tmp_path / "a.json.part-0"
    head, *lines = part.read_text().splitlines()
    lines[1:] = [json.dumps(json.loads(lines[0]) | {"name": "photo 1", "digest": "1"} | damage)]
    part.write_text("\n".join([head, *lines]) + "\n")
    with pytest.raises(InputError, match=r"a\.json\.part-.* is damaged: .*; delete it"):
        count_into(out, result, dataset, count, lambda photos: replace(result, photos=tuple(photos)))
    assert counted == ["photo 0", "photo 1"]


def test_counts_of_another_version_are_not_gone_on_with(tmp_path, monkeypatch):
    dataset = Dataset("folder", tmp_path, tuple("abcd"), ("photo 0",), lambda _: masked(0))
    result = Result("folder", tuple("abcd"), {"name": "none"}, {})
    with pytest.raises(KeyboardInterrupt):
        count_into(tmp_path / "a.json", result, dataset, Mock(side_effect=KeyboardInterrupt), Mock())
    monkeypatch.setattr("groupvit.evaluation.benchmark.__version__", "9.9.9")
    with pytest.raises(InputError, match="another groupvit: delete it"):
        count_into(tmp_path / "a.json", result, dataset, Mock(), Mock())


def test_a_copy_of_a_part_is_neither_read_nor_removed(tmp_path):
    (tmp_path / "a.json.part-0.bak").write_text("mine")
    with PartialResult(tmp_path / "a.json", IDENTITY) as parts:
        parts.remove()
    assert [file.name for file in tmp_path.iterdir()] == ["a.json.part-0.bak"]


def test_a_field_that_is_null_is_not_one_that_is_missing(tmp_path):
    identity = IDENTITY | {"protocol": {"name": "none", "view": None}}
    PartialResult(tmp_path / "a.json", IDENTITY).__exit__()
    with pytest.raises(InputError, match=r"another protocol \(view\)"):
        PartialResult(tmp_path / "a.json", identity)


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"cannot write .*file/a.json.part-0"):
        PartialResult(tmp_path / "file/a.json", IDENTITY)


def test_brackets_in_a_name_are_no_pattern(tmp_path):
    out = tmp_path / "r[1].json"
    with PartialResult(out, IDENTITY) as parts:
        parts.add(scored(0))
    with PartialResult(out, IDENTITY) as again:
        assert len(again.scores) == 1
