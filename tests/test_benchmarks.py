"""A yardstick is fair only if it does the same, and a ratio means something only if both were timed alike."""

import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from benchmarks import gpu, one_photo, peer, segmentation, straightforward, training_step
from benchmarks.growth import SIZES
from benchmarks.peak import flops, matrix_rate, matrix_rates
from benchmarks.startup import launch
from benchmarks.timing import alternate, exponent, times_faster, versus, worthwhile
from PIL import Image
from torch import nn

from groupvit.data.batches import Batch
from groupvit.models import ImageEncoderConfig, ModelConfig, Stage, TextEncoderConfig, build_model, normalize
from groupvit.models.layers import attend
from groupvit.segmentation import Segmenter
from groupvit.training.embedding import encode_texts, loss_terms, texts_of
from groupvit.training.objective import Captions, Images, MultiLabel, Vocabulary
from groupvit.training.runs import get_run

LABELS = ["cat", "traffic light", "grass"]
CONFIG = ModelConfig(
    ImageEncoderConfig(32, 8, 32, 2, stages=(Stage(1, 8, 8), Stage(1, 4, 4), Stage(1))),
    TextEncoderConfig(16, 2, 1),
    embed_dim=8,
    projector_dim=16,
)


@pytest.mark.parametrize("size", [(50, 70), (97, 40), (32, 32)])
def test_the_straightforward_way_names_pixels_as_the_segmenter_does(size):
    model = build_model(CONFIG)
    segmenter = Segmenter(model, CONFIG, precision="fp32")
    photo = Image.effect_noise(size, 80).convert("RGB")
    ours = segmenter.segment(photo, LABELS, short_side=48, window=48, stride=24).label_map
    with torch.inference_mode():
        plain = straightforward.segment(model, photo, LABELS, window=48, stride=24)
    assert plain.shape == ours.shape
    assert (plain == ours).mean() >= 0.999


def test_ways_of_segmentation_are_compared_with_the_first(monkeypatch):
    zeros, wrong = np.zeros((2, 4), np.uint8), np.zeros((2, 4), np.uint8)
    wrong[0, 0] = 1
    monkeypatch.setattr(segmentation, "ways", lambda: {"first": lambda _: [zeros] * 5, "second": lambda _: [wrong] * 5})
    rows = segmentation.rows([Image.new("RGB", (4, 2))] * 5, 3, time.perf_counter)
    assert [(row["way"], row["% equal pixels"]) for row in rows] == [("first", "100.000"), ("second", "87.500")]


@pytest.fixture
def calls() -> list[str]:
    return []


def _ticking(*steps: float) -> Iterator[float]:
    """A clock's readings: each call takes the next of `steps`, over and over."""
    now = 0.0
    while True:
        for step in steps:
            yield now
            now += step
            yield now


def test_ways_take_turns_and_the_first_round_is_not_counted(calls: list[str]) -> None:
    ways = {name: lambda name=name: calls.append(name) for name in ("ours", "theirs")}
    clock = _ticking(100.0, 100.0, 1.0, 3.0, 2.0, 4.0)
    seconds = alternate(ways, 2, clock.__next__)
    assert calls == ["ours", "theirs"] * 3
    assert seconds == {"ours": [1.0, 2.0], "theirs": [3.0, 4.0]}


@pytest.mark.parametrize("pays", [True, False])
def test_bfloat16_is_not_waited_for_where_it_is_slower(pays: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("groupvit.machine.bfloat16_is_faster", lambda device: pays)
    ways = dict.fromkeys(("ours, float32", "ours, bfloat16", "transformers"), list)
    assert list(worthwhile(ways)) == [name for name in ways if pays or name != "ours, bfloat16"]
    monkeypatch.setattr("benchmarks.peak.matrix_rate", lambda *_: 1.0)
    assert len(matrix_rates(time.perf_counter)) == 1 + pays


def test_the_ratio_is_that_of_medians_and_its_spread_that_of_rounds() -> None:
    assert times_faster([1, 2, 4], [4, 6, 8]) == (3.0, 2.5, 3.5)
    assert times_faster([2], [6]) == (3.0, 3.0, 3.0)
    seconds = {"ours": [0.001, 0.002, 0.004], "theirs": [0.004, 0.006, 0.008]}
    assert versus(seconds, "ours", "theirs") == {"ms": "2.0", "times the peer": "3.00", "quartiles": "2.50 to 3.50"}
    assert versus(seconds, "theirs", "theirs") == versus({"x": [0.006]}, "x", "absent")


def test_the_exponent_of_a_power_law_is_found() -> None:
    assert exponent([1, 2, 5, 10], [3 * size**1.7 for size in (1, 2, 5, 10)]) == pytest.approx(1.7)


def test_products_attention_and_convolutions_are_counted() -> None:
    a, b, q = torch.ones(2, 3), torch.ones(3, 5), torch.ones(1, 2, 7, 4)
    assert flops(lambda: a @ b) == 2 * 2 * 3 * 5
    linear = nn.Linear(64, 128)
    assert flops(lambda: linear(torch.ones(200, 64))) == 2 * 200 * 64 * 128
    heads = torch.ones(1, 2, 600, 16)
    assert flops(lambda: attend(heads, heads, heads)) == 2 * (2 * 2 * 600 * 600 * 16)
    assert flops(lambda: F.scaled_dot_product_attention(q, q, q)) == 2 * (2 * 2 * 7 * 7 * 4)
    assert flops(lambda: F.conv2d(torch.ones(1, 3, 8, 8), torch.ones(6, 3, 4, 4), stride=4)) == 2 * 6 * 4 * 3 * 16


def test_the_matrix_rate_is_that_of_the_fastest_call() -> None:
    clock = _ticking(9.0, 4.0, 2.0)
    assert matrix_rate(torch.float32, clock.__next__, 2, side=16) == 2 * 16**3 / 2.0


def test_the_peer_has_our_features_texts_and_loss() -> None:
    model = build_model(CONFIG).eval()
    other = peer.port(model, CONFIG)
    images = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8)
    texts = [one_photo.SIMPLE_TEMPLATE.format(label) for label in LABELS]
    tokens = one_photo.Tokenizer()(texts * 5).unflatten(0, (5, 3))
    objective = (Captions(), MultiLabel(prompts=2, style="release"))
    with torch.no_grad():
        pooled = other.vision_model(normalize(images), return_dict=True).pooler_output
        assert torch.allclose(model.image_encoder(normalize(images)).pooled, pooled, atol=1e-5)
        assert torch.allclose(model.encode_text(tokens[0]), peer.embed_texts(other, tokens[0]), atol=1e-5)
        total = peer.loss(other, normalize(images), tokens)
    no_nouns = torch.zeros(5, 0, dtype=torch.bool)
    batch = Batch(images, tokens[:, 0], tokens[:, 1:], no_nouns, no_nouns, torch.ones(5, dtype=torch.bool))
    words = Vocabulary.from_counts({}, 1, one_photo.Tokenizer())
    with torch.no_grad():
        features = model.image_encoder(normalize(images))
        nothing = features.segments[:, :0]
        encoded = Images(features.pooled, nothing, nothing, features.occupied(), nothing[..., 0].bool(), nothing, ())
        of_texts = [encode_texts(model, tokens) for tokens, _ in texts_of(batch, objective, words)]
        terms = loss_terms(model, objective, encoded, of_texts, batch, words)
    assert set(terms) >= {"caption", "multi_label"}
    assert float(total) == pytest.approx(sum(float(term) for term in terms.values()), abs=1e-5)


def test_the_peer_s_map_is_that_of_its_forward_pass(tmp_path) -> None:
    other = peer.port(build_model(CONFIG), CONFIG)
    pixels, tokens = torch.randn(1, 3, 32, 32), one_photo.Tokenizer()(LABELS)
    with torch.no_grad():
        whole = other(input_ids=tokens, pixel_values=pixels, output_segmentation=True).segmentation_logits
        expected = F.interpolate(whole, (50, 70), mode="bilinear")[0].argmax(dim=0)
        for see in peer.seeing(other), peer.seeing_in_openvino(other, tmp_path, bfloat16=False):
            found = peer.segment(other, see, pixels, peer.embed_texts(other, tokens), (50, 70))
            assert (found == expected).float().mean() >= 0.999


def test_labels_to_measure_with_can_be_told_apart() -> None:
    for count in (*one_photo.LABELS, *SIZES["labels"]):
        assert len({label.lower() for label in one_photo.labels_of(count)}) == count


def test_without_photos_a_training_step_has_scenes_and_their_captions(tmp_path) -> None:
    batch = training_step.captioned(tmp_path, 32)
    assert batch.images.shape == (training_step.PHOTOS, 3, 32, 32)
    assert batch.prompts.shape[:2] == (training_step.PHOTOS, 3)
    assert batch.captions.argmax(dim=1).min() > 1


def test_a_process_is_measured_by_itself() -> None:
    seconds, processor, printed = launch(["-c", "from groupvit.machine import peak_memory; print(peak_memory())"])
    assert processor > 0
    assert 0 < seconds < 30
    assert 1e6 < int(printed) < 1e8  # this process holds more: it has PyTorch


def test_what_is_measured_on_a_gpu_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU, in small, so that the command is not tried for the first time on a rented machine."""
    monkeypatch.setattr(gpu, "count_flops", lambda size: (1e9, 1e9))
    monkeypatch.setattr(gpu.torch.cuda, "max_memory_allocated", lambda: 2e9)
    monkeypatch.setattr(training_step, "compile_blocks", lambda model: True)
    run, device = replace(get_run("groupvit-s-gcc-yfcc"), model=CONFIG), torch.device("cpu")
    rows = gpu.trained(run, 8, device, 1e12, chunk=4) + gpu.trained(run, 4, device, 1e12, theirs=True)
    rows += gpu.encoded(run, 32, 2, device, 1e12)
    assert [row["work"] for row in rows] == [
        "training, one graph",
        "training, one graph, compiled",
        "training, chunks of 4",
        "training, chunks of 4, compiled",
        "training, transformers",
        "training, one graph",
        "training, one graph, compiled",
        "inference, 32 px, transformers",
        "inference, 32 px",
    ]
    assert all(float(row["photos/s"].replace(",", "")) > 0 and row["peak, GB"] == "2.0" for row in rows)


def test_a_batch_that_does_not_fit_is_a_row_and_not_the_end() -> None:
    def fails() -> None:
        raise torch.OutOfMemoryError

    assert gpu.row("training", 8, lambda: fails, 1.0, 1e12)["photos/s"] == "does not fit"
