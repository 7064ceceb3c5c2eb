"""Several hosts that train one model, whose links are cut and which are switched off: does each training end well?

    python -m experiments.hosts --record      # a table of docs/RELIABILITY.md; needs root and `ip` (iproute2)

A host is a network namespace of this machine; a bridge joins them. All compute in float64, so that the weights of
several hosts can be compared with those of one process.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import tyro
from experiments.kills import PHOTOS, RUN, step_of
from experiments.record import commit, report_table
from safetensors.torch import load_file

from groupvit.checkpoints import latest
from groupvit.cli import main as groupvit
from groupvit.data import scenes
from groupvit.training import loop, runs
from groupvit.training.run import vary

STEPS, PATIENCE, LIMIT = 21, 60, 480  # seconds of patience; a case that takes longer than the limit hangs

ENVIRONMENT = {"GLOO_SOCKET_IFNAME": "eth0", "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
# Without the last one, hosts that were there before do not tell a new one where to connect.


def possible() -> bool:
    """Return True if this user may make network namespaces here."""
    if os.geteuid() or not shutil.which("ip"):
        return False
    made = not _ip(f"netns add try{os.getpid()}", check=False)
    return made and not _ip(f"netns del try{os.getpid()}")


def _ip(command: str, check: bool = True) -> int:
    return subprocess.run(["ip", *command.split()], check=check, capture_output=True).returncode


@dataclass
class Hosts:
    """Hosts 10.77.0.1, 10.77.0.2, … on one switch, and the torchruns that were started there."""

    folder: Path
    count: int
    name: str = field(default_factory=lambda: f"gv{os.getpid()}")
    started: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)

    def switch_on(self, host: int) -> None:
        """Boot a host, without a process."""
        space = f"{self.name}-{host}"
        _ip(f"netns add {space}")
        _ip(f"-n {space} link add eth0 type veth peer name port{host} netns {self.name}")
        _ip(f"-n {space} addr add 10.77.0.{host}/24 dev eth0")
        for device in ("lo", "eth0"):
            _ip(f"-n {space} link set {device} up")
        _ip(f"-n {self.name} link set port{host} master switch up")
        # torchrun itself waits for Linux to give a connection up: 100 seconds now, 15 minutes by default
        _ip(f"netns exec {space} sysctl -qw net.ipv4.tcp_retries2=8")

    def switch_off(self, host: int) -> None:
        """Let a host vanish: its processes die, and no packet says so."""
        space = f"{self.name}-{host}"
        _ip(f"-n {self.name} link del port{host}", check=False)
        pids = subprocess.run(["ip", "netns", "pids", space], capture_output=True, text=True, check=False).stdout
        for pid in map(int, pids.split()):
            os.kill(pid, signal.SIGKILL)
        if child := self.started.pop(host, None):
            child.wait()
        _ip(f"netns del {space}", check=False)

    def cut(self, host: int) -> None:
        """Let a host's packets get lost in the switch."""
        _ip(f"-n {self.name} link set port{host} nomaster")

    def join(self, host: int) -> None:
        """Undo a cut."""
        _ip(f"-n {self.name} link set port{host} master switch")

    def train(self, host: int, *options: str, restarts: int = 0) -> None:
        """Start torchrun on a host."""
        conf = f"is_host={int(host == 1)},join_timeout=90,read_timeout={PATIENCE}"
        torchrun = f"""ip netns exec {self.name}-{host} {sys.executable} -m torch.distributed.run
            --nnodes {self.count} --nproc-per-node 1 --max-restarts {restarts} --monitor-interval 0.5 --rdzv-id hosts
            --rdzv-backend c10d --rdzv-endpoint 10.77.0.1:29500 --rdzv-conf {conf} --local-addr 10.77.0.{host}
            -m experiments.hosts"""
        command = [*torchrun.split(), *training(self.folder, self.folder / "out"), *options]
        with (self.folder / f"host{host}.log").open("ab") as log:
            self.started[host] = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | ENVIRONMENT)

    def train_all(self, *options: str, restarts: int = 0) -> None:
        """Start torchrun on every host."""
        for host in range(1, self.count + 1):
            self.train(host, *options, restarts=restarts)

    def wait(self) -> list[int]:
        """Return the exit codes; a torchrun that hangs is an error."""
        deadline = time.monotonic() + LIMIT
        codes = [child.wait(max(1, deadline - time.monotonic())) for child in self.started.values()]
        self.started.clear()
        return codes

    def wait_for_step(self, step: int) -> None:
        """Wait for a checkpoint."""
        deadline = time.monotonic() + LIMIT
        while step_of(self.folder / "out") < step:
            if time.monotonic() > deadline or any(child.poll() for child in self.started.values()):
                raise RuntimeError(f"no checkpoint at step {step}: {self.said()}")
            time.sleep(0.1)

    def said(self) -> str:
        """Return the trainings' own lines about what went wrong."""
        lines = "".join(log.read_text() for log in sorted(self.folder.glob("*.log"))).splitlines()
        return "; ".join(dict.fromkeys(re.sub(r" \(.*", "", line) for line in lines if line.startswith("groupvit: ")))


@contextmanager
def hosts(folder: Path, count: int) -> Iterator[Hosts]:
    """Make hosts, and remove them with all that runs there."""
    made = Hosts(folder, count)
    try:
        _ip(f"netns add {made.name}")
        _ip(f"-n {made.name} link add switch type bridge")
        _ip(f"-n {made.name} link set switch up")
        for host in range(1, count + 1):
            made.switch_on(host)
        yield made
    finally:
        for host in range(1, count + 1):
            made.switch_off(host)
        _ip(f"netns del {made.name}", check=False)


def training(folder: Path, out: Path) -> list[str]:
    """Return the arguments of a training, which this script runs in float64."""
    options = f"--held-out= --workers 0 --steps {STEPS} --patience {PATIENCE / 60}"
    return ["train", "hosts", "--data", str(folder / "data"), "--out", str(out), *options.split()]


def undisturbed(net: Hosts) -> None:
    """Train."""
    net.train_all()


def link_cut_for_ten_seconds(net: Hosts) -> None:
    """Cut the second host off, for less than what the others wait."""
    net.train_all()
    net.wait_for_step(7)
    net.cut(2)
    time.sleep(10)
    net.join(2)


def link_cut_for_good(net: Hosts) -> None:
    """Cut the second host off, wait until all have given up, repair the link and resume."""
    net.train_all()
    net.wait_for_step(7)
    net.cut(2)
    assert all(net.wait()), "a training ended well without its second half"
    net.join(2)
    net.train_all("--resume")


def host_lost_and_back(net: Hosts) -> None:
    """Switch the second host off and on; only there torchrun is started again."""
    net.train_all(restarts=2)
    net.wait_for_step(7)
    net.switch_off(2)
    net.switch_on(2)
    net.train(2, restarts=2)


def first_host_lost(net: Hosts) -> None:
    """Switch off the host where torchrun's processes meet, wait until all have given up, and resume."""
    net.train_all(restarts=2)
    net.wait_for_step(7)
    net.switch_off(1)
    assert all(net.wait()), "a training ended well without its first half"
    net.switch_on(1)
    net.train_all("--resume")


CASES: dict[str, tuple[int, Callable[[Hosts], None]]] = {
    "nothing": (2, undisturbed),
    "nothing, four hosts": (4, undisturbed),
    "link of one host cut for 10 s": (2, link_cut_for_ten_seconds),
    "link of one host cut for good; repaired, and all started with `--resume`": (2, link_cut_for_good),
    "host switched off and on; torchrun started there again": (2, host_lost_and_back),
    "first host switched off and on; all started with `--resume`": (2, first_host_lost),
}


def weights(out: Path) -> torch.Tensor:
    """Return the weights of the newest checkpoint in a row."""
    folder = latest(out)
    assert folder
    tensors = load_file(folder / "model.safetensors")
    return torch.cat([tensor.flatten() for tensor in tensors.values() if tensor.is_floating_point()])


def alone(folder: Path) -> torch.Tensor:
    """Make the data; return the weights that one process ends with."""
    scenes.write(folder / "data", train=PHOTOS, evaluation=1)
    subprocess.run([sys.executable, "-m", "experiments.hosts", *training(folder, folder / "alone")], check=True)
    return weights(folder / "alone")


def measure(folder: Path, fault: str, expected: torch.Tensor) -> dict[str, Any]:
    """Train on several hosts, with a fault; compare the weights with those of one process."""
    shutil.rmtree(folder / "out", ignore_errors=True)
    for log in folder.glob("*.log"):
        log.unlink()
    count, case = CASES[fault]
    began = time.monotonic()
    with hosts(folder, count) as net:
        case(net)
        codes = net.wait()
        said = net.said()
    if any(codes) or step_of(folder / "out") != STEPS:
        raise RuntimeError(f"{fault}: exit codes {codes}, step {step_of(folder / 'out')}: {said}")
    return {
        "fault": fault,
        "hosts": count,
        "seconds": round(time.monotonic() - began),
        "it says": said.replace("groupvit: ", "") or "nothing",
        "largest difference from one process": f"{(weights(folder / 'out') - expected).abs().max():.0e}",
    }


def main(only: str = "", record: bool = False) -> None:
    """Try every case.

    Args:
        only: Cases whose name has this in it.
        record: Write the result into docs/RELIABILITY.md and docs/results.json.
    """
    if not possible():
        raise SystemExit("error: network namespaces need root and ip (apt-get install iproute2)")
    began = commit() if record else ""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # the hosts are removed then, too
    with tempfile.TemporaryDirectory() as folder:
        expected = alone(Path(folder))
        rows = [measure(Path(folder), fault, expected) for fault in CASES if only in fault]
    report_table("RELIABILITY.md", "hosts", rows, began)


if __name__ == "__main__":
    if sys.argv[1:2] == ["train"]:
        torch.set_default_dtype(torch.float64)
        loop.bfloat16_is_faster = lambda device: False
        runs.RUNS["hosts"] = vary(RUN, lr=3e-5)  # AdamW's steps are not 0 where a gradient is only rounding
        groupvit(sys.argv[1:])
    else:
        tyro.cli(main)
