"""The table of collapses must say what the metrics say."""

import json
from itertools import islice
from pathlib import Path

from experiments.collapse import told, two_words


def metrics(file: Path, scores: list[float], warnings: dict[int, str]) -> Path:
    lines: list[dict[str, object]] = []
    for step, score in enumerate(scores, start=1):
        warning = {"warning": warnings[10 * step]} if 10 * step in warnings else {}
        lines += [{"step": 10 * step, "loss": 1.0, **warning}, {"step": 10 * step, "miou": score}]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def test_the_first_alarm_stands_beside_the_score_at_that_step(tmp_path: Path):
    row = told(metrics(tmp_path / "m", [20.0, 18.0, 9.0, 4.0], {20: "first", 40: "second"}), 20.0)
    assert list(row.values()) == [20, "first", "18.0", 30, "20.0 to 4.0"]


def test_a_training_that_keeps_its_score_has_nothing_to_tell(tmp_path: Path):
    assert list(told(metrics(tmp_path / "m", [21.0, 22.0], {}), 20.0).values()) == [
        "none",
        "",
        "",
        "never",
        "20.0 to 22.0",
    ]


def test_pictures_of_two_words_have_one_of_them_for_a_caption():
    assert {sample.captions for sample in islice(two_words(), 20)} == {("a ball",), ("a house",)}
