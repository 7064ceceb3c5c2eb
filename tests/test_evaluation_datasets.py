import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from groupvit.errors import InputError
from groupvit.evaluation.datasets import BENCHMARKS, open_benchmark, open_masks
from groupvit.evaluation.protocols import PAPER_2022
from groupvit.evaluation.scoring import score
from layouts import LAYOUTS, REAL, SIZES, folder, pets, save_mask, truth, voc
from test_evaluation_scoring import random_segmenter

CLASSES = {
    "voc21": 21,
    "voc4": 4,
    "voc20": 20,
    "context60": 60,
    "context59": 59,
    "coco-object-instances": 81,
    "coco-object-stuff": 81,
    "pets": 3,
    "camvid11": 11,
    "camvid5": 5,
    "camvid11-test": 11,
    "folder": 3,
}


def test_every_benchmark_has_a_layout_here():
    assert CLASSES.keys() == BENCHMARKS.keys() == LAYOUTS.keys()


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_published_layout_is_read_photo_by_photo(name, tmp_path):
    masks = LAYOUTS[name](tmp_path)
    dataset = open_benchmark(name, tmp_path)
    assert dataset.benchmark == name
    assert len(dataset.classes) == CLASSES[name]
    assert dataset.has_background == (name in {"voc21", "voc4", "context60", "pets"} or name.startswith("coco"))
    assert len(dataset) == len(list(dataset)) == len(SIZES)
    for i, photo in enumerate(dataset):
        assert photo.image.size == SIZES[i]
        assert photo.image.mode == "RGB"
        assert np.array_equal(photo.mask, masks[i])
        assert dataset[i].digest == photo.digest
    assert len({photo.digest for photo in dataset}) == len(SIZES)


@pytest.mark.parametrize("name", REAL)
def test_real_photos_are_read(name, data_dir):
    dataset = open_benchmark(name, data_dir / REAL[name]).limited(12)
    present = set(np.unique(np.concatenate([photo.mask.ravel() for photo in dataset])).tolist())
    assert len(dataset.names) == 12
    assert present <= {*range(len(dataset.classes)), 255}
    assert len(present) > 2


def test_coco_categories_are_found_by_name(data_dir):
    dataset = open_benchmark("coco-object-instances", data_dir / REAL["coco-object-instances"])
    document = json.loads((data_dir / "eval/coco/annotations/instances_val2017.json").read_text())
    assert [category["name"] for category in sorted(document["categories"], key=lambda c: c["id"])] == list(
        dataset.classes[1:]
    )


def test_a_limit_takes_photos_from_all_over_the_list(tmp_path):
    voc(tmp_path)
    dataset = open_benchmark("voc21", tmp_path)
    assert dataset.limited(2).names == ("2007_0", "2007_2")
    assert dataset.limited(None) == dataset.limited(99) == dataset
    with pytest.raises(InputError, match="limit of 0"):
        dataset.limited(0)


def test_the_labels_of_a_folder_keep_their_words(tmp_path):
    folder(tmp_path)
    dataset = open_masks(tmp_path)
    assert dataset.labels == ("cat", "dog=dog,puppy", "background=grass,sky")
    assert dataset.classes == ("cat", "dog", "background")


def test_a_blank_line_between_classes_would_move_indices(tmp_path):
    folder(tmp_path)
    (tmp_path / "classes.txt").write_text("cat\n\ndog\n\n")
    with pytest.raises(InputError, match=r"classes.txt has a blank line"):
        open_masks(tmp_path)
    (tmp_path / "classes.txt").write_text("cat\ndog\nbird\n\n")
    assert open_masks(tmp_path).classes == ("cat", "dog", "bird")


def test_more_classes_than_a_mask_can_hold_are_refused(tmp_path):
    folder(tmp_path)
    (tmp_path / "classes.txt").write_text("".join(f"class {i}\n" for i in range(256)))
    with pytest.raises(InputError, match=r"classes.txt has 256 classes: masks of 8 bits tell 255 apart"):
        open_masks(tmp_path)


def test_two_photos_of_one_name_are_refused_and_hidden_files_are_none(tmp_path):
    folder(tmp_path)
    (tmp_path / "images/.DS_Store").touch()
    assert len(open_masks(tmp_path)) == len(SIZES)
    (tmp_path / "images/0.jpg").touch()
    with pytest.raises(InputError, match=r"0.png and 0.jpg would share one mask"):
        open_masks(tmp_path)


def test_coco_without_its_package_says_what_to_install(tmp_path, monkeypatch):
    LAYOUTS["coco-object-instances"](tmp_path)
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(InputError, match="pip install pycocotools"):
        open_benchmark("coco-object-instances", tmp_path)[0]


def test_a_change_of_photo_or_mask_changes_the_digest(tmp_path):
    folder(tmp_path)
    before = open_masks(tmp_path)[0].digest
    save_mask(tmp_path / "masks/0.png", 1 - truth(0, 1))
    changed = open_masks(tmp_path)[0].digest
    Image.new("RGB", SIZES[0]).save(tmp_path / "images/0.png")
    assert len({before, changed, open_masks(tmp_path)[0].digest}) == 3


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("voc21", "JPEGImages"),
        ("voc20", "ImageSets/Segmentation/val.txt"),
        ("context60", "SegmentationClassContext"),
        ("context59", "ImageSets/SegmentationContext/val.txt"),
        ("coco-object-instances", "annotations/instances_val2017.json"),
        ("coco-object-stuff", "annotations/val2017"),
        ("pets", "annotations/list.txt"),
        ("pets", "annotations/trimaps"),
        ("camvid11", "valannot"),
        ("camvid11-test", "test"),
        ("folder", "images"),
        ("folder", "masks"),
        ("folder", "classes.txt"),
    ],
)
def test_a_missing_part_is_named(name, missing, tmp_path):
    LAYOUTS[name](tmp_path)
    (tmp_path / missing).rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=missing.replace("/", ".")):
        open_benchmark(name, tmp_path)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_folder_of_something_else_is_refused_in_one_line(name, tmp_path):
    with pytest.raises(InputError) as caught:
        open_benchmark(name, tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_photo_without_a_mask_is_named(tmp_path):
    voc(tmp_path)
    (tmp_path / "SegmentationClass/2007_1.png").unlink()
    with pytest.raises(InputError, match=r"2007_1.jpg has no mask .*2007_1.png"):
        list(open_benchmark("voc21", tmp_path))


def test_a_mask_without_a_photo_is_named(tmp_path):
    voc(tmp_path)
    (tmp_path / "JPEGImages/2007_1.jpg").unlink()
    with pytest.raises(InputError, match=r"2007_1.jpg cannot be read"):
        list(open_benchmark("voc21", tmp_path))


@pytest.mark.parametrize("mask", [Image.new("L", (5, 4)), Image.new("P", (33, 47))])
def test_a_mask_of_another_size_is_named(mask, tmp_path):
    folder(tmp_path)
    mask.save(tmp_path / "masks/0.png")
    with pytest.raises(InputError, match=r"0.png has a mask of \d+ x \d+ for .*0.png, 48 x 32"):
        list(open_masks(tmp_path))


def test_a_broken_mask_is_named(tmp_path):
    folder(tmp_path)
    file = tmp_path / "masks/0.png"
    file.write_bytes(file.read_bytes()[:60])
    with pytest.raises(InputError, match=r"masks/0.png: cannot read the image: "):
        open_masks(tmp_path)[0]


@pytest.mark.parametrize(("name", "index"), [("voc21", 21), ("context59", 60), ("pets", 0), ("camvid11", 12)])
def test_an_unknown_index_is_named_and_255_is_not_one(name, index, tmp_path):
    LAYOUTS[name](tmp_path)
    file = next(path for path in sorted(tmp_path.rglob("*.png")) if path.parent.name != "val")
    mask = np.array(Image.open(file))
    mask[:5] = 255
    save_mask(file, mask)
    assert len(list(open_benchmark(name, tmp_path))) == len(SIZES)
    mask[0] = index
    save_mask(file, mask)
    with pytest.raises(InputError, match=rf"{file.name} has values of no class \({index}; "):
        list(open_benchmark(name, tmp_path))


def test_an_odd_line_in_the_list_of_pets_is_named(tmp_path):
    pets(tmp_path)
    with (tmp_path / "annotations/list.txt").open("a") as file:
        file.write("Pet_9 1 3 1\n")
    with pytest.raises(InputError, match=r"list.txt: 'Pet_9 1 3 1'"):
        open_benchmark("pets", tmp_path)


def test_an_unknown_benchmark_lists_those_there_are():
    with pytest.raises(InputError, match="no benchmark 'voc': there are voc21, voc4, voc20"):
        open_benchmark("voc", Path())


@pytest.mark.parametrize(
    ("text", "classes"),
    [
        ("background \ncat\ndog\n", ("background", "cat", "dog")),
        ("\ufeffBackground\ncat\ndog\n", ("background", "cat", "dog")),
        ("traffic_light\n'cat'\ndog =dog,puppy\n", ("traffic light", "cat", "dog")),
        ("traffic_light=traffic light\ncat\nBackground=wall\n", ("traffic light", "cat", "background")),
    ],
)
def test_labels_of_a_folder_are_read_as_those_of_segment(text, classes, tmp_path):
    folder(tmp_path)
    (tmp_path / "classes.txt").write_text(text, encoding="utf-8")
    dataset = open_masks(tmp_path)
    assert dataset.classes == classes
    assert dataset.has_background == (classes[0] == "background")
    named = {label.name for label in PAPER_2022.labels(dataset)}
    assert named | {"background"} == {*classes, "background"}
    if not dataset.has_background:
        assert score(random_segmenter(), list(dataset), dataset.labels).named.any()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "has a blank line"),
        ("\ncat\ndog\n", "has a blank line"),
        ("cat\nCat\ndog\n", "label 'Cat' is given twice"),
        ("dog,puppy\ncat\n", "has a comma"),
        ("cat\nbackground\n", "names background in line 2"),
        ("background\n", "no label but background"),
        ("caf\xe9\ncat\n", "cannot be read"),
    ],
)
def test_labels_of_a_folder_that_cannot_be_told_apart_are_named(text, said, tmp_path):
    folder(tmp_path)
    (tmp_path / "classes.txt").write_text(text, encoding="latin-1")
    with pytest.raises(InputError, match=rf"classes.txt.*{said}"):
        open_masks(tmp_path)


def test_a_file_in_the_place_of_photos_is_named(tmp_path):
    folder(tmp_path)
    (tmp_path / "images").rename(tmp_path / "elsewhere")
    (tmp_path / "images").touch()
    with pytest.raises(InputError, match=r"images is no folder"):
        open_masks(tmp_path)


@pytest.mark.parametrize("name", ["voc21", "context59"])
def test_a_photo_that_is_listed_twice_is_named(name, tmp_path):
    LAYOUTS[name](tmp_path)
    listing = next(tmp_path.rglob("val.txt"))
    listing.write_text(listing.read_text() + listing.read_text().splitlines()[1])
    with pytest.raises(InputError, match=r"val.txt has 20\d\d_1 twice"):
        open_benchmark(name, tmp_path)


def test_a_root_that_is_no_folder_and_photos_one_folder_deeper_are_named(tmp_path):
    with pytest.raises(InputError, match=r"nowhere: no such folder$"):
        open_masks(tmp_path / "nowhere")
    (tmp_path / "set.zip").write_bytes(b"PK")
    with pytest.raises(InputError, match=r"set.zip is a file: unpack it, and name the folder"):
        open_masks(tmp_path / "set.zip")
    folder(tmp_path)
    (tmp_path / "images").rename(tmp_path / "val")
    (tmp_path / "images").mkdir()
    (tmp_path / "val").rename(tmp_path / "images/val")
    with pytest.raises(InputError, match=r"images holds folders \(val\) and no photos: name one of them, or move"):
        open_masks(tmp_path)


def test_the_mask_of_another_photo_is_not_blamed(tmp_path):
    folder(tmp_path)
    for part, suffix in (("images", "jpg"), ("masks", "png")):
        (first := next((tmp_path / part).glob("0.*"))).rename(first.with_name(f"10{first.suffix}"))
        next((tmp_path / part).glob("1.*")).rename(tmp_path / part / f"0.{suffix}")
    (tmp_path / "masks/0.png").unlink()
    with pytest.raises(InputError, match=r"has no mask .*masks/0.png \(missing: 1\)$"):
        open_masks(tmp_path)


def test_a_photo_without_a_mask_is_told_before_anything_is_read(tmp_path):
    folder(tmp_path)
    for name, near in (
        ("0_mask.png", "0_mask.png is named otherwise"),
        ("0.jpg", "0.jpg is named otherwise, or of a format that changes values: save it as PNG"),
    ):
        next((tmp_path / "masks").glob("0*")).rename(tmp_path / "masks" / name)
        with pytest.raises(InputError, match=rf"images/0.png has no mask .*masks/0.png \(missing: 1\); {near}"):
            open_masks(tmp_path)


@pytest.mark.parametrize(("part", "other"), [("images", "Images"), ("masks", "MASKS"), ("classes.txt", "Classes.TXT")])
def test_a_part_in_another_case_is_named(part, other, tmp_path):
    folder(tmp_path)
    (tmp_path / part).rename(tmp_path / other)
    with pytest.raises(InputError, match=rf"has no {part} \({other} is there: rename it\)"):
        open_masks(tmp_path)


def test_files_that_are_no_photos_are_passed_over_and_said(tmp_path, recwarn):
    folder(tmp_path)
    (tmp_path / "images/0.json").write_text("{}")  # labelme's, beside its photo
    assert len(open_masks(tmp_path)) == len(SIZES)
    assert not recwarn
    (tmp_path / "images/notes.txt").touch()
    (tmp_path / "masks/9.png").touch()
    (tmp_path / "masks/0.png").rename(tmp_path / "masks/0.PNG")
    assert len(list(open_masks(tmp_path))) == len(SIZES)
    said = [str(warning.message) for warning in recwarn]
    assert "images: passed over 1 files that are no photos (notes.txt)" in said[0]
    assert "masks: passed over 1 masks without a photo (9.png)" in said[1]


def test_a_mask_without_a_class_is_named(tmp_path):
    folder(tmp_path)
    save_mask(tmp_path / "masks/1.png", np.full_like(truth(1, 3), 255))
    with pytest.raises(InputError, match=r"masks/1.png shows no class"):
        list(open_masks(tmp_path))


def test_values_may_be_ignored_or_count_from_one(tmp_path):
    folder(tmp_path)
    masks = [truth(i, 3) for i in range(len(SIZES))]
    for i, mask in enumerate(masks):
        save_mask(tmp_path / f"masks/{i}.png", np.where(mask == 255, 0, mask + 1).astype(np.uint8))
    with pytest.raises(InputError, match=r"values of no class \(3; .*classes.txt names 3, 0 to 2.*--reduce-zero-label"):
        list(open_benchmark("folder", tmp_path))
    read = [photo.mask for photo in open_benchmark("folder", tmp_path, reduce_zero_label=True)]
    assert all(map(np.array_equal, read, masks))
    read = [photo.mask for photo in open_benchmark("folder", tmp_path, reduce_zero_label=True, ignore_index=3)]
    assert all(map(np.array_equal, read, [np.where(mask == 2, 255, mask) for mask in masks]))


def test_the_last_of_255_classes_cannot_be_255(tmp_path):
    folder(tmp_path)
    (tmp_path / "classes.txt").write_text("\n".join(f"word {chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(255)))
    assert len(open_benchmark("folder", tmp_path).classes) == 255
    with pytest.raises(InputError, match=r"classes.txt names 255: counted from 1 the last is 255"):
        open_benchmark("folder", tmp_path, reduce_zero_label=True)


@pytest.mark.parametrize("name", ["void", "Unlabelled", "unlabeled", "ignore"])
def test_a_class_that_is_named_as_none_is_said(name, tmp_path, recwarn):
    folder(tmp_path)
    names = (tmp_path / "classes.txt").read_text().splitlines()
    (tmp_path / "classes.txt").write_text("\n".join([*names[:-1], name]))
    value = len(names) - 1
    open_benchmark("folder", tmp_path, ignore_index=value)
    assert not recwarn
    with pytest.warns(UserWarning, match=f"'{name}' is looked for as any other word; .*--ignore-index {value}$"):
        open_benchmark("folder", tmp_path)
    with pytest.warns(UserWarning, match=f"--ignore-index {value + 1}$"):
        open_benchmark("folder", tmp_path, reduce_zero_label=True)


@pytest.mark.parametrize("value", [-1, -65535, 65537])
def test_values_beyond_16_bits_are_of_no_class(value, tmp_path):
    folder(tmp_path)
    (tmp_path / "masks/0.png").unlink()
    Image.fromarray(np.full((32, 48), value, np.int32)).save(tmp_path / "masks/0.tif")
    with pytest.raises(InputError, match=rf"0.tif has values of no class \({value};"):
        open_masks(tmp_path)[0]


def test_two_masks_of_one_photo_are_named(tmp_path):
    folder(tmp_path)
    save_mask(tmp_path / "masks/0.bmp", truth(0, 2))
    with pytest.raises(InputError, match=r"masks/0.bmp and 0.png are two masks of one photo"):
        open_masks(tmp_path)


@pytest.mark.parametrize(("photo", "mask"), [("\u00e9", "e\u0301"), ("e\u0301", "\u00e9")])
def test_accents_may_be_spelt_in_two_ways(photo, mask, tmp_path):
    folder(tmp_path)
    (tmp_path / "images/0.png").rename(tmp_path / f"images/{photo}.png")
    (tmp_path / "masks/0.png").rename(tmp_path / f"masks/{mask}.png")
    dataset = open_masks(tmp_path)
    assert np.array_equal(dataset.read(photo).mask, truth(0, 3))


def test_what_values_mean_is_said_for_folders_only(tmp_path):
    for name, options in (("voc21", {"ignore_index": 0}), ("folder", {"ignore_index": -1})):
        with pytest.raises(InputError, match=r"--reduce-zero-label are for a folder|0 to 65535, not -1"):
            open_benchmark(name, tmp_path, **options)


def test_classes_may_be_those_of_a_labelmap(tmp_path):
    folder(tmp_path)
    colours = {0: "cat:250,50,83", 1: "dog:51,221,255", 2: "grass:0,0,0"}
    lines = ["# label:color_rgb:parts:actions", *(f"{line}::" for line in colours.values())]
    (tmp_path / "labelmap.txt").write_text("\n".join(lines))
    (tmp_path / "classes.txt").unlink()
    palette = np.array([[250, 50, 83], [51, 221, 255], [0, 0, 0]], np.uint8)
    for i in range(len(SIZES)):
        save_mask(tmp_path / f"masks/{i}.png", palette[truth(i, 3) % 3])
    dataset = open_masks(tmp_path)
    assert dataset.labels == ("cat", "dog", "grass")
    assert all(np.array_equal(photo.mask, truth(i, 3) % 3) for i, photo in enumerate(dataset))
    (tmp_path / "labelmap.txt").write_text("cat:250,50,83\nbackground:51,221,255\ngrass:0,0,0")
    assert np.array_equal(open_masks(tmp_path)[0].mask, np.array([1, 0, 2])[truth(0, 3) % 3])
    save_mask(tmp_path / "masks/1.png", truth(1, 3) % 3)
    with pytest.raises(InputError, match=r"1.png .* background is not the first line of labelmap.txt: save masks in"):
        open_masks(tmp_path)[1]
    (tmp_path / "labelmap.txt").write_text("\n".join(lines))
    (tmp_path / "classes.txt").write_text("dog\ngrass\ncat\n")
    assert np.array_equal(open_masks(tmp_path)[0].mask, np.array([2, 0, 1])[truth(0, 3) % 3])
    (tmp_path / "classes.txt").write_text("dog\ngrass\nbird\n")
    with pytest.raises(InputError, match=r"labelmap.txt gives a colour to 'cat', which .*classes.txt does not name"):
        open_masks(tmp_path)[0]
