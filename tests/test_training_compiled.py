import subprocess
import sys
from pathlib import Path

import pytest
from torch import nn

from groupvit.models import build_model
from groupvit.training.compiled import compile_blocks
from groupvit.training.runs import get_run

# A process of its own: the checks of shapes that all tests run with cannot be compiled.
PROGRAM = """
import torch
from groupvit.models import build_model, noise
from groupvit.training.compiled import compile_blocks
from groupvit.training.runs import get_run

def texts(length, count=3):
    tokens = torch.zeros(count, 32, dtype=torch.long)
    tokens[:, :length] = torch.arange(1, length + 1)
    tokens[:, length - 1] = 49407
    return tokens

def same(ours, expected):
    torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-5)

config = get_run("debug").model
plain, compiled = build_model(config).train(), build_model(config).train()
compiled.load_state_dict(plain.state_dict())
assert compile_blocks(compiled)
assert compiled.state_dict().keys() == plain.state_dict().keys()
images, keys = torch.randn(4, 3, 64, 64), noise.sample_keys(0, 0, torch.arange(4))
for model in (plain, compiled):
    given = model.image_encoder(images, keys).ungrouped[0].segments  # rounding may change what comes after
    (given.square().mean() + model.text_encoder(texts(9)).square().mean()).backward()
for ours, expected in zip(compiled.parameters(), plain.parameters()):
    assert (ours.grad is None) == (expected.grad is None)
    if ours.grad is not None:
        same(ours.grad, expected.grad)
same(compiled.text_encoder(texts(5)), plain.text_encoder(texts(5)))
with torch.compiler.set_stance("fail_on_recompile"):
    for length, count in ((12, 3), (7, 5), (32, 2)):
        same(compiled.text_encoder(texts(length, count)), plain.text_encoder(texts(length, count)))
"""


@pytest.mark.slow
def test_compiled_blocks_make_the_same_numbers_and_no_text_compiles_them_again(tmp_path: Path):
    (tmp_path / "program.py").write_text(PROGRAM)
    subprocess.run([sys.executable, tmp_path / "program.py"], check=True)


def test_a_machine_without_a_compiler_is_told_and_trains_on(monkeypatch, capsys):
    def fails(module: nn.Module) -> None:
        raise RuntimeError("backend='inductor' raised:\nno C++ compiler\n\n")

    model = build_model(get_run("debug").model)
    monkeypatch.setattr(nn.Module, "compile", fails)
    assert not compile_blocks(model)
    assert capsys.readouterr().err == "cannot compile here, training goes on without: no C++ compiler\n"
