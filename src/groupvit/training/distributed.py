"""Several processes that train one model, started by torchrun; alone, everything here does nothing."""

import os
import re
import secrets
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous

from groupvit.data.workers import launched
from groupvit.errors import InputError, input_error
from groupvit.files import write_atomically
from groupvit.models.layers import at_least_float32

_LOST = (
    "another process is lost or silent, and says why if it can; torchrun --max-restarts N starts all again N times, "
    "and --resume goes on from the last checkpoint"
)


@dataclass(frozen=True)
class World:
    """This process's rank among `size`, each of which has an equal share of every batch, in this order.

    `local` is its rank on its machine.
    """

    rank: int = 0
    size: int = 1
    local: int = 0

    def gather(self, share: Shaped[Tensor, "_ *rest"], count: int | None = None) -> Shaped[Tensor, "_ *rest"]:
        """Return the shares of all processes one after the other: of one shape, or those of `count` rows (`own`).

        The gradient of a share is the sum of what the losses of all processes make of it.
        """
        if self.size == 1:
            return share
        missing = 0 if count is None else -(-count // self.size) - len(share)
        share = torch.cat([share, share.new_zeros(missing, *share.shape[1:])])
        return _Gather.apply(share, self)[:count]  # pyright: ignore[reportOptionalSubscript]

    def own(self, count: int) -> slice:
        """Return which of so many rows are this process's; the last ones may have fewer."""
        size = -(-count // self.size)
        return slice(min(self.rank * size, count), min((self.rank + 1) * size, count))

    def share(self, whole: Shaped[Tensor, "count *rest"]) -> Shaped[Tensor, "_ *rest"]:
        """Return this process's part of rows that all have; the last parts are filled up with the first row."""
        rows = whole[self.own(len(whole))]
        return torch.cat([rows, whole[:1].expand(-(-len(whole) // self.size) - len(rows), *whole.shape[1:])])

    def mean(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the means over the processes of some numbers, without a gradient."""
        together = torch.stack(list(values.values())).detach()
        if self.size > 1:
            dist.all_reduce(together)
        return dict(zip(values, together / self.size, strict=True))

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace every gradient by its mean over the processes, in one message."""
        if self.size == 1:
            return
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        together = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(together)
        means = (together / self.size).split([gradient.numel() for gradient in gradients])
        for gradient, mean in zip(gradients, means, strict=True):
            gradient.copy_(mean.view_as(gradient))

    def largest(self, number: int, device: torch.device) -> int:
        """Return the largest of the processes' numbers."""
        if self.size == 1:
            return number
        numbers = torch.tensor(number, device=device)
        dist.all_reduce(numbers, dist.ReduceOp.MAX)
        return int(numbers)

    def texts(self, text: str) -> list[str]:
        """Return the texts that the processes give."""
        texts = [text] * self.size
        if self.size > 1:
            dist.all_gather_object(texts, text)
        return texts

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.size > 1:
            dist.barrier()

    @contextmanager
    def first_goes_first(self) -> Iterator[None]:
        """Let the first process into the block, then the first one of each other machine, then the others.

        They find what those before have written, into a folder of all machines or of their own.
        """
        turn = 0 if not self.rank else 1 if not self.local else 2
        for _ in range(turn):
            self.wait()
        yield
        for _ in range(2 - turn):
            self.wait()


ALONE = World()


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, share: Tensor, world: World) -> Tensor:
        ctx.world, ctx.count = world, len(share)
        sent = (share.to(torch.uint8) if share.dtype == torch.bool else share).contiguous()
        shares = [torch.empty_like(sent) for _ in range(world.size)]
        dist.all_gather(shares, sent)
        return torch.cat(shares).to(share.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        gradient, start = gradients[0].clone(memory_format=torch.contiguous_format), ctx.world.rank * ctx.count
        dist.all_reduce(gradient)
        return gradient[start : start + ctx.count], None


class BatchNormOfAll(nn.BatchNorm1d):
    """Batch norm over the rows of all processes while training; PyTorch's own is for GPUs only."""

    def forward(self, input: Float[Tensor, "rows dim"]) -> Float[Tensor, "rows dim"]:
        if not self.training:
            return super().forward(input)
        x, every = at_least_float32(input), World(dist.get_rank(), dist.get_world_size())
        sums = every.gather(torch.cat([x.sum(dim=0), x.new_tensor([len(x)])])[None]).sum(dim=0)
        mean, count = sums[:-1] / sums[-1], sums[-1].detach()
        variance = every.gather((x - mean).square().sum(dim=0)[None]).sum(dim=0) / count
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        with torch.no_grad():
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum or 0)
            unbiased = variance * count / (count - 1)
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum or 0)
            self.num_batches_tracked += 1
        return ((x - mean) * (variance + self.eps).rsqrt() * self.weight + self.bias).to(input.dtype)


def mark_started(out: Path, world: World) -> None:
    """Note in a training's folder which torchruns, one a host, have started its processes, if any did."""
    launchers = "\n".join(world.texts(_launcher()))
    if launchers.strip() and not world.rank:
        write_atomically(out / "torchrun", launchers.encode())


def restarted(out: Path, world: World) -> bool:
    """True if torchrun has started the training in `out` again, and it is its own, not an earlier one.

    One of the torchruns is enough: a host that was lost comes back with another.
    """
    mark = out / "torchrun"
    own = mark.is_file() and _launcher() in mark.read_text(errors="replace").splitlines()
    return str(True) in world.texts(str(own))


def _launcher() -> str:
    """Return the folder that torchrun has made for this run of itself alone, "" without torchrun."""
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")  # FOLDER/attempt_0/RANK/error.json
    return os.path.normpath(f"{file}/../../..") if file else ""


@contextmanager
def connected(patience: float = 7200.0) -> Iterator[tuple[World, torch.device]]:
    """Connect the processes that torchrun has started (NCCL for GPUs, gloo for CPUs); give this one's device, too.

    Raises `InputError` when another process is lost, or silent for as many seconds as `patience` says.
    """
    cuda = torch.cuda.is_available()
    rank, size, local = launched()
    if size == 1:
        yield ALONE, torch.device("cuda" if cuda else "cpu")
        return
    device = torch.device("cpu")
    if cuda:
        if local >= (gpus := torch.cuda.device_count()) > 1:  # one that is seen alone was given to this process
            raise InputError(f"process {local} of this machine has no GPU of its own ({gpus} there are): start as many")
        device = torch.device("cuda", local % gpus)
        torch.cuda.set_device(device)
    wait = timedelta(seconds=patience)
    try:
        with input_error("MASTER_ADDR and MASTER_PORT are set, but not as torchrun does", ValueError):
            store, _, _ = next(rendezvous("env://", timeout=wait))
        store = _store_of_this_start(store, rank, size, patience)
        dist.init_process_group("nccl" if cuda else "gloo", store=store, rank=rank, world_size=size, timeout=wait)
        yield World(rank, size, local), device
    except RuntimeError as error:
        if not (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise
        reason = re.sub(r"^\[\S+\] |\. This is .*", "", str(error).splitlines()[0])
        raise InputError(f"{_LOST} ({reason})") from error
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _store_of_this_start(store: dist.Store, rank: int, size: int, patience: float) -> dist.Store:
    """Return a part of the store for this start of all processes: torchrun's keeps the addresses of dead ones.

    Each host's torchrun counts its own starts, so these counts differ. Instead, each process draws a number, and all
    wait until they have read the same numbers.
    """
    others, deadline = range(size), time.monotonic() + patience
    store.set(f"number {rank}", secrets.token_hex(4))
    while time.monotonic() < deadline:
        numbers = b"".join(store.multi_get([f"number {other}" for other in others])).decode()
        store.set(f"numbers {rank}", numbers)
        if set(store.multi_get([f"numbers {other}" for other in others])) == {numbers.encode()}:
            return dist.PrefixStore(numbers, store)
        time.sleep(0.1)
    raise InputError(_LOST)
