import platform
import subprocess
import sys

import pytest
import torch

from groupvit import machine

PROGRAM = """
import sys
from groupvit.machine import keep_freed_memory

def held():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS"))

if sys.argv[1] == "keep":
    keep_freed_memory()
block = bytearray(20_000_000)
full = held()
del block
print(full - held())
"""


def given_back(how: str) -> int:
    """Kilobytes of 20 MB that the process gives back when it frees them."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc")
def test_freed_memory_stays_with_the_process() -> None:
    assert given_back("usual") > 15_000
    assert given_back("keep") < 3_000


CPU = torch.device("cpu")


@pytest.fixture
def timed(tmp_path, monkeypatch) -> list[bool]:
    """The layers that are timed, of which the one in bfloat16 takes a second and the other one two."""
    layers = []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(machine, "_seconds_of_a_layer", lambda bf16: layers.append(bf16) or (1.0 if bf16 else 2.0))
    machine.bfloat16_is_faster.cache_clear()
    yield layers
    machine.bfloat16_is_faster.cache_clear()


def test_the_answer_is_measured_once_and_kept(timed, tmp_path) -> None:
    for _ in range(3):
        machine.bfloat16_is_faster.cache_clear()
        assert machine.bfloat16_is_faster(CPU)
    assert timed == [True, False]
    (file,) = (tmp_path / "groupvit").iterdir()
    file.write_text("False")
    machine.bfloat16_is_faster.cache_clear()
    assert not machine.bfloat16_is_faster(CPU)


def test_another_pytorch_is_measured_again(timed, monkeypatch) -> None:
    machine.bfloat16_is_faster(CPU)
    machine.bfloat16_is_faster.cache_clear()
    monkeypatch.setattr(torch, "__version__", "0.0")
    machine.bfloat16_is_faster(CPU)
    assert len(timed) == 4


@pytest.mark.parametrize("broken", ["no folder", "nonsense"])
def test_a_cache_that_is_of_no_use_is_no_error(timed, tmp_path, broken, monkeypatch) -> None:
    if broken == "no folder":
        (tmp_path / "groupvit").write_text("a file")
    else:
        machine._answer_file().parent.mkdir()
        machine._answer_file().write_text(broken)
    for _ in range(2):
        machine.bfloat16_is_faster.cache_clear()
        assert machine.bfloat16_is_faster(CPU)
    assert len(timed) == 4


def test_measuring_is_quick_and_draws_no_random_numbers() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    assert machine._seconds_of_a_layer(bf16=True) + machine._seconds_of_a_layer(bf16=False) < 0.5
    assert torch.equal(torch.rand(3), expected)


def test_other_devices_are_taken_to_be_faster(timed) -> None:
    assert machine.bfloat16_is_faster(torch.device("cuda"))
    assert not timed
