"""`groupvit convert`: checkpoints from one layout to another."""

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from groupvit.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from groupvit.models import GroupViT

PHOTO = "http://images.cocodataset.org/val2017/000000039769.jpg"
CAPTIONS = ["a photo of a cat", "a photo of a dog"]
GOLDEN = {
    "nvidia/groupvit-gcc-yfcc": (13.3523, 6.3629),
    "nvidia/groupvit-gcc-redcaps": (16.1873, 8.6230),
}
"""Published logits of PHOTO against CAPTIONS."""


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
    """Converts a checkpoint between our layout, the authors' release and `transformers`.

    Args:
        src: A folder, a .pth file, or OWNER/NAME[@REVISION] on the hub.
        dst: Where to write; must not exist. A folder, for `release` a .pth file.
        to: The layout to write.
        verify: Read the result again and compare every tensor bit for bit; for NVIDIA's checkpoints on the hub, also
            compare logits with the published ones.
        revision: Branch, tag or commit on the hub.
        photo: COCO's 000000039769.jpg, instead of downloading it for --verify.
        allow_pickle: Also take pytorch_model.bin from the hub; nothing in it is executed.
    """
    from groupvit import api, checkpoints

    if os.path.lexists(dst):
        raise InputError(f"{dst} exists: name a path that does not")
    model, config = checkpoints.load(api.locate(src, revision=revision, allow_pickle=allow_pickle))
    partial = dst.with_name(f".{dst.name}.{os.getpid()}.partial")
    try:
        checkpoints.LAYOUTS[to].save(partial, model, config)
        if verify:
            print(f"{compare(model, checkpoints.load(partial)[0])} tensors are equal bit for bit")
            if golden := GOLDEN.get(src.partition("@")[0]):
                print(f"logits {compare_logits(model, golden, photo)} are the published ones")
        os.rename(partial, dst)
    finally:
        if partial.is_dir():
            shutil.rmtree(partial)
        elif partial.exists():
            partial.unlink()
    print(f"wrote {dst}")


def compare(model: "GroupViT", written: "GroupViT") -> int:
    """The number of tensors, every one of which has the same bits in both models."""
    ours, theirs = model.state_dict(), written.state_dict()
    for name in ours.keys() | theirs.keys():
        if name not in ours or name not in theirs or ours[name].numpy().tobytes() != theirs[name].numpy().tobytes():
            raise InputError(f"tensor {name} changed in the conversion: nothing was written")
    return len(ours)


def compare_logits(model: "GroupViT", golden: tuple[float, ...], photo: Path | None) -> list[float]:
    """The photo's logits against the captions, which must be within 0.01 of the published ones."""
    import torch

    from groupvit.models import temperature
    from groupvit.text.tokenizer import Tokenizer

    with torch.inference_mode():
        image = model.encode_image(_pixels(photo))
        logits = temperature(model.logit_scale) * image @ model.encode_text(Tokenizer()(CAPTIONS)).T
    values = [round(value, 4) for value in logits[0].tolist()]
    if max(abs(value - wanted) for value, wanted in zip(values, golden, strict=True)) > 0.01:
        raise InputError(f"logits of {CAPTIONS} are {values}, published are {list(golden)}: nothing was written")
    return values


def _pixels(photo: Path | None) -> "Tensor":
    """The photo as CLIP's image processor prepares it, with which the published logits were made."""
    import numpy as np
    import torch
    from PIL.Image import Resampling

    from groupvit.data.transforms import load_rgb

    image = load_rgb(photo or _download(PHOTO), str(photo or PHOTO))
    short = min(image.size)
    image = image.resize((image.width * 224 // short, image.height * 224 // short), Resampling.BICUBIC)
    left, top = (image.width - 224) // 2, (image.height - 224) // 2
    pixels = torch.from_numpy(np.array(image.crop((left, top, left + 224, top + 224)))).float() / 255
    mean, std = torch.tensor([0.48145466, 0.4578275, 0.40821073]), torch.tensor([0.26862954, 0.26130258, 0.27577711])
    return ((pixels - mean) / std).permute(2, 0, 1)[None]


def _download(url: str) -> bytes:
    from urllib.request import urlopen

    try:
        with urlopen(url, timeout=30) as response:
            return response.read()
    except OSError as error:
        raise InputError(f"{url} cannot be downloaded ({error}): give the file with --photo") from error
