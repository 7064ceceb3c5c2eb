"""Photos with masks, read from the layouts in which the data sets are published (docs/DATASETS.md)."""

import json
import re
import unicodedata
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from groupvit.errors import InputError, input_error
from groupvit.evaluation.class_lists import read_labels
from groupvit.evaluation.coco import category_labels, open_instances
from groupvit.evaluation.folders import files_in, lines, listed_names, pass_over, photos_by_name, require
from groupvit.evaluation.masks import MASK_SUFFIXES, MaskedPhoto, lookup, masked, read_masked
from groupvit.evaluation.metrics import IGNORE
from groupvit.segmentation.labels import BACKGROUND

CLASSES: dict[str, Any] = json.loads(Path(__file__).with_name("classes.json").read_text(encoding="utf-8"))
"""Class `names` as the data sets spell them, in the order of their indices; `protocols` has other words for them."""
_VOC, _CONTEXT, _COCO, _CAMVID = (tuple(CLASSES["names"][name]) for name in ("voc", "context", "coco", "camvid"))
_PASCAL = {
    "voc": ("Segmentation{}", _VOC, "give the folder VOC2012 of the VOCdevkit"),
    "context": ("Segmentation{}Context", _CONTEXT, "give the folder VOC2010 with PASCAL Context's masks in it"),
}
_UNLABELLED = re.compile(r"void|(un|not )label+ed|ignored?( label)?|unknown|don'?t care", re.IGNORECASE)


@dataclass(frozen=True)
class Dataset:
    """A benchmark's photos, read one by one: `len(d)`, `d[i]`, `for photo in d`.

    `labels` are in the order of the masks' indices. The first is "background" if pixels of no other class are a class
    of their own. Labels of a folder may have their own words (`dog=dog,puppy`).
    """

    benchmark: str
    root: Path
    labels: tuple[str, ...]
    names: tuple[str, ...]
    read: Callable[[str], MaskedPhoto] = field(repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> MaskedPhoto:
        return self.read(self.names[index])

    def __iter__(self) -> Iterator[MaskedPhoto]:
        return map(self.read, self.names)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the labels."""
        return tuple(label.partition("=")[0] for label in self.labels)

    @property
    def has_background(self) -> bool:
        """True if index 0 is what no other class claims, to be found by a threshold."""
        return self.labels[0].lower() == BACKGROUND

    def limited(self, count: int | None) -> "Dataset":
        """Return at most `count` photos, spread evenly over the list (lists are often sorted by class)."""
        if count is not None and count < 1:
            raise InputError(f"a limit of {count} photos leaves nothing to evaluate")
        if count is None or count >= len(self):
            return self
        return replace(self, names=tuple(self.names[i * len(self) // count] for i in range(count)))


def open_masks(root: Path, *, ignore_index: int | None = None, reduce_zero_label: bool = False) -> Dataset:
    """Open a folder with `images/NAME.*`, `masks/NAME.png` (class indices) and `classes.txt` (one label a line).

    Without `masks/`, the one JSON file in it or in `annotations/` is COCO's list of instances. An `InputError` says
    which part is missing. Pixels of value `ignore_index` do not count. With `reduce_zero_label` neither do those of 0,
    and 1 is the first class. Masks in colours have those of `labelmap.txt`, or else VOC's.
    """
    here = () if (root / "masks").exists() else (root, root / "annotations")
    listings = [path for folder in here for path in sorted(folder.glob("[!.]*.json")) if not _is_result(path)]
    if len(listings) > 1:
        names = ", ".join(path.name for path in listings[:3])
        raise InputError(f"{root} has no masks/, and several .json files ({names}): keep there COCO's list alone")
    if listings:
        return _open_listed(root, listings[0], asked=ignore_index is not None or reduce_zero_label)
    parts = "images", "masks", *(() if (root / "labelmap.txt").is_file() else ("classes.txt",))
    require(root, *parts, holds="an evaluation folder holds images/, masks/ and classes.txt")
    labels, colours, listing = read_labels(root)
    first = int(reduce_zero_label)
    if len(labels) + first > IGNORE:
        raise InputError(f"{listing} names {len(labels)}: counted from 1 the last is {IGNORE}, which does not count")
    for value, label in enumerate(labels, start=first):
        if value != ignore_index and _UNLABELLED.fullmatch(label):
            text = f"{label!r} is looked for as any other word; if it shall not count: 255, or --ignore-index {value}"
            warnings.warn(f"{listing}: {text}", stacklevel=2)
    indices = dict.fromkeys(range(first), IGNORE) | {i + first: i for i in range(len(labels))}
    table = lookup(indices | ({} if ignore_index is None else {ignore_index: IGNORE}))
    known = f"{listing} names {len(labels)}, {first} to {len(labels) - 1 + first}, and 255 does not count"
    known += "" if first else " (masks that count from 1: --reduce-zero-label)"
    if listing == "labelmap.txt" and next(iter(colours.values())):  # background was moved to the front
        if first or ignore_index is not None:
            raise InputError(f"{root / listing}: put background first, and indices will be as they are meant")
        first = len(table) // 2  # so that colours tell the classes, and indices do not
        table = lookup({i + first: i for i in range(len(labels))} | {IGNORE: IGNORE})
        known = f"background is not the first line of {listing}: save masks in its colours"
    values = {colour: index if index == IGNORE else index + first for colour, index in colours.items()}
    photos = photos_by_name(root / "images")
    masks = _masks(root / "masks", photos)

    def read(name: str) -> MaskedPhoto:
        photo = read_masked(name, photos[name], masks[name], table, known, values)
        if (photo.mask == IGNORE).all():
            raise InputError(f"{masks[name]} shows no class, only pixels that do not count: drop it and its photo")
        return photo

    return Dataset("folder", root, labels, tuple(photos), read)


def _masks(folder: Path, photos: Mapping[str, Path]) -> dict[str, Path]:
    """Return the mask of each photo by its name."""
    files = files_in(folder)
    masks: dict[str, Path] = {}
    spelt = {unicodedata.normalize("NFC", name): name for name in photos}  # macOS sets accents apart
    for path in files:
        if path.suffix.lower() in MASK_SUFFIXES:
            name = spelt.get(unicodedata.normalize("NFC", path.stem), path.stem)
            if masks.setdefault(name, path) != path:
                raise InputError(f"{masks[name]} and {path.name} are two masks of one photo: keep one of them")
    if missing := [name for name in photos if name not in masks]:
        name = missing[0]
        others = [path.name for path in files if path.stem not in photos or path.suffix.lower() not in MASK_SUFFIXES]
        what = "is named otherwise, or of a format that changes values: save it as PNG"
        near = next((f"; {other} {what}" for other in others if name in other), "")
        raise InputError(f"{photos[name]} has no mask {folder / name}.png (missing: {len(missing)}){near}")
    pass_over(folder, [path.name for name, path in masks.items() if name not in photos], "masks without a photo")
    return masks


def _above_background(
    benchmark: str, root: Path, classes: tuple[str, ...], photos: Mapping[str, Path], mask: str, *, background: bool
) -> Dataset:
    """Return a data set in whose masks 0 is background: the first class, or without it a part that is not labelled."""
    labels = ((BACKGROUND,) if background else ()) + classes
    table = lookup({i + 1: i + background for i in range(len(classes))} | {0: 0 if background else IGNORE})
    known = f"{benchmark} has 0 to {len(classes)}"

    def read(name: str) -> MaskedPhoto:
        return read_masked(name, photos[name], root / mask.format(name), table, known)

    return Dataset(benchmark, root, labels, tuple(photos), read)


def _open_pascal(benchmark: str, root: Path, split: str = "val") -> Dataset:
    place, classes, holds = _PASCAL[benchmark.rstrip("0123456789")]
    masks = place.format("Class")
    if split == "trainaug" and (root / f"{masks}Aug").is_dir():  # SBD's masks beside VOC's own
        masks += "Aug"
    require(root, "JPEGImages", masks, holds=holds)
    names = listed_names(root / "ImageSets" / place.format("") / f"{split}.txt")
    photos = {name: root / f"JPEGImages/{name}.jpg" for name in names}
    background = benchmark in ("voc21", "context60")
    return _above_background(benchmark, root, classes, photos, masks + "/{}.png", background=background)


def _open_coco_stuff(root: Path) -> Dataset:
    require(root, "images/val2017", "annotations/val2017", holds="give the folder with the converted COCO-Stuff masks")
    photos = {path.stem: path for path in sorted((root / "images/val2017").glob("*.jpg"))}
    mask = "annotations/val2017/{}_instanceTrainIds.png"
    return _above_background("coco-object-stuff", root, _COCO, photos, mask, background=True)


def _only(benchmark: str, dataset: Dataset, *classes: str) -> Dataset:
    """Keep the photos and some classes: the others are background, or not labelled where there is none."""
    labels = dataset.labels[:1] * dataset.has_background + classes
    table = np.full(256, 0 if dataset.has_background else IGNORE, np.uint8)
    table[IGNORE] = IGNORE
    for index, label in enumerate(labels):
        table[dataset.labels.index(label)] = index

    def read(name: str) -> MaskedPhoto:
        photo = dataset.read(name)
        return replace(photo, mask=table[photo.mask])

    return replace(dataset, benchmark=benchmark, labels=labels, read=read)


def _open_pets(root: Path) -> Dataset:
    require(root, "images", "annotations/trimaps", holds="give the folder with images/ and annotations/")
    listing = root / "annotations/list.txt"
    species: dict[str, int] = {}
    for line in lines(listing):
        if not line.startswith("#"):
            match line.split():
                case [name, _, "1" | "2" as kind, *_]:
                    species[name] = int(kind)
                case _:
                    raise InputError(f"{listing}: {line!r} is not NAME CLASS SPECIES BREED with species 1 or 2")

    def read(name: str) -> MaskedPhoto:
        table = lookup({1: species[name], 2: 0, 3: IGNORE})
        mask = root / f"annotations/trimaps/{name}.png"
        return read_masked(name, root / f"images/{name}.jpg", mask, table, "a trimap has 1, 2 and 3")

    return Dataset("pets", root, (BACKGROUND, "cat", "dog"), tuple(species), read)


def _open_camvid(root: Path, split: str = "val") -> Dataset:
    require(root, split, f"{split}annot", holds=f"give the folder with {split}/ and {split}annot/")
    table = lookup({i: i for i in range(len(_CAMVID))} | {11: IGNORE})
    photos = photos_by_name(root / split)

    def read(name: str) -> MaskedPhoto:
        return read_masked(name, photos[name], root / f"{split}annot/{name}.png", table, "CamVid has 0 to 11")

    return Dataset("camvid11", root, _CAMVID, tuple(photos), read)


def _open_coco_instances(root: Path) -> Dataset:
    parts = "val2017", "annotations/instances_val2017.json"
    require(root, *parts, holds="give the folder with val2017/ and annotations/")
    return _instances("coco-object-instances", root, root / parts[1], root / parts[0], (BACKGROUND, *_COCO))


def _is_result(path: Path) -> bool:
    """Return True for what `groupvit evaluate` writes, into the current folder if it is not told another."""
    with input_error(f"{path} cannot be read", OSError):
        if not path.is_file():
            raise OSError("it is no file")
        with path.open("rb") as file:
            return b'"benchmark"' in file.read(100)


def _open_listed(root: Path, listing: Path, *, asked: bool) -> Dataset:
    """Return the photos of a list of instances; its categories are the labels, unless there is `classes.txt`."""
    if asked:
        raise InputError(f"{listing} says what its values mean: --ignore-index and --reduce-zero-label are for masks")
    labels = read_labels(root)[0] if (root / "classes.txt").is_file() else category_labels(listing)
    folder = root / "images"
    return _instances("folder", root, listing, folder if folder.is_dir() else root, labels)


def _instances(benchmark: str, root: Path, listing: Path, folder: Path, labels: tuple[str, ...]) -> Dataset:
    if not find_spec("pycocotools"):
        raise InputError("COCO's masks need pycocotools: pip install pycocotools")
    photos, paint = open_instances(listing, folder, labels)

    def read(name: str) -> MaskedPhoto:
        return masked(name, photos[name], lambda image: paint(name, (image.height, image.width)))

    return Dataset(benchmark, root, labels, tuple(photos), read)


BENCHMARKS: Mapping[str, Callable[..., Dataset]] = {
    "voc21": partial(_open_pascal, "voc21"),
    "voc4": lambda root, split="val": _only("voc4", _open_pascal("voc21", root, split), "person", "dog", "cat"),
    "voc20": partial(_open_pascal, "voc20"),
    "context60": partial(_open_pascal, "context60"),
    "context59": partial(_open_pascal, "context59"),
    "coco-object-instances": _open_coco_instances,
    "coco-object-stuff": _open_coco_stuff,
    "pets": _open_pets,
    "camvid11": _open_camvid,
    "camvid5": lambda root, split="val": _only(
        "camvid5", _open_camvid(root, split), "sky", "road", "tree", "building", "car"
    ),
    "camvid11-test": lambda root: replace(_open_camvid(root, "test"), benchmark="camvid11-test"),
    "folder": open_masks,
}
"""Opener of each benchmark, given the folder of the data set; those of `SPLITS` open other lists of photos, too."""
SPLITS = ("voc21", "voc4", "voc20", "context60", "context59", "camvid11", "camvid5")


def open_benchmark(
    name: str, root: Path | str, *, ignore_index: int | None = None, reduce_zero_label: bool = False
) -> Dataset:
    """List a benchmark's photos in `root`; an `InputError` names the file that is missing. Options are a folder's."""
    if name not in BENCHMARKS:
        raise InputError(
            f"no benchmark {name!r}: there are {', '.join(BENCHMARKS)}; evaluate has classification and retrieval, too"
        )
    if ignore_index is not None and not 0 <= ignore_index < 1 << 16:
        raise InputError(f"an ignore index is a value in masks, 0 to {(1 << 16) - 1}, not {ignore_index}")
    root = Path(root)
    if name == "folder":
        dataset = open_masks(root, ignore_index=ignore_index, reduce_zero_label=reduce_zero_label)
    elif ignore_index is None and not reduce_zero_label:
        dataset = BENCHMARKS[name](root)
    else:
        raise InputError(f"{name} says what its values mean: --ignore-index and --reduce-zero-label are for a folder")
    if not dataset.names:
        raise InputError(f"{root} lists no photos for {name}")
    return dataset
