"""`groupvit segment`: label maps and pictures for photos, folders and patterns."""

import glob
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from groupvit.cli.progress import progress
from groupvit.errors import InputError
from groupvit.files import PHOTO_SUFFIXES, write_atomically, write_picture

if TYPE_CHECKING:
    from PIL import Image

    from groupvit.segmentation import Label, Segmentation, Segmenter, View


def segment(
    photos: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PHOTO...", help_behavior_hint="")],
    *,
    labels: Annotated[tuple[str, ...], tyro.conf.arg(metavar="LABEL...")],
    model: str = "photos-trunk",
    background: float | Literal["auto", "none"] = "auto",
    out: Path = Path("out"),
    templates: Literal["simple", "7", "80"] = "simple",
    maps: Literal["soft", "hard"] = "soft",
    short_side: int | None = None,
    window: int | None = None,
    stride: int | None = None,
    precision: Literal["bf16", "fp32"] | None = None,
    batch_size: int = 8,
) -> int:
    """Name every pixel of photos with words.

    Writes for each photo NAME.labels.png (indices, as a palette image), NAME.overlay.png, NAME.groups-1.png and so on
    for each grouping stage (unless a window slides), and NAME.json. The published checkpoints were evaluated with
    --short-side 448 --window 448 --stride 224 (and gated scores, which `groupvit evaluate` has).

    Args:
        photos: Image files, folders (the images inside, without subfolders) or patterns such as 'photos/*.jpg'.
        labels: Words to look for. Several words for one label: person=man,woman,child.
        model: A trained model: "photos-trunk" (in the package, docs/MODEL_CARD.md), "photos" (in the repository), a
            folder, a file, or a name on the hub.
        background: With auto, words that the model learnt compete with the labels, and what they win is background.
            With a number (0 to 1), background is where the best label scores less. With none, every pixel gets a label.
        out: Folder for the results; earlier results of the same photos are replaced.
        templates: Prompts around each word: one, or the 7 or 80 that CLIP used.
        maps: How stages combine: soft as in the published code, or hard as in the paper.
        short_side: Resize photos to this short side in pixels; by default what suits the model.
        window: Slide a window of this many pixels over the resized photo, instead of one look at the whole. By default
            a model with a trunk does so for photos beyond 2 : 1.
        stride: Pixels from window to window; by default half a window.
        precision: Numbers of the image encoder, by default what is faster on this machine.
        batch_size: Photos or windows to encode at once.
    """
    files = _find(photos)
    _prepare(out, labels, background, batch_size)
    asked = {"background": None if background == "none" else background, "maps": maps}
    asked |= {"short_side": short_side, "window": window, "stride": stride}
    settings = {"templates": templates, **asked, "batch_size": batch_size}

    from groupvit import api
    from groupvit.segmentation import View

    view = View(templates=_prompts(templates), **asked)
    segmenter = api.load(model, precision=precision)
    record = {"model": model, "precision": segmenter.precision, "settings": settings}
    return _segment(files, segmenter, segmenter.labels_of(labels, view), view, out=out, record=record)


def _prepare(out: Path, labels: Sequence[str], background: float | str, batch_size: int) -> None:
    """Refuse what cannot work, and make the folder, before a model is loaded."""
    from groupvit.segmentation.labels import parse_labels

    parse_labels(labels)
    if batch_size < 1:
        raise InputError("batch size must be at least 1")
    if not isinstance(background, str) and not 0 <= background <= 1:
        raise InputError(f"--background {background:g}: a score lies between 0 and 1")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the folder {out} ({error.strerror}): choose another --out") from error


def _prompts(name: str) -> tuple[str, ...]:
    from groupvit.text import templates

    choices = {"7": templates.IMAGENET_TEMPLATES_7, "80": templates.IMAGENET_TEMPLATES_80}
    return choices.get(name, (templates.SIMPLE_TEMPLATE,))


def _segment(
    files: Sequence[Path],
    segmenter: "Segmenter",
    labels: "Sequence[Label]",
    view: "View",
    *,
    out: Path,
    record: dict[str, Any],
) -> int:
    """Segment, write and report every photo that can be read; return 1 if there are others."""
    batch_size = record["settings"]["batch_size"]
    names, lines = _output_names(files), []
    with progress("segmenting", len(files), shown=len(files) > 1) as advance:
        for start in range(0, len(files), batch_size):
            chunk = range(start, min(start + batch_size, len(files)))
            images = {i: image for i in chunk if (image := _load(files[i], alone=len(files) == 1))}
            results = segmenter.segment(list(images.values()), labels, view, batch_size=batch_size)
            for i, result in zip(images, results, strict=True):
                lines.append(_write(out / names[i], result, labels, {"photo": str(files[i]), **record}))
            advance(len(chunk), len(chunk))
    print("\n".join(lines))
    return int(len(lines) < len(files))


def _find(photos: Sequence[str]) -> list[Path]:
    """Return each file once, in the order given; folders and patterns sorted by name."""
    files: dict[Path, None] = {}
    for photo in photos:
        path = Path(photo)
        if path.is_dir():
            matches = sorted(p for p in path.iterdir() if p.suffix.lower() in PHOTO_SUFFIXES and p.is_file())
            problem = "folder has no images"
        elif path.exists():
            matches, problem = [path], ""
        else:
            matches = sorted(p for p in map(Path, glob.glob(photo, recursive=True)) if p.is_file())
            problem = "pattern matches no files" if glob.has_magic(photo) else "no such file"
        if not matches:
            raise InputError(f"{photo}: {problem}")
        files.update(dict.fromkeys(matches))
    if not files:
        raise InputError("no photos: name image files, folders or patterns, before --labels")
    return list(files)


def _output_names(files: Sequence[Path]) -> list[str]:
    """Return file names with their suffix, numbered where files of different folders share one."""
    taken, names = set[str](), []
    for file in files:
        name, number = file.name, 1
        while name.lower() in taken:  # many file systems do not tell upper from lower case
            number += 1
            name = f"{file.name}-{number}"
        taken.add(name.lower())
        names.append(name)
    return names


def _load(file: Path, *, alone: bool) -> "Image.Image | None":
    """Return the photo, or None after one line on stderr if it is not alone."""
    from groupvit.photos import load_rgb

    try:
        return load_rgb(file, str(file))
    except InputError as error:
        if alone:
            raise
        print("groupvit: error:", *str(error).split(), file=sys.stderr)
        return None


def _write(stem: Path, result: "Segmentation", labels: Sequence["Label"], record: dict[str, Any]) -> str:
    """Save everything about one photo and return the line that reports it."""
    import groupvit
    from groupvit.segmentation import drawing

    pictures = {"labels": drawing.indexed(result.label_map, result.names), "overlay": result.overlay()}
    pictures |= {f"groups-{i}": drawing.groups(result.image, g) for i, g in enumerate(result.groups, start=1)}
    for kind, picture in pictures.items():
        write_picture(_beside(stem, f"{kind}.png"), picture)
    values = result.to_dict()
    words = {label.name: label.words for label in labels}
    for entry in values["labels"]:
        entry["words"] = words.get(entry["name"], ())
    text = json.dumps({**record, **values, "version": groupvit.__version__}, indent=2) + "\n"
    write_atomically(_beside(stem, "json"), text.encode())
    shares = sorted(zip(result.shares, result.names, strict=True), key=lambda pair: -pair[0])
    named = ", ".join(f"{name} {100 * share:.0f} %" for share, name in shares if share >= 0.005)
    return f"{_beside(stem, 'overlay.png')}: {named}"


def _beside(stem: Path, suffix: str) -> Path:
    return stem.with_name(f"{stem.name}.{suffix}")
