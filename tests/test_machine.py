import platform
import re
import subprocess
import sys
import time

import pytest
import torch

from groupvit import machine
from groupvit.errors import InputError

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


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("CUDA out of memory. Tried"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"),
        Exception("[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Non-zero status: std::bad_alloc"),
    ],
)
def test_every_lack_of_memory_is_one_line(error: Exception) -> None:
    with pytest.raises(InputError, match=r"^out of memory: buy some$"), machine.enough_memory("buy some"):
        raise error


@pytest.mark.parametrize("error", [InputError("the disk: out of memory"), RuntimeError("shapes"), KeyError("a")])
def test_another_error_is_no_lack_of_memory(error: Exception) -> None:
    with pytest.raises(type(error), match=re.escape(str(error))), machine.enough_memory("buy some"):
        raise error


CPU = torch.device("cpu")


@pytest.fixture
def timed(tmp_path, monkeypatch) -> list[bool]:
    """The passes that are timed: those in bfloat16 take one second and the others two."""
    passes = []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(machine, "_seconds", lambda work, bf16: passes.append(bf16) or (1.0 if bf16 else 2.0))
    monkeypatch.setattr(machine, "_ANSWERS", {})
    return passes


def ask_again(kind: str = "linear layer") -> bool:
    """The answer as another process gets it."""
    machine._ANSWERS.clear()
    return machine.bfloat16_is_faster(CPU, kind)


def test_the_answer_is_measured_once_and_kept(timed, tmp_path):
    assert ask_again()
    assert machine.bfloat16_is_faster(CPU)
    assert ask_again()
    assert timed == [False, True] * 3
    (file,) = (tmp_path / "groupvit/bfloat16-is-faster").iterdir()
    file.write_text("False")
    assert not ask_again()


def test_other_work_and_another_pytorch_are_measured_again(timed, monkeypatch):
    ask_again()
    ask_again("another encoder")
    assert len(timed) == 12
    monkeypatch.setattr(torch, "__version__", "0.0")
    ask_again()
    assert len(timed) == 18


def test_where_bfloat16_is_far_slower_two_passes_are_enough(timed, monkeypatch):
    monkeypatch.setattr(machine, "_seconds", lambda work, bf16: timed.append(bf16) or (9.0 if bf16 else 2.0))
    assert not ask_again()
    assert timed == [False, True] * 2


def test_what_an_engine_compiles_at_its_first_call_does_not_count(monkeypatch):
    compiling = iter((2.0, 20.0))
    usual = {False: 2.0, True: 1.0}
    monkeypatch.setattr(machine, "_seconds", lambda work, bf16: next(compiling, usual[bf16]))
    assert ask_again("OpenVINO")


@pytest.mark.parametrize("content", ["", "nonsense"])
def test_an_answer_that_cannot_be_read_is_mended(timed, content):
    file = machine._answer_file("linear layer")
    file.parent.mkdir(parents=True)
    file.write_text(content)  # of a disk that was full
    assert ask_again()
    assert ask_again()
    assert len(timed) == 6


def test_a_cache_that_is_of_no_use_is_no_error(timed, tmp_path, monkeypatch):
    (tmp_path / "groupvit").write_text("a file")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "groupvit"))
    assert ask_again()
    assert ask_again()
    assert len(timed) == 12


def test_of_several_processes_the_first_one_decides(timed, monkeypatch):
    def beaten(work: object, bf16: bool) -> float:
        file = machine._answer_file("linear layer")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("False")
        return 1.0 if bf16 else 2.0

    monkeypatch.setattr(machine, "_seconds", beaten)
    assert not ask_again()


def test_measuring_a_layer_is_quick_and_draws_no_random_numbers():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    began = time.process_time()  # of this process: a busy machine is not its fault
    machine._is_faster(machine._linear_layer())
    assert time.process_time() - began < 2
    assert torch.equal(torch.rand(3), expected)


def test_other_devices_are_taken_to_be_faster_but_gpus_that_imitate_such_numbers(timed, monkeypatch):
    assert machine.bfloat16_is_faster(torch.device("mps"))
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (7, 5))  # a T4
    assert not machine.bfloat16_is_faster(torch.device("cuda"))
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (9, 0))
    assert machine.bfloat16_is_faster(torch.device("cuda"))
    assert not timed
