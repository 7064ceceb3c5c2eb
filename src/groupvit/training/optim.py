"""The optimiser's parameter groups and the learning-rate schedule (§4.1)."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from groupvit.errors import InputError

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


class MuonAndAdamW:
    """Muon (Jordan et al., 2024) for the matrices and kernels of hidden layers, AdamW for all other parameters.

    Muon's step of a matrix has the size of AdamW's (Liu et al., 2025) at `muon` times the rate, but one size in all
    directions. A kernel is a matrix with a row for each output channel. Word vectors and the layer that sees pixels
    stay AdamW's. Needs PyTorch 2.9.
    """

    def __init__(self, model: nn.Module, *, lr: float, weight_decay: float, muon: float):
        if not hasattr(torch.optim, "Muon"):
            raise InputError(f"this run's optimiser needs PyTorch 2.9 or newer, and this is {torch.__version__}")
        named = dict(model.named_parameters())
        self._hidden = [named[name] for name in hidden_matrices(model)]
        # torch's Muon takes matrices only: those it steps share their memory with the kernels.
        self._matrices = [nn.Parameter(parameter.detach().view(len(parameter), -1)) for parameter in self._hidden]
        hidden = {id(parameter) for parameter in self._hidden}
        groups = parameter_groups(model, weight_decay)
        for group in groups:
            group["params"] = [parameter for parameter in group["params"] if id(parameter) not in hidden]
        self._adamw = torch.optim.AdamW(groups, lr=lr, fused=True)
        group = {"params": self._matrices, "lr_scale": muon}
        self._muon = torch.optim.Muon([group], lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self._adamw.param_groups + self._muon.param_groups

    def step(self) -> None:
        self._adamw.step()
        for matrix, parameter in zip(self._matrices, self._hidden, strict=True):
            matrix.grad = None if parameter.grad is None else parameter.grad.flatten(1)
        self._muon.step()

    def zero_grad(self) -> None:
        self._adamw.zero_grad()
        for parameter in (*self._matrices, *self._hidden):
            parameter.grad = None

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
