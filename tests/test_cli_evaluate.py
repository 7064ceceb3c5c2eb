import io
import json
import shutil
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
from PIL import Image

from groupvit.checkpoints import native
from groupvit.data.shards import Sample, write_shards
from groupvit.evaluation.results import Result
from groupvit.segmentation import Segmenter
from layouts import LAYOUTS, save_lines, save_mask
from test_evaluation_scoring import random_segmenter

pytestmark = pytest.mark.filterwarnings("always:.*no mask shows")


@pytest.fixture
def model(tmp_path):
    segmenter = random_segmenter()
    native.save(tmp_path / "model", segmenter.model, segmenter.config)
    return tmp_path / "model"


@pytest.fixture
def pets(tmp_path):
    LAYOUTS["pets"](tmp_path / "pets")
    return tmp_path / "pets"


@pytest.fixture
def evaluate(model, run_here):
    """Runs `groupvit evaluate model ARGUMENT...` in this process; gives its exit code, stdout and stderr."""
    return partial(run_here, "evaluate", model)


def test_a_model_is_measured_and_the_numbers_are_kept(run_cli, tmp_path, model, pets):
    code, out, err = run_cli("evaluate", model, "pets", "--root", pets)
    assert (code, err) == (0, "")
    assert "pets, calibrated-native: 4 photos, background below" in out
    result = Result.load(tmp_path / "pets.calibrated-native.json")
    assert f"mIoU {result.metrics()['miou']:.2f} (95 %" in out
    for error, share in result.metrics()["errors"].items():
        assert f"{share:.2f} % {error}" in out
    assert "groups of stage 2" in out
    assert "naming with the true regions in stage 1" in out
    baselines = json.loads((tmp_path / "pets.calibrated-native.json").read_text())["floors"]
    assert list(baselines) == ["all background", "one segment, own label", "centred ellipse, own label"]
    for name, own in baselines.items():
        line = f"baseline, {name}: mIoU {own['miou']:.2f}, model minus baseline {own['difference']:+.2f} (95 %"
        assert line in out
    assert [line.split()[0] for line in out.splitlines()[-4:-1]] == ["background", "cat", "dog"]
    document = json.loads((tmp_path / "pets.calibrated-native.json").read_text())
    assert document["model"]["source"] == str(model)
    assert document["protocol"]["words"]["dog"] == ["dog", "puppy"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "pets", "pets.calibrated-native.json"]


def test_the_same_command_again_only_reads_the_file(evaluate, tmp_path, pets):
    command = ["pets", "--root", pets, "--out", "a.json", "--precision", "fp32"]
    first = evaluate(*command)
    before = (tmp_path / "a.json").stat().st_mtime_ns
    assert evaluate(*command) == first
    assert (tmp_path / "a.json").stat().st_mtime_ns == before
    code, _, err = evaluate(*command[:-1], "bf16")
    assert code == 2
    assert "a.json holds another evaluation" in err


def test_an_interrupted_evaluation_goes_on(evaluate, tmp_path, pets, monkeypatch):
    command = ["pets", "--root", pets, "--precision", "fp32", "--batch-size", "1"]
    evaluate(*command, "--out", "whole.json")
    broken, photo = pets / "images/Pet_3.jpg", (pets / "images/Pet_3.jpg").read_bytes()
    broken.write_bytes(b"")
    code, _, err = evaluate(*command, "--out", "a.json")
    assert code == 2
    assert "Pet_3.jpg" in err
    assert len((tmp_path / "a.json.part-0").read_text().splitlines()) == 4
    broken.write_bytes(photo)
    segmented, segment = [], Segmenter.segment

    def counted(self, images, *arguments, **options):
        segmented.extend(images)
        return segment(self, images, *arguments, **options)

    monkeypatch.setattr(Segmenter, "segment", counted)
    assert evaluate(*command, "--out", "a.json")[0] == 0
    assert len(segmented) == 1
    assert not list(tmp_path.glob("*.part-*"))
    assert (tmp_path / "a.json").read_text() == (tmp_path / "whole.json").read_text()


def test_an_interrupted_evaluation_goes_on_without_the_photo_that_stopped_it(evaluate, tmp_path, pets):
    command = ["pets", "--root", pets, "--precision", "fp32", "--batch-size", "1", "--out"]
    (pets / "images/Pet_3.jpg").write_bytes(b"")
    assert evaluate(*command, "a.json")[0] == 2
    begun = (tmp_path / "a.json.part-0").read_bytes()
    listing = pets / "annotations/list.txt"
    listing.write_text("".join(line for line in listing.read_text().splitlines(True) if "Pet_3" not in line))
    assert evaluate(*command, "whole.json")[0] == 0
    (tmp_path / "a.json.part-0").write_bytes(begun)
    code, _, err = evaluate(*command[:-1], "--limit", "2", "--out", "a.json")
    assert code == 2
    assert "a.json.part-0 has counts of 1 photos that are not to be evaluated now, such as Pet_2" in err
    assert evaluate(*command, "a.json")[0] == 0
    assert (tmp_path / "a.json").read_text() == (tmp_path / "whole.json").read_text()
    assert not list(tmp_path.glob("*.part-*"))


def test_counts_of_other_masks_are_not_reported(evaluate, pets):
    command = ["pets", "--root", pets, "--out", "a.json"]
    assert evaluate(*command)[0] == 0
    trimap = pets / "annotations/trimaps/Pet_1.png"
    save_mask(trimap, np.full_like(np.array(Image.open(trimap)), 2))
    code, out, err = evaluate(*command)
    assert (code, out) == (2, "")
    assert "photo or mask Pet_1 is not the one that was counted" in err


def test_an_interrupted_evaluation_does_not_go_on_with_other_masks(evaluate, tmp_path):
    LAYOUTS["camvid11"](tmp_path / "data")
    broken = tmp_path / "data/val/00003.png"
    photo = broken.read_bytes()
    broken.write_bytes(b"")
    command = ["camvid11", "--root", tmp_path / "data", "--batch-size", "1"]
    assert evaluate(*command)[0] == 2
    broken.write_bytes(photo)
    save_mask(tmp_path / "data/valannot/00001.png", np.zeros((56, 40), np.uint8))
    code, _, err = evaluate(*command)
    assert code == 2
    assert "photo or mask 00001 is not the one that was counted" in err


def test_photos_without_labelled_pixels_are_reported(evaluate, tmp_path):
    LAYOUTS["camvid11"](tmp_path / "data")
    for mask in (tmp_path / "data/valannot").iterdir():
        save_mask(mask, np.full_like(np.array(Image.open(mask)), 255))
    code, out, _ = evaluate("camvid11", "--root", tmp_path / "data", "--pictures", "pictures")
    assert code == 0
    assert "mIoU - (95 % -), boundary mIoU -, pixel accuracy -, mean accuracy -" in out
    assert "adjusted Rand index -, purity -" in out


def test_one_photo_has_no_interval(evaluate, tmp_path):
    LAYOUTS["camvid11"](tmp_path / "data")
    command = ["camvid11", "--root", tmp_path / "data", "--limit", 1]
    code, out, _ = evaluate(*command)
    assert code == 0
    assert "(95 % -), boundary" in out
    code, out, _ = evaluate(*command, "--compare", "camvid11.calibrated-native.json")
    assert "+0.00 (95 % -)" in out


def test_one_photo_is_too_few_to_find_a_threshold(evaluate, tmp_path, pets):
    code, _, err = evaluate("pets", "--root", pets, "--limit", 1)
    assert (code, err.count("\n")) == (2, 1)
    assert "takes two photos" in err
    assert not list(tmp_path.glob("*.part-*"))


@pytest.mark.parametrize(("option", "said"), [("--pictures", "cannot be a folder"), ("--compare", "is no result")])
def test_a_wrong_place_is_found_before_anything_is_evaluated(option, said, evaluate, tmp_path, pets):
    (tmp_path / "file").touch()
    code, _, err = evaluate("pets", "--root", pets, option, "file")
    assert code == 2
    assert said in err
    assert {path.name for path in tmp_path.iterdir()} == {"file", "model", "pets"}


def test_two_processes_share_the_photos(evaluate, tmp_path, model, pets):
    command = ["evaluate", model, "pets", "--root", pets, "--precision", "fp32"]
    evaluate(*command[2:], "--out", "one.json")
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "groupvit",
    ]
    arguments = list(map(str, [*torchrun, *command, "--out", "two.json"]))
    done = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("pets, calibrated-native") == 1
    assert (tmp_path / "one.json").read_text() == (tmp_path / "two.json").read_text()
    assert not list(tmp_path.glob("*.part-*"))


def test_results_are_compared(evaluate, tmp_path, pets):
    command = ["pets", "--root", pets]
    evaluate(*command, "--precision", "fp32", "--out", "a.json")
    code, out, _ = evaluate(*command, "--out", "b.json", "--compare", "a.json")
    assert code == 0
    assert "mIoU less that of a.json: " in out
    evaluate(*command, "--limit", 2, "--out", "c.json")
    code, _, err = evaluate(*command, "--out", "d.json", "--compare", "c.json")
    assert (code, list(tmp_path.glob("d.json*"))) == (2, [])
    assert "c.json is of other photos or masks than d.json (2 and 4 photos)" in err
    code, _, err = evaluate(*command, "--out", "b.json", "--compare", "c.json")
    assert code == 2
    assert "c.json is of other photos or masks than b.json (2 and 4 photos)" in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["horses"], "no benchmark 'horses'"),
        (["pets", "--protocol", "tcl-2023"], "no protocol 'tcl-2023'"),
        (["pets", "--protocol", "release-2022"], "no background threshold for pets"),
        (["voc21"], "has no JPEGImages"),
        (["pets", "--limit", "0"], "limit of 0"),
        (["pets", "--batch-size", "0"], "batch size"),
        (["pets", "--out", "/dev/full"], "/dev/full is a folder, a pipe or a device: --out names a result file"),
        (["pets", "--compare", "/dev/zero"], "/dev/zero is a folder, a pipe or a device: --compare names a result"),
        (["pets", "--out", "model"], "model is a folder, a pipe or a device: --out names a result file"),
        (["retrieval", "--limit", "0"], "retrieval has no --protocol"),
        (["retrieval", "--engine", "openvino"], "retrieval has no --protocol"),
        (["classification", "--precision", "bf16"], "classification has no --protocol"),
        (["pets", "--out", "model/config.json"], "config.json is no result"),
        (["pets", "--out", "model/config.json/a.json"], "cannot write"),
    ],
)
def test_wrong_input_is_one_line(arguments, said, evaluate, pets):
    code, out, err = evaluate(*arguments, "--root", pets)
    assert (code, out) == (2, "")
    assert said in err
    assert err.startswith("groupvit: error: ")
    assert err.count("\n") == 1


def test_a_folder_in_the_place_of_the_result_is_said_before_the_work(evaluate, tmp_path):
    code, out, err = evaluate("classification", "--root", tmp_path, "--out", ".")
    told = "groupvit: error: . is a folder, a pipe or a device: --out names a result file\n"
    assert (code, out, err) == (2, "", told)


def test_a_result_of_other_classes_is_another(evaluate, tmp_path):
    LAYOUTS["folder"](tmp_path / "data")
    assert evaluate("folder", "--root", tmp_path / "data", "--out", "a.json")[0] == 0
    names = tmp_path / "data" / "classes.txt"
    names.write_text("\n".join(reversed(names.read_text().split())))
    code, _, err = evaluate("folder", "--root", tmp_path / "data", "--out", "a.json")
    assert code == 2
    assert "a.json holds another evaluation" in err


def test_data_that_is_wrong_is_one_line(evaluate, pets):
    mask = next((pets / "annotations/trimaps").iterdir())
    for break_it, said in (
        (lambda: mask.write_bytes(b"no image"), f"{mask.name}: not an image that can be read"),
        (lambda: mask.unlink(), f"has no mask {mask}"),
    ):
        break_it()
        code, _, err = evaluate("pets", "--root", pets)
        assert code == 2
        assert said in err
        assert err.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["release-2022", "calibrated-native"])
def test_a_large_photo_takes_less_than_two_gigabytes(protocol, tmp_path):
    """Photos of twelve megapixels and a network of the published size."""
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    mask = np.random.default_rng(1).integers(0, 21, (30, 40)).astype(np.uint8).repeat(100, 0).repeat(100, 1)
    (tmp_path / "JPEGImages").mkdir()
    for name in ("one", "two"):
        Image.fromarray(pixels).resize((4000, 3000)).save(tmp_path / f"JPEGImages/{name}.jpg")
        save_mask(tmp_path / f"SegmentationClass/{name}.png", mask)
    save_lines(tmp_path / "ImageSets/Segmentation/val.txt", ["one", "two"])
    script = (
        "import resource, sys; from pathlib import Path; from groupvit.evaluation.datasets import open_benchmark;"
        "from groupvit.evaluation.protocols import get_protocol; from groupvit.evaluation.benchmark import evaluate;"
        "from groupvit.models import RELEASE, build_model; from groupvit.segmentation import Segmenter;"
        "evaluate(Segmenter(build_model(RELEASE), RELEASE), open_benchmark('voc21', Path(sys.argv[1])),"
        " get_protocol(sys.argv[2])); print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path), protocol], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    print(f"\n{protocol}: {float(done.stdout):.2f} GB")
    assert float(done.stdout) < 2


def test_pictures_are_drawn_on_demand(evaluate, tmp_path, pets):
    code, out, _ = evaluate("pets", "--root", pets, "--pictures", "pictures")
    assert code == 0
    names = {path.name for path in (tmp_path / "pictures").iterdir()}
    assert names == {"best.png", "worst.png", "iou.png", "confusion.png"}
    assert all(f"pictures/{name}" in out for name in names)


def test_whole_photos_are_classified(evaluate, tmp_path):
    for number, name in enumerate(("cat", "dog")):
        (tmp_path / "classes" / name).mkdir(parents=True)
        Image.new("RGB", (20, 30), (number * 200, 0, 0)).save(tmp_path / "classes" / name / "a.png")
    code, out, _ = evaluate("classification", "--root", tmp_path / "classes")
    assert code == 0
    found = json.loads((tmp_path / "classification.json").read_text())
    assert (found["data"]["photos"], len(found["data"]["sha256"]), len(found["model"]["sha256"])) == (2, 64, 64)
    assert not list(tmp_path.glob(".*.tmp"))
    assert list(found["metrics"]) == [f"top{k}, {count} templates" for count in (7, 80) for k in (1, 5)]
    assert found["metrics"]["top5, 7 templates"] == 100
    assert "top5, 7 templates: 100.00 %" in out
    kept = found | {"metrics": found["metrics"] | {"top1, 7 templates": 12.5}}
    (tmp_path / "classification.json").write_text(json.dumps(kept))
    code, out, _ = evaluate("classification", "--root", tmp_path / "classes")
    assert (code, "top1, 7 templates: 12.50 %" in out) == (0, True)  # what is there is not made again
    for broken in ({"metrics": {"top1": "high"}}, {"metrics": 3}, {"data": {}}):
        (tmp_path / "classification.json").write_text(json.dumps(kept | broken))
        code, _, err = evaluate("classification", "--root", tmp_path / "classes")
        assert (code, err.count("\n")) == (2, 1)
    (tmp_path / "classification.json").write_text(json.dumps(kept))
    (tmp_path / "others").mkdir()
    shutil.copytree(tmp_path / "classes", tmp_path / "others", dirs_exist_ok=True)
    Image.new("RGB", (20, 30)).save(tmp_path / "others" / "cat" / "b.png")
    assert "of this model and these photos" in evaluate("classification", "--root", tmp_path / "others")[2]
    for precious in (tmp_path / "model/config.json", tmp_path / "classification.json"):
        found["model"]["sha256"] = "of another model"
        (tmp_path / "classification.json").write_text(json.dumps(found))
        before = precious.read_bytes()
        code, _, err = evaluate("classification", "--root", tmp_path / "classes", "--out", precious)
        assert (code, err.count("\n")) == (2, 1)
        assert "is no classification of this model and these photos" in err
        assert precious.read_bytes() == before


def test_photos_and_captions_are_retrieved(evaluate, tmp_path):
    write_shards([Sample(str(i), photo(i), (f"caption {i}",)) for i in range(3)], tmp_path / "shards", prefix="t")
    code, out, _ = evaluate("retrieval", "--root", tmp_path / "shards")
    assert code == 0
    assert "retrieval, 3 photos" in out
    assert json.loads((tmp_path / "retrieval.json").read_text())["metrics"]["text_to_image_r5"] == 100
    code, _, err = evaluate("retrieval", "--root", tmp_path / "none")
    assert (code, err.count("\n")) == (2, 1)
    for option in ("--limit", 2), ("--protocol", "nonsense"):
        code, _, err = evaluate("retrieval", "--root", tmp_path / "shards", *option)
        assert code == 2
        assert "retrieval has no --protocol, --limit" in err


def photo(number):
    file = io.BytesIO()
    Image.new("RGB", (20, 30), (number * 80, 0, 0)).save(file, "JPEG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE is set and RANK is not: start several processes with torchrun"),
        ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "here"}, "WORLD_SIZE is set and MASTER_PORT is not"),
        ({"WORLD_SIZE": "two", "RANK": "0", "MASTER_ADDR": "here", "MASTER_PORT": "1"}, "not as torchrun does"),
        ({"WORLD_SIZE": "2", "RANK": "2", "MASTER_ADDR": "here", "MASTER_PORT": "1"}, "RANK is 2, WORLD_SIZE 2"),
        ({"WORLD_SIZE": "", "RANK": "", "LOCAL_RANK": "", "MASTER_ADDR": ""}, ""),
        ({"RANK": "1", "WORLD_SIZE": "1"}, ""),
        ({"RANK": "1"}, ""),
    ],
)
def test_half_a_torchrun_is_one_line_or_none(variables, said, evaluate, pets, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    code, out, err = evaluate("pets", "--root", pets, "--limit", 2)
    assert (code, bool(out)) == ((2, False) if said else (0, True))
    assert said in err
    assert err.count("\n") == bool(said)


def test_classes_that_no_mask_shows_are_said(evaluate, tmp_path):
    LAYOUTS["folder"](tmp_path / "data")
    left, pixels = 0, 0
    for mask in (tmp_path / "data/masks").iterdir():
        values = np.where(np.array(Image.open(mask)) == 0, 0, 255).astype(np.uint8)
        left, pixels = left + (values == 255).sum(), pixels + values.size
        save_mask(mask, values)
    code, _, err = evaluate("folder", "--root", tmp_path / "data")
    assert code == 0
    assert "groupvit: warning: " in err
    assert "data: no mask shows dog, background (2 of 3 classes); " in err
    assert f"; {100 * left / pixels:.3g} % of the pixels are not labelled and do not count" in err
    assert err.count("\n") == 1


def test_a_folder_says_what_its_values_mean(evaluate, tmp_path):
    LAYOUTS["folder"](tmp_path / "data")
    command = ["folder", "--root", tmp_path / "data"]
    code, _, err = evaluate(*command, "--ignore-index", 1, "--out", "a.json")
    assert code == 0
    assert "no mask shows dog (1 of 3 classes)" in err
    code, _, err = evaluate(*command, "--reduce-zero-label", "--out", "b.json")
    assert code == 0
    assert "no mask shows background" in err
    code, _, err = evaluate("retrieval", "--root", tmp_path, "--ignore-index", 0)
    assert code == 2
    assert "retrieval has no --protocol" in err
