from pathlib import Path
from types import SimpleNamespace

import pytest
from experiments import command

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
