import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from groupvit.cli.segment import segment
from groupvit.errors import InputError
from groupvit.evaluation.datasets import open_masks
from test_cli_segment import model, save_photo  # noqa: F401

ALL = ("coco", "coco-polygons", "label-studio", "label-studio-polygons", "labelme", "voc")
EACH = ("json", "labelme.json", "labels.png", "overlay.jpg", "voc.png")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:pycocotools")


@pytest.fixture
def exported(tmp_path: Path, model: str) -> Path:  # noqa: F811
    for name in ("a b.jpg", "more/c.jpg"):
        save_photo(tmp_path / "photos" / name, (60, 40))
    out, labels = tmp_path / "out", ("dog", "traffic_light", "sky")
    options = {"window": 32, "short_side": 48, "recursive": True, "formats": ALL}
    assert segment((str(tmp_path / "photos"),), labels=labels, model=model, out=out, **options) == 0
    return out


def label_maps(out: Path) -> dict[str, np.ndarray]:
    return {name: np.asarray(Image.open(out / f"{name}.labels.png")) for name in ("a b.jpg", "c.jpg")}


def test_each_photo_and_the_whole_have_their_files(exported: Path) -> None:
    whole = ("coco.json", "coco-polygons.json", "label-studio.json", "label-studio-polygons.json", "labelmap.txt")
    each = [f"{name}.{kind}" for name in ("a b.jpg", "c.jpg") for kind in EACH]
    assert sorted(path.name for path in exported.iterdir()) == sorted([*whole, *each])
    tasks = json.loads((exported / "label-studio.json").read_text())
    assert [task["data"]["image"] for task in tasks] == [
        f"/data/local-files/?d=photos/{n}" for n in ("a%20b.jpg", "more/c.jpg")
    ]
    for name in ("coco", "coco-polygons"):
        document = json.loads((exported / f"{name}.json").read_text())
        photos = [(image["id"], image["file_name"]) for image in document["images"]]
        assert photos == [(1, "a b.jpg"), (2, "more/c.jpg")]
        assert [a["id"] for a in document["annotations"]] == list(range(1, len(document["annotations"]) + 1))
        assert {a["image_id"] for a in document["annotations"]} == {1, 2}
        assert [category["name"] for category in document["categories"]] == ["dog", "traffic light", "sky"]
    file = json.loads((exported / "c.jpg.labelme.json").read_text())
    assert (exported / file["imagePath"]).samefile(exported.parent / "photos/more/c.jpg")


@pytest.mark.parametrize("form", ["coco", "label-studio", "voc"])
def test_a_list_does_not_lose_photos_of_an_earlier_run(tmp_path: Path, model: str, form: str) -> None:  # noqa: F811
    photos = [str(save_photo(tmp_path / name)) for name in ("a.jpg", "aa.jpg")]
    options = {"model": model, "out": tmp_path / "out", "formats": (form,)}
    assert segment(tuple(photos[:1]), labels=("dog", "sky"), **options) == 0
    if form == "voc":  # of the same labels the masks keep their meaning
        assert segment(tuple(photos[1:]), labels=("dog", "sky"), **options) == 0
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    name = "labelmap.txt" if form == "voc" else f"{form}.json"
    with pytest.raises(InputError, match=rf"{name} is of .*a.jpg, too, which is not among these photos: choose"):
        segment(tuple(photos[1:]), labels=("cat", "sky", "car"), **options)
    assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    assert segment(tuple(photos), labels=("cat", "sky", "car"), **options) == 0
    assert segment(tuple(photos[1:]), labels=("dog", "sky"), **options | {"formats": ()}) == 0  # no list is written
    (tmp_path / "out" / name).unlink()
    for _ in range(2):  # the first one writes a list of this photo alone
        assert segment(tuple(photos[1:]), labels=("cat", "sky", "car"), **options) == 0


def test_a_killed_run_does_not_make_a_list_of_ones_own_its(tmp_path: Path, model: str) -> None:  # noqa: F811
    photo, out = save_photo(tmp_path / "a.jpg"), tmp_path / "out"
    assert segment((str(photo),), labels=("dog", "sky"), model=model, out=out) == 0
    (out / "a.jpg.json").unlink()
    (out / "coco.json").write_text("mine")
    with pytest.raises(InputError, match=r"coco.json is no result of this command"):
        segment((str(photo),), labels=("dog", "sky"), model=model, out=out, formats=("coco",))


def test_a_labelmap_from_elsewhere_is_not_replaced(tmp_path: Path, model: str) -> None:  # noqa: F811
    photo, out = save_photo(tmp_path / "a.png"), tmp_path / "out"
    out.mkdir()
    (out / "labelmap.txt").write_text("mine")
    with pytest.raises(InputError, match=r"labelmap.txt is no result of this command"):
        segment((str(photo),), labels=("dog", "sky"), model=model, out=out, formats=("voc",))
    assert (out / "labelmap.txt").read_text() == "mine"


def test_labelme_finds_the_photo_from_behind_a_link(tmp_path: Path, model: str) -> None:  # noqa: F811
    photo, real = save_photo(tmp_path / "photos/a.png"), tmp_path / "far/away/out"
    real.mkdir(parents=True)
    (tmp_path / "out").symlink_to(real)
    assert segment((str(photo),), labels=("dog", "sky"), model=model, out=tmp_path / "out", formats=("labelme",)) == 0
    written = json.loads((real / "a.png.labelme.json").read_text())
    assert Path(f"{real}/{written['imagePath']}").samefile(photo)


@pytest.mark.parametrize("name", ["coco", "coco-polygons"])
def test_evaluate_reads_the_list_of_instances(exported: Path, name: str, tmp_path: Path) -> None:
    (exported / f"{name}.json").rename(tmp_path / "photos/instances.json")
    dataset = open_masks(tmp_path / "photos")
    assert dataset.labels == ("background", "dog", "traffic light", "sky")
    for photo, label_map in zip(dataset, label_maps(exported).values(), strict=True):
        assert (photo.mask == label_map + 1).all()  # without a background, labels count from 0 in a label map


def test_evaluate_reads_voc_masks_and_their_colours(exported: Path, tmp_path: Path) -> None:
    for name, label_map in label_maps(exported).items():
        masks = tmp_path / "folder/masks"
        masks.mkdir(parents=True, exist_ok=True)
        save_photo(tmp_path / "folder/images" / name, (60, 40))
        voc = Image.open(exported / f"{name}.voc.png")
        assert (np.asarray(voc) == label_map + 1).all()
        (voc if name == "c.jpg" else voc.convert("RGB")).save(masks / f"{Path(name).stem}.png")
    (exported / "labelmap.txt").rename(tmp_path / "folder/labelmap.txt")
    dataset = open_masks(tmp_path / "folder")
    assert dataset.labels == ("background", "dog", "traffic light", "sky")
    assert [(photo.mask == m + 1).all() for photo, m in zip(dataset, label_maps(exported).values(), strict=True)] == [
        True,
        True,
    ]


def test_results_in_a_folder_are_no_photos(exported: Path, capsys) -> None:
    with pytest.raises(InputError, match="folder has no images"):
        segment((str(exported),), labels=("dog",))


def test_too_many_labels_are_refused_before_a_model_is_loaded(tmp_path: Path) -> None:
    save_photo(tmp_path / "a.jpg")
    labels = tuple(f"l{i}" for i in range(300))
    with pytest.raises(InputError, match="VOC's masks hold 254 labels"):
        segment((str(tmp_path / "a.jpg"),), labels=labels, model="none", out=tmp_path, formats=("voc",))


@pytest.mark.filterwarnings("ignore:.*never saw")
def test_labels_count_by_their_names_and_not_by_their_words(tmp_path: Path, model: str) -> None:  # noqa: F811
    photo, out = save_photo(tmp_path / "a.png"), tmp_path / "out"
    labels = ("background=wall", "bus=bus,coach:city", *(f"label {i}" for i in range(253)))
    assert segment((str(photo),), labels=labels, model=model, out=out, formats=("voc",)) == 0
    assert (out / "labelmap.txt").read_text().count("\n") == 255


def listing(root: Path, categories: list[str], **image: object) -> Path:
    """A photo of 8 x 6 pixels in `images/`, whose left half is the last category."""
    save_photo(root / "images/a.jpg", (8, 6))
    outline = [[0, 0, 4, 0, 4, 6, 0, 6]]
    document = {
        "images": [{"id": 1, "file_name": "images/a.jpg", **image}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": len(categories), "segmentation": outline}],
        "categories": [{"id": i, "name": name} for i, name in enumerate(categories, start=1)],
    }
    path = root / "annotations/instances_default.json"
    path.parent.mkdir()
    path.write_text(json.dumps(document))
    return path


def test_an_own_result_is_no_list_of_instances(tmp_path: Path) -> None:
    root = listing(tmp_path, ["dog", "sky"]).parents[1]
    (root / "folder.calibrated-native.json").write_text('{\n "format": 3,\n "benchmark": "folder"\n}')
    assert open_masks(root).labels
    (root / "other.json").write_text("{}")
    with pytest.raises(InputError, match=r"several .json files"):
        open_masks(root)


def test_a_list_in_annotations_may_name_the_background_and_classes_txt_the_words(tmp_path: Path) -> None:
    listing(tmp_path, ["background", "cat", "Dog"])
    assert open_masks(tmp_path).labels == ("background", "cat", "Dog")
    (tmp_path / "classes.txt").write_text("background\ncat\ndog=dog,puppy\n")
    dataset = open_masks(tmp_path)
    assert dataset.labels[2] == "dog=dog,puppy"
    assert dataset[0].mask.tolist() == [[2] * 4 + [0] * 4] * 6
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    assert open_masks(tmp_path)[0].mask.tolist() == [[1] * 4 + [255] * 4] * 6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: path.write_text("[]"), "is not COCO's list of instances"),
        (lambda path: path.write_text("{"), "is not COCO's list of instances"),
        (lambda path: path.write_text(path.read_text().replace("dog", "Cat")), "'Cat' is given twice"),
        (lambda path: path.write_text(path.read_text().replace("dog", "")), "is blank"),
        (lambda path: path.with_name("classes.txt").rename(path.parents[1] / "classes.txt"), "'dog' is none of the 3"),
        (lambda path: path.with_name("other.json").write_text("{}"), "has no masks"),
    ],
)
def test_a_list_that_cannot_be_used_is_named(tmp_path: Path, change, message: str) -> None:
    path = listing(tmp_path, ["cat", "dog"])
    path.with_name("classes.txt").write_text("background\ncat\ncow\n")
    change(path)
    with pytest.raises(InputError, match=re.escape(message)):
        open_masks(tmp_path)


def test_names_that_are_not_utf_8_are_written_as_their_bytes(tmp_path: Path, model: str) -> None:  # noqa: F811
    save_photo(tmp_path / "p/a.jpg").rename(tmp_path / "p/caf\udce9.jpg")
    options = {"labels": ("dog", "sky"), "model": model, "out": tmp_path / "out", "formats": ALL}
    assert segment((str(tmp_path / "p"),), **options) == 0
    task = json.loads((tmp_path / "out/label-studio.json").read_text())[0]
    assert task["data"]["image"] == "/data/local-files/?d=p/caf%E9.jpg"
