import io
import math

import numpy as np
import pytest
import torch
from PIL import Image

from groupvit.data.transforms import (
    augment,
    center_crop,
    load_rgb,
    random_crop_box,
    resize_short_side,
    to_tensor,
)
from groupvit.errors import InputError


def gradient(width=60, height=40):
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, 255 - x], axis=-1).astype(np.uint8))


def encoded(image, file_format, **options):
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    ("mode", "file_format"),
    [("RGB", "PNG"), ("RGB", "WEBP"), ("L", "PNG"), ("1", "PNG"), ("P", "PNG"), ("P", "GIF"), ("LA", "PNG"),
     ("RGBA", "PNG"), ("CMYK", "JPEG"), ("CMYK", "TIFF"), ("YCbCr", "TIFF"), ("L", "JPEG"), ("RGB", "BMP"),
     ("RGB", "PPM"), ("RGBA", "WEBP")],
)  # fmt: skip
def test_every_mode_becomes_the_same_rgb_picture(mode, file_format):
    options = {"lossless": True} if file_format == "WEBP" else {}
    image = load_rgb(encoded(gradient().convert(mode), file_format, **options), "x")
    assert (image.mode, image.size) == ("RGB", (60, 40))
    expected = gradient().convert("L" if mode in ("L", "LA", "1") else "RGB").convert("RGB")
    error = np.abs(np.asarray(image, dtype=float) - np.asarray(expected, dtype=float)).mean()
    assert error < (130 if mode == "1" else 20)


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_to_eight(file_format):
    values = np.array([[0, 257 * 100, 65535]], dtype=np.uint16)
    image = load_rgb(encoded(Image.fromarray(values), file_format), "x")
    assert np.asarray(image)[0, :, 0].tolist() == [0, 100, 255]


def test_floating_point_pixels_are_refused():
    with pytest.raises(InputError, match=r"depth\.tiff"):
        load_rgb(encoded(Image.new("F", (4, 4)), "TIFF"), "depth.tiff")


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_lies_on_white(mode):
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    image.putpixel((1, 0), (0, 0, 0, 255))
    loaded = load_rgb(encoded(image.convert(mode), "PNG"), "x")
    assert np.asarray(loaded)[0, :, 0].tolist() == [255, 0]


def test_a_transparent_colour_of_an_opaque_mode_lies_on_white():
    image = Image.new("RGB", (2, 1), (10, 20, 30))
    image.putpixel((1, 0), (1, 2, 3))
    loaded = load_rgb(encoded(image, "PNG", transparency=(1, 2, 3)), "x")
    assert [loaded.getpixel((x, 0)) for x in (0, 1)] == [(10, 20, 30), (255, 255, 255)]


def test_the_camera_s_orientation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter clockwise
    image = load_rgb(encoded(gradient(), "PNG", exif=exif), "x")
    assert np.array_equal(np.asarray(image), np.asarray(gradient().transpose(Image.Transpose.ROTATE_270)))


def test_a_broken_exif_block_does_not_matter():
    assert load_rgb(encoded(gradient(), "JPEG", exif=b"Exif\0\0garbage"), "x").size == (60, 40)


def test_the_first_frame_counts():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert load_rgb(data, "x").getpixel((0, 0)) == (255, 0, 0)


def test_paths_and_open_files_are_read(tmp_path):
    path = tmp_path / "a.png"
    gradient().save(path)
    with open(path, "rb") as file:
        images = [load_rgb(path, "x"), load_rgb(str(path), "x"), load_rgb(file, "x"), load_rgb(path.read_bytes(), "x")]
    assert all(image.tobytes() == gradient().tobytes() for image in images)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"garbage",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n",
        encoded(gradient(), "JPEG")[:400],
        encoded(gradient(), "PNG")[:-300],
        encoded(gradient(), "WEBP")[:-50],
        encoded(gradient(), "TIFF")[:-50],
    ],
)
def test_broken_or_foreign_files_are_refused_by_name(data):
    with pytest.raises(InputError, match=r"photo\.jpg: "):
        load_rgb(data, "photo.jpg")


def test_an_absent_file_is_said_to_be_absent():
    with pytest.raises(InputError, match=r"a\.jpg: no such file"):
        load_rgb("/nowhere/a.jpg", "a.jpg")


def test_a_decompression_bomb_is_refused(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1500)
    with pytest.raises(InputError, match=r"bomb\.png.*decompression bomb"):
        load_rgb(encoded(gradient(), "PNG"), "bomb.png")


def test_min_side_decodes_a_jpeg_at_a_fraction_but_not_below():
    data = encoded(gradient(640, 480), "JPEG")
    assert load_rgb(data, "x", min_side=100).size == (160, 120)
    assert load_rgb(data, "x", min_side=481).size == (640, 480)
    assert load_rgb(encoded(gradient(64, 48), "PNG"), "x", min_side=8).size == (64, 48)


@pytest.mark.parametrize(
    ("width", "height", "expected"), [(640, 480, (299, 224)), (480, 641, (224, 299)), (7, 7, (224, 224))]
)
def test_the_short_side_gets_the_size_and_the_aspect_ratio_stays(width, height, expected):
    assert resize_short_side(Image.new("RGB", (width, height)), 224).size == expected


def test_a_center_crop_is_the_center():
    crop = center_crop(gradient(60, 40), 20)
    assert crop.tobytes() == gradient(60, 40).crop((20, 10, 40, 30)).tobytes()
    with pytest.raises(ValueError, match="60 x 40"):
        center_crop(gradient(60, 40), 41)


def test_to_tensor_keeps_every_value():
    tensor = to_tensor(gradient())
    assert tensor.is_contiguous()
    assert np.array_equal(tensor.permute(1, 2, 0).numpy(), np.asarray(gradient()))


def test_augmentation_is_a_function_of_the_generator():
    first, again, other = (augment(gradient(), 32, generator=np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_whole_image_without_a_flip_is_a_resize():
    image = gradient(48, 48)
    boxes = [random_crop_box(48, 48, (1.0, 1.0), np.random.default_rng(seed)) for seed in range(20)]
    assert (0, 0, 48, 48) in boxes
    seed = boxes.index((0, 0, 48, 48))
    tensor = augment(image, 24, scale=(1.0, 1.0), flip=False, generator=np.random.default_rng(seed))
    assert torch.equal(tensor, to_tensor(image.resize((24, 24), Image.Resampling.BILINEAR)))


def test_half_of_the_crops_are_mirrored_and_none_without_flip():
    image = gradient()

    def mirrored(seed, flip):
        tensor = augment(image, 8, scale=(0.5, 1.0), flip=flip, generator=np.random.default_rng(seed)).float()
        return bool(tensor[0, :, 0].mean() > tensor[0, :, -1].mean())

    assert 70 < sum(mirrored(seed, True) for seed in range(200)) < 130
    assert not any(mirrored(seed, False) for seed in range(50))


@pytest.mark.parametrize(("width", "height"), [(60, 40), (176, 176), (40, 61)])
def test_crops_lie_inside_with_the_area_and_ratio_asked_for(width, height):
    generator = np.random.default_rng(0)
    shares, ratios = [], []
    for _ in range(500):
        left, top, right, bottom = random_crop_box(width, height, (0.2, 0.8), generator)
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        shares.append((right - left) * (bottom - top) / (width * height))
        ratios.append((right - left) / (bottom - top))
    assert 0.18 < min(shares) < 0.25
    assert 0.7 < max(shares) < 0.83
    assert 3 / 4 - 0.05 < min(ratios) < max(ratios) < 4 / 3 + 0.07
    assert abs(np.log(ratios).mean()) < 0.1


def test_extreme_shapes_get_a_central_box():
    assert random_crop_box(1000, 10, (1.0, 1.0), np.random.default_rng(0)) == (493, 0, 506, 10)
    assert random_crop_box(10, 1000, (1.0, 1.0), np.random.default_rng(0)) == (0, 493, 10, 506)
    assert augment(gradient(1, 1), 8, generator=np.random.default_rng(0)).shape == (3, 8, 8)
    assert math.prod(augment(gradient(300, 2), 8, generator=np.random.default_rng(0)).shape) == 192
