"""The optimiser's parameter groups and the learning-rate schedule (§4.1)."""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from groupvit.training.runs import Run

NO_DECAY = ("pos_embed", "group_tokens")


def _decayed(name: str, parameter: Tensor) -> bool:
    return parameter.ndim > 1 and name.split(".")[-1] not in NO_DECAY


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay is for matrices and word vectors, not for positions, group tokens, scales, norms and biases."""
    decayed, kept = [], []
    for name, parameter in model.named_parameters():
        (decayed if _decayed(name, parameter) else kept).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]


def set_rate(optimizer: "torch.optim.Optimizer | MuonAndAdamW", rate: float) -> None:
    """The learning rate of a step, for each group times its `lr_scale` (as in timm)."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("lr_scale", 1)


def make_optimizer(model: nn.Module, run: Run) -> "torch.optim.Optimizer | MuonAndAdamW":
    """What the run says."""
    if run.muon:
        return MuonAndAdamW(model, run)
    return torch.optim.AdamW(parameter_groups(model, run.weight_decay), lr=run.lr, fused=True)


def orthogonal(matrix: Float[Tensor, "rows columns"], dtype: torch.dtype) -> Float[Tensor, "rows columns"]:
    """The matrix with its singular values near 1 (0.7 to 1.2), in `dtype`.

    Five Newton-Schulz steps of degree five, with the coefficients of Jordan et al. (2024), Muon: the larger values are
    pushed up quickly rather than exactly.
    """
    tall = matrix.shape[0] > matrix.shape[1]
    found = matrix.to(dtype).T if tall else matrix.to(dtype)
    found = found / found.norm().clamp(min=1e-7)
    for _ in range(5):
        gram = found @ found.T
        found = torch.addmm(found, torch.addmm(gram, gram, gram, beta=-4.7750, alpha=2.0315), found, beta=3.4445)
    return found.T if tall else found


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al., 2024): Nesterov's momentum of 0.95 made orthogonal, with decoupled weight decay.

    For matrices, and for kernels as matrices with a row for each output channel. An update's root mean square is 0.2 of
    the rate, about that of AdamW's (Liu et al., 2025). PyTorch's own (2.9) takes no kernels, and computes in bfloat16,
    which many CPUs cannot.
    """

    def __init__(self, groups: list[dict[str, Any]], *, lr: float, weight_decay: float, dtype: torch.dtype):
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay})
        self._dtype = dtype

    @torch.no_grad()
    def step(self) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                gradient = parameter.grad.flatten(1)
                state = self.state[parameter]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(gradient)
                momentum = state["momentum_buffer"].lerp_(gradient, 0.05)
                update = orthogonal(gradient.lerp(momentum, 0.95), self._dtype)
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                size = 0.2 * max(update.shape) ** 0.5
                parameter.add_(update.reshape(parameter.shape), alpha=-group["lr"] * size)


class MuonAndAdamW:
    """Muon for the matrices and kernels of hidden layers at `muon` times the rate, AdamW for all other parameters.

    Word vectors and the layer that sees pixels stay AdamW's.
    """

    def __init__(self, model: nn.Module, run: Run):
        named = dict(model.named_parameters())
        hidden = {name: named[name] for name in hidden_matrices(model)}
        own = {id(parameter) for parameter in hidden.values()}
        groups = parameter_groups(model, run.weight_decay)
        for group in groups:
            group["params"] = [parameter for parameter in group["params"] if id(parameter) not in own]
        self._adamw = torch.optim.AdamW(groups, lr=run.lr, fused=True)
        dtype = torch.bfloat16 if run.precision == "bfloat16" else torch.float32
        hidden_group = {"params": list(hidden.values()), "lr_scale": run.muon}
        self._muon = Muon([hidden_group], lr=run.lr, weight_decay=run.weight_decay, dtype=dtype)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self._adamw.param_groups + self._muon.param_groups

    def step(self) -> None:
        self._adamw.step()
        self._muon.step()

    def zero_grad(self) -> None:
        self._adamw.zero_grad()
        self._muon.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        return {"adamw": self._adamw.state_dict(), "muon": self._muon.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._adamw.load_state_dict(state["adamw"])
        self._muon.load_state_dict(state["muon"])


def hidden_matrices(model: nn.Module) -> list[str]:
    """The names of what Muon steps: weights that map features to features."""
    weights = [(name, parameter) for name, parameter in model.named_parameters() if _decayed(name, parameter)]
    pixels = {name for name, parameter in weights if parameter.ndim == 4 and parameter.shape[1] == 3}
    return [name for name, _ in weights if name not in pixels and "embedding" not in name]


def learning_rate(
    step: int, *, steps: int, warmup: int, peak: float, start: float, end: float, warmup_prefix: bool = True
) -> float:
    """Linear from `start` to `peak` over `warmup` steps, then a cosine to `end` at step `steps`.

    With `warmup_prefix` the cosine starts at the peak where the warm-up ends; without (the release) it has been falling
    since step 0, and the rate drops onto it.
    """
    if step < warmup:
        return start + (peak - start) * step / warmup
    first = warmup if warmup_prefix else 0
    progress = (step - first) / max(1, steps - first)
    return end + (peak - end) * (1 + math.cos(math.pi * progress)) / 2
