import os

os.environ["OMP_NUM_THREADS"] = (
    "1"  # before torch is loaded; child processes inherit it. The workers are the parallelism.
)

import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import torch

from groupvit import cli

REPOSITORY = Path(__file__).resolve().parents[1]
_CACHE = tempfile.TemporaryDirectory()
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
os.environ["XDG_CACHE_HOME"] = _CACHE.name  # indexes of shards; nothing a test makes stays in the user's own


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Types as users have them, without the check of signatures that tests make."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session", autouse=True)
def sizes_are_tensors_in_a_trace() -> Iterator[None]:
    """Exports to ONNX without the check of shapes, to which a size that is traced is no number."""
    export = torch.onnx.export

    def unchecked(*arguments: Any, **options: Any) -> Any:
        jaxtyping.config.update("jaxtyping_disable", True)
        try:
            return export(*arguments, **options)
        finally:
            jaxtyping.config.update("jaxtyping_disable", False)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.onnx, "export", unchecked)
        yield


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Real photos and captions: the folder GROUPVIT_DATA, or ../shared/data beside the repository."""
    folder = Path(os.environ.get("GROUPVIT_DATA", REPOSITORY / "../shared/data"))
    if not folder.is_dir():
        pytest.skip(f"no data in {folder}")
    return folder.resolve()


@pytest.fixture
def run_cli(tmp_path: Path) -> Callable[..., tuple[int, str, str]]:
    """Runs `groupvit ARGUMENT...` as a user would, in tmp_path; gives its exit code, stdout and stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        command = [sys.executable, "-m", "groupvit", *map(str, arguments)]
        environment = os.environ | {"COLUMNS": "120", "PYTHONWARNINGS": "default"}
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment, timeout=600)
        return done.returncode, done.stdout, done.stderr

    return run


@pytest.fixture
def run_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Does as `run_cli`, but in this process, which takes seconds less."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")

    def run(*arguments: object) -> tuple[int, str, str]:
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            with pytest.raises(SystemExit) as end:
                cli.main([*map(str, arguments)])
        return int(end.value.code or 0), *capsys.readouterr()

    return run
