import json

import pytest

from groupvit.api import load_model


@pytest.fixture(scope="module")
def scenes_folder(tmp_path_factory):
    from groupvit.data import scenes

    folder = tmp_path_factory.mktemp("scenes") / "set"
    scenes.write(folder, train=60, evaluation=4)
    return folder


def test_the_whole_way_from_captions_to_named_segments(run_cli, run_here, scenes_folder, tmp_path):
    arguments = ("train", "debug", "--data", scenes_folder, "--out", tmp_path / "run")
    code, out, err = run_cli(*arguments)
    assert code == 0, err
    assert "10 of 10 steps" in out
    curve = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert curve[-1]["step"] == 10
    assert "miou" in curve[-1]
    photo = next((scenes_folder / "eval" / "images").iterdir())
    code, out, err = run_cli(
        "segment", photo, "--model", tmp_path / "run", "--labels", "ball=ball,sphere", "grass", "snow"
    )
    assert code == 0, err
    written = json.loads((tmp_path / "out" / f"{photo.name}.json").read_text())
    assert sum(label["share"] for label in written["labels"]) == pytest.approx(1)
    code, _, err = run_here(*arguments)
    assert code == 2
    assert "--resume" in err
    code, out, _ = run_here(*arguments, "--resume")
    assert code == 0


def test_an_unknown_run_is_one_line_that_lists_the_known(run_here, scenes_folder):
    code, out, err = run_here("train", "nonsense", "--data", scenes_folder)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert "scenes" in err
    assert "flickr8k" in err


def test_a_folder_without_shards_is_one_line(run_here, tmp_path):
    (tmp_path / "empty").mkdir()
    code, out, err = run_here("train", "debug", "--data", "empty")
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert "empty/train/*.tar: no such shard" in err
    assert not (tmp_path / "runs").exists()


def test_a_run_trains_on_shards_of_any_name(run_here, scenes_folder, tmp_path):
    (tmp_path / "own").mkdir()
    shard = next((scenes_folder / "train").iterdir())
    (tmp_path / "own" / "mine-7.tar").write_bytes(shard.read_bytes())
    options = ("--train", "mine-*.tar", "--held-out", "", "--steps", 2, "--out", "run", "--pictures", 1)
    code, out, err = run_here("train", "debug", "--data", "own", *options, "--patch-dropout", 0.5)
    assert code == 0, err
    assert "2 of 2 steps" in out
    assert "miou" not in (tmp_path / "run" / "metrics.jsonl").read_text()
    assert (tmp_path / "run" / "emergence.png").is_file()
    assert load_model(tmp_path / "run")[1].image.patch_dropout == 0.5


@pytest.mark.parametrize(
    "option",
    [("--steps", 0), ("--batch-size", 1), ("--batch-size", -1), ("--workers", -1), ("--seed", -1), ("--pictures", 0)],
    ids=str,
)
def test_impossible_numbers_are_one_line(run_here, scenes_folder, option):
    code, out, err = run_here("train", "debug", "--data", scenes_folder, *option)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert "at least" in err, err


@pytest.mark.parametrize(
    ("option", "says"),
    [
        (("--steps", 10**8), "steps are at most 99,999,999"),
        (("--patience", 0), "minutes above 0"),
        (("--patience", "nan"), "minutes above 0"),
        (("--patch-dropout", 1), "this run's model cannot be built: patch_dropout is a share of patches"),
        (("--batch-size", 10**15), "a batch of 1000000000000000 photos, of which there are 60: make it smaller"),
    ],
    ids=str,
)
def test_numbers_beyond_any_machine_are_one_line(run_here, scenes_folder, option, says):
    code, out, err = run_here("train", "debug", "--data", scenes_folder, *option)
    assert (code, out) == (2, "")
    (line,) = [line for line in err.splitlines() if not line.startswith("bfloat16 is slower on a processor here")]
    assert says in line


def test_a_file_in_the_place_of_the_output_folder_is_one_line(run_here, scenes_folder, tmp_path):
    (tmp_path / "run").write_text("precious")
    code, _, err = run_here("train", "debug", "--data", scenes_folder, "--out", tmp_path / "run")
    assert code == 2
    assert err.count("\n") == 1
    assert (tmp_path / "run").read_text() == "precious"


def test_scenes_are_written_once(run_here, tmp_path):
    arguments = ("data", "scenes", tmp_path / "set", "--train", 12, "--evaluation", 2)
    code, out, err = run_here(*arguments)
    assert code == 0, err
    assert "12 captioned scenes" in out
    assert run_here(*arguments)[0] == 0
    code, _, err = run_here(*arguments, "--seed", 1)
    assert code == 2
    assert "not empty" in err
