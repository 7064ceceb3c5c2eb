"""Fine-tuning on masks, and the score that it gets, on photos of a few pixels."""

import json
import os
import re
import signal
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import layouts
from groupvit.checkpoints import native
from groupvit.cli import main
from groupvit.cli import transfer as transfer_command
from groupvit.errors import InputError
from groupvit.evaluation.datasets import open_benchmark
from groupvit.evaluation.masks import MaskedPhoto
from groupvit.evaluation.results import Result, compare
from groupvit.evaluation.transfer import open_training, predict, score_into, share_of
from groupvit.models import ImageEncoderConfig, ModelConfig, Stage, TextEncoderConfig, build_model
from groupvit.models.config import ViTConfig
from groupvit.models.dense import DenseClassifier, patches_of
from groupvit.models.trunks import EfficientNetLite, ViTTrunk
from groupvit.training import transfer
from groupvit.training.transfer import Transfer, draw_masked_crop, finetune, pixel_loss

DATASETS = Path(__file__).resolve().parents[1] / "docs/DATASETS.md"
TEXT = TextEncoderConfig(width=32, heads=2, layers=1, context_length=16)
SMALL = ModelConfig(ImageEncoderConfig(32, 16, 32, 2, stages=(Stage(1, 4, 4), Stage(1))), TEXT)


@pytest.fixture(autouse=True)
def small_crops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "CROP", 64)
    monkeypatch.setattr(transfer, "draw_curves", lambda *_: None)  # matplotlib takes seconds
    monkeypatch.setattr(transfer, "bfloat16_is_faster", lambda device: False)


def vit(size: int = 16) -> ViTTrunk:
    return ViTTrunk(ViTConfig(image_size=32, patch_size=size, dim=32, heads=2, depth=2))


def halves(width: int = 40, height: int = 32) -> MaskedPhoto:
    """A photo that is black where its mask is 0 and white where it is 1, below a strip that is not labelled."""
    mask = np.zeros((height, width), np.uint8)
    mask[:, width // 2 :] = 1
    image = Image.fromarray(np.repeat(255 * mask[..., None], 3, axis=2))
    mask[:2] = 255
    return MaskedPhoto("halves", image, mask)


def test_crop_and_mask_stay_together() -> None:
    for seed in range(20):
        image, mask = draw_masked_crop(halves(), np.random.default_rng(seed))
        assert image.shape == (3, 64, 64)
        labelled = mask != 255
        agree = (image[0][labelled] > 127) == (mask[labelled] == 1)
        assert agree.float().mean() > 0.95


def test_the_loss_is_the_mean_over_labelled_pixels() -> None:
    logits, masks = torch.randn(2, 3, 4, 5), torch.randint(3, (2, 14, 20))
    masks[0, :6] = 255
    pixels = torch.nn.functional.interpolate(logits, scale_factor=4, mode="bilinear")[:, :, :14]
    each = [
        -pixels[b, :, y, x].log_softmax(dim=0)[masks[b, y, x]]
        for b in range(2) for y in range(14) for x in range(20) if masks[b, y, x] != 255
    ]  # fmt: skip
    assert pixel_loss(logits, masks, 4) == pytest.approx(float(torch.stack(each).mean()), abs=1e-5)
    assert pixel_loss(logits, torch.full_like(masks, 255), 4) == 0


@pytest.mark.parametrize(
    ("encoder", "stride", "maps"),
    [
        (lambda: vit(), 16, 1),
        (lambda: build_model(SMALL).image_encoder, 16, 1),
        (lambda: EfficientNetLite("efficientnet-lite0"), 8, 3),
    ],
    ids=["ViT", "GroupViT", "EfficientNet"],
)
def test_every_encoder_gives_logits_of_cells_and_learns_in_whole(encoder: Any, stride: int, maps: int) -> None:
    network = DenseClassifier(encoder(), 5)
    made = network(torch.randint(256, (2, 3, 48, 70), dtype=torch.uint8))
    assert made.shape == (2, 5, 48 // stride, -(-70 // stride))
    assert (network.stride, len(network.heads)) == (stride, maps)
    made.square().mean().backward()
    first = next(parameter for name, parameter in network.encoder.named_parameters() if "stem" in name)
    assert first.grad is not None
    assert first.grad.abs().max() > 0


@torch.no_grad()
def test_the_length_of_a_networks_features_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    network, pixels = DenseClassifier(vit(), 5), torch.randint(256, (1, 3, 32, 32), dtype=torch.uint8)
    before, maps = network(pixels), network.features(pixels)
    monkeypatch.setattr(network, "features", lambda _: [100 * each for each in maps])
    torch.testing.assert_close(network(pixels), before)


@torch.no_grad()
def test_a_plain_vits_patches_are_its_segments() -> None:
    config = replace(SMALL, image=replace(SMALL.image, stages=(Stage(2),)))
    encoder = build_model(config).eval().image_encoder
    images = torch.randn(1, 3, 32, 48)
    torch.testing.assert_close(patches_of(encoder, images).flatten(2).mT, encoder(images).segments)


def test_a_transfer_learns_and_predicts_at_the_photos_size(tmp_path: Path) -> None:
    network = DenseClassifier(vit(), 2)
    photo = halves()
    assert finetune(network, [photo], tmp_path, Transfer({}, steps=30, batch_size=2, lr=1e-2)) == 30
    found = predict(network, photo.image, 448)
    assert found.shape == photo.mask.shape
    assert (found == photo.mask)[photo.mask != 255].mean() > 0.95
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [10, 20, 30]


def test_masks_of_one_class_teach_nothing_and_are_refused(tmp_path: Path) -> None:
    for part, values in (("a", (0, 1)), ("b", (0, 255))):
        for name in ("images", "masks"):
            (tmp_path / part / name).mkdir(parents=True)
        (tmp_path / part / "classes.txt").write_text("background\ndog\n")
        for i in range(10):
            Image.new("RGB", (8, 8), (i, 0, 0)).save(tmp_path / part / f"images/{part}{i}.png")
            Image.fromarray(np.array([values] * 8, np.uint8)).resize((8, 8), 0).save(
                tmp_path / part / f"masks/{part}{i}.png"
            )
    evaluated = open_benchmark("folder", tmp_path / "a")
    with pytest.raises(InputError, match="b: its masks show background alone: nothing to learn"):
        open_training(evaluated, str(tmp_path / "b"))


class Interrupting(list[MaskedPhoto]):
    """Photos at whose `at`-th reading this process is asked to stop, or which cannot be read."""

    def __init__(self, at: int, error: Exception | None = None):
        super().__init__([halves()] * 6)
        self.left, self.error = at, error

    def __getitem__(self, index: Any) -> Any:
        self.left -= 1
        if self.left == 0 and self.error:
            raise self.error
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGINT)
        return super().__getitem__(index)


def network() -> DenseClassifier:
    torch.manual_seed(1)
    return DenseClassifier(vit(), 2)


@pytest.mark.parametrize("error", [None, InputError("x.png cannot be read")], ids=["interrupted", "unreadable"])
def test_a_resumed_transfer_equals_an_uninterrupted_one_to_the_bit(error: Exception | None, tmp_path: Path) -> None:
    settings = Transfer({"share": 10}, steps=6, batch_size=2)
    finetune(whole := network(), [halves()] * 6, tmp_path / "whole", settings)
    with pytest.raises(InputError) if error else nullcontext():
        assert finetune(network(), Interrupting(9, error), tmp_path / "cut", settings) in range(1, 6)
    with pytest.raises(InputError, match="holds a transfer; add --resume"):
        finetune(network(), [halves()] * 6, tmp_path / "cut", settings)
    with pytest.raises(InputError, match=r"lr was 0.001 and is 0.1; resume with the same"):
        finetune(network(), [halves()] * 6, tmp_path / "cut", replace(settings, lr=0.1), resume=True)
    with pytest.raises(InputError, match=r"identity.share was 10 and is 1;"):
        finetune(network(), [halves()] * 6, tmp_path / "cut", replace(settings, identity={"share": 1}), resume=True)
    assert finetune(resumed := network(), [halves()] * 6, tmp_path / "cut", settings, resume=True) == 6
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
    (tmp_path / "cut" / "transfer.pt").write_bytes(b"nonsense")
    with pytest.raises(InputError, match=r"transfer.pt is damaged"):
        finetune(network(), [halves()] * 6, tmp_path / "cut", settings, resume=True)
    with pytest.raises(InputError, match="holds no transfer to resume"):
        finetune(network(), [halves()] * 6, tmp_path / "none", settings, resume=True)


def test_a_transfer_that_is_ended_in_the_middle_of_a_step_saves_no_half_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def second_ctrl_c(*given: Any) -> Any:
        nonlocal steps
        steps += 1
        made = real(*given)
        if steps == 4:
            raise KeyboardInterrupt
        return made

    real, steps = transfer.step, 0
    monkeypatch.setattr(transfer, "_SAVE_EVERY", 2)
    settings = Transfer({}, steps=6, batch_size=2)
    finetune(whole := network(), [halves()] * 6, tmp_path / "whole", settings)
    monkeypatch.setattr(transfer, "step", second_ctrl_c)
    with pytest.raises(KeyboardInterrupt):
        finetune(network(), [halves()] * 6, tmp_path / "cut", settings)
    assert finetune(resumed := network(), [halves()] * 6, tmp_path / "cut", settings, resume=True) == 6
    assert steps == 8  # the third and the fourth twice
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def voc(root: Path, train: list[str], listed: str = "train") -> Any:
    layouts.voc(root)
    layouts.save_lines(root / "ImageSets/Segmentation/val.txt", ["2007_0", "2007_1"])
    layouts.save_lines(root / f"ImageSets/Segmentation/{listed}.txt", train)
    return open_benchmark("voc21", root)


def test_training_photos_are_another_list_of_the_benchmark(tmp_path: Path) -> None:
    dataset = voc(tmp_path, ["2007_2", "2007_3"])
    assert open_training(dataset, "train").names == ("2007_2", "2007_3")
    voc(tmp_path, ["2007_2"], "trainaug")
    layouts.save_mask(tmp_path / "SegmentationClassAug/2007_2.png", np.full((47, 33), 7, np.uint8))
    assert (open_training(dataset, "trainaug")[0].mask == 7).all()
    assert open_training(dataset, "train")[0].mask.max() > 7
    with pytest.raises(InputError, match=r"trainval.txt cannot be read"):
        open_training(dataset, "trainval")


def test_a_photo_that_is_evaluated_is_not_trained_on(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"2007_1 is among the photos to train on \(train\) .* \(1 are\)"):
        open_training(voc(tmp_path / "voc", ["2007_1", "2007_2"]), "train")
    layouts.folder(tmp_path / "a")
    layouts.folder(tmp_path / "b")
    dataset = open_benchmark("folder", tmp_path / "a")
    for same in ("a", "b"):
        with pytest.raises(InputError, match=r"0 is among the photos to train on .*\(4 are\)"):
            open_training(dataset, str(tmp_path / same))
    for i in range(4):
        layouts.save_mask(tmp_path / f"b/masks/{i}.png", np.zeros(layouts.SIZES[i][::-1], np.uint8))
    with pytest.raises(InputError, match=r"0 is among the photos to train on"):
        open_training(dataset, str(tmp_path / "b"))
    for file in (tmp_path / "b/images").iterdir():
        Image.new("RGB", layouts.SIZES[int(file.stem)], "red").save(file)
    assert len(open_training(dataset, str(tmp_path / "b"))) == 4
    layouts.save_lines(tmp_path / "b/classes.txt", ["cat", "dog", "horse"])
    with pytest.raises(InputError, match="has other classes"):
        open_training(dataset, str(tmp_path / "b"))
    layouts.pets(tmp_path / "pets")
    with pytest.raises(InputError, match="pets has no training photos"):
        open_training(open_benchmark("pets", tmp_path / "pets"), "train")


def test_shares_are_drawn_by_the_seed_and_part_of_each_other(tmp_path: Path) -> None:
    dataset = replace(voc(tmp_path, ["2007_2"]), names=tuple(f"{i:03}" for i in range(300)))
    some, more = (share_of(dataset, percent, 3).names for percent in (1, 10))
    assert (len(some), len(more), share_of(dataset, 100, 3).names) == (3, 30, dataset.names)
    assert set(some) < set(more)
    assert share_of(dataset, 1, 4).names != some
    assert len(share_of(dataset, 0.01, 0)) == 1
    for percent in (0, -1, 101, float("nan")):
        with pytest.raises(InputError, match="at most 100 percent"):
            share_of(dataset, percent, 0)


def test_an_interrupted_score_goes_on_and_another_model_does_not(tmp_path: Path) -> None:
    dataset, network = voc(tmp_path, ["2007_2"]), DenseClassifier(vit(), 21).eval()
    given = (network, dataset, {"name": "transfer", "short_side": 64})
    whole = score_into(tmp_path / "a.json", *given, {"sha256": "a"})
    assert [p.name for p in whole.photos] == ["2007_0", "2007_1"]
    assert score_into(tmp_path / "a.json", *given, {"sha256": "a"}).photos[0].digest
    with pytest.raises(InputError, match="holds another evaluation"):
        score_into(tmp_path / "a.json", *given, {"sha256": "b"})
    mask = tmp_path / "SegmentationClass" / "2007_0.png"
    layouts.save_mask(mask, np.zeros_like(np.asarray(Image.open(mask))))
    with pytest.raises(InputError, match="2007_0 is not the one that was counted"):
        score_into(tmp_path / "a.json", *given, {"sha256": "a"})


def test_the_folder_of_a_training_is_no_place_for_a_transfer(tmp_path: Path) -> None:
    (tmp_path / "step-00000010").mkdir()
    (tmp_path / "metrics.jsonl").write_text("precious")
    with pytest.raises(InputError, match=r"holds a training at .*step-00000010; name another --out"):
        finetune(DenseClassifier(vit(), 2), [halves()], tmp_path, Transfer({}, steps=1))
    assert (tmp_path / "metrics.jsonl").read_text() == "precious"


@pytest.mark.filterwarnings("ignore:.*no mask shows")
def test_masks_that_are_read_otherwise_are_another_transfer(tmp_path: Path) -> None:
    for name in ("train", "val"):
        layouts.folder(tmp_path / name)
        for file in (tmp_path / name / "images").iterdir():
            Image.new("RGB", layouts.SIZES[int(file.stem)], "red" if name == "val" else "blue").save(file)
    native.save(tmp_path / "model", build_model(SMALL), SMALL)
    given = (str(tmp_path / "model"), "folder", tmp_path / "val", str(tmp_path / "train"))
    options = transfer_command.Options(*given, steps=1, batch_size=2, out=tmp_path / "out")
    transfer_command.transfer(options)
    with pytest.raises(InputError, match=r"holds another transfer: .*ignore_index was None and is 2"):
        transfer_command.transfer(replace(options, ignore_index=2, resume=True))


@pytest.mark.filterwarnings("ignore:.*no mask shows")
def test_the_command_trains_scores_and_is_compared_with_an_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    voc(tmp_path / "voc", ["2007_2", "2007_3"])
    native.save(tmp_path / "model", build_model(SMALL), SMALL)
    command = ["transfer", "model", "voc21", "--root", "voc", "--steps", "2", "--batch-size", "2", "--share", "50"]

    def run(*arguments: str) -> tuple[Any, str, str]:
        with pytest.raises(SystemExit) as end:
            main(list(arguments))
        printed = capsys.readouterr()
        return end.value.code, printed.out, printed.err

    assert run("evaluate", "model", "voc21", "--root", "voc", "--out", "zero.json")[0] in (None, 0)
    code, out, err = run(*command, "--compare", "zero.json")
    assert code in (None, 0), err
    assert "runs/transfer-voc21: 2 of 2 steps on 1 masks" in out
    assert "voc21, transfer: 2 photos" in out
    assert "mIoU less that of zero.json" in out
    result = Result.load(tmp_path / "runs/transfer-voc21/voc21.transfer.json")
    assert result.protocol["share"] == 50
    assert compare(tmp_path / "zero.json", tmp_path / "runs/transfer-voc21/voc21.transfer.json")["interval"]
    assert run(*command)[:2] == (2, "")
    pytest.importorskip("matplotlib")
    assert "pictures/worst.png" in run(*command, "--resume", "--pictures", "pictures")[1]
    with Image.open("pictures/best.png") as best:
        assert 1 < best.width / best.height < 1.4  # two rows of three pictures, 33 x 47 and a title each
    Image.new("RGB", (60, 40), "red").save("my.jpg")
    (snippet,) = re.findall(r"^```python\n(.*?)^```$", DATASETS.read_text(), re.M | re.S)
    exec(snippet.replace("MODEL", "model"), made := dict[str, Any]())
    assert made["label_map"].shape == (40, 60)
    assert len(made["classes"]) == 21
    for wrong, match in ((("--steps", "0"), "at least 1"), (("--share", "0"), "percent"), (("--lr", "nan"), "lr")):
        code, out, err = run(*command, *wrong)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert match in err
