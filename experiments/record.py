"""Figures for the docs, each with what it takes to get it again."""

import json
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

DOCS = Path(__file__).parents[1] / "docs"
RESULTS = DOCS / "results.json"
CONSOLE = Console(stderr=True)
"""Where scripts say what they are at."""


def commit() -> str:
    """Return the commit, marked if the code has changed since; ask when a measurement begins."""

    def git(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["git", *arguments], cwd=DOCS.parent, capture_output=True, text=True, check=False)

    changed = git("diff", "--quiet", "HEAD", "--", "src", "experiments", "benchmarks").returncode
    return git("describe", "--always").stdout.strip() + ("-dirty" if changed else "")


def record_results(name: str, values: dict[str, Any], commit: str) -> None:
    """Store `values` under `name` in docs/results.json, with the command, the commit and the machine."""
    results = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    script = Path(sys.argv[0])
    arguments = re.sub(r"(?<=[ '])(/|\.\./)[^ ']*/", "FOLDER/", f" {shlex.join(sys.argv[1:])}").strip()
    results[name] = {
        **values,
        "command": f"python -m {script.parent.name}.{script.stem} {arguments}".strip(),
        "commit": commit,
        "date": date.today().isoformat(),
        "machine": machine(),
    }
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")


def machine() -> str:
    """Return GPU, processor, threads and torch in one line."""
    import torch  # here: a script that needs none of it measures its own memory

    processor = "unknown processor"
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), processor)
    gpu = f"{torch.cuda.get_device_name()}, " if torch.cuda.is_available() else ""
    return f"{gpu}{processor}, {torch.get_num_threads()} threads, {platform.system()}, torch {torch.__version__}"


def print_rows(rows: Sequence[dict[str, Any]]) -> None:
    """Print the rows as a table on the terminal."""
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*map(str, row.values()))
    Console(width=100).print(table)


def write_table(document: Path, name: str, rows: Sequence[dict[str, Any]]) -> None:
    """Replace the table below `<!-- table: NAME -->` in a document."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(row.values() for row in rows)]
    table = "".join("| " + " | ".join(map(str, line)) + " |\n" for line in lines)
    text = document.read_text(encoding="utf-8")
    changed, found = re.subn(rf"(<!-- table: {name} -->\n)(?:\|.*\n)*", lambda match: match[1] + table, text)
    if found != 1:
        raise ValueError(f"{document} has {found} places for the table {name}")
    document.write_text(changed, encoding="utf-8")


def report_table(document: str, name: str, rows: Sequence[dict[str, Any]], commit: str) -> None:
    """Print the rows, and record them (`record_table`) unless the `commit` at which the measurement began is blank."""
    print_rows(rows)
    if commit:
        record_table(document, name, rows, commit)


def record_table(document: str, name: str, rows: Sequence[dict[str, Any]], commit: str) -> None:
    """Write the rows into docs/results.json and into a document of docs/ (`write_table`)."""
    record_results(name, {"rows": rows}, commit)
    write_table(DOCS / document, name, rows)
