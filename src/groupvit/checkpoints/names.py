"""Layouts of other programs as tables of names, which are read in both directions."""

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from groupvit.errors import InputError
from groupvit.models import RELEASE, ModelConfig

Table = Sequence[tuple[str, str]]
"""Pairs of prefixes (ours, theirs); `#` is a number, the same on both sides. The first that fits counts."""

GROUPING = """
    group_tokens              group_token
    group_projector.          group_projector.
    grouping.token_mixer.     downsample.mlp_inter.
    grouping.norm_segments.   downsample.norm_x.
    grouping.norm_new.        downsample.norm_new_x.
    grouping.channel_mlp.     downsample.mlp_channels.
    grouping.                 downsample.
"""
"""Names that the release and `transformers` give to the parts of a grouping stage, for `table`."""


def table(text: str, ours: str = "", theirs: str = "") -> Table:
    """Read one pair a line, each behind the prefixes `ours` and `theirs`."""
    return [(ours + a, theirs + b) for a, b in map(str.split, text.strip().splitlines())]


def inverse(table: Table) -> Table:
    """Return the same table from their names to ours."""
    return [(theirs, ours) for ours, theirs in table]


def translate(name: str, table: Table) -> str | None:
    """Return `name` with its prefix exchanged, or None when no prefix of the table fits."""
    for source, target in table:
        if match := re.fullmatch(re.escape(source).replace(r"\#", r"(\d+)") + "(.*)", name):
            *numbers, rest = match.groups()
            return target.replace("#", "{}").format(*numbers) + rest
    return None


def translate_all(state: Mapping[str, Tensor], table: Table, source: Path | str) -> dict[str, Tensor]:
    """Return a state dict under the other names."""
    renamed = {}
    for name, tensor in state.items():
        new = translate(name, table)
        if new is None:
            raise InputError(f"{source}: tensor {name} does not belong to a GroupViT")
        renamed[new] = tensor
    return renamed


def split_qkv(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict with query, key and value apart, as views: `attn.qkv.*` becomes `attn.q_proj.*` and so on."""
    apart: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if ".attn.qkv." in name:
            names = (name.replace(".qkv.", f".{piece}_proj.") for piece in "qkv")
            apart.update(zip(names, tensor.chunk(3), strict=True))
        else:
            apart[name] = tensor
    return apart


def refuse_difference(
    config: ModelConfig, layout: str, expressed: Collection[str], implied: Mapping[str, object]
) -> None:
    """Name the first option of `config` that `layout` would turn into something else.

    A layout writes the options that it has `expressed` ("text" for all of a part). `implied` ones follow from others,
    and the rest are the published model's.
    """
    after = {**_flat(RELEASE), **implied}
    for name, value in _flat(config).items():
        if not {name, name.partition(".")[0]} & {*expressed} and value != after[name]:
            raise InputError(
                f"the {layout} layout cannot express {name} = {value!r} (there it is always {after[name]!r}): "
                "keep this model in the native layout"
            )


def _flat(config: ModelConfig) -> dict[str, object]:
    return {
        f"{part}.{name}" if name else part: value
        for part, values in config.to_dict().items()
        for name, value in (values if isinstance(values, dict) else {"": values}).items()
    }
