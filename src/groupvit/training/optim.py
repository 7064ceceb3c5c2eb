"""The optimiser's parameter groups and the learning-rate schedule (§4.1)."""

import math
from dataclasses import dataclass
from itertools import compress
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

NO_DECAY = ("pos_embed", "group_tokens")


@dataclass(frozen=True)
class Optimizer:
    """The optimiser of a run.

    `muon` has Muon step the matrices of hidden layers, at so many times the rate (0: AdamW alone). `ema` is the decay
    of the average of the weights (0: none). `trunk` is the rate of a pre-trained trunk, as a share of the other rates
    (0: the trunk is frozen).
    """

    weight_decay: float = 0.05
    muon: float = 0.0
    ema: float = 0.0
    trunk: float = 0.0


@dataclass(frozen=True)
class Schedule:
    """The learning rate over optimiser steps, and when to evaluate and save.

    Linear from `lr_start` to `lr` over `warmup` steps, then a cosine to `lr_end` at step `steps`. With `warmup_prefix`
    (timm's name) the cosine starts at the peak where the warm-up ends; without (the release) it has been falling since
    step 0, and the rate drops onto it.
    """

    steps: int
    warmup: int = 200
    lr: float = 1e-3
    lr_start: float = 4e-6
    lr_end: float = 1e-5
    warmup_prefix: bool = True
    evaluate_every: int = 500
    save_every: int = 500

    def rate(self, step: int) -> float:
        """Return the learning rate of a step."""
        if step < self.warmup:
            return self.lr_start + (self.lr - self.lr_start) * step / self.warmup
        first = self.warmup if self.warmup_prefix else 0
        progress = (step - first) / max(1, self.steps - first)
        return self.lr_end + (self.lr - self.lr_end) * (1 + math.cos(math.pi * progress)) / 2


def _decayed(name: str, parameter: Tensor) -> bool:
    return parameter.ndim > 1 and name.split(".")[-1] not in NO_DECAY


def parameter_groups(model: nn.Module, config: Optimizer) -> list[dict[str, Any]]:
    """Decay matrices and word vectors, but not positions, group tokens, scales, norms and biases.

    The weights that Muon steps are a group of their own, and so are a tuned trunk's; each has its `lr_scale`.
    """
    named, decay = dict(model.named_parameters()), config.weight_decay
    trunk = {name for name, weight in named.items() if ".trunk." in name and config.trunk and weight.requires_grad}
    hidden = hidden_matrices(model) - trunk if config.muon else set[str]()
    decayed = {name for name, weight in named.items() if _decayed(name, weight)} - hidden - trunk
    kinds: list[tuple[set[str], dict[str, Any]]] = [
        (decayed, {"weight_decay": decay}),
        (named.keys() - decayed - hidden - trunk, {"weight_decay": 0.0}),
        (hidden, {"weight_decay": decay, "lr_scale": config.muon, "muon": True}),
        (trunk, {"weight_decay": 0.0, "lr_scale": config.trunk}),  # decay would forget what pre-training learnt
    ]
    groups = [{"params": [named[name] for name in named if name in names], **options} for names, options in kinds]
    return [*groups[:2], *(group for group in groups[2:] if group["params"])]


def hidden_matrices(model: nn.Module) -> set[str]:
    """Return the names of what Muon steps; word vectors and the layer that sees pixels stay AdamW's."""
    weights = {name: parameter for name, parameter in model.named_parameters() if _decayed(name, parameter)}
    pixels = {name for name, parameter in weights.items() if parameter.ndim == 4 and parameter.shape[1] == 3}
    return {name for name in weights if name not in pixels and "embedding" not in name}


def make_optimizer(model: nn.Module, config: Optimizer, *, bfloat16: bool = False) -> torch.optim.Optimizer:
    """Return the optimiser of the model's parameters; with `bfloat16` Muon computes in it."""
    groups = parameter_groups(model, config)
    if config.muon:
        return MuonAndAdamW(groups, torch.bfloat16 if bfloat16 else torch.float32)
    return torch.optim.AdamW(groups, fused=True)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of a step, for each group times its `lr_scale` (as in timm)."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("lr_scale", 1)


def orthogonal(matrix: Float[Tensor, "rows columns"], dtype: torch.dtype) -> Float[Tensor, "rows columns"]:
    """Return the matrix with its singular values near 1 (0.7 to 1.2), in `dtype`.

    Five Newton-Schulz steps of degree five, with the coefficients of Jordan et al. (2024), Muon: the larger values are
    pushed up quickly rather than exactly.
    """
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.to(dtype).T if tall else matrix.to(dtype)
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return x.T if tall else x


class MuonAndAdamW(torch.optim.AdamW):
    """Muon (Jordan et al., 2024) for the group that is marked, AdamW for the others.

    Nesterov's momentum of 0.95 made orthogonal, with decoupled weight decay; kernels are matrices with a row for each
    output channel. An update's root mean square is 0.2 of the rate, about that of AdamW's (Liu et al., 2025). PyTorch's
    own (2.9) takes no kernels, and computes in bfloat16, which many CPUs cannot.
    """

    def __init__(self, groups: list[dict[str, Any]], dtype: torch.dtype):
        self._muon = [group.pop("muon", False) for group in groups]
        super().__init__(groups, fused=True)
        self._dtype = dtype

    def step(self) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        every = self.param_groups
        for group in compress(every, self._muon):
            self._step_muon(group)
        self.param_groups = [group for group, muon in zip(every, self._muon, strict=True) if not muon]
        super().step()
        self.param_groups = every

    @torch.no_grad()
    def _step_muon(self, group: dict[str, Any]) -> None:
        for parameter in [parameter for parameter in group["params"] if parameter.grad is not None]:
            gradient = parameter.grad.flatten(1)
            state = self.state[parameter]
            if not state:
                state["momentum_buffer"] = torch.zeros_like(gradient)
                state["step"] = torch.zeros(())  # AdamW looks for it where a state is loaded
            momentum = state["momentum_buffer"].lerp_(gradient, 0.05)
            update = orthogonal(gradient.lerp(momentum, 0.95), self._dtype)
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            size = 0.2 * max(update.shape) ** 0.5
            parameter.add_(update.reshape(parameter.shape), alpha=-group["lr"] * size)
