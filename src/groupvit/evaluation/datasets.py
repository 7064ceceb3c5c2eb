"""Photos with masks, read from the layouts in which the data sets are published (docs/DATASETS.md)."""

import hashlib
import json
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from groupvit.data.transforms import load_rgb
from groupvit.errors import InputError
from groupvit.evaluation.metrics import IGNORE
from groupvit.segmentation.labels import BACKGROUND, clean, parse_labels

Mask = UInt8[np.ndarray, "height width"]

CLASSES: dict[str, Any] = json.loads(Path(__file__).with_name("classes.json").read_text(encoding="utf-8"))
"""Class `names` as the data sets spell them, in the order of their indices; other words for them, see `protocols`."""
_VOC, _CONTEXT, _COCO, _CAMVID = (tuple(CLASSES["names"][name]) for name in ("voc", "context", "coco", "camvid"))


@dataclass(frozen=True)
class MaskedPhoto:
    """A photo and the class index of every pixel (255: not labelled); `digest` is a hash of file and mask."""

    name: str
    image: Image.Image
    mask: Mask
    digest: str = ""


@dataclass(frozen=True)
class Dataset:
    """A benchmark's photos, read one by one: `len(d)`, `d[i]`, `for photo in d`.

    `labels` stand in the order of the masks' indices; the first is the bare word "background" where whatever has no
    other class is a class of its own. Those of a folder may carry words of their own (`dog=dog,puppy`).
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
        """The labels' names."""
        return tuple(label.partition("=")[0] for label in self.labels)

    @property
    def has_background(self) -> bool:
        """Whether index 0 is what no other class claims, to be found by a threshold."""
        return self.labels[0].lower() == BACKGROUND

    def first(self, count: int | None) -> "Dataset":
        """At most `count` photos, spread evenly over the list (lists are often sorted by class)."""
        if count is not None and count < 1:
            raise InputError(f"a limit of {count} photos leaves nothing to evaluate")
        if count is None or count >= len(self):
            return self
        return replace(self, names=tuple(self.names[i * len(self) // count] for i in range(count)))


class MaskFolder:
    """A folder with `images/NAME.*`, `masks/NAME.png` (class indices) and `classes.txt` (one label a line)."""

    @staticmethod
    def open(root: Path) -> Dataset:
        """Reads the list of classes and photos; an `InputError` says which part of the folder is missing."""
        _require(
            root, "images", "masks", "classes.txt", holds="an evaluation folder holds images/, masks/ and classes.txt"
        )
        labels = _labels(root / "classes.txt")
        files = _images(root / "images")
        table = _table({i: i for i in range(len(labels))})

        def read(name: str) -> MaskedPhoto:
            return _read(name, files[name], root / "masks" / f"{name}.png", table, f"classes.txt names {len(labels)}")

        return Dataset("folder", root, labels, tuple(files), read)


def _labels(listing: Path) -> tuple[str, ...]:
    """Labels as they will be looked for: "traffic light" for `traffic_light`."""
    lines = read_text(listing).rstrip().splitlines()
    if not lines or not all(map(str.strip, lines)):
        raise InputError(f"{listing} has a blank line: each line is the label of one index, from 0")
    if len(lines) > IGNORE:
        raise InputError(f"{listing} has {len(lines)} classes: masks of 8 bits tell {IGNORE} apart")
    bare = clean(lines[0]).lower() == BACKGROUND
    if bare and len(lines) < 3:
        raise InputError(f"{listing}: to tell background takes two other labels, since one alone fits every pixel")
    try:
        labels = [parse_labels([line])[0] for line in lines[bare:]]
        parse_labels(labels)
    except InputError as error:
        raise InputError(f"{listing}: {error}") from error
    own = zip(lines[bare:], labels, strict=True)
    return (BACKGROUND,) * bare + tuple(
        f"{label.name}={','.join(label.words)}" if "=" in line else label.name for line, label in own
    )


def _open_voc(root: Path, *, background: bool) -> Dataset:
    _require(root, "JPEGImages", "SegmentationClass", holds="give the folder VOC2012 of the VOCdevkit")
    names = _names(root / "ImageSets/Segmentation/val.txt")
    return _open_pairs("voc", root, names, _VOC, "JPEGImages/{}.jpg", "SegmentationClass/{}.png", background=background)


def _open_context(root: Path, *, background: bool) -> Dataset:
    _require(
        root,
        "JPEGImages",
        "SegmentationClassContext",
        holds="give the folder VOC2010 with PASCAL Context's masks in it",
    )
    names = _names(root / "ImageSets/SegmentationContext/val.txt")
    places = "JPEGImages/{}.jpg", "SegmentationClassContext/{}.png"
    return _open_pairs("context", root, names, _CONTEXT, *places, background=background)


def _open_coco_stuff(root: Path) -> Dataset:
    places = "images/val2017/{}.jpg", "annotations/val2017/{}_instanceTrainIds.png"
    _require(root, "images/val2017", "annotations/val2017", holds="give the folder with the converted COCO-Stuff masks")
    names = [path.stem for path in sorted((root / "images/val2017").glob("*.jpg"))]
    return replace(_open_pairs("", root, names, _COCO, *places, background=True), benchmark="coco-object-stuff")


def _open_pairs(
    name: str, root: Path, names: list[str], classes: tuple[str, ...], photo: str, mask: str, *, background: bool
) -> Dataset:
    """Masks in which 0 is background: the first class, or without it a part that is not labelled."""
    table = _table({i + 1: i + background for i in range(len(classes))} | {0: 0 if background else IGNORE})
    known = f"{name or 'the benchmark'} has {len(classes) + 1}"

    def read(key: str) -> MaskedPhoto:
        return _read(key, root / photo.format(key), root / mask.format(key), table, known)

    labels = ((BACKGROUND,) if background else ()) + classes
    return Dataset(f"{name}{len(labels)}", root, labels, tuple(names), read)


def _only(benchmark: str, dataset: Dataset, *classes: str) -> Dataset:
    """The same photos with some of the classes: the others are background, or not labelled where there is none."""
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
        table = _table({1: species[name], 2: 0, 3: IGNORE})
        mask = root / f"annotations/trimaps/{name}.png"
        return _read(name, root / f"images/{name}.jpg", mask, table, "a trimap has 1, 2 and 3")

    return Dataset("pets", root, (BACKGROUND, "cat", "dog"), tuple(species), read)


def _open_camvid(root: Path, split: str) -> Dataset:
    _require(root, split, f"{split}annot", holds=f"give the folder with {split}/ and {split}annot/")
    files = _images(root / split)
    table = _table({i: i for i in range(len(_CAMVID))} | {11: IGNORE})

    def read(name: str) -> MaskedPhoto:
        return _read(name, files[name], root / f"{split}annot/{name}.png", table, "CamVid has 0 to 11")

    return Dataset("camvid11", root, _CAMVID, tuple(files), read)


def _open_coco_instances(root: Path) -> Dataset:
    """Instances painted into one map: crowds first, then from large to small, so that small things stay visible."""
    listing = root / "annotations/instances_val2017.json"
    _require(
        root, "val2017", "annotations/instances_val2017.json", holds="give the folder with val2017/ and annotations/"
    )
    try:
        document = json.loads(listing.read_bytes())
        index = {category["id"]: 1 + _COCO.index(category["name"]) for category in document["categories"]}
        images = {Path(image["file_name"]).stem: image for image in document["images"]}
        sizes = {name: (image["height"], image["width"]) for name, image in images.items()}
        owned: dict[int, list[Any]] = {image["id"]: [] for image in images.values()}
        for thing in document["annotations"]:
            owned[thing["image_id"]].append((not thing["iscrowd"], -thing["area"], thing["id"], thing))
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{listing} is not COCO's list of instances ({type(error).__name__}: {error})") from error

    def read(name: str) -> MaskedPhoto:
        data, image = _photo(path := root / "val2017" / images[name]["file_name"])
        mask = np.zeros(sizes[name], np.uint8)
        for *_, number, thing in sorted(owned[images[name]["id"]], key=lambda entry: entry[:3]):
            try:
                mask[_decode(thing["segmentation"], *mask.shape) > 0] = index[thing["category_id"]]
            except InputError:
                raise
            except Exception as error:  # pycocotools raises nothing more special
                raise InputError(
                    f"{listing}: annotation {number} of {name} is no mask ({type(error).__name__}: {error})"
                ) from error
        _check_size(listing, mask, path, image)
        return _photo_with(name, data, image, mask)

    return Dataset("coco-object-instances", root, (BACKGROUND, *_COCO), tuple(images), read)


def _decode(segmentation: Any, height: int, width: int) -> Mask:
    try:
        from pycocotools import mask as coco
    except ImportError as error:
        raise InputError("COCO's masks need pycocotools: pip install pycocotools") from error
    runs: Any = segmentation
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # its arrays are of NumPy 1's kind
        if isinstance(segmentation, list) or isinstance(segmentation["counts"], list):
            runs = coco.frPyObjects(segmentation, height, width)
        return np.asarray(coco.decode(coco.merge(runs) if isinstance(runs, list) else runs))


BENCHMARKS: Mapping[str, Callable[[Path], Dataset]] = {
    "voc21": lambda root: _open_voc(root, background=True),
    "voc4": lambda root: _only("voc4", _open_voc(root, background=True), "person", "dog", "cat"),
    "voc20": lambda root: _open_voc(root, background=False),
    "context60": lambda root: _open_context(root, background=True),
    "context59": lambda root: _open_context(root, background=False),
    "coco-object-instances": _open_coco_instances,
    "coco-object-stuff": _open_coco_stuff,
    "pets": _open_pets,
    "camvid11": lambda root: _open_camvid(root, "val"),
    "camvid5": lambda root: _only("camvid5", _open_camvid(root, "val"), "sky", "road", "tree", "building", "car"),
    "camvid11-test": lambda root: replace(_open_camvid(root, "test"), benchmark="camvid11-test"),
    "folder": MaskFolder.open,
}
"""What each name opens, given the folder in which the data set lies."""


def open_benchmark(name: str, root: Path) -> Dataset:
    """A benchmark's photos in `root`; an `InputError` names the file that is missing."""
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
    """A text file; an `InputError` says why it is none."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({getattr(error, 'strerror', None) or error})") from error


def _lines(path: Path) -> list[str]:
    return [line.strip() for line in read_text(path).splitlines() if line.strip()]


def _names(listing: Path) -> list[str]:
    """Names of photos, each of which counts once."""
    names = _lines(listing)
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise InputError(f"{listing} has {twice[0]} twice: drop one of the lines")
    return names


def _images(folder: Path) -> dict[str, Path]:
    """The files of a folder by their names without suffix, sorted; hidden ones are none."""
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder of photos")
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.stem in files:
            raise InputError(f"{path} and {files[path.stem].name} would share one mask: rename one of them")
        if not path.name.startswith("."):
            files[path.stem] = path
    return files


def _table(indices: Mapping[int, int]) -> tuple[int, ...]:
    """For each value in a file the class index, `IGNORE`, or -1 for a value that does not belong there."""
    return tuple({IGNORE: IGNORE, **indices}.get(value, -1) for value in range(256))


def _read(name: str, path: Path, mask_path: Path, table: tuple[int, ...], known: str) -> MaskedPhoto:
    if not mask_path.is_file():
        raise InputError(f"{path} has no mask {mask_path}")
    data, image = _photo(path)
    try:
        with Image.open(mask_path, formats=("PNG",)) as file:
            values = np.asarray(file)
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f"{mask_path} cannot be read: {error}") from error
    if values.dtype != np.uint8 or values.ndim != 2:
        raise InputError(f"{mask_path} is not an 8-bit mask of indices")
    _check_size(mask_path, values, path, image)
    indices = np.array(table)
    if (unknown := np.flatnonzero((indices < 0) & (np.bincount(values.ravel(), minlength=256) > 0))).size:
        raise InputError(f"{mask_path} has class {unknown[0]}, but {known}")
    return _photo_with(name, data, image, indices.clip(0).astype(np.uint8)[values])


def _photo(path: Path) -> tuple[bytes, Image.Image]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})") from error
    return data, load_rgb(data, str(path))


def _check_size(source: Path, mask: Mask, path: Path, image: Image.Image) -> None:
    if mask.shape != image.size[::-1]:
        raise InputError(
            f"{source} has a mask of {mask.shape[1]} x {mask.shape[0]} for {path}, {image.width} x {image.height}"
        )


def _photo_with(name: str, data: bytes, image: Image.Image, mask: Mask) -> MaskedPhoto:
    digest = hashlib.sha256(data)
    digest.update(np.ascontiguousarray(mask).tobytes())
    return MaskedPhoto(name, image, mask, digest.hexdigest()[:16])
