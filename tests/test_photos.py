import io
import re
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from groupvit.errors import InputError
from groupvit.files import MAX_PIXELS
from groupvit.photos import load_rgb, naming, rgb_of
from small_pictures import difference, encoded, gradient


def translucent():
    image = gradient().convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    return image


@pytest.mark.parametrize(
    ("mode", "file_format"),
    [("RGB", "PNG"), ("RGB", "WEBP"), ("L", "PNG"), ("1", "PNG"), ("P", "PNG"), ("P", "GIF"), ("LA", "PNG"),
     ("RGBA", "PNG"), ("CMYK", "JPEG"), ("CMYK", "TIFF"), ("YCbCr", "TIFF"), ("L", "JPEG"), ("RGB", "BMP"),
     ("RGB", "PPM"), ("RGBA", "WEBP")],
)  # fmt: skip
def test_every_mode_becomes_the_same_rgb_picture(mode, file_format):
    options = {"WEBP": {"lossless": True}, "TIFF": {"compression": "tiff_lzw"}}.get(file_format, {})
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


def test_a_transparent_value_of_sixteen_bits_lies_on_white():
    image = Image.fromarray(np.array([[0, 257 * 100, 65535]], dtype=np.uint16))
    assert np.asarray(load_rgb(encoded(image, "PNG", transparency=0), "x"))[0, :, 0].tolist() == [255, 100, 255]


@pytest.mark.parametrize(
    "picture",
    [Image.new("F", (4, 4)), Image.new("I", (4, 4), -1), Image.new("I", (4, 4), 65536), Image.new("I", (4, 4), 200)],
)
def test_pixels_of_unknown_range_are_refused(picture):
    with pytest.raises(InputError, match=r"depth\.tiff.* save it with 8 or 16 bits"):
        load_rgb(encoded(picture, "TIFF"), "depth.tiff")


def test_a_dark_photo_of_sixteen_bits_is_one():
    """Pillow gives it the mode of 32 bits."""
    photo = b"P5 2 1 65535 " + bytes([0, 200, 0, 0])
    assert Image.open(io.BytesIO(photo)).mode == "I"
    assert np.asarray(load_rgb(photo, "x"))[0, :, 0].tolist() == [1, 0]


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


@pytest.mark.parametrize("mode", ["L", "P", "RGB", "RGBA", "CMYK"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_raw_tiff_is_turned_as_its_bytes_are(tmp_path, mode, orientation):
    Image.fromarray(np.asarray(gradient())).convert(mode).save(tmp_path / "a.tif", tiffinfo={274: orientation})
    wanted = load_rgb((tmp_path / "a.tif").read_bytes(), "x")
    assert wanted.size == ((40, 60) if orientation > 4 else (60, 40))
    with Image.open(tmp_path / "a.tif") as opened:
        assert rgb_of(opened).tobytes() == wanted.tobytes()
    assert load_rgb(tmp_path / "a.tif", "x").tobytes() == wanted.tobytes()


def test_a_photo_is_turned_whatever_else_its_exif_says():
    head = b"Exif\0\0MM\0*\0\0\0\x08\0\x02"
    tags = b"\x01\x12\0\3\0\0\0\1\0\6\0\0" + b"\x01\x1a\0\2\0\0\0\3" + b"72\0\0"  # a resolution in letters
    image = load_rgb(encoded(gradient(), "PNG", exif=head + tags + b"\0\0\0\0"), "x")
    assert np.array_equal(np.asarray(image), np.asarray(gradient().transpose(Image.Transpose.ROTATE_270)))
    assert rgb_of(image).size == image.size == (40, 60)  # and not once more


def test_a_preview_in_a_raw_file_is_no_photo():
    with pytest.raises(InputError, match="its first picture is a preview, as in a camera's raw files"):
        load_rgb(encoded(gradient(), "TIFF", tiffinfo={254: 1}), "x")


def test_warnings_of_other_threads_are_not_lost():
    with pytest.warns(UserWarning, match="unseen"), naming("x"):
        warnings.warn("unseen", stacklevel=1)


def test_a_broken_exif_block_does_not_matter():
    assert load_rgb(encoded(gradient(), "JPEG", exif=b"Exif\0\0garbage"), "x").size == (60, 40)


def test_the_first_frame_counts():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert load_rgb(data, "x").getpixel((0, 0)) == (255, 0, 0)


def test_paths_and_bytes_are_read(tmp_path):
    path = tmp_path / "a.png"
    gradient().save(path)
    images = [load_rgb(path, "x"), load_rgb(str(path), "x"), load_rgb(path.read_bytes(), "x")]
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


@pytest.mark.parametrize("limit", [1000, 2000])
def test_an_image_of_too_many_pixels_is_refused(limit):
    with pytest.raises(InputError, match=rf"bomb\.png: has more than {limit:,} pixels: shrink it"):
        load_rgb(encoded(gradient(), "PNG"), "bomb.png", max_pixels=limit)
    assert load_rgb(encoded(gradient(), "PNG"), "bomb.png", max_pixels=2400).size == (60, 40)


def test_photos_of_phones_are_below_the_limit():
    assert MAX_PIXELS > 16320 * 12240


def test_the_limit_of_one_thread_is_not_left_to_the_others() -> None:
    before, leave = Image.MAX_IMAGE_PIXELS, threading.Event()

    def other() -> None:
        with naming("b", 7):
            leave.wait(10)

    thread = threading.Thread(target=other)
    with naming("a", 5):
        thread.start()
        thread.join(0.1)
        assert Image.MAX_IMAGE_PIXELS == 5
    leave.set()
    thread.join()
    assert before == Image.MAX_IMAGE_PIXELS


def test_avif_is_read():
    assert difference(load_rgb(encoded(gradient(), "AVIF"), "x"), gradient()) < 3


def test_heic_is_read_with_pillow_heif_upright():
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.register_heif_opener()
    exif = Image.Exif()
    exif[0x0112] = 6
    image = load_rgb(encoded(gradient(), "HEIF", exif=exif.tobytes(), quality=95), "x")
    assert difference(image, gradient().transpose(Image.Transpose.ROTATE_270)) < 5


def test_heic_without_pillow_heif_says_what_to_install(monkeypatch):
    monkeypatch.setattr("groupvit.photos._formats", lambda: ("JPEG", "PNG"))
    with pytest.raises(InputError, match=r"a\.HEIC: not an image .*pip install pillow-heif"):
        load_rgb(b"\0\0\0\x18ftypheic" + bytes(99), "a.HEIC")


ODD = {  # how cameras, scanners and editors save photos
    "palette.png": (lambda: gradient().quantize(16), {"transparency": 3}),
    "palette-alpha.png": (lambda: translucent().quantize(16), {}),
    "alpha.png": (translucent, {}),
    "grey-alpha.png": (lambda: translucent().convert("LA"), {}),
    "alpha.webp": (translucent, {"lossless": True}),
    "one-bit.png": (lambda: gradient().convert("1"), {}),
    "deep.png": (lambda: Image.fromarray(np.asarray(gradient().convert("L")).astype(np.uint16) * 257), {}),
    "deep.tiff": (lambda: Image.fromarray(np.asarray(gradient().convert("L")).astype(">u2") * 257), {}),
    "colour-key.png": (lambda: gradient().convert("L"), {"transparency": 84}),
    "print.jpg": (lambda: gradient().convert("CMYK"), {}),
    "ycbcr.tiff": (lambda: gradient().convert("YCbCr"), {"compression": "tiff_lzw"}),
    "moving.gif": (lambda: gradient(), {"save_all": True, "append_images": [Image.new("RGB", (60, 40))]}),
    "mirrored.jpg": (gradient, {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\x01\1\x12\0\3\0\0\0\1\0\7\0\0\0\0\0\0"}),
}


@pytest.mark.parametrize("name", ODD)
def test_an_opened_image_and_its_path_are_what_the_file_holds(name, tmp_path):
    make, options = ODD[name]
    make().save(tmp_path / name, **options)
    expected = load_rgb(tmp_path / name, name)
    assert len(np.unique(np.asarray(expected))) > 1
    with Image.open(tmp_path / name) as image:
        before = image.getexif().get(0x0112)
        again = [rgb_of(image), rgb_of(str(tmp_path / name)), rgb_of(tmp_path / name), rgb_of(expected)]
        assert image.getexif().get(0x0112) == before  # the caller's own stays as it was
    assert all(other.tobytes() == expected.tobytes() and other.size == expected.size for other in again)
    assert (expected.size == (40, 60)) == (name == "mirrored.jpg")


@pytest.mark.parametrize(
    "array",
    [np.asarray(gradient()), np.asarray(gradient().convert("L")), np.asarray(translucent()),
     np.asarray(gradient().convert("L")) > 100, np.asarray(gradient().convert("L")).astype(np.uint16) * 257],
    ids=lambda array: f"{array.dtype} {array.shape}",
)  # fmt: skip
def test_arrays_are_photos_as_their_files_are(array):
    if array.ndim == 2:
        assert rgb_of(array[..., None]).tobytes() == rgb_of(array).tobytes()
    assert rgb_of(array).tobytes() == load_rgb(encoded(Image.fromarray(array), "PNG"), "x").tobytes()


@pytest.mark.parametrize(
    "image",
    [np.zeros((4, 4, 3)), np.zeros((4, 4), np.int64), np.zeros((1, 4, 4, 3), np.uint8), np.zeros((3, 40, 60), np.uint8),
     np.zeros((0, 4, 3), np.uint8), np.zeros((4, 4, 3), np.uint16), np.zeros((4, 4), np.float32), np.zeros(4, np.uint8),
     np.full((4, 4), 255, np.uint16), np.zeros((4, 4, 2), np.uint8), np.zeros((4, 4, 5), np.uint8), bytearray(b"x"),
     Image.new("F", (4, 4)), Image.new("RGB", (0, 4)), torch.zeros(3, 4, 4), None, 3, b"x", "missing.jpg", Path("/")],
    ids=lambda image: f"{type(image).__name__} {getattr(image, 'dtype', '')}",
)  # fmt: skip
def test_what_is_no_photo_is_refused_in_one_line(image):
    with pytest.raises(InputError) as error:
        rgb_of(image)
    assert len(str(error.value)) < 160


def test_a_truncated_image_is_refused_when_it_is_used(tmp_path):
    (tmp_path / "cut.tif").write_bytes(encoded(gradient(), "TIFF")[:7000])
    with (
        Image.open(tmp_path / "cut.tif") as image,
        pytest.raises(InputError, match=r"cut\.tif.* cannot read the image"),
    ):
        rgb_of(image)


@pytest.mark.parametrize(
    ("address", "way"),
    [
        ("-", "write it to a file first"),
        ("http://example.org/a.jpg", "download it first (curl -LO 'http://example.org/a.jpg')"),
        ("HTTPS://example.org/a.jpg?x=1", "download it first (curl"),
        ("s3://bucket/a.jpg", "download it first"),
        ("gs://bucket/a.jpg", "download it first"),
        ("hf://datasets/a/b.jpg", "download it first"),
        ("file:///photos/a.jpg", "give its path, /photos/a.jpg"),
        ("data:image/png;base64,AAAA", "decode it into a file first"),
    ],
)
def test_addresses_are_refused_with_the_way_to_do_it(address, way):
    from groupvit.cli.segment import segment

    for read in (rgb_of, lambda photo: segment((photo,), labels=("dog",))):
        with pytest.raises(InputError, match=re.escape(way)):
            read(address)
