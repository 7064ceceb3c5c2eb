import json
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image

from groupvit.checkpoints import native
from groupvit.cli.formats import Export
from groupvit.cli.photo_files import find_photos, mask_kinds, output_names
from groupvit.cli.segment import segment
from groupvit.errors import InputError
from groupvit.models import ImageEncoderConfig, ModelConfig, Stage, TextEncoderConfig, build_model
from groupvit.segmentation import Segmenter

RunCli = Callable[..., tuple[int, str, str]]
KINDS = ("labels.png", "overlay.jpg", "groups-1.jpg", "groups-2.jpg", "json")


BATCHES = pytest.mark.parametrize("batch_size", [1, 2, 8])


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr("groupvit.segmentation.engine.find_spec", lambda _: None)  # OpenVINO takes a second to start
    stages = (Stage(1, 8, 8), Stage(1, 4, 4), Stage(1))
    encoder = ImageEncoderConfig(image_size=32, patch_size=8, dim=32, heads=2, stages=stages)
    config = ModelConfig(encoder, TextEncoderConfig(32, 2, 1), 16, 32)
    native.save(tmp_path / "model", build_model(config), config)
    return str(tmp_path / "model")


def save_photo(path: Path, size: tuple[int, int] = (50, 33)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(len(path.name))
    Image.fromarray(random.integers(0, 256, (*size[::-1], 3), dtype=np.uint8)).save(path)
    return path


def truncated(path: Path) -> Path:
    save_photo(path, (200, 200))
    path.write_bytes(path.read_bytes()[:3000])
    return path


def written(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_photo_becomes_a_label_map_pictures_and_json(run_cli: RunCli, tmp_path: Path, model: str) -> None:
    save_photo(tmp_path / "a.jpg")
    code, out, err = run_cli("segment", "a.jpg", "--labels", "person=man,woman", "grass", "sky", "--model", model)
    assert (code, err) == (0, "")
    assert written(tmp_path / "out") == sorted(f"a.jpg.{kind}" for kind in KINDS)
    assert out.startswith("out/a.jpg.overlay.jpg: ")
    assert out.count("\n") == 1
    with Image.open(tmp_path / "out/a.jpg.labels.png") as label_map:
        assert (label_map.mode, label_map.size) == ("P", (50, 33))
        indices = np.asarray(label_map)
    values = json.loads((tmp_path / "out/a.jpg.json").read_text())
    assert (values["photo"], values["model"], values["width"], values["height"]) == ("a.jpg", model, 50, 33)
    assert [label["words"] for label in values["labels"]] == [["man", "woman"], ["grass"], ["sky"]]
    assert [label["share"] for label in values["labels"]] == [(indices == i).mean() for i in range(3)]
    assert values["settings"]["maps"] == "soft"


def test_every_option_is_accepted(run_here: RunCli, tmp_path: Path, model: str) -> None:
    save_photo(tmp_path / "a.jpg", (60, 40))
    options = (
        "--background 0.5 --out o/p --templates 7 --maps hard --short-side 48 --window 32 --stride 16 --batch-size 2"
    )
    code, _, err = run_here("segment", "a.jpg", "--labels", "dog", "sky", "--model", model, *options.split())
    assert (code, err) == (0, "")
    # windows have groups of their own, so there is no picture of them
    assert written(tmp_path / "o/p") == ["a.jpg.json", "a.jpg.labels.png", "a.jpg.overlay.jpg"]
    values = json.loads((tmp_path / "o/p/a.jpg.json").read_text())
    assert [label["name"] for label in values["labels"]] == ["background", "dog", "sky"]
    assert values["settings"] == {
        "templates": "7",
        "background": 0.5,
        "maps": "hard",
        "short_side": 48,
        "window": 32,
        "stride": 16,
        "batch_size": 2,
        "masks": False,
        "formats": [],
    }


@pytest.mark.parametrize(
    ("background", "names", "settings"),
    [
        ((), ["background", "dog"], "auto"),
        (("--background", "auto"), ["background", "dog"], "auto"),
        (("--background", "none"), ["dog"], None),
    ],
)
def test_rivals_that_the_model_brings_become_background(
    run_here: RunCli, tmp_path: Path, model: str, background: tuple[str, ...], names: list[str], settings: str | None
) -> None:
    trained, config = native.load(Path(model))
    native.save(Path(model), trained, replace(config, rivals=("sky", "animal", "grass")))
    save_photo(tmp_path / "a.jpg")
    code, _, err = run_here("segment", "a.jpg", "--labels", "dog", "--model", model, *background)
    assert (code, err) == (0, "")
    values = json.loads((tmp_path / "out/a.jpg.json").read_text())
    assert [label["name"] for label in values["labels"]] == names
    assert [label["words"] for label in values["labels"]] == [["sky", "grass"], ["dog"]][-len(names) :]
    assert values["settings"]["background"] == settings


def test_one_bad_photo_among_others_is_reported_and_the_rest_done(run_here: RunCli, tmp_path: Path, model: str) -> None:
    for name in ("b.jpg", "a.png", "a.jpg"):
        save_photo(tmp_path / "photos" / name)
    truncated(tmp_path / "photos/cut.jpg")
    (tmp_path / "photos/text.png").write_text("no image")
    (tmp_path / "photos/notes.txt").write_text("left alone")
    code, out, err = run_here("segment", "photos", "--labels", "dog", "sky", "--model", model, "--batch-size", "2")
    assert code == 1
    assert [line.partition(":")[0] for line in out.splitlines()] == [
        f"out/{name}.overlay.jpg" for name in ("a.jpg", "a.png", "b.jpg")
    ]
    said, *lines = err.splitlines()
    assert said == "groupvit: photos: passed over 1 .txt"
    assert [line.startswith("groupvit: error: ") for line in lines] == [True, True]
    assert "cut.jpg" in lines[0]
    assert "text.png" in lines[1]
    assert written(tmp_path / "out") == sorted(
        f"{name}.{kind}" for name in ("a.jpg", "a.png", "b.jpg") for kind in KINDS
    )


@pytest.mark.parametrize("make", [truncated, lambda path: path.write_text("no image")], ids=["truncated", "text"])
def test_a_single_bad_photo_is_an_error(tmp_path: Path, model: str, make: Callable[[Path], object]) -> None:
    make(tmp_path / "bad.jpg")
    with pytest.raises(InputError, match=r"bad\.jpg"):
        segment((str(tmp_path / "bad.jpg"),), labels=("dog",), model=model, out=tmp_path / "out")
    assert written(tmp_path / "out") == []


def test_only_bad_photos_leave_nothing_but_the_exit_code(
    tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = tuple(str(truncated(tmp_path / name)) for name in ("a.jpg", "b.jpg"))
    assert segment(photos, labels=("dog",), model=model, out=tmp_path / "out") == 1
    assert capsys.readouterr().out.strip() == ""
    assert written(tmp_path / "out") == []


@BATCHES
def test_photos_are_reported_in_their_order_whoever_wrote_first(
    tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str], batch_size: int
) -> None:
    sizes = [(400, 300), (20, 20), (30, 20), (350, 200), (20, 30)]
    photos = [str(save_photo(tmp_path / f"{i}.png", size)) for i, size in enumerate(sizes)]
    options = {"labels": ("a", "b"), "model": model, "out": tmp_path / "out", "batch_size": batch_size}
    assert segment(tuple(photos), **options, formats=("coco",)) == 0
    assert [line.split(".")[0] for line in capsys.readouterr().out.splitlines()] == [
        f"{tmp_path}/out/{i}" for i in range(5)
    ]
    coco = json.loads((tmp_path / "out/coco.json").read_text())
    assert [image["file_name"] for image in coco["images"]] == [f"{i}.png" for i in range(5)]


@BATCHES
def test_a_result_that_cannot_be_written_ends_the_command(tmp_path: Path, model: str, batch_size: int) -> None:
    photos = [str(save_photo(tmp_path / f"{i}.png")) for i in range(7)]
    (tmp_path / "out/2.png.overlay.jpg").mkdir(parents=True)  # cannot be replaced by a file
    with pytest.raises(InputError, match=r"^cannot write 2.png.overlay.jpg in "):
        segment(tuple(photos), labels=("a", "b"), model=model, out=tmp_path / "out", batch_size=batch_size)
    assert not [name for name in written(tmp_path / "out") if "tmp" in name]


def test_freed_memory_goes_back_every_few_photos(tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    returned = []
    monkeypatch.setattr("groupvit.cli.segment._TRIM_EVERY", 3)
    monkeypatch.setattr("groupvit.cli.segment.return_freed_memory", lambda: returned.append(1))
    photos = [str(save_photo(tmp_path / f"{i}.png")) for i in range(7)]
    for batch_size, times in ((1, 2), (2, 2), (8, 1)):
        returned.clear()
        segment(tuple(photos), labels=("a", "b"), model=model, out=tmp_path / "out", batch_size=batch_size)
        assert len(returned) == times


def test_photos_of_one_name_do_not_overwrite_each_other() -> None:
    files = [Path(name) for name in ("x/a.jpg", "x/a.png", "y/a.jpg", "z/A.JPG", "z/a.jpg-2")]
    assert output_names(files) == ["a.jpg", "a.png", "a.jpg-2", "A.JPG-3", "a.jpg-2-2"]


def test_results_are_replaced_and_nothing_temporary_stays(tmp_path: Path, model: str) -> None:
    photo = str(save_photo(tmp_path / "a.jpg"))
    for labels in (("dog", "sky"), ("cat",)):
        assert segment((photo,), labels=labels, model=model, out=tmp_path / "out") == 0
    assert written(tmp_path / "out") == sorted(f"a.jpg.{kind}" for kind in KINDS)
    assert json.loads((tmp_path / "out/a.jpg.json").read_text())["labels"][0]["name"] == "cat"


def test_folders_and_patterns_are_sorted_and_each_file_comes_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("p/b.JPG", "p/a.webp", "p/inner/c.jpg", "q/d[1].png", "q/e.png"):
        save_photo(tmp_path / name)
    assert find_photos(["p"]) == [Path("p/a.webp"), Path("p/b.JPG")]
    assert find_photos(["q/e.png", "q/*.png"]) == [Path("q/e.png"), Path("q/d[1].png")]
    assert find_photos(["q/d[1].png"]) == [Path("q/d[1].png")]
    assert find_photos(["p/**/*.jpg"]) == [Path("p/inner/c.jpg")]


@pytest.mark.parametrize(
    ("photo", "said"),
    [("missing.jpg", "no such file"), ("empty", "folder has no images"), ("*.gif", "matches no files")],
)
def test_what_is_not_there_is_named(tmp_path: Path, photo: str, said: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=said):
        find_photos([str(tmp_path / photo)])


def test_no_photos_at_all_is_an_error() -> None:
    with pytest.raises(InputError, match="no photos"):
        find_photos([])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"labels": ("dog", "dog")}, "given twice"),
        ({"batch_size": 0}, "batch size"),
        ({"stride": 3}, "stride of 3"),
        ({"model": "nowhere"}, "nowhere"),
    ],
)
def test_wrong_settings_are_errors_even_among_many_photos(tmp_path: Path, model: str, changes: dict, said: str) -> None:
    photos = tuple(str(save_photo(tmp_path / name)) for name in ("a.jpg", "b.jpg"))
    settings = {"labels": ("dog", "sky"), "model": model, "out": tmp_path / "out"} | changes
    with pytest.raises(InputError, match=said):
        segment(photos, **settings)


def test_an_output_folder_that_is_a_file_is_an_error(tmp_path: Path, model: str) -> None:
    photo = str(save_photo(tmp_path / "a.jpg"))
    with pytest.raises(InputError, match="cannot make the folder"):
        segment((photo,), labels=("dog",), model=model, out=Path(photo))


def test_a_photo_is_turned_upright(tmp_path: Path, model: str) -> None:
    image = Image.new("RGB", (40, 20), "red")
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert segment((str(tmp_path / "turned.jpg"),), labels=("dog",), model=model, out=tmp_path / "out") == 0
    with Image.open(tmp_path / "out/turned.jpg.labels.png") as label_map:
        assert label_map.size == (20, 40)


@pytest.mark.skipif(sys.platform != "linux", reason="memory is told in /proc")
def test_a_photo_of_twelve_megapixels_stays_small_in_memory(tmp_path: Path, model: str) -> None:
    Image.fromarray(np.zeros((3000, 4000, 3), np.uint8)).save(tmp_path / "large.jpg")
    program = """
from pathlib import Path
from groupvit.cli.segment import segment
labels = tuple(f"word {i}" for i in range(20))
code = segment(("large.jpg",), labels=labels, model="model")
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
print(code, status["VmHWM"].removesuffix("kB"))  # ru_maxrss would begin at the test's own
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    code, kibibytes = map(int, done.stdout.splitlines()[-1].split())
    assert code == 0
    assert kibibytes < 2 * 2**20


def test_own_results_are_not_segmented_again(tmp_path: Path, model: str) -> None:
    photos = tmp_path / "photos"
    save_photo(photos / "a.jpg")
    for _ in range(2):
        assert segment((str(photos),), labels=("dog", "a/b"), model=model, out=photos, masks=True) == 0
    results = [*KINDS, "mask-dog.png", "mask-a-b.png"]
    assert written(photos) == sorted(["a.jpg", *(f"a.jpg.{kind}" for kind in results)])
    assert find_photos([str(photos / "*.[jp]*g")]) == [photos / "a.jpg"]
    assert find_photos([str(photos / "a.jpg.overlay.jpg")]) == [photos / "a.jpg.overlay.jpg"]  # named, so meant
    assert find_photos([str(path) for path in photos.iterdir()]) == [photos / "a.jpg"]  # as shells expand patterns
    (photos / "coco.json").touch()  # a list of all photos
    assert find_photos([str(path) for path in photos.iterdir()]) == [photos / "a.jpg"]
    with pytest.raises(InputError, match=r"these are 2 results of this command, such as .*: name photos"):
        find_photos([str(path) for path in photos.glob("*.mask-*.png")])


def test_results_of_a_run_that_was_killed_are_no_photos(tmp_path: Path, model: str) -> None:
    photo = save_photo(tmp_path / "a.jpg")
    assert segment((str(photo),), labels=("dog", "sky"), model=model, out=tmp_path) == 0
    (tmp_path / "a.jpg.json").unlink()
    assert find_photos([str(tmp_path)]) == [photo]


def test_pictures_of_an_earlier_run_do_not_stay_beside_another_one_s(tmp_path: Path, model: str) -> None:
    photo, out = str(save_photo(tmp_path / "a.jpg", (90, 60))), tmp_path / "out"
    options = {"model": model, "out": out}
    assert segment((photo,), labels=("dog", "sky"), masks=True, **options) == 0
    for own in ("a.jpg.mask-notes.txt", "a.jpg.mask-own.png"):
        (out / own).touch()
    assert {"a.jpg.mask-sky.png", "a.jpg.groups-1.jpg"} < set(written(out))
    assert segment((photo,), labels=("dog",), window=32, short_side=48, masks=True, **options) == 0
    kinds = {name.removeprefix("a.jpg.") for name in written(out)}
    assert {"mask-notes.txt", "mask-own.png"} < kinds
    assert not kinds & {"mask-sky.png", "groups-1.jpg"}


def test_lines_come_while_other_photos_are_segmented(
    tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in "abcd":
        save_photo(tmp_path / f"photos/{name}.jpg")
    said, as_before = [], Segmenter.segment

    def noted(*args: Any, **settings: Any) -> Any:
        said.append(capsys.readouterr().out)
        return as_before(*args, **settings)

    monkeypatch.setattr(Segmenter, "segment", noted)
    segment((str(tmp_path / "photos"),), labels=("sky", "road"), model=model, out=tmp_path / "out", batch_size=1)
    assert "a.jpg.overlay.jpg: " in "".join(said)
    assert [line.split(".")[0][-1] for line in ("".join(said) + capsys.readouterr().out).splitlines()] == [*"abcd"]


def test_a_folder_goes_on_where_it_was_interrupted(
    tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = [save_photo(tmp_path / f"photos/{name}.jpg") for name in "abcd"]
    options = {"labels": ("man=boy,girl", "sky"), "model": model, "out": tmp_path / "out", "batch_size": 1}

    def stopped(self: Segmenter, images: list[Image.Image], *args: Any, **settings: Any) -> Any:
        if calls.append(0) or len(calls) == 3:
            raise KeyboardInterrupt
        return as_before(self, images, *args, **settings)

    calls, as_before = [], Segmenter.segment
    with monkeypatch.context() as patched:
        patched.setattr(Segmenter, "segment", stopped)
        with pytest.raises(KeyboardInterrupt):
            segment((str(tmp_path / "photos"),), formats=("voc",), **options)
    assert "groupvit: the same command with --resume goes on" in capsys.readouterr().err
    assert not (tmp_path / "out/d.jpg.json").exists()

    def done_anew(expected: str, **changes: Any) -> bool:
        before = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").glob("*.json")}
        assert segment((str(tmp_path / "photos"),), resume=True, **options | {"formats": ("voc",)} | changes) == 0
        new = [
            file for file in sorted((tmp_path / "out").glob("*.json")) if before.get(file) != file.stat().st_mtime_ns
        ]
        return "".join(file.name[0] for file in new) == expected

    first = len(list((tmp_path / "out").glob("*.json")))
    assert 1 <= first <= 2
    assert done_anew("abcd"[first:])
    assert f"groupvit: passed over photos that have results: {first}" in capsys.readouterr().err
    assert done_anew("")
    assert capsys.readouterr().out == ""
    os.utime(photos[2], ns=(0, 2**62))
    assert done_anew("c")
    os.utime(photos[2], ns=(0, 0))
    (tmp_path / "out/b.jpg.json").write_text('{"labels": [{}]}')
    assert done_anew("b")
    for changes in ({"masks": True}, {"formats": ()}, {"labels": ("man=boy", "sky")}, {"background": 0.5}):
        assert done_anew("abcd", **changes)
    assert done_anew("abcd", labels=("sky", "man=boy,girl"))  # other values in the label maps
    assert done_anew("abcd")
    config = native.load(Path(model))[1]
    native.save(Path(model), build_model(config), config)  # another one under the same name
    assert done_anew("abcd")
    with pytest.raises(InputError, match="--resume cannot fill a list of all photos: leave it out, or --format coco"):
        segment((str(tmp_path / "photos"),), resume=True, formats=("coco",), **options)


def test_a_pipe_is_not_waited_for(tmp_path: Path, model: str) -> None:
    os.mkfifo(tmp_path / "p.jpg")
    with pytest.raises(InputError, match=r"p.jpg: .*a pipe"):
        segment((str(tmp_path / "p.jpg"),), labels=("dog",), model=model, out=tmp_path / "out")
    (tmp_path / "labels.txt").write_bytes(b"dog\n" * 2**19)
    for file in (Path("/dev/zero"), tmp_path / "labels.txt"):
        with pytest.raises(InputError, match="it has more than 1 MB"):
            segment((str(tmp_path),), labels_file=file, model=model, out=tmp_path / "out")


def test_too_little_memory_is_one_line(tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA out of memory. Tried to allocate 3 GiB")

    monkeypatch.setattr("groupvit.segmentation.Segmenter.segment", full)
    with pytest.raises(InputError, match="take a smaller --batch-size or --short-side"):
        segment((str(save_photo(tmp_path / "a.jpg")),), labels=("dog",), model=model, out=tmp_path / "out")


def test_what_a_folder_has_besides_photos_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.jpg", "sub/b.jpg", ".hidden/c.jpg"):
        save_photo(tmp_path / name)
    for name in ("x.txt", "y.TXT", "z.pdf", "README", ".DS_Store", "._a.jpg", "q.json"):
        (tmp_path / name).touch()
    assert find_photos([str(tmp_path)]) == [tmp_path / "a.jpg"]
    passed = "1 .json, 1 .pdf, 2 .txt, 1 subfolder (see --recursive), 1 without a suffix"
    assert capsys.readouterr().err == f"groupvit: {tmp_path}: passed over {passed}\n"
    assert find_photos([str(tmp_path)], recursive=True) == [tmp_path / "a.jpg", tmp_path / "sub/b.jpg"]


def test_a_link_that_leads_nowhere_is_a_photo_that_cannot_be_read(
    tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    save_photo(tmp_path / "in/b.jpg")
    (tmp_path / "in/a.jpg").symlink_to(tmp_path / "nowhere.jpg")
    os.mkfifo(tmp_path / "in/c.jpg")
    assert segment((str(tmp_path / "in"),), labels=("dog", "cat"), model=model, out=tmp_path / "out") == 1
    said = capsys.readouterr().err
    assert "passed over 1 .jpg (no regular file)" in said
    assert "a.jpg" in said
    assert list((tmp_path / "out").glob("b*.json"))
    for name in ("a.jpg", "*.jpg"):
        assert tmp_path / "in/a.jpg" in find_photos([str(tmp_path / "in" / name)])


def test_heic_without_its_package_is_passed_over_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("groupvit.cli.photo_files.PHOTO_SUFFIXES", {".jpg"})
    (tmp_path / "a.HEIC").touch()
    with pytest.raises(InputError, match=r"no images \(passed over 1 \.heic \(pip install pillow-heif\)\)"):
        find_photos([str(tmp_path)])


def test_a_long_name_and_a_large_photo_cost_only_themselves(
    tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in (f"{'n' * 246}.jpg", f"{'m' * 238}.jpg", "short.jpg"):
        save_photo(tmp_path / "p" / name)
    Image.new("RGB", (400, 300)).save(tmp_path / "p/large.png")
    options = {"labels": ("dog", "sky"), "model": model, "out": tmp_path / "out"}
    assert segment((str(tmp_path / "p"),), max_pixels=100_000, **options) == 1
    said = capsys.readouterr()
    assert "short.jpg" in said.out
    assert "large.png: has more than 100,000 pixels: shrink it" in said.err
    assert "shorten it by 8 bytes" in said.err
    assert {name[0] for name in written(tmp_path / "out")} == {"m", "s"}
    assert segment((str(tmp_path / "p/large.png"),), max_pixels=120_000, **options) == 0
    assert segment((str(tmp_path / "p"),), masks=True, background=0.5, **options) == 1
    assert (tmp_path / "out/short.jpg.mask-background.png").is_file()
    assert "shorten it by 7 bytes" in capsys.readouterr().err


def test_a_photo_longer_than_a_jpeg_can_be_is_drawn_smaller(tmp_path: Path, model: str) -> None:
    photo = save_photo(tmp_path / "long.png", (66_000, 2))
    assert segment((str(photo),), labels=("dog", "sky"), model=model, out=tmp_path / "out") == 0
    for kind, size in {"labels.png": (66_000, 2), "groups-1.jpg": (65_500, 2)}.items():
        with Image.open(tmp_path / f"out/long.png.{kind}") as picture:
            assert picture.size == size
    with Image.open(tmp_path / "out/long.png.overlay.jpg") as picture:
        assert (picture.format, picture.width) == ("JPEG", 65_500)


def test_two_batches_are_segmented_at_once_with_half_of_the_threads_each(
    tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    together, threads, segment_them = Barrier(2, timeout=60), [], Segmenter.segment

    def segmented(self: Segmenter, images: Any, *args: Any, **options: Any) -> Any:
        threads.append(torch.get_num_threads())
        if len(threads) > 1 and images[0].width < 300:
            together.wait()
        return segment_them(self, images, *args, **options)

    monkeypatch.setattr(Segmenter, "segment", segmented)
    monkeypatch.setattr("groupvit.cli.segment._PIXELS_AT_ONCE", 100_000)
    sizes = [(50, 33)] * 3 + [(300, 200)] + [(50, 33)] * 2
    photos = tuple(str(save_photo(tmp_path / f"{i}.png", size)) for i, size in enumerate(sizes))
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        assert segment(photos, labels=("a", "b"), model=model, out=tmp_path / "out", batch_size=1) == 0
        assert threads == [4, 2, 2, 4, 2, 2]  # the first one and the large one come alone
        with ThreadPoolExecutor() as pool:
            assert pool.submit(torch.get_num_threads).result() == 4
    finally:
        torch.set_num_threads(before)


def test_masks_never_share_a_file() -> None:
    for names in (("a-b-2", "a/b", "a.b"), ("a b", "A/b", "a.b-1", "a:b"), ("!", "?", "--1")):
        assert len({kind.lower() for kind in mask_kinds(names)}) == len(names)


def test_links_to_folders_are_said_and_a_photo_comes_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photo = save_photo(tmp_path / "p/a.jpg")
    save_photo(tmp_path / "elsewhere/b.jpg")
    (tmp_path / "p/link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "p/loop").symlink_to(".")
    assert find_photos([str(tmp_path / "p")], recursive=True) == [photo]
    assert capsys.readouterr().err.endswith("passed over 2 subfolder that is a link\n")
    assert find_photos([str(photo), str(tmp_path / "p/../p/a.jpg"), str(tmp_path / "p/*.jpg")]) == [photo]


def test_a_subfolder_that_cannot_be_read_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    save_photo(tmp_path / "a.jpg")
    (tmp_path / "closed").mkdir()
    monkeypatch.setattr("os.access", lambda *_: False)
    assert find_photos([str(tmp_path)], recursive=True) == [tmp_path / "a.jpg"]
    assert capsys.readouterr().err.endswith("passed over 1 subfolder that cannot be read\n")


@pytest.mark.parametrize("name", ["a.jpg.json", "coco.json"])
def test_what_no_run_has_written_is_not_replaced(tmp_path: Path, model: str, name: str) -> None:
    photo = save_photo(tmp_path / "a.jpg")
    (tmp_path / name).write_text("mine")
    options = {"labels": ("dog", "sky"), "model": model, "formats": ("coco",)}
    with pytest.raises(InputError, match=f"{name} is no result of this command"):
        segment((str(photo),), out=tmp_path, **options)
    assert written(tmp_path) == sorted(["a.jpg", "model", name])
    for _ in range(2):
        assert segment((str(photo),), out=tmp_path / "out", **options) == 0


def test_json_of_no_run_hinders_none(tmp_path: Path, model: str) -> None:
    photo, out = save_photo(tmp_path / "a.jpg"), tmp_path / "out"
    options = {"labels": ("dog", "sky"), "model": model, "out": out, "formats": ("voc",)}
    assert segment((str(photo),), **options) == 0
    lists = ('{"lists": null}', '{"lists": [{}]}', '{"lists": 1, "path": 2}')
    for text in (*lists, "[" * 200_000, "[]", '{"path": "a\\u0000b"}', '{"path": "\\ud800"}'):
        (out / "labelmap.txt").unlink()
        (out / "a.jpg.json").write_text(text)
        assert segment((str(photo),), **options) == 0
        assert json.loads((out / "a.jpg.json").read_text())["lists"] == ["labelmap.txt"]


def test_a_long_name_of_no_photo_hinders_no_folder(tmp_path: Path) -> None:
    save_photo(tmp_path / "a.jpg")
    (tmp_path / ("a" * 246 + ".json")).touch()
    assert find_photos([str(tmp_path)]) == [tmp_path / "a.jpg"]


def test_a_list_of_an_earlier_run_is_replaced_and_another_is_not(tmp_path: Path, model: str) -> None:
    photo, out = save_photo(tmp_path / "a.jpg"), tmp_path / "out"
    options = {"labels": ("dog", "sky"), "model": model, "out": out}
    assert segment((str(photo),), **options) == 0
    (out / "labelmap.txt").write_text("mine")
    with pytest.raises(InputError, match=r"labelmap.txt is no result of this command"):
        segment((str(photo),), formats=("voc",), **options)
    (out / "labelmap.txt").unlink()
    for formats in (("voc",), (), ("voc",)):
        assert segment((str(photo),), formats=formats, **options) == 0


def test_results_of_another_photo_of_the_name_are_not_replaced(
    tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    days = [save_photo(tmp_path / day / "a.jpg") for day in ("day1", "day2")]
    options = {"labels": ("dog", "sky"), "model": model, "out": tmp_path / "out"}
    assert segment((str(days[0]),), **options) == 0
    with pytest.raises(InputError, match=r"a.jpg.json is the result of .*day1/a.jpg, not of .*day2/a.jpg: choose"):
        segment((str(days[1]),), **options)
    assert segment((str(tmp_path / "day2"), str(tmp_path / "day1")), **options) == 0  # each has a result
    monkeypatch.chdir(tmp_path / "day1")
    with pytest.raises(InputError, match=r"a.jpg.json is the result of .*day2/a.jpg, not of a.jpg: choose"):
        segment(("a.jpg",), **options)
    monkeypatch.chdir(tmp_path / "day2")
    assert segment(("a.jpg",), **options) == 0
    monkeypatch.chdir(tmp_path / "day1")
    days[1].rename(tmp_path / "b.jpg")  # then nobody can tell
    assert segment(("a.jpg",), **options) == 0


def test_a_full_disk_leaves_no_old_names_beside_a_new_map(
    tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo, out = str(save_photo(tmp_path / "a.jpg")), tmp_path / "out"
    assert segment((photo,), labels=("dog", "sky"), model=model, out=out) == 0
    monkeypatch.setattr("groupvit.segmentation.result.Segmentation.to_dict", Mock(side_effect=InputError("full")))
    with pytest.raises(InputError, match="full"):
        segment((photo,), labels=("cat",), model=model, out=out)
    assert not (out / "a.jpg.json").exists()


def test_patterns_follow_links_that_lead_back_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    photo = save_photo(tmp_path / "p/q/a.jpg")
    for name in ("loop", "again"):
        (tmp_path / "p" / name).symlink_to(".")
    save_photo(tmp_path / "elsewhere/b.jpg")
    (tmp_path / "p/z").symlink_to(tmp_path / "elsewhere")
    assert find_photos(["p/**/*.jpg"]) == find_photos(["**/q/*.jpg", "p/z/*.jpg"])
    assert find_photos([f"{tmp_path}/**/a.jpg"]) == [photo]
    deep = [save_photo(tmp_path / name) for name in ("d/train/x/y/1.jpg", "d/e/train/2.jpg")]
    assert find_photos(["d/**/train/**/*.jpg"]) == sorted(path.relative_to(tmp_path) for path in deep)
    (tmp_path / "d/e/3.jpg").symlink_to(deep[0])  # of equal photos, too, each has a result
    assert len(find_photos(["d/**/*.jpg"])) == 3
    save_photo(tmp_path / "dd/4.jpg")
    assert find_photos(["d**/4.jpg", "dd/**.jpg"]) == [Path("dd/4.jpg")]


def test_masks_are_the_label_map_in_parts(tmp_path: Path, model: str) -> None:
    photo, labels = str(save_photo(tmp_path / "a.jpg")), ("traffic light", "a/b", "A.b", "犬=dog", "!=cat")
    assert segment((photo,), labels=labels, model=model, out=tmp_path / "out", masks=True, background="none") == 0
    masks = [f"a.jpg.mask-{name}.png" for name in ("traffic-light", "a-b", "A-b-2", "犬", "--4")]
    with Image.open(tmp_path / "out/a.jpg.labels.png") as label_map:
        indices = np.asarray(label_map)
    for i, name in enumerate(masks):
        with Image.open(tmp_path / "out" / name) as mask:
            assert np.array_equal(np.asarray(mask), np.where(indices == i, 255, 0))


def test_labels_come_from_the_command_and_a_file(tmp_path: Path, model: str) -> None:
    photo = str(save_photo(tmp_path / "a.jpg"))
    (tmp_path / "labels.txt").write_text("# mine\nsky\n\nperson=man,woman\n")
    options: dict = {"model": model, "out": tmp_path / "out", "background": "none"}
    assert segment((photo,), labels=("dog",), labels_file=tmp_path / "labels.txt", **options) == 0
    found = json.loads((tmp_path / "out/a.jpg.json").read_text())["labels"]
    assert [(label["name"], label["words"]) for label in found][1:] == [("sky", ["sky"]), ("person", ["man", "woman"])]
    with pytest.raises(InputError, match="--labels dog grass sky, or --labels-file"):
        segment((photo,), **options)


@pytest.mark.parametrize(
    ("photos", "label"), [((), "a.jpg"), (("a.jpg",), "b.PNG"), ((), "*.jpg"), ((), "folder"), (("a.jpg",), "x.heicx")]
)
def test_a_photo_among_the_labels_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, photos: tuple[str, ...], label: str
) -> None:
    monkeypatch.chdir(tmp_path)
    save_photo(tmp_path / "a.jpg")
    (tmp_path / "folder").mkdir()
    (tmp_path / "x.heicx").touch()
    with pytest.raises(InputError, match=r"was taken for a label: put photos before --labels") as error:
        segment(photos, labels=("dog", label))
    assert str(error.value).startswith(label)


def test_going_on_takes_no_photo_for_another_of_the_same_name(tmp_path: Path, model: str) -> None:
    options = {"labels": ("dog", "sky"), "model": model, "out": tmp_path / "out", "recursive": True}
    save_photo(tmp_path / "photos/b/1.jpg", (40, 30))
    assert segment((str(tmp_path / "photos"),), **options) == 0
    earlier = save_photo(tmp_path / "photos/a/1.jpg", (60, 30))
    os.utime(earlier, ns=(0, 0))
    assert segment((str(tmp_path / "photos"),), resume=True, **options) == 0
    found = {name: json.loads((tmp_path / "out" / name).read_text()) for name in ("1.jpg.json", "1.jpg-2.json")}
    assert [Path(each["photo"]).parent.name for each in found.values()] == ["a", "b"]


def test_a_list_of_all_photos_outlives_a_run_that_is_interrupted(
    tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "abc":
        save_photo(tmp_path / f"photos/{name}.jpg")
    options: Any = {"labels": ("dog", "sky"), "model": model, "out": tmp_path / "out", "formats": ("coco", "voc")}
    assert segment((str(tmp_path / "photos"),), **options) == 0
    before = (tmp_path / "out/coco.json").read_bytes()
    assert len(json.loads(before)["images"]) == 3
    (tmp_path / "out/labelmap.txt").unlink()

    def full(self: Export, stem: Path, *args: Any) -> None:
        added(self, stem, *args)
        if stem.name == "b.jpg":
            raise InputError("the disk is full")

    added = Export.add
    monkeypatch.setattr(Export, "add", full)
    with pytest.raises(InputError, match="the disk is full"):
        segment((str(tmp_path / "photos"),), batch_size=1, **options)
    assert (tmp_path / "out/coco.json").read_bytes() == before
    assert (tmp_path / "out/labelmap.txt").read_text().startswith("background:0,0,0::")


@pytest.mark.parametrize(
    "changes",
    [{"model": "runs/nosuch"}, {"batch_size": 0}, {"max_pixels": -1}],
)
def test_a_command_that_is_refused_leaves_no_folder(tmp_path: Path, model: str, changes: dict[str, Any]) -> None:
    options: dict[str, Any] = {"labels": ("dog", "sky"), "model": model, "out": tmp_path / "out"}
    with pytest.raises(InputError):
        segment((str(save_photo(tmp_path / "a.jpg")),), **options | changes)
    assert not (tmp_path / "out").exists()
