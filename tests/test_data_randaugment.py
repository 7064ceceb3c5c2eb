from collections import Counter

import numpy as np
import pytest
from PIL import Image

from groupvit.data import randaugment
from groupvit.data.randaugment import FILL, MEAN, OPERATIONS, STD, erase, rand_augment


def picture(width=48, height=48):
    """A ramp to the right in red, downwards in green, and a dark square in the middle."""
    x, y = np.meshgrid(np.linspace(20, 230, width), np.linspace(30, 200, height))
    pixels = np.stack([x, y, np.full_like(x, 90)], axis=-1).round().astype(np.uint8)
    pixels[height // 3 : height * 2 // 3, width // 3 : width * 2 // 3] = (10, 20, 30)
    return Image.fromarray(pixels)


def applied(name, strength, image=None):
    return np.asarray(OPERATIONS[name](image or picture(), float(strength))).astype(int)


RAMP = np.asarray(picture()).astype(int)


@pytest.mark.parametrize("strength", [-1.0, -0.9, -0.5, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_keeps_the_size_and_changes_the_picture(name, strength):
    result = OPERATIONS[name](picture(50, 40), strength)
    assert (result.mode, result.size) == ("RGB", (50, 40))
    assert result.tobytes() != picture(50, 40).tobytes()


def test_operations_at_strength_zero_change_nothing_but_where_they_have_no_strength():
    always = {"AutoContrast", "Equalize", "Invert", "Posterize"}  # posterizing begins at four bits
    for name in OPERATIONS:
        assert (applied(name, 0) == RAMP).all() == (name not in always), name


@pytest.mark.parametrize("strength", [-0.9, 0.3, 1])
def test_values_of_single_pixels(strength):
    assert (applied("Invert", strength) == 255 - RAMP).all()
    assert (applied("AutoContrast", strength)[..., 0].min(), applied("AutoContrast", strength)[..., 0].max()) == (
        0,
        255,
    )


@pytest.mark.parametrize(("strength", "bits"), [(0.2, 4), (0.5, 2), (0.9, 1), (-0.9, 1), (1.0, 1)])
def test_posterizing_keeps_the_upper_bits(strength, bits):
    assert (applied("Posterize", strength) == RAMP & (0xFF << (8 - bits)) & 0xFF).all()


@pytest.mark.parametrize(("strength", "threshold"), [(0.5, 128), (0.9, 26), (-0.9, 26), (1.0, 0)])
def test_solarizing_inverts_from_a_threshold_on(strength, threshold):
    before = np.asarray(picture()).astype(int)
    assert (applied("Solarize", strength) == np.where(before < threshold, before, 255 - before)).all()


def test_solarize_add_brightens_the_darker_half():
    assert (applied("SolarizeAdd", 0.9) == np.where(RAMP < 128, RAMP + 99, RAMP)).all()


def test_enhancements_are_by_a_factor_of_a_tenth_to_nineteen_tenths():
    assert np.abs(applied("Brightness", 0.9) - (1.81 * RAMP).clip(0, 255)).max() <= 1
    assert np.abs(applied("Brightness", -0.9) - 0.19 * RAMP).max() <= 1
    assert np.abs(applied("Brightness", -1) - 0.1 * RAMP).max() <= 1
    grey = RAMP @ [0.299, 0.587, 0.114]
    assert np.abs(applied("Color", -0.9) - (grey[..., None] + 0.19 * (RAMP - grey[..., None]))).max() <= 2
    assert np.abs(applied("Contrast", -0.9) - (grey.mean() + 0.19 * (RAMP - grey.mean()))).max() <= 2
    edges = {strength: np.abs(np.diff(applied("Sharpness", strength), axis=1)).sum() for strength in (-0.9, 0, 0.9)}
    assert edges[-0.9] < edges[0] < edges[0.9]


def test_a_rotation_at_magnitude_nine_is_by_27_degrees_counterclockwise():
    dot = np.zeros((101, 101, 3), dtype=np.uint8)
    dot[48:53, 88:93] = 255  # 40 pixels right of the middle
    for strength in (0.9, -0.9):
        result = applied("Rotate", strength, Image.fromarray(dot))
        y, x = np.argwhere(result.min(axis=2) > 200).mean(axis=0) - 50
        assert np.degrees(np.arctan2(-y, x)) == pytest.approx(30 * strength, abs=0.5)
        assert tuple(result[0, 0]) == FILL


def test_translations_are_shares_of_the_side_and_fill_with_the_mean_colour():
    right = applied("TranslateX", -0.5, picture(200, 100))  # 45 of 200 pixels
    assert (right[:, :45] == FILL).all()
    assert (right[:, 46:] == np.asarray(picture(200, 100))[:, 1:155]).mean() > 0.99
    up = applied("TranslateY", 1, picture(200, 100))
    assert (up[:55] == np.asarray(picture(200, 100))[45:]).all()
    assert (up[55:] == FILL).all()


def test_shears_move_rows_or_columns_in_proportion():
    white = Image.new("RGB", (100, 100), "white")
    for name, matrix in (("ShearX", applied("ShearX", 0.5, white)), ("ShearY", applied("ShearY", 0.5, white))):
        lines = matrix if name == "ShearX" else matrix.transpose(1, 0, 2)
        filled = (lines == FILL).all(axis=2).sum(axis=1)
        assert filled[-1] == pytest.approx(0.15 * 100, abs=1)
        assert filled[0] == pytest.approx(0, abs=1)
        assert (np.diff(filled) >= 0).all()


# The mean colours of 20 seeds: they change if an operation, its strength or the order of the draws does.
MEANS = [
    (107.2, 113.9, 85.2), (116.8, 104.3, 66.3), (107.9, 95.6, 85.0), (136.6, 123.8, 63.0),
    (112.2, 104.4, 83.3), (107.4, 113.6, 85.2), (168.0, 163.0, 181.3), (20.5, 19.0, 14.8),
    (112.2, 104.4, 83.3), (170.3, 165.4, 185.3), (99.7, 100.6, 85.2), (139.7, 139.7, 28.3),
    (111.7, 104.2, 85.3), (106.7, 93.9, 85.4), (142.8, 150.6, 171.7), (112.2, 104.4, 83.3),
    (121.3, 110.9, 69.3), (96.0, 110.2, 86.9), (112.2, 104.4, 83.3), (170.3, 165.4, 185.3),
]  # fmt: skip


def test_what_the_generator_gives_stays():
    results = [rand_augment(picture(), np.random.default_rng(seed)) for seed in range(20)]
    means = np.array([np.asarray(result, dtype=float).mean(axis=(0, 1)) for result in results])
    assert np.abs(means - MEANS).max() < 1


def test_two_of_fifteen_operations_each_in_half_of_the_cases_at_about_nine(monkeypatch):
    calls = []
    for name in OPERATIONS:
        monkeypatch.setitem(
            randaugment.OPERATIONS, name, lambda image, strength, name=name: calls.append((name, strength)) or image
        )
    counts = Counter()
    for seed in range(3000):
        before = len(calls)
        rand_augment(picture(), np.random.default_rng(seed))
        counts[len(calls) - before] += 1
    assert len(OPERATIONS) == 15
    assert [counts[n] / 3000 for n in (0, 1, 2)] == pytest.approx([0.25, 0.5, 0.25], abs=0.03)
    assert all(150 < count < 260 for count in Counter(name for name, _ in calls).values())  # 200 expected
    strengths = np.array([strength for _, strength in calls])
    assert (strengths > 0).mean() == pytest.approx(0.5, abs=0.03)
    assert np.abs(strengths).mean() == pytest.approx(0.9, abs=0.005)
    assert np.abs(strengths).std() == pytest.approx(0.05, abs=0.005)
    assert np.abs(strengths).max() == 1


@pytest.mark.parametrize(
    "function", [lambda image, g: rand_augment(image, g), lambda image, g: erase(np.asarray(image), g)]
)
def test_the_picture_does_not_change_what_is_drawn(function):
    for seed in range(30):
        generators = [np.random.default_rng(seed) for _ in range(2)]
        for generator, image in zip(generators, (picture(), picture(7, 30)), strict=True):
            function(image, generator)
        assert generators[0].random() == generators[1].random()


def test_a_quarter_of_the_pictures_lose_a_box_within_its_bounds():
    pixels = np.zeros((100, 80, 3), dtype=np.uint8)
    shares, ratios, touched = [], [], np.zeros((100, 80), dtype=int)
    for seed in range(2000):
        erased = (erase(pixels, np.random.default_rng(seed)) != pixels).any(axis=2)
        if erased.any():
            rows, columns = erased.any(axis=1).nonzero()[0], erased.any(axis=0).nonzero()[0]
            height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
            assert erased[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].mean() > 0.99
            shares.append(height * width / 8000)
            ratios.append(height / width)
            touched += erased
    assert len(shares) / 2000 == pytest.approx(0.25, abs=0.03)
    assert 0.018 < min(shares) < 0.03
    assert 0.31 < max(shares) < 0.345
    assert 0.28 < min(ratios) < 0.4
    assert 2.5 < max(ratios) < 3.6
    assert all(edge.any() for edge in (touched[0], touched[-1], touched[:, 0], touched[:, -1]))
    assert not pixels.any()  # the given picture stays


def test_the_noise_has_the_mean_and_spread_of_imagenet():
    pixels = np.zeros((224, 224, 3), dtype=np.uint8)
    noise = [e[e.any(axis=2)] for e in (erase(pixels, np.random.default_rng(seed)) for seed in range(60)) if e.any()]
    assert np.concatenate(noise).mean(axis=0) == pytest.approx(MEAN, abs=1.5)
    assert np.concatenate(noise).std(axis=0) == pytest.approx(STD, abs=3)  # clipped at 0 and 255


def test_a_single_pixel_is_never_erased():
    for seed in range(50):
        assert not erase(np.zeros((1, 1, 3), dtype=np.uint8), np.random.default_rng(seed)).any()
