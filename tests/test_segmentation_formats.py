"""What we write is read back, by the tools' own packages, with the same pixels."""

import base64
import io
import json
import sys

import numpy as np
import pytest
from PIL import Image, ImageDraw

from groupvit.errors import InputError
from groupvit.segmentation import Segmentation, formats

NAMES = ("background", "cat", "traffic light", "straße")


def result(label_map: np.ndarray, names: tuple[str, ...] = NAMES) -> Segmentation:
    photo = Image.new("RGB", label_map.shape[::-1])
    scores = tuple((i + 1) / 10 for i in range(len(names)))
    shares = tuple(float((label_map == i).mean()) for i in range(len(names)))
    confidence = np.zeros(label_map.shape, np.float32)
    return Segmentation(photo, label_map.astype(np.uint8), names, shares, scores, confidence, (), (1.0, 1.0), 8)


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, len(NAMES), (height, width))


def blobs() -> np.ndarray:
    picture = Image.new("L", (131, 97))
    draw = ImageDraw.Draw(picture)
    draw.ellipse((10, 10, 90, 90), fill=1)
    draw.ellipse((30, 30, 60, 60), fill=2)
    draw.ellipse((40, 40, 50, 50), fill=1)
    draw.polygon([(100, 5), (130, 40), (95, 96), (110, 50)], fill=3)
    return np.asarray(picture)


MAPS = {
    "noise": noise(23, 37),
    "blobs": blobs(),
    "one pixel": np.ones((1, 1), int),
    "one label everywhere": np.full((300, 401), 2),
    "one row": noise(1, 50),
    "one column": noise(50, 1),
    "nothing": np.zeros((5, 7), int),
    "checks": np.indices((8, 9)).sum(axis=0) % 2,
    "a ring around a pixel": np.pad(np.zeros((1, 1), int), 1, constant_values=1),
}
each_map = pytest.mark.parametrize("label_map", MAPS.values(), ids=MAPS)
as_polygons = pytest.mark.parametrize("polygons", [False, True], ids=["rle", "polygons"])


@each_map
@as_polygons
@pytest.mark.filterwarnings("ignore::DeprecationWarning:pycocotools")
def test_pycocotools_reads_the_same_pixels(label_map, polygons, tmp_path, capsys):
    from pycocotools.coco import COCO

    (tmp_path / "coco.json").write_text(json.dumps(result(label_map).to_coco("a/b.jpg", polygons=polygons)))
    read = COCO(tmp_path / "coco.json")
    capsys.readouterr()
    assert read.imgs == {1: {"id": 1, "file_name": "a/b.jpg", "width": label_map.shape[1], "height": len(label_map)}}
    assert [category["name"] for category in read.loadCats([1, 2, 3])] == list(NAMES[1:])
    found = np.zeros_like(label_map)
    for annotation in read.loadAnns(read.getAnnIds()):
        inside = read.annToMask(annotation) > 0
        assert not found[inside].any()
        assert annotation["area"] == inside.sum()
        found[inside] = annotation["category_id"]
        rows, columns = np.nonzero(inside)
        left, top, width, height = annotation["bbox"]
        assert (left, top, left + width, top + height) == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    assert (found == label_map).all()


@each_map
def test_supervision_has_the_same_pixels(label_map):
    found = result(label_map).to_detections()
    assert len(found) == len(np.unique(label_map[label_map > 0]))
    painted = np.zeros_like(label_map)
    for box, mask, score, category, _, data in found:
        assert data["class_name"] == NAMES[category]
        assert score == pytest.approx((category + 1) / 10)
        painted[mask] = category
        rows, columns = np.nonzero(mask)
        assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert (painted == label_map).all()


@each_map
def test_label_studios_own_converter_decodes_the_same_pixels(label_map):
    from label_studio_converter.brush import decode_rle

    if label_map.size > 20_000:
        label_map = np.kron(np.ones((2, 1), int) * 2, np.ones((70, 140), int))  # more than 2^16 alike, but not as slow
    task = result(label_map).to_label_studio("/data/local-files/?d=b.jpg")
    assert task["data"] == {"image": "/data/local-files/?d=b.jpg"}
    painted = np.zeros_like(label_map)
    for region in json.loads(json.dumps(task))["predictions"][0]["result"]:
        assert (region["type"], region["value"]["format"]) == ("brushlabels", "rle")
        assert (region["original_height"], region["original_width"]) == label_map.shape
        strokes = decode_rle(region["value"]["rle"]).reshape(*label_map.shape, 4)
        assert (strokes == strokes[..., :1]).all()
        assert set(np.unique(strokes)) <= {0, 255}
        painted[strokes[..., 3] > 0] = NAMES.index(region["value"]["brushlabels"][0])
    assert (painted == label_map).all()


@each_map
@pytest.mark.filterwarnings("ignore::DeprecationWarning:pycocotools")
def test_label_studios_polygons_cover_the_same_pixels(label_map):
    """Its converter makes COCO's polygons of them: percent times size."""
    from pycocotools import mask as coco

    height, width = label_map.shape
    painted = np.zeros_like(label_map)
    for region in result(label_map).to_label_studio("b.jpg", polygons=True)["predictions"][0]["result"]:
        assert region["type"] == "polygonlabels"
        points = np.array(region["value"]["points"]) / 100 * [width, height]
        inside = coco.decode(coco.merge(coco.frPyObjects([points.ravel().tolist()], height, width))) > 0
        assert not painted[inside].any()
        painted[inside] = NAMES.index(region["value"]["polygonlabels"][0])
    assert (painted == label_map).all()


@each_map
def test_labelme_shapes_have_the_same_pixels(label_map):
    """labelme pastes the picture of a mask between its two points, both included."""
    file = json.loads(json.dumps(result(label_map).to_labelme("../b.jpg")))
    assert (file["imagePath"], file["imageData"]) == ("../b.jpg", None)
    painted = np.zeros((file["imageHeight"], file["imageWidth"]), int)
    for shape in file["shapes"]:
        (left, top), (right, bottom) = shape["points"]
        mask = np.asarray(Image.open(io.BytesIO(base64.b64decode(shape["mask"])))).astype(bool)
        assert shape["shape_type"] == "mask"
        painted[top : bottom + 1, left : right + 1][mask] = NAMES.index(shape["label"])
    assert (painted == label_map).all()


@each_map
def test_a_mask_of_voc_has_the_same_values_and_its_colours(label_map):
    file = io.BytesIO()
    result(label_map).to_voc().save(file, "PNG")
    with Image.open(file) as picture:
        assert picture.mode == "P"
        assert (np.asarray(picture) == label_map).all()
        colours = np.array(picture.getpalette()).reshape(-1, 3)
        assert (np.asarray(picture.convert("RGB")) == colours[label_map]).all()
    assert colours[[1, 2, 15, 20]].tolist() == [[128, 0, 0], [0, 128, 0], [192, 128, 128], [0, 64, 128]]


def test_categories_count_from_1_without_a_background_too():
    found = result(np.array([[0, 1, 2]]), ("cat", "dog", "cow"))
    assert np.asarray(found.to_voc()).tolist() == [[1, 2, 3]]
    assert [(c["id"], c["name"]) for c in found.to_coco("a.jpg")["categories"]] == [(1, "cat"), (2, "dog"), (3, "cow")]
    assert found.to_detections().class_id.tolist() == [1, 2, 3]


@pytest.mark.parametrize("first", ["background", "l0"])
def test_voc_holds_254_labels(first):
    names = (first, *(f"l{i}" for i in range(1, 255)))
    count = 255 if first == "background" else 254
    result(np.zeros((2, 2), int), names[:count]).to_voc()
    with pytest.raises(InputError, match="VOC's masks hold 254 labels"):
        result(np.zeros((2, 2), int), (*names[:count], "more")).to_voc()


@pytest.mark.parametrize("count", [256, 2**16])
def test_the_last_label_that_a_map_holds_is_in_every_list(count):
    label_map = np.array([[0, count - 1]])
    found = formats.regions(label_map.astype(np.uint8 if count == 256 else np.uint16), ("l",) * count, (0.5,) * count)
    assert [region.category for region in found] == [1, count]


def test_a_name_with_a_colon_has_no_place_in_labelmap_txt():
    with pytest.raises(InputError, match="a colon or a first # as in '#1 shirt'"):
        formats.check("voc", ["shirt #2", "#1 shirt"])
    with pytest.raises(InputError, match="a colon or a first # as in 'ratio 16:9'"):
        formats.check("voc", ("dog", "ratio 16:9"))


def test_polygons_have_no_hole_and_no_needless_corner():
    inside = np.ones((5, 6), bool)
    assert formats.outlines(inside) == [[(0, 0), (6, 0), (6, 5), (0, 5)]]
    inside[2, 2:4] = False
    above, below = formats.outlines(inside)
    assert above == [(0, 0), (6, 0), (6, 2), (0, 2)]
    assert len(below) == 8


@pytest.mark.parametrize(("package", "method"), [("supervision", "to_detections"), ("pycocotools.mask", "to_coco")])
def test_a_package_that_is_missing_is_named(package, method, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=f"pip install {package.split('.')[0]}"):
        getattr(result(MAPS["noise"]), method)(*["a.jpg"] * (method == "to_coco"))
