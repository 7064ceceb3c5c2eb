"""Two or four processes on this machine, connected by gloo, do what one does."""

import json
import os
import shutil
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from groupvit.checkpoints import latest
from groupvit.data import scenes
from groupvit.errors import InputError
from groupvit.training.distributed import ALONE, World, _store_of_this_start, connected, mark_started, restarted
from test_training_step import CASES, RIVALS, gradients

EVERY = {(name, chunk): case for name, case in CASES.items() for chunk in (0, 4)} | {("rivals", 0): RIVALS}

GRADIENTS = """
import sys
from dataclasses import replace
import torch
from test_training_step import KEYS, batch_of, model_of
from test_training_distributed import EVERY
from groupvit.training.distributed import connected
from groupvit.training.step import Learner, gradient_of

with connected() as (world, _):
    found, own = {}, world.own(16)
    for (name, chunk), case in EVERY.items():
        model, (batch, words) = model_of(case, torch.float64), batch_of(case)
        parts = ("images", "captions", "prompts", "present", "known", "human")
        half = {part: getattr(batch, part)[own] for part in parts}
        learner = Learner(model, case.objective, words, world=world).to(torch.float64)
        terms = gradient_of(learner, chunk)(replace(batch, **half), KEYS[own])
        terms = {name: term.detach() for name, term in terms.items()}
        grads = {name: p.grad for name, p in learner.named_parameters() if p.grad is not None}
        found[name, chunk] = terms, grads, dict(learner.named_buffers())
    torch.save(found, f"{sys.argv[1]}/{world.rank}.pt")
"""

TRAINING = """
import os, signal, sys
from pathlib import Path
from test_training_loop import RUN
from groupvit.checkpoints import latest
from groupvit.training import loop
from groupvit.training.distributed import World, connected, restarted
from groupvit.training.run import vary

data, out, killed = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:] == ["killed"]
decide, passed = World.largest, 0

def die(self, number, device):
    global passed
    passed += 1
    if self.rank == 1 and passed == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return decide(self, number, device)

loop.bfloat16_is_faster = lambda device: False
with connected() as (world, device):
    again = restarted(out, world)
    if killed and not again:
        World.largest = die
    run = vary(RUN, save_every=2, ema=0.9)
    if sys.argv[3:] == ["apart"] and not world.rank:  # one of them sees a folder that holds a training
        out = out.with_name("first")
    resume = again or sys.argv[3:] == ["apart"]
    loop.train(run, data, out, workers=0, device=device, world=world, resume=resume and latest(out) is not None)
"""


def torchrun(
    script: str, folder: Path, *arguments: object, processes: int = 2, restarts: int = 0, code: int = 0
) -> str:
    file = folder / "script.py"
    file.write_text(script)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    root = Path(__file__).parents[1]
    paths = os.pathsep.join(map(str, (root / "tests", root / "src", root)))
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, f"--max-restarts={restarts}", "--monitor-interval=0.5", str(file), *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == code, done.stderr
    return done.stderr


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "scenes"
    scenes.write(folder, train=40, evaluation=4)
    return folder


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two trainings of the same run: `one` by one process, `two` by two."""
    folder = tmp_path_factory.mktemp("trained")
    torchrun(TRAINING, folder, data, folder / "one", processes=1)
    torchrun(TRAINING, folder, data, folder / "two")
    return folder


together = pytest.mark.xdist_group("trained")  # on one worker, for the fixture costs three starts of torch


def weights(out: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    folder = latest(out)
    assert folder
    return load_file(folder / "model.safetensors")


def learnt(out: Path) -> Tensor:
    """All weights in a row, but for those of words, of which most are never read."""
    tensors = {name: tensor for name, tensor in weights(out).items() if "token_embedding" not in name}
    return torch.cat([tensor.flatten() for tensor in tensors.values() if tensor.is_floating_point()])


# The last of four has no photo with a human caption.
@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_loss_and_gradients_are_those_of_one_process(tmp_path: Path, processes: int) -> None:
    torchrun(GRADIENTS, tmp_path, tmp_path, processes=processes)
    for rank in range(processes):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert found.keys() == EVERY.keys()
        for (name, chunk), (terms, grads, buffers) in found.items():
            expected_terms, expected, learner = gradients(EVERY[name, chunk], torch.float64)
            for key, value in expected_terms.items():
                torch.testing.assert_close(terms[key], value, atol=1e-10, rtol=0)
            assert grads.keys() == expected.keys()
            for key, gradient in expected.items():
                torch.testing.assert_close(grads[key], gradient, atol=1e-10, rtol=0, msg=f"{name}: {key}")
            for key, value in learner.named_buffers():
                torch.testing.assert_close(buffers[key], value, atol=1e-10, rtol=0)


@together
def test_a_training_ends_with_the_weights_of_one_process(trained: Path) -> None:
    one, two = (learnt(trained / name) for name in ("one", "two"))
    difference = (one - two).abs().sort().values
    # AdamW's steps are as large for a gradient of nothing but rounding, which a few weights have.
    assert difference[int(0.99 * len(one))] < 1e-6
    assert difference[-1] < 5e-3
    assert one.abs().mean() > 0.01
    one, two = (
        [json.loads(line) for line in (trained / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    )
    assert len(one) == len(two) == 1
    assert two[0]["loss"] == pytest.approx(one[0]["loss"], abs=1e-3)


@together
def test_a_killed_process_is_started_again_and_nothing_differs_in_the_end(
    data: Path, trained: Path, tmp_path: Path
) -> None:
    torchrun(TRAINING, tmp_path, data, tmp_path / "killed", "killed", restarts=1)
    undisturbed, killed = weights(trained / "two"), weights(tmp_path / "killed")
    assert undisturbed.keys() == killed.keys()
    assert [name for name in killed if not torch.equal(killed[name], undisturbed[name])] == []


@together
def test_a_training_that_was_there_before_is_not_taken_for_one_to_restart(
    data: Path, trained: Path, tmp_path: Path
) -> None:
    shutil.copytree(trained / "one", tmp_path / "run")
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    said = torchrun(TRAINING, tmp_path, data, tmp_path / "run", processes=1, restarts=1, code=1)
    assert "holds a training" in said
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("others", [[], ["elastic/came/back"]])
def test_only_the_torchrun_that_started_a_training_restarts_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, others: list[str]
) -> None:
    def started_by(folder: str, others: list[str]) -> bool:
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", f"{folder}/attempt_0/0/error.json")
        heard = [str(launcher == "elastic/first") for launcher in others]
        monkeypatch.setattr(World, "texts", lambda self, text: [text, *heard])
        return restarted(tmp_path, ALONE)

    assert not started_by("elastic/first", others)
    mark_started(tmp_path, ALONE)
    assert started_by("elastic/first", others)
    assert not started_by("elastic/second", others)
    assert started_by("elastic/second", [*others, "elastic/first"])


def test_each_start_of_all_processes_has_a_store_of_its_own() -> None:
    shared = dist.HashStore()  # as torchrun's, it keeps what the earlier starts wrote
    with ThreadPoolExecutor(3) as pool:
        for _ in range(3):
            stores = list(pool.map(lambda rank: _store_of_this_start(shared, rank, 3, 20.0), range(3)))
            assert not any(store.check(["address"]) for store in stores)
            stores[0].set("address", "new")
            assert all(store.check(["address"]) for store in stores)


def test_a_process_without_the_others_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    settings = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match="another process is lost or silent"), connected(patience=1.0):
        pass


@pytest.mark.parametrize("address", [None, ""])
def test_processes_without_an_address_are_said(monkeypatch: pytest.MonkeyPatch, address: str | None) -> None:
    for name, value in {"WORLD_SIZE": "2", "RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    if address is not None:
        monkeypatch.setenv("MASTER_ADDR", address)
    with pytest.raises(InputError, match="WORLD_SIZE is set and MASTER_ADDR is not"), connected():
        pass


@pytest.mark.parametrize("port", ["here", "99999999"])
def test_a_port_that_is_none_is_said(monkeypatch: pytest.MonkeyPatch, port: str) -> None:
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": port}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match="MASTER_PORT are set, but not as torchrun does"), connected():
        pass


def test_what_no_torchrun_has_left_restarts_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", "error.json")
    (tmp_path / "torchrun").write_bytes(b"\xff")
    assert not restarted(tmp_path, ALONE)


def test_an_empty_number_of_processes_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR"):
        monkeypatch.setenv(name, "")
    with connected() as (world, _):
        assert (world.rank, world.size) == (0, 1)
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(InputError, match="WORLD_SIZE is no number"), connected():
        pass


@together
def test_processes_that_see_different_checkpoints_do_not_train(data: Path, trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "one", tmp_path / "first")
    said = torchrun(TRAINING, tmp_path, data, tmp_path / "second", "apart", code=1)
    assert "give all the same --data and --out" in said


@pytest.mark.parametrize("count", [0, 1, 7, 8])
def test_every_row_is_in_one_share(count: int) -> None:
    whole = torch.arange(2 * count).reshape(count, 2)
    shares = [World(rank, 3).share(whole) for rank in range(3)]
    assert len({share.shape for share in shares}) == 1
    assert torch.equal(torch.cat(shares)[:count], whole)
