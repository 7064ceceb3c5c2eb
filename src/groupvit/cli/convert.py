"""`groupvit convert`: checkpoints from one layout to another."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro

from groupvit.errors import InputError


def convert(
    src: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SRC")],
    dst: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DST")],
    /,
    *,
    to: Literal["native", "release", "transformers", "onnx"],
    labels: Annotated[tuple[str, ...], tyro.conf.arg(metavar="LABEL...", help_behavior_hint="")] = (),
    verify: bool = False,
    revision: str | None = None,
    photo: Path | None = None,
    allow_pickle: bool = False,
) -> None:
    """Convert a checkpoint between our layout, the authors' release and `transformers`, or write it for ONNX.

    An ONNX file (docs/SEGMENTING.md) takes images of any size and embeddings of words, or with --labels just a photo.
    It is always compared with PyTorch.

    Args:
        src: A bundled name, a folder, a .pth file, or OWNER/NAME[@REVISION] on the hub.
        dst: Where to write; must not exist. A folder; for `release` a .pth file; for `onnx` NAME.onnx, or a folder for
            model.onnx (and text.onnx, without --labels).
        to: The layout to write.
        labels: For `onnx`: labels to put into the file, as in `groupvit segment`, which then resizes photos, too.
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
    if labels and to != "onnx":
        raise InputError("--labels go into an ONNX file: add --to onnx, or drop them")
    if photo and not verify:
        raise InputError("--photo is what --verify compares: add --verify, or drop it")
    source = api.locate(src, revision=revision, allow_pickle=allow_pickle)
    if to == "onnx":
        _write_onnx(source, dst, labels, "Apache-2.0" if src in api.BUNDLED else f"that of {src}")
        return
    for line in write(source, dst, to, verify=verify, published=src.partition("@")[0], photo=photo):
        print(line)
    print(f"wrote {dst}")


def _write_onnx(source: Path, dst: Path, labels: Sequence[str], licence: str) -> None:
    """Write the model, with labels as `groupvit segment` would look for them, or into a folder with its texts' half."""
    from groupvit import checkpoints
    from groupvit.checkpoints.onnx import save, save_texts
    from groupvit.files import new_folder
    from groupvit.segmentation import Segmenter, View

    model, config = checkpoints.load(source)
    bank = None
    if labels:
        segmenter, view = Segmenter(model, config, device="cpu", precision="fp32"), View()
        named = {label.name: label.words for label in segmenter.labels_of(labels, view)}
        bank = {name: segmenter.embed_words(words, view.templates) for name, words in named.items()}
    if dst.suffix == ".onnx":
        print(save(dst, model, config, labels=bank, licence=licence))
    else:
        with new_folder(dst) as folder:
            print(save(folder / "model.onnx", model, config, labels=bank, licence=licence))
            if not labels:
                print(save_texts(folder / "text.onnx", model, config, licence=licence))
    print(f"wrote {dst}")
