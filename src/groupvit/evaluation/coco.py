"""COCO's list of instances, as tools write it: its photos, and masks painted from its outlines."""

import json
import os
import re
import unicodedata
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
from jaxtyping import UInt8

from groupvit.errors import InputError, input_error
from groupvit.evaluation.class_lists import parse_lines
from groupvit.evaluation.metrics import IGNORE
from groupvit.files import refuse_pointer
from groupvit.segmentation.labels import BACKGROUND, clean

Size = tuple[int, int]
"""Height and width."""


def open_instances(
    listing: Path, folder: Path, labels: Sequence[str]
) -> tuple[dict[str, Path], Callable[[str, Size], UInt8[np.ndarray, "height width"]]]:
    """Return the photos in `folder` by name, and what paints a photo's mask of indices of `labels`.

    What no instance covers is background where there is such a label, else not labelled.

    Crowds come first, then instances from large to small, so that small things stay visible. Annotations without an
    outline or a photo are passed over and counted in a warning.
    """
    document = _read(listing)
    images, categories = (_by_id(document[part], part, listing) for part in ("images", "categories"))
    order = {label.partition("=")[0].lower(): index for index, label in enumerate(labels)}
    ground = order.get(BACKGROUND, IGNORE)
    index = {key: order.get(clean(str(entry.get("name"))).lower()) for key, entry in categories.items()}
    things: dict[str, list[dict[str, Any]]] = {key: [] for key in images}
    passed, parts = Counter[str](), 0
    for thing in document["annotations"]:
        image, category = _key(thing.get("image_id")), _key(thing.get("category_id"))
        thing["segmentation"], lost = _outline(thing.get("segmentation"))
        parts += lost
        if image not in things:
            passed["of no listed image"] += 1
        elif not thing["segmentation"]:
            passed["without an outline (polygons of three points or more, or one mask's runs)"] += 1
        elif category not in index:
            raise InputError(f"{listing}: annotation {thing.get('id')} has category {category}, which is not listed")
        elif (which := index[category]) is None:
            name = categories[category].get("name")
            raise InputError(
                f"{listing}: category {name!r} is none of the {len(labels)} labels, such as {labels[-1]!r}: rename it, "
                "or give a folder with a classes.txt that names it"
            )
        else:
            things[image].append(thing | {"class": which})
    if passed:
        reasons = " and ".join(f"{number} {reason}" for reason, number in passed.items())
        if passed.total() == len(document["annotations"]):
            unlisted = [*passed] == ["of no listed image"]
            why = "give them ids of images" if unlisted else "boxes alone are no masks"
            raise InputError(f"{listing}: no annotation can be painted ({reasons}): {why}")
        warnings.warn(f"{listing}: passed over {reasons}, of {len(document['annotations'])} annotations", stacklevel=2)
    if parts:
        warnings.warn(f"{listing}: passed over {parts} parts of outlines that are no polygons", stacklevel=2)
    outlines = [thing["segmentation"] for listed in things.values() for thing in listed]
    polygons = [polygon for outline in outlines if isinstance(outline, list) for polygon in outline]
    if polygons and all(max(polygon) <= 1 for polygon in polygons):
        raise InputError(f"{listing}: its outlines are shares of the photos (0 to 1): multiply them by the sizes")
    photos = _photos(images, folder, listing)

    def paint(name: str, size: Size) -> UInt8[np.ndarray, "height width"]:
        key, path = photos[name]
        for side, pixels in zip(("height", "width"), size, strict=True):
            told = images[key].get(side)  # some tools write -1 or nothing
            if isinstance(told, int | float) and told > 0 and told != pixels:
                raise InputError(f"{listing}: {side} of {path.name} is {told}, but the photo's is {pixels} pixels")
        return _paint(things[key], size, ground, f"of {name}", listing)

    return {name: path for name, (_, path) in photos.items()}, paint


def category_labels(listing: Path) -> tuple[str, ...]:
    """Return background and a label for each category, in the order of the list.

    A category without annotations is none if it is above others (Roboflow's first one), or if another has its name.
    """
    document = _read(listing)
    used = {_key(thing.get("category_id")) for thing in document["annotations"]}
    kinds = [(str(each.get("name")), str(each.get("supercategory"))) for each in document["categories"]]
    above = {kind for name, kind in kinds if kind != name}
    last = {str(each.get("name")): _key(each.get("id")) for each in document["categories"]}
    last |= {str(each.get("name")): key for each in document["categories"] if (key := _key(each.get("id"))) in used}
    names = []
    for category in document["categories"]:
        if not isinstance(name := category.get("name"), str):
            raise InputError(f"{listing}: category {category.get('id')} has no name")
        key = _key(category.get("id"))
        if key in used or (name not in above and key == last[name]):
            names.append(name)
    return parse_lines(listing, [BACKGROUND, *(name for name in names if clean(name).lower() != BACKGROUND)])


def _read(listing: Path) -> dict[str, Any]:
    no_list = f"{listing} is not COCO's list of instances"
    refuse_pointer(listing)
    with input_error(no_list, OSError, ValueError, RecursionError):
        document = json.loads(listing.read_bytes())
    for part in ("images", "annotations", "categories"):
        entries = document.get(part) if isinstance(document, dict) else None
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise InputError(f"{no_list}: it has no list of {part}")
    return document


def _by_id(entries: Sequence[dict[str, Any]], what: str, listing: Path) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for entry in entries:
        key = _key(entry.get("id"))
        if "id" not in entry or key in found:
            raise InputError(f"{listing}: two {what} have the id {key}, or one has none: give each its own")
        found[key] = entry
    return found


def _key(number: Any) -> str:
    """Return an id as text: some tools write 1 in one place, and 1.0, "1" or "000001" in another."""
    text = str(number).removesuffix(".0")
    return text.lstrip("0") or "0" if text.isdecimal() else text


def _photos(images: Mapping[str, dict[str, Any]], folder: Path, listing: Path) -> dict[str, tuple[str, Path]]:
    """Return the id and the file of each photo, named by its path without suffix.

    A `file_name` may be absolute, of Windows, an address, or begin with folders that are not here; and the photo may
    lie in a folder that it does not name (CVAT's images/default).
    """
    inside = [path for path in folder.glob("*/") if path.is_dir()]
    photos: dict[str, tuple[str, Path]] = {}
    for key, image in images.items():
        if not (ends := _spellings(str(image.get("file_name") or image.get("coco_url") or ""))):
            raise InputError(f"{listing}: image {key} has no file_name")
        path = next((folder / end for end in ends if os.path.isfile(folder / end)), None)
        if path is None:
            deeper = [below / end for below in inside for end in ends if os.path.isfile(below / end)]
            path = deeper[0] if len(deeper) == 1 else folder / ends[0]
        name = path.relative_to(folder).with_suffix("").as_posix()
        if name in photos and photos[name][1] != path:
            name += path.suffix
        if name in photos:
            raise InputError(f"{listing} lists {path} twice: drop one of the images")
        photos[name] = key, path
    return photos


def _spellings(name: str) -> list[Path]:
    """Return where a file may lie: the name's parts, and fewer of them; as it is, decoded, or as macOS spells it."""
    texts = name, *(unicodedata.normalize(form, name) for form in ("NFC", "NFD"))
    texts += unquote(name.partition("?")[0]), unquote(name.rpartition("?d=")[2])  # as Label Studio has it
    split = [
        [part for part in re.split(r"[\\/]", text) if part not in ("", ".", "..")] for text in dict.fromkeys(texts)
    ]
    return [Path(*parts[start:]) for parts in split for start in range(len(parts))]


def _outline(segmentation: Any) -> tuple[Any, int]:
    """Return polygons that are some, or run lengths (something empty if there are none), and how many are none."""
    if isinstance(segmentation, list) and len(segmentation) == 1 and isinstance(segmentation[0], dict):
        segmentation = segmentation[0]
    if isinstance(segmentation, str):
        segmentation = {"counts": segmentation}
    if not isinstance(segmentation, list):
        return (segmentation if isinstance(segmentation, dict) and segmentation.get("counts") else []), 0
    parts = [*_polygons(segmentation)]
    whole = [points for points in map(_points, parts) if len(points) >= 6 and len(points) % 2 == 0]
    return whole, len(parts) - len(whole) if whole else 0


def _polygons(listed: list[Any], deeper: int = 3) -> Iterator[list[Any]]:
    """Yield polygons however deep they lie: x, y, x, y or pairs of both."""
    pairs = all(isinstance(point, list) and len(point) == 2 for point in listed)
    if not deeper or not any(isinstance(part, list) for part in listed) or (pairs and len(listed) > 2):
        yield listed
    else:
        for part in listed:
            yield from _polygons(part, deeper - 1) if isinstance(part, list) else ()


def _points(polygon: Any) -> list[float]:
    try:
        points = np.array(polygon, float).ravel()  # x, y, x, y or pairs
    except (ValueError, TypeError):
        return []
    return points.tolist() if np.isfinite(points).all() else []


def _paint(
    things: Sequence[dict[str, Any]], size: Size, ground: int, of_photo: str, listing: Path
) -> UInt8[np.ndarray, "height width"]:
    def shape(thing: dict[str, Any]) -> UInt8[np.ndarray, "height width"]:
        try:
            return _decode(thing["segmentation"], *size)
        except Exception as error:  # pycocotools raises nothing more special
            what = f"annotation {thing.get('id')} {of_photo}"
            raise InputError(f"{listing}: {what} is no mask ({type(error).__name__}: {error})") from error

    def order(thing: dict[str, Any]) -> tuple[bool, int | float, int]:
        area, number = thing.get("area"), thing.get("id")
        area = area if isinstance(area, int | float) and area > 0 else int(shape(thing).sum())
        return thing.get("iscrowd") not in (1, "1"), -area, number if isinstance(number, int) else 0

    mask = np.full(size, ground, np.uint8)
    for thing in sorted(things, key=order):
        mask[shape(thing) > 0] = thing["class"]
    return mask


def _decode(outline: Any, height: int, width: int) -> UInt8[np.ndarray, "height width"]:
    if isinstance(outline, list):
        from pycocotools import mask as coco

        far = 4 * (height + width)  # its memory grows with the outline's length
        polygons = [np.clip(points, -far, far).tolist() for points in outline]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # its arrays are of NumPy 1's kind
            return np.asarray(coco.decode(coco.merge(coco.frPyObjects(polygons, height, width))))
    if (size := outline.get("size", [height, width])) != [height, width]:
        raise ValueError(f"its size is {size}, the photo's {[height, width]}")
    runs = outline["counts"] if isinstance(outline["counts"], list) else _runs(outline["counts"])
    if min(runs) < 0 or sum(runs) != height * width:  # pycocotools would leave the rest as it was in memory
        raise ValueError(f"its runs cover {sum(runs)} of {height * width} pixels")
    return np.repeat(np.arange(len(runs), dtype=np.uint8) % 2, runs).reshape(width, height).T


def _runs(counts: str) -> list[int]:
    """Return compressed run lengths: five bits a character, a sixth if more follow; later ones are differences."""
    runs, value, shift = list[int](), 0, 0
    for bits in (ord(character) - 48 for character in counts):
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= (bits & 16 and 1) << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    return runs
