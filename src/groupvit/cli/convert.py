"""`groupvit convert`: checkpoints from one layout to another."""

import os
from pathlib import Path
from typing import Annotated, Literal

import tyro

from groupvit.errors import InputError


def convert(
    src: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SRC")],
    dst: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DST")],
    /,
    *,
    to: Literal["native", "release", "transformers"],
    verify: bool = False,
    revision: str | None = None,
    photo: Path | None = None,
    allow_pickle: bool = False,
) -> None:
    """Convert a checkpoint between our layout, the authors' release and `transformers`.

    Args:
        src: A folder, a .pth file, or OWNER/NAME[@REVISION] on the hub.
        dst: Where to write; must not exist. A folder, for `release` a .pth file.
        to: The layout to write.
        verify: Read the result again and compare every tensor bit for bit; for NVIDIA's checkpoints on the hub, also
            compare logits with the published ones.
        revision: Branch, tag or commit on the hub.
        photo: COCO's 000000039769.jpg, instead of downloading it for --verify.
        allow_pickle: Also take pytorch_model.bin from the hub; no code in it runs.
    """
    from groupvit import api
    from groupvit.checkpoints.convert import convert as write

    if os.path.lexists(dst):
        raise InputError(f"{dst} exists: name a path that does not")
    source = api.locate(src, revision=revision, allow_pickle=allow_pickle)
    for line in write(source, dst, to, verify=verify, published=src.partition("@")[0], photo=photo):
        print(line)
    print(f"wrote {dst}")
