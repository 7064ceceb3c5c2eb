"""`groupvit segment`: label maps and pictures for photos, folders and patterns."""

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from groupvit.cli.formats import Export, Format, path_from
from groupvit.cli.photo_files import (
    earlier,
    find_photos,
    is_done,
    keep_others,
    mask_kinds,
    output_names,
    remove_others,
    result_file,
)
from groupvit.errors import InputError, input_error
from groupvit.files import MAX_PIXELS, PHOTO_SUFFIXES, write_atomically, write_picture
from groupvit.machine import enough_memory, return_freed_memory, share_freed_memory
from groupvit.progress import progress

if TYPE_CHECKING:
    from PIL import Image

    from groupvit.segmentation import Label, Segmentation, Segmenter, View

    Chunk = dict[int, Image.Image | None]
    Results = dict[int, Segmentation | None]

_PIXELS_DRAWN = 2**24
_PIXELS_AT_ONCE = 2**27
_THREADS = 4  # beside those that segment: one reads, the others write
_TRIM_EVERY = 100  # photos: by then the holes in the memory have grown by a tenth
_LONGEST_NAME = 255  # bytes, of nearly all file systems


def segment(
    photos: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PHOTO...", help_behavior_hint="")],
    *,
    labels: Annotated[tuple[str, ...], tyro.conf.arg(metavar="LABEL...", help_behavior_hint="")] = (),
    labels_file: Path | None = None,
    model: str = "photos-trunk",
    background: float | Literal["auto", "none"] = "auto",
    out: Path = Path("out"),
    templates: Literal["simple", "7", "80"] = "simple",
    maps: Literal["soft", "hard"] = "soft",
    short_side: int | None = None,
    window: int | None = None,
    stride: int | None = None,
    precision: Literal["bf16", "fp32"] | None = None,
    engine: Literal["auto", "torch", "onnxruntime", "openvino"] = "auto",
    batch_size: int = 2,
    recursive: bool = False,
    masks: bool = False,
    formats: Annotated[tuple[Format, ...], tyro.conf.arg(name="format", help_behavior_hint="")] = (),
    max_pixels: int = MAX_PIXELS,
    resume: bool = False,
) -> int:
    """Name every pixel of photos with words.

    Writes for each photo NAME.labels.png (indices, as a palette image), NAME.overlay.jpg, NAME.groups-1.jpg and so on
    for each grouping stage (unless a window slides), and NAME.json. Of photos beyond 16 megapixels, overlay and groups
    are drawn smaller. The published checkpoints were evaluated with --short-side 448 --window 448 --stride 224.

    Args:
        photos: Image files, folders (the images inside) or patterns such as 'photos/*.jpg'.
        labels: Words to look for. Several words for one label: person=man,woman,child.
        labels_file: Text file with more labels, one a line, # before comments.
        model: A trained model: "photos-trunk" (in the package, docs/MODEL_CARD.md), "photos" (in the repository), a
            folder, a file, or a name on the hub.
        background: With auto, words that the model learnt compete with the labels, and what they win is background.
            With a number (0 to 1), background is where the best label scores less. With none, every pixel gets a label.
        out: Folder for the results; earlier results of the same photos are replaced.
        templates: Prompts around each word: one, or the 7 or 80 that CLIP used.
        maps: How stages combine: soft as in the published code, or hard as in the paper.
        short_side: Resize photos to this short side in pixels; by default what suits the model.
        window: Slide a window of this many pixels over the resized photo; by default trunks do so beyond 2 : 1.
        stride: Pixels from window to window; by default half a window.
        precision: Numbers of the image encoder, by default what is faster on this machine.
        engine: What runs the image encoder; auto takes OpenVINO on a CPU if it is installed (extra fast), else PyTorch.
        batch_size: Photos or windows to encode at once.
        recursive: Look into subfolders, too.
        masks: Write a mask of 0 and 255 for each label, too: NAME.mask-LABEL.png.
        formats: Files for other tools, besides (docs/SEGMENTING.md).
        max_pixels: Pass over larger photos.
        resume: Pass over photos whose results are there, of these weights and settings and newer than the photo.
    """
    listed, files = _all_labels(labels, labels_file, photos), find_photos(photos, recursive)
    export = Export(formats, files, out, [label.name for label in listed])
    if resume and export.parts:
        raise InputError(f"--resume cannot fill a list of all photos: leave it out, or --format {min(export.parts)}")
    keep_others(out, files, export)
    import groupvit
    from groupvit import api
    from groupvit.models import weights_digest
    from groupvit.segmentation import View
    from groupvit.text.templates import PROMPTS

    asked: dict[str, Any] = {"background": None if background == "none" else background, "maps": maps}
    asked |= {"short_side": short_side, "window": window, "stride": stride}
    view = View(templates=PROMPTS[templates], **asked)
    if min(batch_size, max_pixels) < 1:
        raise InputError("batch size and max pixels must be at least 1")
    segmenter = api.load(model, precision=precision, engine=engine)
    known = segmenter.labels_of(listed, view)
    with input_error(f"cannot make the folder {out}", OSError, advice="choose another --out"):
        out.mkdir(parents=True, exist_ok=True)
    settings = {"templates": templates, **asked, "batch_size": batch_size, "masks": masks, "formats": [*export.formats]}
    record = {"model": model, "precision": segmenter.precision, "engine": segmenter.engine, "settings": settings}
    record |= {"sha256": weights_digest(segmenter.model), "version": groupvit.__version__, "lists": export.lists}
    options = {"out": out, "masks": masks, "max_pixels": max_pixels, "export": export, "resume": resume}
    try:
        return _segment(files, segmenter, known, view, record=record, **options)
    except KeyboardInterrupt:
        if len(files) > 1 and not export.parts:
            print("groupvit: the same command with --resume goes on", file=sys.stderr)
        raise


def _refuse_photos(labels: Sequence[str], photos: Sequence[str]) -> None:
    for label in labels:
        suffix = os.path.splitext(label)[1].lower()
        if suffix in PHOTO_SUFFIXES or (os.path.exists(label) and ((os.path.isfile(label) and suffix) or not photos)):
            listing = suffix in (".txt", ".names", ".list", ".csv", ".tsv")
            advice = f"if it lists labels: --labels-file {label}" if listing else "put photos before --labels"
            raise InputError(f"{label} was taken for a label: {advice}")


def _all_labels(labels: Sequence[str], file: Path | None, photos: Sequence[str]) -> "tuple[Label, ...]":
    _refuse_photos(labels, photos)
    from groupvit.segmentation.labels import parse_labels, read_labels

    if not labels and not file:
        raise InputError("no labels: add --labels dog grass sky, or --labels-file FILE")
    return parse_labels((*labels, *(read_labels(file) if file else ())))


def _segment(
    files: Sequence[Path],
    segmenter: "Segmenter",
    labels: "Sequence[Label]",
    view: "View",
    *,
    out: Path,
    record: dict[str, Any],
    masks: bool,
    max_pixels: int,
    export: Export,
    resume: bool,
) -> int:
    """Segment, write and report every photo that can be read; return 1 if there are others."""
    batch_size = record["settings"]["batch_size"]
    names, single = output_names(files), len(files) == 1
    words = {label.name: [*label.words] for label in labels}
    if resume:
        left = [i for i, file in enumerate(files) if not is_done(out / names[i], file, record, words)]
        if len(left) < len(files):
            print(f"groupvit: passed over photos that have results: {len(files) - len(left)}", file=sys.stderr)
        files, names = [files[i] for i in left], [names[i] for i in left]
    kinds = ["overlay.jpg", "groups-1.jpg", *mask_kinds([*dict.fromkeys(["background", *words])])]
    longest = _LONGEST_NAME - max(len(os.fsencode(f".{kind}")) for kind in (kinds if masks else kinds[:2]))
    chunks = _load(files, names, batch_size, longest=longest, max_pixels=max_pixels, single=single)
    bar = progress("segmenting", len(files), shown=not single)
    share_freed_memory()
    writing, done = list[Future[str]](), 0

    def segmented(chunk: "Chunk") -> "Results":
        images = {i: image for i, image in chunk.items() if image}
        with enough_memory("take a smaller --batch-size or --short-side, or a --window"):
            results = segmenter.segment(list(images.values()), labels, view, batch_size=batch_size)
        return dict.fromkeys(chunk) | dict(zip(images, results, strict=True))

    with bar as advance, ThreadPoolExecutor(_THREADS) as pool, _two_workers() as workers:
        for results in _two_at_once(workers, segmented, _ahead(pool, chunks)):
            done, writing = done + _report(writing), []
            for i, result in results.items():
                if result is None:
                    continue
                export.add(out / names[i], files[i], result)
                facts = {"photo": str(files[i]), "path": path_from(out, os.path.realpath(files[i])), **record}
                writing.append(pool.submit(_write, out / names[i], result, words, facts, masks=masks))
            advance(len(results), len(results))
            if (max(results) + 1) // _TRIM_EVERY > min(results) // _TRIM_EVERY:
                return_freed_memory()
        done += _report(writing)
    export.finish()
    return int(done < len(files))


def _report(writing: list[Future[str]]) -> int:
    """Print the lines of photos that are being written, and return how many there were."""
    for written in writing:
        print(written.result(), flush=True)
    return len(writing)


@contextmanager
def _two_workers() -> Iterator[ThreadPoolExecutor]:
    """Yield a pool of two that compute with half of PyTorch's threads each."""
    import torch

    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(2, "", torch.set_num_threads, (max(1, threads // 2),)) as workers:
            yield workers
    finally:
        torch.set_num_threads(threads)


def _two_at_once(
    workers: ThreadPoolExecutor, segmented: "Callable[[Chunk], Results]", chunks: "Iterable[Chunk]"
) -> "Iterator[Results]":
    """Yield chunks' results in their order; while one chunk is encoded, another's pixels are named.

    The first one comes alone, since it builds what an engine runs, and so do those of large photos.
    """
    under_way = None
    for i, chunk in enumerate(chunks):
        alone = i == 0 or _pixels(chunk) > _PIXELS_AT_ONCE // 2
        coming = None if alone else workers.submit(segmented, chunk)
        if under_way:
            yield under_way.result()
        if alone:
            yield segmented(chunk)
        under_way = coming
    if under_way:
        yield under_way.result()


def _ahead(pool: ThreadPoolExecutor, chunks: "Iterator[Chunk]") -> "Iterator[Chunk]":
    """Yield chunks, of which the next one is read in another thread."""
    reading = pool.submit(next, chunks, None)
    while chunk := reading.result():
        reading = pool.submit(next, chunks, None)
        yield chunk


def _pixels(chunk: "Chunk") -> int:
    return sum(image.width * image.height for image in chunk.values() if image)


def _load(
    files: Sequence[Path], names: Sequence[str], count: int, *, longest: int, max_pixels: int, single: bool
) -> "Iterator[Chunk]":
    """Yield photos to segment together, fewer of large ones; in place of a bad one None, after a line on stderr."""
    from groupvit.photos import load_rgb

    chunk: Chunk = {}
    for i, file in enumerate(files):
        try:
            if (excess := len(os.fsencode(names[i])) - longest) > 0:
                raise InputError(f"{file}: its name is too long for names of results: shorten it by {excess} bytes")
            chunk[i] = load_rgb(file, str(file), max_pixels, "shrink it, or give a larger --max-pixels")
        except InputError as error:
            if single:
                raise
            print("groupvit: error:", error, file=sys.stderr)
            chunk[i] = None
        if len(chunk) == count or _pixels(chunk) > _PIXELS_AT_ONCE or i == len(files) - 1:
            yield chunk
            chunk = {}


def _write(
    stem: Path, result: "Segmentation", words: dict[str, list[str]], record: dict[str, Any], *, masks: bool
) -> str:
    """Save everything about one photo and return the line that reports it."""
    from PIL import Image

    from groupvit.segmentation import drawing

    drawn = result.reduced(_PIXELS_DRAWN)
    pictures = {"labels.png": drawing.indexed(result.label_map, result.names), "overlay.jpg": drawn.overlay()}
    pictures |= {f"groups-{i}.jpg": drawing.groups(drawn.image, g) for i, g in enumerate(drawn.groups, start=1)}
    kinds = mask_kinds(result.names) if masks else []
    before = earlier(stem)
    record["lists"] = sorted({*record["lists"], *before["lists"]})
    remove_others(stem, before, {*pictures, *kinds})
    result_file(stem, "json").unlink(missing_ok=True)  # it would not fit what a full disk ends half-way
    for kind, picture in pictures.items():
        write_picture(result_file(stem, kind), picture)
    for i, kind in enumerate(kinds):
        write_picture(result_file(stem, kind), Image.fromarray(result.label_map == i).convert("L"))
    values = result.to_dict()
    for entry in values["labels"]:
        entry["words"] = words.get(entry["name"], ())
    text = json.dumps({**record, **values}, indent=2) + "\n"
    write_atomically(result_file(stem, "json"), text.encode())
    shares = sorted(zip(result.shares, result.names, strict=True), key=lambda pair: -pair[0])
    named = ", ".join(f"{name} {100 * share:.0f} %" for share, name in shares if share >= 0.005)
    return f"{result_file(stem, 'overlay.jpg')}: {named}"
