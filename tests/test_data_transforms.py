from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from PIL.JpegImagePlugin import JpegImageFile

from groupvit.data.transforms import (
    Crop,
    center_crop,
    draw_color,
    draw_crop,
    jitter_color,
    load_crop,
    middle_square,
    resize_short_side,
    to_tensor,
)
from groupvit.errors import InputError
from groupvit.photos import load_rgb
from small_pictures import difference, encoded, gradient


def photo(width=640, height=480):
    """Colour blobs of several sizes and a little noise, as photos have them."""
    generator = np.random.default_rng(0)
    blobs = [
        Image.fromarray(generator.integers(0, 256, (n, n, 3), dtype=np.uint8)).resize((width, height)) for n in (4, 16)
    ]
    pixels = np.mean([np.asarray(layer, dtype=float) for layer in blobs], axis=0)
    return Image.fromarray((pixels + generator.normal(0, 5, pixels.shape)).clip(0, 255).astype(np.uint8))


def cut(image, crop, size):
    image = image.resize((size, size), Image.Resampling.BILINEAR, box=crop[:4])
    return ImageOps.mirror(image) if crop.mirrored else image


@pytest.mark.parametrize("file_format", ["PNG", "GIF", "TIFF", "WEBP"])
def test_a_crop_is_cut_from_the_loaded_image(file_format):
    data = encoded(gradient(), file_format)
    crop = Crop(10, 5, 40, 30, mirrored=True)
    assert (
        load_crop(data, "x", 16, lambda width, height: crop).tobytes() == cut(load_rgb(data, "x"), crop, 16).tobytes()
    )


@pytest.mark.parametrize("file_format", ["JPEG", "MPO"])
@pytest.mark.parametrize(
    ("side", "decoded"),
    [(30, (637, 479)), (99, (637, 479)), (100, (319, 240)), (199, (319, 240)), (200, (160, 120)), (400, (80, 60))],
)
def test_a_jpeg_is_decoded_only_as_large_as_the_box_needs(monkeypatch, side, decoded, file_format):
    sizes = []
    load = JpegImageFile.load
    monkeypatch.setattr(JpegImageFile, "load", lambda self: (sizes.append(self.size), load(self))[1])
    options = {"save_all": True, "append_images": [photo(8, 8)]} if file_format == "MPO" else {}
    data = encoded(photo(637, 479), file_format, **options)
    sizes.clear()  # writing loads too
    load_crop(data, "x", 50, lambda width, height: Crop(0, 0, side + 20, side))
    assert set(sizes) == {decoded}


@pytest.mark.parametrize("box", [(0, 0, 637, 479), (30, 20, 451, 470), (437, 279, 637, 479), (100, 100, 220, 210)])
@pytest.mark.parametrize("mirrored", [False, True])
def test_a_small_decode_gives_the_crop_of_the_full_decode(box, mirrored):
    data, crop = encoded(photo(637, 479), "JPEG", quality=90), Crop(*box, mirrored=mirrored)
    small, full = load_crop(data, "x", 50, lambda width, height: crop), cut(load_rgb(data, "x"), crop, 50)
    assert difference(small, full) < 1.5
    assert difference(ImageOps.mirror(small), full) > 10  # else the picture could not tell


TURNS = {  # what was done to the upright picture that orientation n undoes
    1: None, 2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}  # fmt: skip


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("file_format", ["JPEG", "MPO", "PNG", "TIFF"])
def test_a_turned_photo_gives_the_crop_of_the_upright_one(orientation, file_format):
    upright, exif = photo(337, 265), Image.Exif()
    turned = upright if orientation == 1 else upright.transpose(TURNS[orientation])
    exif[0x0112] = orientation
    options = {"quality": 95, "subsampling": 0} if file_format in ("JPEG", "MPO") else {}
    if file_format == "MPO":
        options |= {"save_all": True, "append_images": [Image.new("RGB", turned.size)]}
    data, crop, sizes = encoded(turned, file_format, exif=exif, **options), Crop(5, 3, 337, 265), []
    loaded = load_crop(data, "x", 30, lambda *size: sizes.append(size) or crop)
    assert sizes == [(337, 265)]
    expected = cut(upright, crop, 30)
    assert difference(loaded, expected) < 1.5  # JPEGs decode to 43 x 34; a pixel beside it gives more than 10
    assert difference(loaded, cut(upright, Crop(0, 3, 332, 265), 30)) > 2  # five pixels beside it


@pytest.mark.parametrize(("mode", "file_format"), [("CMYK", "JPEG"), ("L", "JPEG"), ("RGBA", "PNG"), ("P", "GIF")])
def test_a_crop_of_every_mode_is_rgb(mode, file_format):
    image = load_crop(encoded(photo(300, 200).convert(mode), file_format), "x", 20, lambda *size: Crop(0, 0, *size))
    assert (image.mode, image.size) == ("RGB", (20, 20))


@pytest.mark.parametrize("data", [b"", b"garbage", encoded(photo(), "JPEG")[:4000], encoded(gradient(), "PNG")[:-300]])
def test_a_crop_of_a_broken_file_is_refused_by_name(data):
    with pytest.raises(InputError, match=r"photo\.jpg: "):
        load_crop(data, "photo.jpg", 20, lambda *size: Crop(0, 0, *size))


def test_an_error_in_drawing_is_not_the_file_s():
    for file_format in ("JPEG", "PNG"):
        with pytest.raises(ZeroDivisionError):
            load_crop(encoded(gradient(), file_format), "x", 8, lambda width, height: Crop(0, 0, width // 0, 1))


def test_a_bomb_is_refused_though_the_crop_would_be_small():
    size = (480).to_bytes(2) + (640).to_bytes(2)
    bomb = encoded(photo(), "JPEG").replace(size, 2 * (20_000).to_bytes(2))
    with pytest.raises(InputError, match=r"bomb\.jpg: has more than 300,000,000 pixels"):
        load_crop(bomb, "bomb.jpg", 8, lambda *size: Crop(0, 0, *size))


def test_what_is_drawn_depends_on_the_upright_size_alone():
    exif, crops = Image.Exif(), []
    exif[0x0112] = 6

    def draw(width, height):
        crops.append(draw_crop(width, height, (0.2, 1.0), np.random.default_rng(7)))
        return crops[-1]

    turned = photo().transpose(Image.Transpose.ROTATE_90)
    for data in (encoded(photo(), "PNG"), encoded(photo(), "JPEG"), encoded(turned, "JPEG", exif=exif)):
        for size in (8, 224):
            load_crop(data, "x", size, draw)
    assert len(set(crops)) == 1


def test_every_photo_takes_as_many_draws():
    generators = [np.random.default_rng(0) for _ in range(3)]
    for generator, size in zip(generators, [(640, 480), (1000, 10), (1, 1)], strict=True):
        draw_crop(*size, (0.08, 1.0), generator)
    assert len({generator.random() for generator in generators}) == 1


@pytest.mark.parametrize(
    ("width", "height", "expected"), [(640, 480, (299, 224)), (480, 641, (224, 299)), (7, 7, (224, 224))]
)
def test_the_short_side_gets_the_size_and_the_aspect_ratio_stays(width, height, expected):
    assert resize_short_side(Image.new("RGB", (width, height)), 224).size == expected


def test_a_center_crop_is_the_center():
    crop = center_crop(gradient(60, 40), 20, 20)
    assert crop.tobytes() == gradient(60, 40).crop((20, 10, 40, 30)).tobytes()


@pytest.mark.parametrize(("width", "height"), [(60, 40), (640, 40), (7, 100)])
def test_a_middle_square_is_that_of_the_whole_photo_resized(width, height):
    whole = center_crop(resize_short_side(gradient(width, height), 32), 28, 28)
    assert middle_square(gradient(width, height), 32, 28).tobytes() == whole.tobytes()


def test_of_a_strip_the_ends_are_not_resized():
    strip = Image.new("RGB", (1_000_000, 1), "red")  # 256 million pixels at 256
    strip.paste("blue", (499_990, 0, 500_010, 1))
    assert middle_square(strip, 256, 224).getcolors() == [(224 * 224, (0, 0, 255))]


def test_to_tensor_keeps_every_value():
    tensor = to_tensor(gradient())
    assert tensor.is_contiguous()
    assert np.array_equal(tensor.permute(1, 2, 0).numpy(), np.asarray(gradient()))


def test_crops_are_a_function_of_the_generator_and_half_of_them_mirrored():
    first, again = ([draw_crop(60, 40, (0.2, 1.0), np.random.default_rng(seed)) for seed in range(200)] for _ in "12")
    assert first == again
    assert len(set(first)) > 190
    assert 70 < sum(crop.mirrored for crop in first) < 130


@pytest.mark.parametrize(("width", "height"), [(60, 40), (176, 176), (40, 61)])
def test_crops_lie_inside_with_the_area_and_ratio_asked_for(width, height):
    generator = np.random.default_rng(0)
    shares, ratios = [], []
    for _ in range(500):
        left, top, right, bottom = draw_crop(width, height, (0.2, 0.8), generator)[:4]
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        shares.append((right - left) * (bottom - top) / (width * height))
        ratios.append((right - left) / (bottom - top))
    assert 0.18 < min(shares) < 0.25
    assert 0.7 < max(shares) < 0.83
    assert 3 / 4 - 0.05 < min(ratios) < max(ratios) < 4 / 3 + 0.07
    assert abs(np.log(ratios).mean()) < 0.1


def test_extreme_shapes_get_a_central_box():
    assert draw_crop(1000, 10, (1.0, 1.0), np.random.default_rng(0))[:4] == (493, 0, 506, 10)
    assert draw_crop(10, 1000, (1.0, 1.0), np.random.default_rng(0))[:4] == (0, 493, 10, 506)
    for side in (1, 300):
        draw = partial(draw_crop, scale=(0.08, 1.0), generator=np.random.default_rng(0))
        assert load_crop(encoded(gradient(side, 2), "JPEG"), "x", 8, draw).size == (8, 8)


def jittered(image, *factors):
    return to_image(jitter_color(to_tensor(image)[None], torch.tensor([factors]))[0])


def to_image(tensor):
    return Image.fromarray(tensor.permute(1, 2, 0).numpy())


ENHANCERS = [ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color]


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("factor", [0.0, 0.6, 0.93, 1.0, 1.4, 3.0])
def test_each_colour_factor_is_that_of_pil(which, factor):
    image = photo(64, 48)
    factors = [factor if i == which else 1.0 for i in range(3)]
    expected = ENHANCERS[which](image).enhance(factor)
    error = np.abs(np.asarray(jittered(image, *factors), dtype=int) - np.asarray(expected, dtype=int))
    assert error.max() <= 2  # PIL rounds the grey image, then cuts decimals off
    assert factor == 1 or difference(expected, image) > 1


def test_colour_factors_apply_in_the_order_brightness_contrast_saturation():
    image = expected = photo(64, 48)
    for enhancer, factor in zip(ENHANCERS, (1.4, 0.6, 1.3), strict=True):
        expected = enhancer(expected).enhance(factor)
    assert difference(jittered(image, 1.4, 0.6, 1.3), expected) < 1.5  # PIL cuts decimals off three times
    other = image
    for enhancer, factor in zip(ENHANCERS[::-1], (1.3, 0.6, 1.4), strict=True):
        other = enhancer(other).enhance(factor)
    assert difference(jittered(image, 1.4, 0.6, 1.3), other) > 2


def test_colour_factors_of_one_change_nothing_and_each_image_has_its_own():
    images = torch.stack([to_tensor(photo(40, 30))] * 3)
    factors = torch.tensor([[1.0, 1.0, 1.0], [0.7, 1.2, 1.3], [0.0, 1.0, 1.0]])
    result = jitter_color(images, factors)
    assert torch.equal(result[0], images[0])
    assert torch.equal(result[1], jitter_color(images[1:2], factors[1:2])[0])
    assert not result[2].any()


def test_colour_factors_fill_their_range():
    factors = torch.stack([draw_color(np.random.default_rng(seed)) for seed in range(300)])
    assert ((factors >= 0.6) & (factors <= 1.4)).all()
    assert (factors.min(dim=0).values < 0.62).all()
    assert (factors.max(dim=0).values > 1.38).all()
