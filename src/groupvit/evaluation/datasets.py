"""Photos with masks, read from the layouts in which the data sets are published (docs/DATASETS.md)."""

import json
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from groupvit.errors import InputError, input_error
from groupvit.evaluation.masks import Mask, MaskedPhoto, Table, lookup, masked, read_masked
from groupvit.evaluation.metrics import IGNORE
from groupvit.segmentation.labels import BACKGROUND, clean, parse_labels

CLASSES: dict[str, Any] = json.loads(Path(__file__).with_name("classes.json").read_text(encoding="utf-8"))
"""Class `names` as the data sets spell them, in the order of their indices; `protocols` has other words for them."""
_VOC, _CONTEXT, _COCO, _CAMVID = (tuple(CLASSES["names"][name]) for name in ("voc", "context", "coco", "camvid"))
_PASCAL = {
    "voc": ("Segmentation{}", _VOC, "give the folder VOC2012 of the VOCdevkit"),
    "context": ("Segmentation{}Context", _CONTEXT, "give the folder VOC2010 with PASCAL Context's masks in it"),
}


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

    def first(self, count: int | None) -> "Dataset":
        """Return at most `count` photos, spread evenly over the list (lists are often sorted by class)."""
        if count is not None and count < 1:
            raise InputError(f"a limit of {count} photos leaves nothing to evaluate")
        if count is None or count >= len(self):
            return self
        return replace(self, names=tuple(self.names[i * len(self) // count] for i in range(count)))


class MaskFolder:
    """A folder with `images/NAME.*`, `masks/NAME.png` (class indices) and `classes.txt` (one label a line)."""

    @staticmethod
    def open(root: Path) -> Dataset:
        """List classes and photos; an `InputError` says which part of the folder is missing."""
        parts = "images", "masks", "classes.txt"
        _require(root, *parts, holds="an evaluation folder holds images/, masks/ and classes.txt")
        labels = _labels(root / "classes.txt")
        table, known = lookup({i: i for i in range(len(labels))}), f"classes.txt names {len(labels)}"
        return _paired("folder", root, labels, _images(root / "images"), "masks/{}.png", table, known)


def _labels(listing: Path) -> tuple[str, ...]:
    """Read labels as they will be looked for: "traffic light" for `traffic_light`."""
    lines = read_text(listing).rstrip().splitlines()
    if not lines or not all(map(str.strip, lines)):
        raise InputError(f"{listing} has a blank line: each line is the label of one index, from 0")
    if len(lines) > IGNORE:
        raise InputError(f"{listing} has {len(lines)} classes: masks of 8 bits tell {IGNORE} apart")
    bare = clean(lines[0]).lower() == BACKGROUND
    if bare and len(lines) < 3:
        raise InputError(f"{listing}: to tell background takes two other labels, since one alone fits every pixel")
    with input_error(str(listing), InputError):
        labels = [parse_labels([line])[0] for line in lines[bare:]]
        parse_labels(labels)
    written = (
        f"{label.name}={','.join(label.words)}" if "=" in line else label.name
        for line, label in zip(lines[bare:], labels, strict=True)
    )
    return (*(BACKGROUND,) * bare, *written)


def _paired(
    benchmark: str,
    root: Path,
    labels: tuple[str, ...],
    photos: Mapping[str, Path],
    mask: str,
    table: Table,
    known: str,
) -> Dataset:
    """Return a data set of photos by name; `mask` is the place of a name's mask, and `known` the indices in it."""

    def read(name: str) -> MaskedPhoto:
        return read_masked(name, photos[name], root / mask.format(name), table, known)

    return Dataset(benchmark, root, labels, tuple(photos), read)


def _above_background(
    benchmark: str, root: Path, classes: tuple[str, ...], photos: Mapping[str, Path], mask: str, *, background: bool
) -> Dataset:
    """Return a data set in whose masks 0 is background: the first class, or without it a part that is not labelled."""
    labels = ((BACKGROUND,) if background else ()) + classes
    table = lookup({i + 1: i + background for i in range(len(classes))} | {0: 0 if background else IGNORE})
    return _paired(benchmark, root, labels, photos, mask, table, f"{benchmark} has 0 to {len(classes)}")


def _open_pascal(root: Path, benchmark: str, *, background: bool) -> Dataset:
    place, classes, holds = _PASCAL[benchmark.rstrip("0123456789")]
    masks = place.format("Class")
    _require(root, "JPEGImages", masks, holds=holds)
    names = _names(root / "ImageSets" / place.format("") / "val.txt")
    photos = {name: root / f"JPEGImages/{name}.jpg" for name in names}
    return _above_background(benchmark, root, classes, photos, masks + "/{}.png", background=background)


def _open_coco_stuff(root: Path) -> Dataset:
    _require(root, "images/val2017", "annotations/val2017", holds="give the folder with the converted COCO-Stuff masks")
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
    _require(root, "images", "annotations/trimaps", holds="give the folder with images/ and annotations/")
    listing = root / "annotations/list.txt"
    species: dict[str, int] = {}
    for line in _lines(listing):
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


def _open_camvid(root: Path, split: str) -> Dataset:
    _require(root, split, f"{split}annot", holds=f"give the folder with {split}/ and {split}annot/")
    table = lookup({i: i for i in range(len(_CAMVID))} | {11: IGNORE})
    mask = split + "annot/{}.png"
    return _paired("camvid11", root, _CAMVID, _images(root / split), mask, table, "CamVid has 0 to 11")


def _open_coco_instances(root: Path) -> Dataset:
    """Paint instances into one map: crowds first, then from large to small, so that small things stay visible."""
    listing = root / "annotations/instances_val2017.json"
    parts = "val2017", "annotations/instances_val2017.json"
    _require(root, *parts, holds="give the folder with val2017/ and annotations/")
    if not find_spec("pycocotools"):
        raise InputError("COCO's masks need pycocotools: pip install pycocotools")
    try:
        document = json.loads(listing.read_bytes())
        index = {category["id"]: 1 + _COCO.index(category["name"]) for category in document["categories"]}
        images = {Path(image["file_name"]).stem: image for image in document["images"]}
        sizes = {name: (image["height"], image["width"]) for name, image in images.items()}
        things: dict[int, list[Any]] = {image["id"]: [] for image in images.values()}
        for thing in document["annotations"]:
            things[thing["image_id"]].append((not thing["iscrowd"], -thing["area"], thing["id"], thing))
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{listing} is not COCO's list of instances ({type(error).__name__}: {error})") from error

    def read(name: str) -> MaskedPhoto:
        mask = np.zeros(sizes[name], np.uint8)
        for *_, number, thing in sorted(things[images[name]["id"]], key=lambda entry: entry[:3]):
            try:
                mask[_decode(thing["segmentation"], *mask.shape) > 0] = index[thing["category_id"]]
            except Exception as error:  # pycocotools raises nothing more special
                raise InputError(
                    f"{listing}: annotation {number} of {name} is no mask ({type(error).__name__}: {error})"
                ) from error
        return masked(name, root / "val2017" / images[name]["file_name"], mask, listing)

    return Dataset("coco-object-instances", root, (BACKGROUND, *_COCO), tuple(images), read)


def _decode(segmentation: Any, height: int, width: int) -> Mask:
    from pycocotools import mask as coco

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # its arrays are of NumPy 1's kind
        if isinstance(segmentation, list) or isinstance(segmentation["counts"], list):
            segmentation = coco.frPyObjects(segmentation, height, width)
        return np.asarray(coco.decode(coco.merge(segmentation) if isinstance(segmentation, list) else segmentation))


BENCHMARKS: Mapping[str, Callable[[Path], Dataset]] = {
    "voc21": lambda root: _open_pascal(root, "voc21", background=True),
    "voc4": lambda root: _only("voc4", _open_pascal(root, "voc21", background=True), "person", "dog", "cat"),
    "voc20": lambda root: _open_pascal(root, "voc20", background=False),
    "context60": lambda root: _open_pascal(root, "context60", background=True),
    "context59": lambda root: _open_pascal(root, "context59", background=False),
    "coco-object-instances": _open_coco_instances,
    "coco-object-stuff": _open_coco_stuff,
    "pets": _open_pets,
    "camvid11": lambda root: _open_camvid(root, "val"),
    "camvid5": lambda root: _only("camvid5", _open_camvid(root, "val"), "sky", "road", "tree", "building", "car"),
    "camvid11-test": lambda root: replace(_open_camvid(root, "test"), benchmark="camvid11-test"),
    "folder": MaskFolder.open,
}
"""Opener of each benchmark, given the folder of the data set."""


def open_benchmark(name: str, root: Path) -> Dataset:
    """List a benchmark's photos in `root`; an `InputError` names the file that is missing."""
    if name not in BENCHMARKS:
        raise InputError(f"no benchmark {name!r}: there are {', '.join(BENCHMARKS)}")
    dataset = BENCHMARKS[name](root)
    if not dataset.names:
        raise InputError(f"{root} lists no photos for {name}")
    return dataset


def _require(root: Path, *parts: str, holds: str) -> None:
    for part in parts:
        if not (root / part).exists():
            raise InputError(f"{root} has no {part}; {holds}")


def read_text(path: Path) -> str:
    """Read a text file; an `InputError` says why it is none."""
    with input_error(f"{path} cannot be read", OSError, UnicodeDecodeError):
        return path.read_text(encoding="utf-8-sig")


def _lines(path: Path) -> list[str]:
    return [line.strip() for line in read_text(path).splitlines() if line.strip()]


def _names(listing: Path) -> list[str]:
    """Read the names of photos, each of which must be there once."""
    names = _lines(listing)
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise InputError(f"{listing} has {twice[0]} twice: drop one of the lines")
    return names


def _images(folder: Path) -> dict[str, Path]:
    """Return the files of a folder by their names without suffix, sorted, without hidden ones."""
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder of photos")
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.stem in files:
            raise InputError(f"{path} and {files[path.stem].name} would share one mask: rename one of them")
        if not path.name.startswith("."):
            files[path.stem] = path
    return files
