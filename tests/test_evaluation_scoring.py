import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from groupvit.errors import InputError
from groupvit.evaluation import scoring
from groupvit.evaluation.benchmark import describe, evaluate, score_photos
from groupvit.evaluation.datasets import BENCHMARKS, Dataset, MaskedPhoto, open_benchmark
from groupvit.evaluation.metrics import confusion_matrix, mean_iou
from groupvit.evaluation.naming import patch_shares, segments_of
from groupvit.evaluation.protocols import PROTOCOLS, Protocol
from groupvit.evaluation.results import PhotoScores, Result
from groupvit.evaluation.scoring import chunks, score, score_prediction
from groupvit.evaluation.thresholds import THRESHOLDS, settle
from groupvit.models import ImageEncoderConfig, ModelConfig, Stage, TextEncoderConfig, build_model, normalize
from groupvit.segmentation import Segmenter
from layouts import LAYOUTS, REAL, only
from test_evaluation_metrics import oracle_names

LABELS = ("red", "green=green,lime", "blue")


def photos(count: int) -> list[MaskedPhoto]:
    generator = np.random.default_rng(0)
    colours = np.array([[220, 20, 20], [20, 200, 20], [20, 20, 220]], dtype=np.uint8)
    painted = []
    for i in range(count):
        classes = generator.permutation([0, 1, 2, 0, 1, 2]).reshape(2, 3)
        mask = np.repeat(np.repeat(classes, 8, axis=0), 8, axis=1).astype(np.uint8)
        grain = generator.integers(0, 8, (16, 24, 3), dtype=np.uint8)
        painted.append(MaskedPhoto(str(i), Image.fromarray(colours[mask] + grain), mask))
    return painted


def masked(index: int, classes: int = 4) -> MaskedPhoto:
    """Stripes of random widths, and a corner that is not labelled."""
    generator = np.random.default_rng(index)
    stripes = np.repeat(generator.integers(0, classes, 40), generator.integers(1, 20, 40))[:80].astype(np.uint8)
    mask = np.tile(stripes, (60, 1))
    mask[:9, :7] = 255
    return MaskedPhoto(f"photo {index}", Image.new("RGB", (80, 60)), mask, str(index))


def made(photo: MaskedPhoto, error: float, seed: int) -> np.ndarray:
    """The truth, of which a share is something else."""
    generator = np.random.default_rng(1000 + seed)
    wrong = generator.integers(0, 4, photo.mask.shape).astype(np.uint8)
    return np.where((generator.random(photo.mask.shape) < error) | (photo.mask == 255), wrong, photo.mask)


def random_segmenter(*stages: Stage) -> Segmenter:
    config = ModelConfig(
        ImageEncoderConfig(32, 16, 32, 2, stages=stages or (Stage(1, 6, 6), Stage(1, 4, 4))),
        TextEncoderConfig(16, 2, 1),
        embed_dim=8,
        projector_dim=16,
        rivals=("grass", "wall"),
    )
    torch.manual_seed(0)
    model = build_model(config)
    for parameter in model.image_encoder.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.4)
    model.logit_scale.data.fill_(4.0)
    return Segmenter(model, config, device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def segmenter():
    return random_segmenter()


def test_scores_are_what_segmenting_photo_by_photo_gives(segmenter):
    set_of_photos = photos(5)
    scores = score(segmenter, set_of_photos, LABELS)
    named = oracle = 0
    for photo in set_of_photos:
        result = segmenter.segment(photo.image, LABELS, background=None)
        named = named + confusion_matrix(photo.mask, result.label_map, 3)
        oracle = oracle + confusion_matrix(photo.mask, oracle_names(result.groups[-1], photo.mask, 3), 3)
    assert np.array_equal(scores.named, named)
    assert np.array_equal(scores.oracle, oracle)
    assert np.diag(scores.oracle).sum() >= np.diag(scores.named).sum()


def test_fewer_large_photos_are_scored_at_once():
    large = MaskedPhoto("a", Image.new("RGB", (2048, 2048)), np.zeros((2048, 2048), np.uint8))
    assert [len(chunk) for chunk in chunks([large] * 5, 64)] == [2, 2, 1]
    assert [len(chunk) for chunk in chunks(iter(photos(5)), 2)] == [2, 2, 1]


def test_a_background_of_words_counts_under_its_own_index(segmenter):
    """The segmenter puts it first, wherever the masks have it."""
    own = photos(4)
    first = score(segmenter, own, ("background=wall", "green", "blue")).named
    moved = [MaskedPhoto(p.name, p.image, np.array([2, 0, 1], np.uint8)[p.mask]) for p in own]
    last = score(segmenter, moved, ("green", "blue", "background=wall")).named
    order = [1, 2, 0]
    assert np.array_equal(last, first[np.ix_(order, order)])


def independent(truths: list[np.ndarray], files: list[Path], classes: int) -> tuple[np.ndarray, dict[str, float]]:
    """Files of predicted indices scored without anything of the package: predicted pixels by class, and the numbers."""
    both, true, seen = np.zeros(classes), np.zeros(classes), np.zeros(classes)
    for truth, file in zip(truths, files, strict=True):
        prediction = np.array(Image.open(file))
        assert prediction.shape == truth.shape
        for c in range(classes):
            both[c] += np.sum((prediction == c) & (truth == c))
            true[c] += np.sum(truth == c)
            seen[c] += np.sum((prediction == c) & (truth != 255))
    there, either = true > 0, true + seen - both
    return seen, {
        "miou": 100 * np.mean(both[either > 0] / either[either > 0]),
        "pixel_accuracy": 100 * both.sum() / true.sum(),
        "mean_accuracy": 100 * np.mean(both[there] / true[there]),
    }


def write_predictions(
    segmenter: Segmenter, dataset: Dataset, protocol: Protocol, thresholds: tuple[float, ...], out: Path
) -> list[Path]:
    """What the segmenter says of each photo by itself, as files."""
    hashes = sorted(dataset.names, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    files = []
    for photo in dataset:
        result = segmenter.segment(photo.image, protocol.labels(dataset), protocol.view_of(segmenter.config, dataset))
        index = np.array([dataset.classes.index(name) for name in result.names], np.uint8)[result.label_map]
        if protocol.calibrated(dataset):
            index[result.confidence < thresholds[hashes.index(photo.name) % 2]] = 0
        files.append(out / f"{photo.name}.png")
        Image.fromarray(index).save(files[-1])
    return files


def agree(dataset: Dataset, truths: list[np.ndarray], protocol: Protocol, out: Path) -> None:
    segmenter = random_segmenter()
    result = evaluate(segmenter, dataset, protocol)
    files = write_predictions(segmenter, dataset, protocol, result.thresholds, out)
    numbers = result.metrics()
    seen, expected = independent(truths, files, len(dataset.classes))
    assert result.matrix.sum(axis=0).tolist() == seen.tolist()
    for name, value in expected.items():
        assert numbers[name] == pytest.approx(value, abs=1e-6), name


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=list(PROTOCOLS))
@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_and_protocol_agrees_with_an_independent_scorer(name, protocol, tmp_path):
    truths = LAYOUTS[name](tmp_path)
    dataset = open_benchmark(name, tmp_path)
    try:
        protocol.threshold(dataset)
    except InputError:
        pytest.skip("does not apply")
    agree(dataset, truths, protocol, tmp_path)


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=list(PROTOCOLS))
@pytest.mark.parametrize("name", REAL)
def test_real_photos_agree_with_an_independent_scorer(name, protocol, data_dir, tmp_path):
    dataset = open_benchmark(name, data_dir / REAL[name]).limited(3)
    try:
        protocol.threshold(dataset)
    except InputError:
        pytest.skip("does not apply")
    agree(dataset, real_truths(name, data_dir / REAL[name], dataset), protocol, tmp_path)


def real_truths(name: str, root: Path, dataset: Dataset) -> list[np.ndarray]:
    """The masks as the files have them."""
    if name.startswith("coco"):
        return [photo.mask for photo in dataset]  # see `test_a_published_layout_is_read_photo_by_photo`
    folders = {"pets": "annotations/trimaps", "camvid11": "valannot", "camvid5": "valannot"}
    folder = folders.get(name, "SegmentationClass")
    masks = [np.array(Image.open(root / folder / f"{photo}.png")) for photo in dataset.names]
    if name == "voc20":
        return [np.where((mask == 0) | (mask == 255), 255, mask - 1) for mask in masks]
    if name == "voc4":
        return only(masks, [0, 15, 12, 8], rest=0)
    if name == "camvid5":
        return only(masks, [0, 3, 5, 1, 8], rest=255)
    if name == "camvid11":
        return [np.where(mask == 11, 255, mask) for mask in masks]
    if name == "pets":
        lines = (root / "annotations/list.txt").read_text().splitlines()
        species = {line.split()[0]: int(line.split()[2]) for line in lines if not line.startswith("#")}
        return [
            np.select([mask == 1, mask == 2], [species[photo], 0], 255)
            for mask, photo in zip(masks, dataset.names, strict=True)
        ]
    return masks


def test_bf16_counts_nearly_the_same(tmp_path, segmenter):
    LAYOUTS["camvid11"](tmp_path)
    dataset = open_benchmark("camvid11", tmp_path)
    in_bf16 = Segmenter(segmenter.model, segmenter.config, device="cpu", precision="bf16")
    results = [evaluate(own, dataset, PROTOCOLS["calibrated-native"]) for own in (in_bf16, segmenter)]
    called = [result.matrix.sum(axis=0) for result in results]
    assert np.abs(called[0] - called[1]).sum() < 0.2 * called[0].sum()
    assert [result.model["precision"] for result in results] == ["bf16", "fp32"]


@pytest.mark.parametrize("pixels", [1, 2**23])
def test_how_many_photos_go_together_changes_nothing(pixels, tmp_path, segmenter, monkeypatch):
    LAYOUTS["camvid11"](tmp_path)
    dataset = open_benchmark("camvid11", tmp_path)
    expected = evaluate(segmenter, dataset, PROTOCOLS["release-2022"], batch_size=1)
    monkeypatch.setattr(scoring, "_PIXELS_AT_ONCE", pixels)
    result = evaluate(segmenter, dataset, PROTOCOLS["release-2022"], batch_size=5)
    assert np.array_equal(result.matrix, expected.matrix)


def test_each_half_takes_the_best_threshold_of_the_other(tmp_path, segmenter):
    LAYOUTS["pets"](tmp_path)
    dataset, protocol = open_benchmark("pets", tmp_path), PROTOCOLS["calibrated-native"]
    result = evaluate(segmenter, dataset, protocol)
    hashes = sorted(dataset.names, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    halves = hashes[::2], hashes[1::2]
    for own, threshold in enumerate(result.thresholds):
        matrices = np.zeros((len(THRESHOLDS), 3, 3), np.int64)
        for name in halves[1 - own]:
            photo = dataset.read(name)
            view = protocol.view_of(segmenter.config, dataset)
            segmented = segmenter.segment(photo.image, protocol.labels(dataset), view)
            called = np.array([dataset.classes.index(n) for n in segmented.names], np.uint8)[segmented.label_map]
            for matrix, candidate in zip(matrices, THRESHOLDS, strict=True):
                matrix += confusion_matrix(photo.mask, np.where(segmented.confidence < candidate, 0, called), 3)
        assert threshold == THRESHOLDS[np.argmax([*map(mean_iou, matrices)])]
    assert all(photo.pending is None for photo in result.photos)


def test_thresholds_are_none_and_sixty_one_steps_of_a_fifth_of_a_logit():
    assert len(THRESHOLDS) == 62
    assert THRESHOLDS[[0, 1, -1]] == pytest.approx([0, 0.0025, 0.9975], abs=5e-5)
    assert np.diff(np.log(THRESHOLDS[1:] / (1 - THRESHOLDS[1:]))) == pytest.approx(0.2)


def test_a_large_photo_s_counts_may_wait_for_the_threshold(tmp_path, segmenter, monkeypatch):
    LAYOUTS["pets"](tmp_path)
    dataset, protocol = open_benchmark("pets", tmp_path), PROTOCOLS["calibrated-native"]
    scores = list(score_photos(segmenter, dataset, protocol, dataset.names))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4)
    monkeypatch.setattr("groupvit.evaluation.thresholds.unchanged", lambda _, photo: pytest.fail("read again"))
    with pytest.raises(pytest.fail.Exception):  # what follows the maps
        settle(scores, dataset, protocol)


def test_a_photo_that_changed_before_the_threshold_was_known_is_refused(tmp_path, segmenter):
    LAYOUTS["pets"](tmp_path)
    dataset, protocol = open_benchmark("pets", tmp_path), PROTOCOLS["calibrated-native"]
    scores = list(score_photos(segmenter, dataset, protocol, dataset.names))
    trimap = tmp_path / "annotations/trimaps/Pet_2.png"
    Image.fromarray(np.full_like(np.array(Image.open(trimap)), 2)).save(trimap)
    with pytest.raises(InputError, match="Pet_2 is not the one that was counted"):
        settle(scores, dataset, protocol)


def test_a_photo_of_one_pixel_is_counted(tmp_path, segmenter):
    LAYOUTS["folder"](tmp_path)
    Image.new("RGB", (1, 1)).save(tmp_path / "images/0.png")
    Image.new("L", (1, 1)).save(tmp_path / "masks/0.png")
    for protocol in PROTOCOLS.values():
        result = evaluate(segmenter, open_benchmark("folder", tmp_path).limited(1), protocol)
        assert result.matrix.sum() == 1


def test_one_photo_cannot_calibrate_itself(tmp_path, segmenter):
    LAYOUTS["pets"](tmp_path)
    dataset = open_benchmark("pets", tmp_path).limited(1)
    with pytest.raises(InputError, match="takes two photos"):
        evaluate(segmenter, dataset, PROTOCOLS["calibrated-native"])


def test_grouping_of_one_window_is_that_of_the_whole_photo(tmp_path, segmenter):
    LAYOUTS["camvid11"](tmp_path)
    dataset, protocol = open_benchmark("camvid11", tmp_path), PROTOCOLS["paper-2022"]
    scores = list(score_photos(segmenter, dataset, protocol, dataset.names))
    for photo, own in zip(dataset, scores, strict=True):
        segmented = segmenter.segment(
            photo.image, protocol.labels(dataset), protocol.view_of(segmenter.config, dataset)
        )
        expected = score_prediction(photo, segmented.label_map, 11, segmented.groups)
        assert len(own.stages) == 2
        for a, b in zip(own.stages, expected.stages, strict=True):
            assert a.ari == b.ari
            assert np.array_equal(a.oracle, b.oracle)


def test_naming_is_that_of_segments_which_the_true_masks_made(tmp_path, segmenter):
    """By hand for one photo of whole patches in one window, where a region's share of a patch is 0 or 1."""
    folder, rng = tmp_path / "images", np.random.default_rng(0)
    folder.mkdir()
    (tmp_path / "masks").mkdir()
    (tmp_path / "classes.txt").write_text("dog\ncat\ngrass\n")
    cells = rng.integers(0, 3, (4, 8)).astype(np.uint8)
    cells[0, 0] = 255
    mask = cells.repeat(16, axis=0).repeat(16, axis=1)
    photo = rng.integers(0, 256, (64, 128, 3), dtype=np.uint8)
    Image.fromarray(photo).save(folder / "a.png")
    Image.fromarray(mask).save(tmp_path / "masks/a.png")
    dataset = open_benchmark("folder", tmp_path)
    protocol = PROTOCOLS["calibrated-native"]
    protocol = replace(protocol, view=replace(protocol.view, window=None))
    (own,) = score_photos(segmenter, dataset, protocol, dataset.names)
    with torch.inference_mode():
        encoder = segmenter.model.image_encoder
        features = encoder(normalize(torch.from_numpy(photo).permute(2, 0, 1)[None]))
        words = segmenter.embed_words(["dog", "cat", "grass"], protocol.view.templates)
        regions = torch.stack([torch.from_numpy(cells == c).flatten() for c in range(3)]).float()
        called = [
            (segmenter.model.embed_image_features(segments_of(encoder, features, regions, stage)) @ words.T).argmax(1)
            for stage in (0, 1)
        ]
    expected = [[c, (mask == c).sum(), called[0][c], called[1][c]] for c in range(3)]
    assert own.naming.tolist() == expected


def test_windows_count_by_the_pixels_that_they_show_of_a_region(tmp_path, segmenter):
    LAYOUTS["camvid11"](tmp_path)
    dataset, protocol = open_benchmark("camvid11", tmp_path), PROTOCOLS["calibrated-native"]
    labels, view = protocol.labels(dataset), protocol.view_of(segmenter.config, dataset)
    plain = 0
    for photo, own in zip(dataset, score_photos(segmenter, dataset, protocol, dataset.names), strict=True):
        assert sorted(own.naming[:, 0]) == sorted(set(photo.mask.ravel().tolist()) - {255})
        (result,) = segmenter.segment([photo.image], labels, view, keep_features=True)
        assert len(result.windows) > 1
        sums = np.zeros((2, 2, 11, 11))  # weighted by pixels or not, stage, region, label
        for window in result.windows:
            place, _ = result.groups_of(window)
            regions, shares = patch_shares(photo.mask[place], (window.height, window.width), 16)
            assert set(regions) == set(photo.mask[place].ravel().tolist()) - {255}
            for stage in (0, 1):
                with torch.inference_mode():
                    segments = segments_of(segmenter.model.image_encoder, window.features, shares, stage)
                    fits = segmenter.label_scores(segments[None], labels, view.templates)[0]
                torch.testing.assert_close(fits.sum(dim=1), torch.ones(len(regions)))
                for region, fit in zip(regions, fits.double().numpy(), strict=True):
                    sums[0, stage, region] += (photo.mask[place] == region).sum() * fit
                    sums[1, stage, region] += fit
        for true, pixels, *called in own.naming:
            assert pixels == (photo.mask == true).sum()
            assert called == sums[0, :, true].argmax(axis=1).tolist()
            plain += called != sums[1, :, true].argmax(axis=1).tolist()
    assert plain, "without weights nothing would be called otherwise: this test could not fail"


def test_perfect_names_are_counted_as_such():
    naming = np.array([[1, 30, 1, 2], [2, 10, 2, 2]])
    none = np.zeros((0, 2), np.int64)
    counts = np.zeros((0, 3), np.int64), np.zeros((0, 4), np.int64)
    photos = [PhotoScores(str(i), "", 40, *counts, naming=rows) for i, rows in enumerate((naming, none))]
    result = Result("folder", ("a", "b", "c"), {}, {}, photos=tuple(photos))
    assert result.naming() == [
        {"regions": 2, "accuracy": 100.0, "pixel_accuracy": 100.0},
        {"regions": 2, "accuracy": 50.0, "pixel_accuracy": 25.0},
    ]


def test_naming_neither_asks_for_background_nor_answers_with_it(tmp_path, segmenter):
    LAYOUTS["voc21"](tmp_path)
    dataset = open_benchmark("voc21", tmp_path)
    for protocol in PROTOCOLS.values():
        for photo in evaluate(segmenter, dataset, protocol).photos:
            assert len(photo.naming)
            assert (photo.naming > 0).all()


def test_a_plain_vit_is_scored_without_groups(tmp_path):
    LAYOUTS["voc21"](tmp_path)
    for protocol in PROTOCOLS.values():
        numbers = evaluate(random_segmenter(Stage(1)), open_benchmark("voc21", tmp_path), protocol).metrics()
        assert numbers["grouping"] == []
        (naming,) = numbers["naming"]
        assert naming["regions"] > 0
        assert numbers["miou"] is not None


@pytest.mark.parametrize("name", ["voc21", "voc20"])
def test_a_photo_without_labelled_pixels_changes_no_number(name, tmp_path, segmenter):
    LAYOUTS[name](tmp_path)
    dataset = open_benchmark(name, tmp_path)
    protocol = PROTOCOLS["paper-2022"]
    before = evaluate(segmenter, dataset, protocol).metrics()
    Image.new("RGB", (30, 20)).save(tmp_path / "JPEGImages/empty.jpg")
    Image.new("L", (30, 20), 255).save(tmp_path / "SegmentationClass/empty.png")
    (tmp_path / "ImageSets/Segmentation/val.txt").write_text("\n".join([*dataset.names, "empty"]))
    larger = open_benchmark(name, tmp_path)
    after = evaluate(segmenter, larger, protocol)
    assert after.photos[-1].name == "empty"
    assert after.photos[-1].stages[0].ari is None
    for key in ("miou", "boundary_miou", "mean_accuracy", "by_size", "grouping", "naming", "classes"):
        assert after.metrics()[key] == before[key]
    assert len(evaluate(segmenter, larger, PROTOCOLS["calibrated-native"]).photos) == 5
    after.save(tmp_path / "a.json")
    assert Result.load(tmp_path / "a.json").metrics() == after.metrics()


def test_a_model_is_known_by_its_tensors():
    one, same, other = random_segmenter(), random_segmenter(), random_segmenter()
    other.model.logit_scale.data += 1e-6
    assert describe(one, "a") == describe(same, "a")
    assert describe(one, "a")["sha256"] != describe(other, "a")["sha256"]
    heads = replace(one.config, image=replace(one.config.image, heads=4))
    assert describe(Segmenter(one.model, heads, device="cpu"), "a")["config"] != describe(one, "a")["config"]
