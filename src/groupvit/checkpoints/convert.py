"""Checkpoints from one layout to another, verified to the bit and by published logits."""

import os
import tempfile
from http.client import HTTPException
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from groupvit.checkpoints import LAYOUTS, load
from groupvit.errors import InputError, input_error
from groupvit.files import refuse_remote
from groupvit.models import GroupViT, temperature
from groupvit.photos import load_rgb
from groupvit.text.tokenizer import Tokenizer

PHOTO = "http://images.cocodataset.org/val2017/000000039769.jpg"
CAPTIONS = ["a photo of a cat", "a photo of a dog"]
GOLDEN = {"nvidia/groupvit-gcc-yfcc": (13.3523, 6.3629), "nvidia/groupvit-gcc-redcaps": (16.1873, 8.6230)}
"""Published logits of PHOTO against CAPTIONS."""
_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # with which they were made


def convert(
    source: Path, out: Path, to: str, *, verify: bool = False, published: str = "", photo: Path | None = None
) -> list[str]:
    """Write the checkpoint at `source` in the layout `to`, and return what was verified.

    `verify` reads the result again and compares every tensor; logits are compared if `published` is one of `GOLDEN`.
    Nothing is left at `out` unless all is well.
    """
    refuse_remote(out)
    model, config = load(source)
    verified = []
    with input_error(f"cannot write {out}", OSError):
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".", dir=out.parent) as folder:
            partial = Path(folder, "checkpoint")
            LAYOUTS[to].save(partial, model, config)
            if verify:
                verified.append(f"{compare(model, load(partial)[0])} tensors are equal bit for bit")
            if verify and published in GOLDEN:
                verified.append(f"logits {compare_logits(model, GOLDEN[published], photo)} are the published ones")
            os.rename(partial, out)
    return verified


def compare(model: GroupViT, written: GroupViT) -> int:
    """Return the number of tensors; an `InputError` names one that has other bits in the other model."""
    ours, theirs = model.state_dict(), written.state_dict()
    for name in ours.keys() | theirs.keys():
        if name not in ours or name not in theirs or ours[name].numpy().tobytes() != theirs[name].numpy().tobytes():
            raise InputError(f"tensor {name} changed in the conversion: nothing was written")
    return len(ours)


@torch.inference_mode()
def compare_logits(model: GroupViT, golden: tuple[float, ...], photo: Path | None) -> list[float]:
    """Return the photo's logits against the captions, which must be within 0.01 of the published ones."""
    image = model.encode_image(pixels(photo))
    logits = temperature(model.logit_scale) * image @ model.encode_text(Tokenizer()(CAPTIONS)).T
    values = [round(value, 4) for value in logits[0].tolist()]
    if max(abs(value - wanted) for value, wanted in zip(values, golden, strict=True)) > 0.01:
        raise InputError(f"logits of {CAPTIONS} are {values}, published are {list(golden)}: nothing was written")
    return values


def pixels(photo: Path | None) -> Float[Tensor, "1 3 224 224"]:
    """Return the photo as CLIP's image processor prepares it."""
    image = load_rgb(photo or download(PHOTO), str(photo or PHOTO))
    short = min(image.size)
    image = image.resize((image.width * 224 // short, image.height * 224 // short), Image.Resampling.BICUBIC)
    left, top = (image.width - 224) // 2, (image.height - 224) // 2
    values = torch.from_numpy(np.array(image.crop((left, top, left + 224, top + 224)))).float() / 255
    return ((values - torch.tensor(_MEAN)) / torch.tensor(_STD)).permute(2, 0, 1)[None]


def download(url: str) -> bytes:
    """Return the file at an address."""
    with (
        input_error(f"{url} cannot be downloaded", OSError, HTTPException, advice="give the file with --photo"),
        urlopen(url, timeout=30) as response,
    ):
        return response.read()
