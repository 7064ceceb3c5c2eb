import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from groupvit.data.workers import mapped
from groupvit.errors import InputError

PROGRAM = """
import os, time
from groupvit.data.workers import mapped

def work(folder):
    open(f"{folder}/{os.getpid()}", "w").close()
    time.sleep(60)

if __name__ == "__main__":
    list(mapped(work, [os.environ["FOLDER"]] * 2, 2))
"""

INTERRUPTED = """
import os, signal
from multiprocessing import active_children
from groupvit.data.workers import mapped

if __name__ == "__main__":
    for _ in range(5):
        try:
            for _ in mapped(str, range(2000), 2):
                for process in active_children():
                    os.kill(process.pid, signal.SIGINT)
                raise KeyboardInterrupt
        except KeyboardInterrupt:
            pass
"""


def double(number: int) -> int:
    return 2 * number


def die(number: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("processes", [1, 2])
def test_results_come_in_order(processes):
    assert list(mapped(double, range(20), processes)) == list(range(0, 40, 2))


def test_a_process_that_is_killed_is_one_line():
    with pytest.raises(InputError, match="was killed, for want of memory perhaps; try again with fewer processes"):
        list(mapped(die, [1, 2], 2))


def test_a_thread_that_pins_the_batch_of_a_killed_process_is_one_line(monkeypatch: pytest.MonkeyPatch):
    def ended(_: object) -> object:
        raise RuntimeError("Pin memory thread exited unexpectedly")

    monkeypatch.setattr("torch.utils.data.dataloader._BaseDataLoaderIter.__next__", ended)
    with pytest.raises(InputError, match="a process that reads data was killed"):
        list(mapped(double, [1, 2], 2))


def without_room(number: int) -> None:
    raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")


def test_shared_memory_that_is_full_is_one_line():
    with pytest.raises(InputError, match=r"no room in /dev/shm.* --workers 0 .*--shm-size"):
        list(mapped(without_room, [1, 2], 2))


def test_processes_that_cannot_start_are_one_line(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("torch.utils.data.DataLoader.__iter__", lambda _: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(InputError, match=r"cannot start the processes .*full.* --workers 0 "):
        list(mapped(double, [1, 2], 2))


def test_an_interruption_of_all_processes_is_silent(tmp_path: Path):
    (tmp_path / "program.py").write_text(INTERRUPTED)
    program = [sys.executable, tmp_path / "program.py"]
    done = subprocess.run(program, capture_output=True, text=True, check=True, timeout=300)
    assert (done.stdout, done.stderr) == ("", "")


def keeps_interrupts(_: int = 0) -> bool:
    return signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_no_interruption_reaches_a_process_that_may_hold_a_lock():
    assert list(mapped(keeps_interrupts, range(4), 2)) == [True] * 4
    assert not keeps_interrupts()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_processes_end_with_their_parent(tmp_path: Path, number: int):
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "pids").mkdir()
    environment = os.environ | {"FOLDER": str(tmp_path / "pids")}
    parent = subprocess.Popen([sys.executable, tmp_path / "program.py"], env=environment)
    deadline = time.monotonic() + 60
    while len(pids := list((tmp_path / "pids").iterdir())) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    parent.send_signal(number)
    parent.wait()
    while any(alive(int(pid.name)) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False
