import json

import numpy as np
import pytest
from PIL import Image

from groupvit.errors import InputError
from groupvit.evaluation.datasets import MaskedPhoto, open_benchmark
from layouts import coco_instances, runs

pytest.importorskip("pycocotools")
NAME, LISTING = "coco-object-instances", "annotations/instances_val2017.json"


@pytest.fixture
def edited(tmp_path):
    """Writes COCO's instances, changes the document and reads every photo."""
    coco_instances(tmp_path)

    def edit(change) -> list[MaskedPhoto]:
        document = json.loads((tmp_path / LISTING).read_bytes())
        change(document)
        (tmp_path / LISTING).write_text(json.dumps(document))
        return list(open_benchmark(NAME, tmp_path))

    return edit


def each(part, **values):
    return lambda document: [entry.update(values) for entry in document[part]]


def without(part, *names):
    return lambda document: [entry.pop(name, None) for entry in document[part] for name in names]


def as_text(document):
    for thing in document["annotations"]:
        thing["image_id"] = str(thing["image_id"])
    for category in document["categories"]:
        category["id"] = str(category["id"])


def renumbered(document):
    ids = {category["id"]: number for number, category in enumerate(document["categories"])}
    document["categories"] = [
        {"id": ids[c["id"]], "name": c["name"].title().replace(" ", "_")} for c in document["categories"]
    ]
    for thing in document["annotations"]:
        thing["category_id"] = ids[thing["category_id"]]


def unused(document):
    document["categories"].append({"id": 999, "name": "objects", "supercategory": "none"})


def elsewhere(before):
    return lambda document: [image.update(file_name=before + image["file_name"]) for image in document["images"]]


def numbered(field, spelt):
    return lambda document: [thing.update({field: spelt(thing[field])}) for thing in document["annotations"]]


def in_pairs(document):
    for thing in document["annotations"]:
        if isinstance(thing["segmentation"], list):
            thing["segmentation"] = [np.reshape(thing["segmentation"], (-1, 2)).tolist()]


def pairs_at_once(document):
    """As labelme has points."""
    for thing in document["annotations"]:
        if isinstance(thing["segmentation"], list):
            thing["segmentation"] = np.reshape(thing["segmentation"], (-1, 2)).tolist()


def nested(document):
    for thing in document["annotations"]:
        if isinstance(thing["segmentation"], list):
            thing["segmentation"] = [thing["segmentation"]]


def flat(document):
    for thing in document["annotations"]:
        if isinstance(thing["segmentation"], list):
            thing["segmentation"] = thing["segmentation"][0]


def shares(document):
    for thing in document["annotations"]:
        thing["segmentation"] = [[0.1, 0.1, 0.9, 0.1, 0.5, 0.5]]


def compressed(document):
    from pycocotools import mask as coco

    for thing in document["annotations"]:
        if isinstance(thing["segmentation"], dict):
            thing["segmentation"]["counts"] = coco.frPyObjects(thing["segmentation"], *thing["segmentation"]["size"])[
                "counts"
            ].decode()


def as_runs(document):
    """Every outline as run lengths, without the size that is the photo's."""
    sizes = {image["id"]: (image["height"], image["width"]) for image in document["images"]}
    for thing in document["annotations"]:
        if isinstance(thing["segmentation"], list):
            square = np.zeros(sizes[thing["image_id"]], np.uint8)
            xs, ys = thing["segmentation"][0][::2], thing["segmentation"][0][1::2]
            square[min(ys) : max(ys), min(xs) : max(xs)] = 1
            thing["segmentation"] = {"counts": runs(square)}


def as_runs_in_a_list(document):
    as_runs(document)
    for thing in document["annotations"]:
        thing["segmentation"] = [thing["segmentation"]]


def as_bare_runs(document):
    compressed(document)
    for thing in document["annotations"]:
        if isinstance(thing["segmentation"], dict):
            thing["segmentation"] = thing["segmentation"]["counts"]


@pytest.mark.filterwarnings("ignore:.*passed over")
@pytest.mark.parametrize(
    "change",
    [
        each("annotations", area=None),
        without("annotations", "area", "id"),
        each("annotations", id=7),
        without("images", "width", "height"),
        each("images", width=-1, height=0),
        each("images", width=None, height="32"),
        without("categories", "supercategory"),
        as_text,
        numbered("image_id", float),
        numbered("category_id", float),
        numbered("image_id", "{:012d}".format),
        numbered("category_id", "{:03d}".format),
        renumbered,
        unused,
        elsewhere("val2017/"),
        elsewhere("C:\\data\\val2017\\"),
        elsewhere("/home/someone/"),
        elsewhere("./"),
        elsewhere("https://example.org/photos/"),
        lambda d: [image.update(file_name=f"https://example.org/{image['file_name']}?key=1") for image in d["images"]],
        in_pairs,
        pairs_at_once,
        nested,
        flat,
        elsewhere("/data/local-files/?d="),
        elsewhere("/data/local-files/?d=photos%5Cval2017%2F"),
        lambda d: [image.update(coco_url=f"http://x.org/val2017/{image.pop('file_name')}") for image in d["images"]],
        compressed,
        as_runs,
        as_runs_in_a_list,
        as_bare_runs,
        lambda d: d["annotations"].append(d["annotations"][0] | {"image_id": 99}),
        lambda d: d["annotations"].append({"image_id": 0, "category_id": 17, "bbox": [0, 0, 9, 9]}),
        lambda d: d["annotations"].append(d["annotations"][0] | {"segmentation": []}),
        lambda d: d["annotations"].append(d["annotations"][0] | {"segmentation": [[1, 2, 3, 4]]}),
        lambda d: d["annotations"].append(d["annotations"][0] | {"segmentation": [[1, 2, 3, 4, 5, 6, 7]]}),
        lambda d: d["annotations"].append(d["annotations"][0] | {"segmentation": [[1, 2, 3, 4, 5, float("nan")]]}),
    ],
)
def test_the_same_masks_are_read_however_a_tool_writes_them(change, edited, tmp_path):
    before = [photo.mask for photo in edited(lambda document: None)]
    assert all(map(np.array_equal, [photo.mask for photo in edited(change)], before))


def test_instances_without_iscrowd_are_no_crowds(edited):
    told = edited(each("annotations", iscrowd=0))
    assert [p.digest for p in edited(without("annotations", "iscrowd"))] == [p.digest for p in told]


def test_what_is_passed_over_is_counted(edited):
    def spoil(document):
        document["annotations"][0]["segmentation"] = []
        document["annotations"][1]["segmentation"] = [[1, 2, 3, 4]]
        document["annotations"][2]["image_id"] = 99

    said = r"passed over 2 without an outline \(polygons .* runs\) and 1 of no listed image, of 9 annotations"
    with pytest.warns(UserWarning, match=said):
        edited(spoil)


def test_photos_of_one_name_in_two_folders_are_two(edited, tmp_path):
    def move(document):
        for image, folder in zip(document["images"], ("a", "b"), strict=False):
            (tmp_path / "val2017" / folder).mkdir()
            (tmp_path / "val2017" / image["file_name"]).rename(tmp_path / f"val2017/{folder}/x.jpg")
            image["file_name"] = f"{folder}/x.jpg"

    assert [photo.name for photo in edited(move)] == ["a/x", "b/x", "000000000002", "000000000003"]


def test_photos_of_one_stem_are_two(edited, tmp_path):
    Image.new("RGB", (40, 30)).save(tmp_path / "val2017/000000000000.png")
    photos = edited(lambda d: d["images"].append({"id": 9, "file_name": "000000000000.png"}))
    assert [photo.name for photo in photos][::4] == ["000000000000", "000000000000.png"]
    assert not photos[4].mask.any()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d["images"][0].update(width=99), "width of 000000000000.jpg is 99, but the photo's is 48 pixels"),
        (lambda d: d["categories"][1].update(name="ball"), "category 'ball' is none of the 81 labels"),
        (lambda d: d["annotations"][0].update(category_id=999), "annotation 0 has category 999, which is not listed"),
        (each("annotations", segmentation=None), "no annotation can be painted .* boxes alone are no masks"),
        (each("annotations", image_id="a.jpg"), "no annotation can be painted .* give them ids of images"),
        (lambda d: d["images"].append(d["images"][0]), "two images have the id 0"),
        (lambda d: d["images"].append(d["images"][0] | {"id": 9}), "lists .*000000000000.jpg twice"),
        (lambda d: d["images"][0].pop("id"), "two images have the id None, or one has none"),
        (lambda d: d["images"][0].pop("file_name"), "image 0 has no file_name"),
        (lambda d: d["images"][0].update(file_name="none.jpg"), "none.jpg cannot be read"),
        (shares, "its outlines are shares of the photos"),
        (lambda d: d.pop("annotations"), "is not COCO's list of instances: it has no list of annotations"),
        (lambda d: d["images"].append(None), "it has no list of images"),
        (
            lambda d: d["annotations"][0].update(segmentation={"size": [5, 4], "counts": "05d0"}),
            "annotation 0 of 0+ is no",
        ),
        (lambda d: d["annotations"][0].update(segmentation={"counts": [5, 4]}), "its runs cover 9 of 1536 pixels"),
        (lambda d: d["annotations"][0].update(segmentation={"counts": "P"}), "annotation 0 of 0+ is no mask"),
        (lambda d: d["annotations"][0].update(segmentation={"counts": [-1, 1537]}), "annotation 0 of 0+ is no mask"),
    ],
)
def test_what_cannot_be_painted_is_named(change, said, edited):
    with pytest.raises(InputError, match=said):
        edited(change)


@pytest.mark.parametrize(
    ("listed", "lies"), [("a%20b.jpg", "a b.jpg"), ("\u00e9.jpg", "e\u0301.jpg"), ("e\u0301.jpg", "\u00e9.jpg")]
)
def test_names_that_are_spelt_otherwise_are_found(listed, lies, edited, tmp_path):
    (tmp_path / "val2017/000000000000.jpg").rename(tmp_path / "val2017" / lies)
    assert edited(lambda document: document["images"][0].update(file_name=listed))[0].mask.any()


@pytest.fixture
def listed(tmp_path):
    """Writes COCO's instances as a folder of one's own, changes the document and opens it."""
    coco_instances(tmp_path)
    (tmp_path / "val2017").rename(tmp_path / "images")

    def open_folder(change):
        document = json.loads((tmp_path / LISTING).read_bytes())
        change(document)
        (tmp_path / LISTING).write_text(json.dumps(document))
        return open_benchmark("folder", tmp_path)

    return open_folder


def test_photos_in_a_folder_that_is_not_named_are_found(listed, tmp_path):
    """CVAT puts them into images/default."""
    (tmp_path / "images").rename(tmp_path / "default")
    (tmp_path / "images").mkdir()
    (tmp_path / "default").rename(tmp_path / "images/default")
    assert listed(lambda document: None)[0].mask.any()


def test_a_category_above_the_others_is_no_label(listed):
    """Roboflow writes the name of the project first."""

    def raise_above(document):
        for category in document["categories"]:
            category["supercategory"] = "pets"
        document["categories"].insert(0, {"id": 0, "name": "pets", "supercategory": "none"})

    assert listed(raise_above).labels == ("background", "person", "cat", "dining table")
    assert "pets" in listed(lambda d: d["annotations"][0].update(category_id=0)).labels


def test_an_unused_category_of_another_one_s_name_is_no_label(listed):
    """Roboflow's project may be called as its class."""

    def twice(document):
        document["categories"].insert(0, {"id": 0, "name": "cat", "supercategory": "none"})
        document["categories"][2]["supercategory"] = "cat"

    assert listed(twice).labels == ("background", "person", "cat", "dining table")
    emptied = listed(lambda document: document["annotations"].clear())  # with both of the name
    assert emptied.labels == ("background", "person", "cat", "dining table")


def test_parts_of_outlines_that_are_none_are_counted(edited):
    with pytest.warns(UserWarning, match="passed over 2 parts of outlines that are no polygons"):
        edited(
            lambda d: d["annotations"][0]["segmentation"].extend([[1, 2, 3, 4, 5, 6, 7], [1, 2, 3, float("nan"), 5, 6]])
        )


def test_what_macos_puts_beside_a_list_is_none(listed, tmp_path):
    (tmp_path / "annotations").mkdir(exist_ok=True)
    (tmp_path / "annotations/._instances.json").write_bytes(b"\0")
    assert listed(lambda document: None).labels[1] == "person"


@pytest.mark.parametrize("name", [None, ["cat"], {}])
def test_a_category_without_a_name_is_none(name, listed):
    with pytest.raises(InputError, match="category 17 has no name"):
        listed(lambda document: document["categories"][1].update(name=name))


def test_several_lists_are_named(listed, tmp_path):
    (tmp_path / "annotations/captions.json").write_text("{}")
    with pytest.raises(InputError, match=r"has no masks/, and several .json files \(captions.json, instances_val2017"):
        listed(lambda document: None)


@pytest.mark.parametrize("text", [b"[", b"[]", b"[1]", b"{}", b"\xff", b"[" * 99999])
def test_a_list_of_instances_that_is_none_is_named(text, tmp_path):
    coco_instances(tmp_path)
    (tmp_path / LISTING).write_bytes(text)
    with pytest.raises(InputError, match=r"instances_val2017.json is not COCO.s list"):
        open_benchmark(NAME, tmp_path)


def test_a_byte_order_mark_is_no_harm_and_outlines_may_leave_the_photo(edited, tmp_path):
    (tmp_path / LISTING).write_bytes(b"\xef\xbb\xbf" + (tmp_path / LISTING).read_bytes())
    far = [[-1e12, -1e12, 1e12, -1e12, 1e12, 1e12, -1e12, 1e12]]
    photos = edited(lambda d: d["annotations"][1].update(segmentation=far, area=1e9))
    assert set(np.unique(photos[0].mask)) == {16, 61}  # the table is everywhere, the cat on it
