import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from groupvit.machine import has_bfloat16

PROGRAM = """
import sys
from groupvit.machine import keep_memory

def held():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS"))

if sys.argv[1] == "keep":
    keep_memory()
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


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="Linux says what the processor has")
def test_bfloat16_is_what_the_processor_says() -> None:
    flags = set(Path("/proc/cpuinfo").read_text().split())
    if "avx2" in flags:  # x86
        assert has_bfloat16(torch.device("cpu")) == bool(flags & {"avx512_bf16", "amx_tile"})
