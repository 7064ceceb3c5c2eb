"""The README cannot rot: its commands are run.

Each ```bash or ```python block stands below `<!-- test -->` or `<!-- not run: REASON -->`.
What is run is run by itself, in a fresh copy of the repository.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from experiments.scenes import mean_and_range

REPOSITORY = Path(__file__).resolve().parents[1]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
LANGUAGES = "bash|sh|shell|console|python"
BLOCK = re.compile(
    rf"(?:^(?P<comment><!--[^\n]*-->)\n+)?^```(?P<language>{LANGUAGES})\n(?P<code>.*?)^```$", re.M | re.S
)
BLOCKS = [match.groupdict() for match in BLOCK.finditer(README)]
TESTED = [block for block in BLOCKS if block["comment"] == "<!-- test -->"]


def test_every_block_says_whether_it_is_run() -> None:
    said = re.compile("<!-- (test|not run: .+) -->")
    assert [block["code"] for block in BLOCKS if not said.fullmatch(block["comment"] or "")] == []
    assert len(BLOCKS) == len(re.findall(rf"^\s*```({LANGUAGES})", README, re.M)), "a block is indented or has no end"


@pytest.mark.parametrize("block", TESTED, ids=lambda block: block["code"].strip().splitlines()[-1][:60])
def test_a_block_of_the_readme_runs(block: dict[str, str], tmp_path: Path) -> None:
    copy = tmp_path / "groupvit"
    shutil.copytree(
        REPOSITORY, copy, ignore=shutil.ignore_patterns(".*", "__pycache__", "runs", "out", "build", "dist")
    )
    shell = [sys.executable, "-c"] if block["language"] == "python" else ["bash", "-euo", "pipefail", "-c"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [*shell, block["code"]], cwd=copy, env=os.environ | {"PATH": path}, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr


DOCUMENTS = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]


COLUMNS = {"mIoU": "miou", "things": "things", "grounds": "grounds", "groups with the best names": "best_names"}
COLUMNS |= {"95 %": "interval", "groups in a photo": "groups"}


TEXT = "\n".join(path.read_text() for path in DOCUMENTS)
RESULTS = json.loads((REPOSITORY / "docs/results.json").read_text())


def test_figures_in_tables_are_the_measured_ones() -> None:
    """Below `<!-- results: NAME NAME -->` stand rows of docs/results.json: means of seeds."""
    found = re.findall(r"<!-- results: (.+?) -->\n(.*?\n)\n", TEXT + "\n", re.S)
    assert len(found) == TEXT.count("<!-- results: ") > 0
    for names, table in found:
        measured = {label: seeds for name in names.split() for label, seeds in RESULTS[name]["rows"].items()}
        header, _, *rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
        assert rows
        for label, *cells in rows:
            for column, cell in zip(header[1:], cells, strict=True):
                values = [seed[COLUMNS[column]] for seed in measured[label]] if cell else []
                if column == "95 %":
                    values = ["{:.1f} to {:.1f}".format(*each) for each in values]
                elif column == "groups in a photo":
                    values = [f"{each:.0f}" for each in values]
                elif values:
                    values = [mean_and_range(values)]
                assert [cell] == (values or [""]), (label, column)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_tables_that_a_script_writes_are_those_that_it_recorded(document: Path) -> None:
    results = json.loads((REPOSITORY / "docs/results.json").read_text())
    for name, table in re.findall(r"<!-- table: ([\w-]+) -->\n((?:\|.*\n)*)", document.read_text()):
        rows = results[name]["rows"]
        header, _, *lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
        assert [[str(row[column]) for column in header] for row in rows] == lines
