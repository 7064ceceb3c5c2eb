from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from experiments import command

from groupvit.errors import InputError
from groupvit.training.run import vary
from groupvit.training.runs import get_run


def test_a_training_that_is_stopped_ends_the_script_and_a_whole_one_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, ended = vary(get_run("debug"), steps=10), iter((4, 10))
    monkeypatch.setattr(command, "train", lambda *_, **__: SimpleNamespace(step=next(ended)))
    with pytest.raises(KeyboardInterrupt):
        command.finish(run, tmp_path, tmp_path / "out")
    command.finish(run, tmp_path, tmp_path / "out")
    (tmp_path / "out/step-00000010").mkdir(parents=True)
    (tmp_path / "out/latest").write_text("step-00000010")
    command.finish(run, tmp_path, tmp_path / "out")
    assert next(ended, None) is None


def test_a_whole_training_of_other_steps_is_not_prolonged(tmp_path: Path) -> None:
    run = vary(get_run("debug"), steps=10)
    (tmp_path / "step-00000004").mkdir()
    (tmp_path / "latest").write_text("step-00000004")
    torch.save({"identity": {"schedule": {"steps": 4}}}, tmp_path / "step-00000004/training.pt")
    with pytest.raises(InputError, match="holds a training of 4 steps, not of 10: name another --out"):
        command.finish(run, tmp_path, tmp_path)
