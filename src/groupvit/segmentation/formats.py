"""Label maps as other tools read them: COCO, supervision, Label Studio, labelme and VOC.

Each label but the background becomes one region of a photo. Categories count from 1, as 0 is the background everywhere.
"""

import base64
import warnings
from collections.abc import Sequence
from importlib import import_module
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, UInt, UInt8
from PIL import Image

from groupvit.errors import InputError, input_error
from groupvit.files import png
from groupvit.segmentation.labels import BACKGROUND

Inside = Bool[np.ndarray, "height width"]
LabelMap = UInt[np.ndarray, "height width"]
Outline = list[tuple[int, int]]


class Region(NamedTuple):
    """The pixels of one label, its category and its mean score."""

    category: int
    name: str
    inside: Inside
    score: float


def regions(label_map: LabelMap, names: Sequence[str], scores: Sequence[float]) -> list[Region]:
    """Return the labels that occur, without the background."""
    first = first_category(names)
    present = [i for i in map(int, np.unique(label_map)) if i + first > 0]
    return [Region(i + first, names[i], label_map == i, scores[i]) for i in present]


def first_category(names: Sequence[str]) -> int:
    """Return the category of the first name: 0 for the background, else 1."""
    return int(names[0] != BACKGROUND)


def coco(file_name: str, size: tuple[int, int], names: Sequence[str], found: Sequence[Region], polygons: bool) -> Any:
    """Return COCO's list of instances for one photo of `size` (width, height): run lengths, or polygons."""
    tool = _import("pycocotools.mask", "pycocotools")
    annotations = []
    for number, region in enumerate(found, start=1):
        packed = tool.encode(np.asfortranarray(region.inside.astype(np.uint8)))
        outline = {"size": packed["size"], "counts": packed["counts"].decode()}
        if polygons:
            outline = [np.ravel(polygon).tolist() for polygon in outlines(region.inside)]
        annotations.append(
            {
                "id": number,
                "image_id": 1,
                "category_id": region.category,
                "segmentation": outline,
                "area": int(region.inside.sum()),
                "bbox": tool.toBbox(packed).tolist(),
                "iscrowd": 0,
                "score": region.score,
            }
        )
    first = first_category(names)
    categories = [{"id": i + first, "name": name} for i, name in enumerate(names) if i + first]
    image = {"id": 1, "file_name": file_name, "width": size[0], "height": size[1]}
    head = {"info": {"description": "groupvit"}, "licenses": []}  # some readers ask for them
    return {**head, "images": [image], "annotations": annotations, "categories": categories}


def detections(found: Sequence[Region], shape: tuple[int, int]) -> Any:
    """Return `supervision.Detections`; the names are in its data, as `class_name`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of OpenCV, which it can do without
        tool = _import("supervision", "supervision")
    boxes = [Image.fromarray(region.inside).getbbox() or (0, 0, 0, 0) for region in found]
    return tool.Detections(
        xyxy=np.array(boxes, np.float32).reshape(-1, 4),
        mask=np.array([region.inside for region in found], bool).reshape(-1, *shape),
        confidence=np.array([region.score for region in found], np.float32),
        class_id=np.array([region.category for region in found], int),
        data={"class_name": np.array([region.name for region in found], str)},
    )


def label_studio(image: str, size: tuple[int, int], found: Sequence[Region], polygons: bool) -> dict[str, Any]:
    """Return a Label Studio task with a prediction: brush strokes, or polygons."""
    kind, result = "polygonlabels" if polygons else "brushlabels", []
    for region in found:
        if polygons:
            percent = 100 / np.array(size)
            values = [{"points": (np.array(line) * percent).tolist()} for line in outlines(region.inside)]
        else:
            values = [{"format": "rle", "rle": list(brush(region.inside))}]
        for value in values:
            place = {"from_name": "label", "to_name": "image", "type": kind, "image_rotation": 0}
            place |= {"original_width": size[0], "original_height": size[1], "score": region.score}
            result.append({"id": f"region{len(result)}", **place, "value": {**value, kind: [region.name]}})
    return {"data": {"image": image}, "predictions": [{"model_version": "groupvit", "result": result}]}


def brush(inside: Inside) -> bytes:
    """Return Label Studio's run lengths of the four channels of a brush stroke (`@thi.ng/rle-pack`).

    A head of 57 bits tells the number of values, 8 bits for each, and four sizes of counters. Then each run has the bit
    1, its counter's size in two bits, the counter less one and the value.
    """
    values = np.repeat(inside.ravel(), 4)
    edges = np.flatnonzero(np.diff(values)) + 1
    starts = np.union1d(edges, np.arange(0, values.size, 1 << 16))
    runs = np.diff(np.append(starts, values.size))
    bits = [f"{values.size:032b}00111" + "".join(f"{size - 1:04b}" for size in (2, 4, 8, 16))]
    for length, value in zip((runs - 1).tolist(), values[starts].tolist(), strict=True):
        which = (length > 3) + (length > 15) + (length > 255)
        bits.append(f"1{which:02b}{length:0{2 << which}b}{255 * value:08b}")
    text = "".join(bits)
    text += "0" * (-len(text) % 8)
    return int(text, 2).to_bytes(len(text) // 8, "big")


def labelme(image_path: str, size: tuple[int, int], found: Sequence[Region]) -> dict[str, Any]:
    """Return labelme's file beside a photo, with shapes of type "mask": its polygons have no holes."""
    shapes = []
    for region in found:
        left, top, right, bottom = Image.fromarray(region.inside).getbbox() or (0, 0, 1, 1)
        picture = png(Image.fromarray(region.inside[top:bottom, left:right]))
        corners = [[left, top], [right - 1, bottom - 1]]
        shape = {"label": region.name, "points": corners, "group_id": None, "description": "", "shape_type": "mask"}
        shapes.append({**shape, "flags": {}, "mask": base64.b64encode(picture).decode()})
    head = {"version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": image_path, "imageData": None}
    return {**head, "imageHeight": size[1], "imageWidth": size[0]}


def voc_palette() -> UInt8[np.ndarray, "256 3"]:
    """Return PASCAL VOC's colours: bits 0, 3, 6 of an index are red's highest, 1, 4, 7 green's, 2, 5 blue's."""
    index = np.arange(256)[:, None] >> np.arange(3)
    return np.sum([(index >> 3 * bit & 1) << (7 - bit) for bit in range(3)], axis=0).astype(np.uint8)


def voc(label_map: LabelMap, names: Sequence[str]) -> Image.Image:
    """Return VOC's mask: an image with its palette, whose values are categories."""
    check("voc", names)
    image = Image.fromarray((label_map + first_category(names)).astype(np.uint8))
    image.putpalette(voc_palette().tobytes())
    return image


def voc_labels(names: Sequence[str]) -> str:
    """Return `labelmap.txt`, which tells CVAT and `groupvit evaluate` the colours of the categories."""
    listed = [BACKGROUND, *names[1 - first_category(names) :]]
    colours = voc_palette()[: len(listed)].tolist()
    return "".join(f"{name}:{r},{g},{b}::\n" for name, (r, g, b) in zip(listed, colours, strict=True))


def check(form: str, names: Sequence[str]) -> None:
    """Refuse a format whose package is missing, and more labels than VOC's masks hold: 255 is "not labelled"."""
    if form.startswith("coco"):
        _import("pycocotools.mask", "pycocotools")
    if form.endswith("polygons"):
        _import("scipy.ndimage", "scipy")
    if form == "voc" and (wrong := [name for name in names if ":" in name or name.lstrip().startswith("#")]):
        raise InputError(f"VOC's labelmap.txt has no place for a colon or a first # as in {wrong[0]!r}: leave it out")
    if form == "voc" and len(names) + first_category(names) > 255:
        raise InputError(f"VOC's masks hold 254 labels, and there are {len(names)}: choose the format coco")


def outlines(inside: Inside) -> list[Outline]:
    """Return polygons (x, y) along the edges of pixels, none with a hole, which together cover just these pixels.

    Where a region has a hole, it is cut in two at the hole's uppermost row.
    """
    ndimage = _import("scipy.ndimage", "scipy")
    labelled, _ = ndimage.label(inside)
    polygons: list[Outline] = []
    for number, place in enumerate(ndimage.find_objects(labelled), start=1):
        piece = labelled[place] == number
        holes, _ = ndimage.label(ndimage.binary_fill_holes(piece) & ~piece)
        cuts = sorted({0, len(piece), *(rows.start for rows, _ in ndimage.find_objects(holes))})
        for top, bottom in pairwise(cuts):
            parts, count = ndimage.label(piece[top:bottom])
            for part in range(1, count + 1):
                edge = _around(parts == part)
                polygons.append([(x + place[1].start, y + place[0].start + top) for x, y in edge])
    return polygons


def _around(piece: Inside) -> Outline:
    """Return the corners of a connected region without holes, clockwise: each has one way in and one way out."""
    padded = np.pad(piece, 1)
    after: dict[tuple[int, int], tuple[int, int]] = {}
    for (down, right), start, end in (
        ((-1, 0), (0, 0), (1, 0)),
        ((0, 1), (1, 0), (1, 1)),
        ((1, 0), (1, 1), (0, 1)),
        ((0, -1), (0, 1), (0, 0)),
    ):
        ys, xs = np.nonzero(piece & ~np.roll(padded, (-down, -right), (0, 1))[1:-1, 1:-1])
        pairs = zip(xs.tolist(), ys.tolist(), strict=True)
        after |= {(x + start[0], y + start[1]): (x + end[0], y + end[1]) for x, y in pairs}
    loop = [min(after)]
    while (point := after[loop[-1]]) != loop[0]:
        loop.append(point)
    triples = zip(loop[-1:] + loop[:-1], loop, loop[1:] + loop[:1], strict=True)
    return [(x, y) for before, (x, y), then in triples if before[0] != then[0] and before[1] != then[1]]


def _import(module: str, package: str) -> Any:
    with input_error(f"this format needs {package}", ImportError, advice=f"pip install {package}"):
        return import_module(module)
