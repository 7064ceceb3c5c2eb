import subprocess
import sys
from pathlib import Path

import pytest
from torch import nn

from groupvit.models import build_model
from groupvit.training.runs import get_run
from groupvit.training.step import compile_blocks

# A process of its own: the checks of shapes that all tests run with cannot be compiled.
PROGRAM = """
from dataclasses import replace

import torch

from groupvit.data.batches import Batch
from groupvit.models import Stage, build_model, noise
from groupvit.text.tokenizer import Tokenizer
from groupvit.training.objective import Vocabulary
from groupvit.training.runs import get_run
from groupvit.training.step import Learner, compile_blocks, gradient_of

run = get_run("debug")
deep = replace(run.model.image, stages=(Stage(6, 16, 16),), drop_path=0.3)
run = replace(run, model=replace(run.model, image=deep))
tokenizer = Tokenizer(run.model.text.context_length)
words = Vocabulary.from_counts({"dog": 10, "cat": 5, "grass": 7}, 20, tokenizer)
plain, compiled = build_model(run.model).train(), build_model(run.model).train()
compiled.load_state_dict(plain.state_dict())
assert compile_blocks(compiled)
assert compiled.state_dict().keys() == plain.state_dict().keys()


def same(ours, expected):
    torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-5)


def step(photos, text, bfloat16, chunk):
    images = torch.randint(0, 256, (photos, 3, 64, 64), generator=torch.Generator().manual_seed(photos)).byte()
    none = tokenizer([]).reshape(photos, 0, 32)
    present = torch.arange(3 * photos).view(photos, 3) % 5 > 2
    human = torch.ones(photos, dtype=torch.bool)
    batch = Batch(images, tokenizer([text] * photos), none, present, torch.ones_like(present), human)
    keys = noise.sample_keys(0, 0, torch.arange(photos))
    for model in (plain, compiled):
        model.zero_grad()
        gradient_of(Learner(model, run.objective, words, bfloat16), chunk)(batch, keys)
    return [(ours.grad, other.grad) for ours, other in zip(compiled.parameters(), plain.parameters())]


def all_ways(photos, text):
    for bfloat16 in (False, True):
        for chunk in (0, 4):
            pairs = step(photos, text, bfloat16, chunk)
            assert all((ours is None) == (expected is None) for ours, expected in pairs)
            ours, expected = (torch.cat([x.flatten() for x in each if x is not None]) for each in zip(*pairs))
            # Rounding may move a patch to another group.
            assert torch.cosine_similarity(ours, expected, dim=0) > (0.9 if bfloat16 else 0.999)
    for model in (plain, compiled):
        model.eval()
    images, texts = torch.rand(photos // 4, 3, 64, 64), tokenizer([text] * photos)
    with torch.inference_mode():
        given = [model.image_encoder(images).ungrouped[0].segments for model in (compiled, plain)]
        same(*given)
        same(compiled.text_encoder(texts), plain.text_encoder(texts))
    for model in (plain, compiled):
        model.train()


torch._dynamo.config.fail_on_recompile_limit_hit = True
all_ways(4, "a dog")
all_ways(8, "a dog runs")
all_ways(12, "a cat and a dog on the grass")
with torch.compiler.set_stance("fail_on_recompile"):
    all_ways(16, "a dog on the grass")
    all_ways(24, "a cat and a dog on green grass under a tree")
assert not torch._dynamo.utils.counters["graph_break"]
images, keys = torch.rand(8, 3, 64, 64), noise.sample_keys(0, 0, torch.arange(8))
for model in (plain, compiled):
    model.zero_grad()
    given = model.image_encoder(images, keys).ungrouped[0].segments  # rounding may change what comes after
    text = model.text_encoder(tokenizer(["a dog"] * 3))
    (given.square().mean() + text.square().mean()).backward()
for ours, expected in zip(compiled.parameters(), plain.parameters()):
    assert (ours.grad is None) == (expected.grad is None)
    if ours.grad is not None:
        same(ours.grad, expected.grad)
"""


@pytest.mark.slow
def test_compiled_blocks_make_the_same_numbers_and_no_batch_compiles_them_again(tmp_path: Path):
    (tmp_path / "program.py").write_text(PROGRAM)
    subprocess.run([sys.executable, tmp_path / "program.py"], check=True)


def test_a_machine_without_a_compiler_is_told_and_trains_on(monkeypatch, capsys):
    def fails(module: nn.Module) -> None:
        raise RuntimeError("backend='inductor' raised:\nno C++ compiler\n\n")

    model = build_model(get_run("debug").model)
    monkeypatch.setattr(nn.Module, "compile", fails)
    assert not compile_blocks(model)
    assert capsys.readouterr().err == "cannot compile here, training goes on without: no C++ compiler\n"
