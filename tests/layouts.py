"""Small data sets in the layouts in which benchmarks are published, with masks known in advance."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

SIZES = [(48, 32), (40, 56), (33, 47), (64, 64)]
"""Width and height of each photo."""


def truth(index: int, classes: int) -> np.ndarray:
    """Blocks of classes, and a strip that is not labelled."""
    width, height = SIZES[index]
    blocks = np.random.default_rng(index).integers(0, classes, (4, 4)).astype(np.uint8)
    mask = np.kron(blocks, np.ones((-(-height // 4), -(-width // 4)), np.uint8))[:height, :width]
    mask[:2] = 255
    return mask


def save_photo(path: Path, index: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    width, height = SIZES[index]
    pixels = np.random.default_rng(100 + index).integers(0, 256, (height // 4 + 1, width // 4 + 1, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC).save(path)


def save_mask(path: Path, mask: np.ndarray, palette: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(mask)
    if palette:
        image.putpalette(list(range(256)) * 3)
    image.save(path)


def save_lines(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def voc(root: Path) -> list[np.ndarray]:
    for i in range(len(SIZES)):
        save_photo(root / f"JPEGImages/2007_{i}.jpg", i)
        save_mask(root / f"SegmentationClass/2007_{i}.png", truth(i, 21), palette=True)
    save_lines(root / "ImageSets/Segmentation/val.txt", [f"2007_{i}" for i in range(len(SIZES))])
    return [truth(i, 21) for i in range(len(SIZES))]


def context(root: Path) -> list[np.ndarray]:
    for i in range(len(SIZES)):
        save_photo(root / f"JPEGImages/2008_{i}.jpg", i)
        save_mask(root / f"SegmentationClassContext/2008_{i}.png", truth(i, 60))
    save_lines(root / "ImageSets/SegmentationContext/val.txt", [f"2008_{i}" for i in range(len(SIZES))])
    return [truth(i, 60) for i in range(len(SIZES))]


def without_background(masks: list[np.ndarray]) -> list[np.ndarray]:
    return [np.where((mask == 0) | (mask == 255), 255, mask - 1) for mask in masks]


def coco_stuff(root: Path) -> list[np.ndarray]:
    for i in range(len(SIZES)):
        save_photo(root / f"images/val2017/{i:012d}.jpg", i)
        save_mask(root / f"annotations/val2017/{i:012d}_instanceTrainIds.png", truth(i, 81))
    return [truth(i, 81) for i in range(len(SIZES))]


def coco_instances(root: Path) -> list[np.ndarray]:
    """A crowd of people under a large table, on which a small cat sits; and a photo of nothing."""
    categories = [{"id": 1, "name": "person"}, {"id": 17, "name": "cat"}, {"id": 67, "name": "dining table"}]
    images, things, masks = [], [], []
    for i, (width, height) in enumerate(SIZES):
        save_photo(root / f"val2017/{i:012d}.jpg", i)
        images.append({"id": i, "file_name": f"{i:012d}.jpg", "width": width, "height": height})
        mask = np.zeros((height, width), np.uint8)
        if i < len(SIZES) - 1:
            for number, (category, left, top, right, bottom) in enumerate(
                [(17, 8, 8, 12, 14), (67, 4, 4, 30, 20), (1, 0, 0, 33, 10)]
            ):
                area = (right - left) * (bottom - top)
                square = np.zeros((height, width), np.uint8)
                square[top:bottom, left:right] = 1
                crowd = category == 1
                outline = [[left, top, right, top, right, bottom, left, bottom]]
                things.append(
                    {
                        "id": 10 * i + number,
                        "image_id": i,
                        "category_id": category,
                        "area": area,
                        "iscrowd": int(crowd),
                        "segmentation": {"size": [height, width], "counts": runs(square)} if crowd else outline,
                    }
                )
            mask[0:10, 0:33], mask[4:20, 4:30], mask[8:14, 8:12] = 1, 61, 16
        masks.append(mask)
    document = {"images": images, "annotations": things, "categories": categories}
    (root / "annotations").mkdir()
    (root / "annotations/instances_val2017.json").write_text(json.dumps(document))
    return masks


def runs(mask: np.ndarray) -> list[int]:
    """Run lengths down the columns, from 0s, as COCO writes crowds."""
    values = np.concatenate([[0], mask.T.ravel()])
    changes = np.flatnonzero(np.diff(values)) + 1
    return np.diff(np.concatenate([[1], changes, [len(values)]])).tolist()


def pets(root: Path) -> list[np.ndarray]:
    species, masks = [1, 2, 2, 1], []
    for i in range(len(SIZES)):
        save_photo(root / f"images/Pet_{i}.jpg", i)
        trimap = truth(i, 2) + 1
        trimap[truth(i, 2) == 255] = 3
        save_mask(root / f"annotations/trimaps/Pet_{i}.png", trimap)
        masks.append(np.array([0, species[i], 0, 255], np.uint8)[trimap])
    save_lines(
        root / "annotations/list.txt",
        ["# Image CLASS-ID SPECIES BREED ID", *(f"Pet_{i} {i + 1} {kind} 1" for i, kind in enumerate(species))],
    )
    return masks


def camvid(root: Path, split: str = "val") -> list[np.ndarray]:
    for i in range(len(SIZES)):
        save_photo(root / f"{split}/{i:05d}.png", i)
        mask = truth(i, 11)
        save_mask(root / f"{split}annot/{i:05d}.png", np.where(mask == 255, 11, mask))
    return [truth(i, 11) for i in range(len(SIZES))]


def folder(root: Path) -> list[np.ndarray]:
    for i in range(len(SIZES)):
        save_photo(root / f"images/{i}.png", i)
        save_mask(root / f"masks/{i}.png", truth(i, 3))
    save_lines(root / "classes.txt", ["cat", "dog=dog,puppy", "background=grass,sky"])
    return [truth(i, 3) for i in range(len(SIZES))]


def only(masks: list[np.ndarray], classes: list[int], rest: int) -> list[np.ndarray]:
    """The masks with these classes alone, numbered from 0."""
    return [
        np.select([mask == 255, *(mask == c for c in classes)], [255, *range(len(classes))], rest).astype(np.uint8)
        for mask in masks
    ]


LAYOUTS: dict[str, Callable[[Path], list[np.ndarray]]] = {
    "voc21": voc,
    "voc4": lambda root: only(voc(root), [0, 15, 12, 8], rest=0),
    "voc20": lambda root: without_background(voc(root)),
    "context60": context,
    "context59": lambda root: without_background(context(root)),
    "coco-object-instances": coco_instances,
    "coco-object-stuff": coco_stuff,
    "pets": pets,
    "camvid11": camvid,
    "camvid5": lambda root: only(camvid(root), [0, 3, 5, 1, 8], rest=255),
    "camvid11-test": lambda root: camvid(root, "test"),
    "folder": folder,
}
"""Writes a benchmark into a folder and gives its masks, photo by photo."""

REAL = {
    "voc21": "eval/voc/VOCdevkit/VOC2012",
    "voc20": "eval/voc/VOCdevkit/VOC2012",
    "voc4": "eval/voc/VOCdevkit/VOC2012",
    "coco-object-instances": "eval/coco",
    "pets": "eval/pets",
    "camvid11": "eval/camvid",
    "camvid5": "eval/camvid",
}
"""Where benchmarks lie in the folder of real photos."""
