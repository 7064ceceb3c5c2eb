"""Layouts of other programs as tables of names, each used in both directions."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from groupvit.errors import InputError
from groupvit.models import ModelConfig

Table = Sequence[tuple[str, str]]
"""Pairs of prefixes (ours, theirs); `#` is a number, the same on both sides. The first that fits counts."""


def products(ours: str, theirs: str, pairs: Iterable[tuple[str, str]]) -> Table:
    """Every pair behind a common prefix."""
    return [(ours + a, theirs + b) for a, b in pairs]


def inverse(table: Table) -> Table:
    """The same table from their names to ours."""
    return [(theirs, ours) for ours, theirs in table]


def translate(name: str, table: Table) -> str | None:
    """`name` with its prefix exchanged, or None when no prefix of the table fits."""
    for source, target in table:
        if match := re.fullmatch(re.escape(source).replace(r"\#", r"(\d+)") + "(.*)", name):
            *numbers, rest = match.groups()
            remaining = iter(numbers)
            return re.sub("#", lambda _, numbers=remaining: next(numbers), target) + rest
    return None


def translate_all(state: Mapping[str, Tensor], table: Table, source: Path | str) -> dict[str, Tensor]:
    """A state dict under the other names."""
    renamed = {}
    for name, tensor in state.items():
        new = translate(name, table)
        if new is None:
            raise InputError(f"{source}: tensor {name} does not belong to a GroupViT")
        renamed[new] = tensor
    return renamed


def refuse_difference(config: ModelConfig, expressed: ModelConfig, layout: str) -> None:
    """Names the first option of `config` that `layout` would turn into something else."""
    after = _flat(expressed)
    for name, value in _flat(config).items():
        if after[name] != value:
            raise InputError(
                f"the {layout} layout cannot express {name} = {value!r} (it means {after[name]!r}): "
                "keep this model in the native layout"
            )


def _flat(config: ModelConfig) -> dict[str, object]:
    values = config.to_dict()
    return {
        f"{room}.{name}" if isinstance(group, dict) else room: value
        for room, group in values.items()
        for name, value in (group.items() if isinstance(group, dict) else [(room, group)])
    }
