"""Figures for the docs, each with what it takes to get it again."""

import json
import platform
import shlex
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

import torch

from groupvit.checkpoints.native import write_json

RESULTS = Path(__file__).parents[1] / "docs/results.json"


def commit() -> str:
    """What was checked out; to be asked when a measurement begins."""
    command = ["git", "describe", "--always", "--dirty"]
    return subprocess.run(command, cwd=RESULTS.parent, capture_output=True, text=True, check=True).stdout.strip()


def record_results(name: str, values: dict[str, Any], commit: str) -> None:
    """Store `values` under `name` in docs/results.json, with the command, the commit and the machine."""
    results = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    module = Path(sys.argv[0]).stem
    results[name] = {
        **values,
        "command": f"python -m experiments.{module} {shlex.join(sys.argv[1:])}".strip(),
        "commit": commit,
        "date": date.today().isoformat(),
        "machine": machine(),
    }
    write_json(RESULTS, results)


def machine() -> str:
    """Processor, threads and torch, as one line."""
    processor = "unknown processor"
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), processor)
    return f"{processor}, {torch.get_num_threads()} threads, {platform.system()}, torch {torch.__version__}"
