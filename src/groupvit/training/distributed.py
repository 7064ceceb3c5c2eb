"""Several processes that train one model, started by torchrun; alone, everything here does nothing."""

import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from jaxtyping import Shaped
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous

from groupvit.errors import InputError
from groupvit.files import write_atomically

_PATIENCE = timedelta(hours=2)
"""How long the others wait for the first process, which evaluates and saves."""


@dataclass(frozen=True)
class Processes:
    """This process's number among `world`, each of which has an equal share of every batch, in this order."""

    rank: int = 0
    world: int = 1

    def gather(self, own: Shaped[Tensor, "_ *rest"]) -> Shaped[Tensor, "_ *rest"]:
        """The shares of all processes, which have one shape, one after the other; without gradient."""
        if self.world == 1:
            return own
        sent = (own.to(torch.uint8) if own.dtype == torch.bool else own).detach().contiguous()
        shares = [torch.empty_like(sent) for _ in range(self.world)]
        dist.all_gather(shares, sent)
        return torch.cat(shares).to(own.dtype)

    def share(self, whole: Shaped[Tensor, "count *rest"]) -> Shaped[Tensor, "_ *rest"]:
        """This process's part of rows that all processes have; the last ones' are filled up with the first row."""
        size = -(-len(whole) // self.world)
        own = whole[self.rank * size : (self.rank + 1) * size]
        return torch.cat([own, whole[:1].expand(size - len(own), *whole.shape[1:])])

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replaces every gradient by its mean over the processes, in one message."""
        if self.world == 1:
            return
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        together = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(together)
        parts = (together / self.world).split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))

    def any(self, flag: bool, device: torch.device) -> bool:
        """Whether the flag is set in one of the processes."""
        if self.world == 1:
            return flag
        found = torch.tensor(int(flag), device=device)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return bool(found)

    def agree(self, text: str, device: torch.device) -> bool:
        """Whether all processes give the same text."""
        number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:7])
        return len(set(self.gather(torch.tensor([number], device=device)).tolist())) == 1

    def wait(self) -> None:
        """Until all processes are here."""
        if self.world > 1:
            dist.barrier()


ALONE = Processes()


def mark_started(out: Path) -> None:
    """Notes in a training's folder which run of torchrun started it, if one did."""
    if run := os.environ.get("TORCHELASTIC_RUN_ID"):
        write_atomically(out / "torchrun", run.encode())


def restarted(out: Path) -> bool:
    """Whether torchrun has started this process again, and the training in `out` is its own, not an earlier one.

    At its first start the mark of an earlier one is removed: without a name given, torchrun calls all its runs "none".
    """
    mark, name = out / "torchrun", os.environ.get("TORCHELASTIC_RUN_ID")
    if not (name and mark.is_file()):
        return False
    if not int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)):
        mark.unlink(missing_ok=True)
        return False
    return mark.read_text() == name


@contextmanager
def joined() -> Iterator[tuple[Processes, torch.device]]:
    """The processes that torchrun has started, connected (NCCL for GPUs, gloo for CPUs), and this one's device."""
    cuda = torch.cuda.is_available()
    world = int(os.environ.get("WORLD_SIZE", 1))
    if world == 1:
        yield ALONE, torch.device("cuda" if cuda else "cpu")
        return
    if missing := sorted({"RANK", "MASTER_ADDR", "MASTER_PORT"} - os.environ.keys()):
        raise InputError(f"WORLD_SIZE is set and {missing[0]} is not: start several processes with torchrun")
    device = torch.device("cpu")
    if cuda:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
        torch.cuda.set_device(device)
    store, rank, world = next(rendezvous("env://", timeout=_PATIENCE))
    # torchrun keeps its store when it starts processes again: the addresses of dead ones must not be found.
    store = dist.PrefixStore(f"restart {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    dist.init_process_group("nccl" if cuda else "gloo", store=store, rank=rank, world_size=world, timeout=_PATIENCE)
    try:
        yield Processes(rank, world), device
    finally:
        dist.destroy_process_group()
