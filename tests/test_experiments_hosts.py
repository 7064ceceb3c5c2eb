"""Hosts made of network namespaces: the cases of experiments/hosts.py that two hosts show."""

from contextlib import suppress
from pathlib import Path

import pytest
from experiments import hosts
from torch import Tensor

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hosts.possible(), reason="network namespaces need root and ip"),
]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tensor]:
    folder = tmp_path_factory.mktemp("hosts")
    return folder, hosts.alone(folder)


@pytest.mark.parametrize("fault", [fault for fault, (count, _) in hosts.CASES.items() if count == 2])
def test_two_hosts_end_with_the_weights_of_one_process(alone: tuple[Path, Tensor], fault: str) -> None:
    row = hosts.measure(alone[0], fault, alone[1])
    assert float(row["largest difference from one process"]) <= 1e-10
    assert ("another process is lost" in row["it says"]) == (fault not in ("nothing", "link of one host cut for 10 s"))


def spaces(name: str) -> list[str]:
    listed = subprocess.run(["ip", "netns", "list"], check=True, capture_output=True, text=True).stdout
    return [line for line in listed.splitlines() if line.startswith(name)]


def test_nothing_is_left_of_hosts_that_fail(tmp_path: Path) -> None:
    with suppress(ZeroDivisionError), hosts.hosts(tmp_path, 2) as net:
        assert len(spaces(net.name)) == 3
        raise ZeroDivisionError
    assert not spaces(net.name)
