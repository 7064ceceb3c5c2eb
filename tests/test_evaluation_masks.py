import numpy as np
import pytest
from PIL import Image

from groupvit.errors import InputError
from groupvit.evaluation.masks import read_values

VALUES = np.array([[0, 1, 2, 3], [3, 2, 1, 0], [1, 1, 7, 255]], np.uint8)
VOC = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 3: (128, 128, 0), 7: (128, 128, 128), 255: (224, 224, 192)}


def voc() -> np.ndarray:
    return np.array([[VOC[value] for value in row] for row in VALUES.tolist()], np.uint8)


def opaque(pixels: np.ndarray) -> np.ndarray:
    return np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)])


def palette() -> Image.Image:
    image = Image.fromarray(VALUES)
    image.putpalette([number % 256 for number in range(768)])
    return image


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(VALUES),
        Image.fromarray(VALUES.astype(np.uint16)),
        palette(),
        Image.fromarray(voc()),
        Image.fromarray(opaque(voc())),
        Image.fromarray(opaque(VALUES)),  # LA
        Image.fromarray(np.dstack([VALUES] * 3)),  # greys that are indices
    ],
    ids=["8 bits", "16 bits", "palette", "colours of VOC", "RGBA", "LA", "grey RGB"],
)
@pytest.mark.filterwarnings("ignore:colours of masks")
@pytest.mark.parametrize("suffix", ["png", "PNG", "tif"])
def test_a_mask_has_its_values_however_it_is_saved(image, suffix, tmp_path):
    image.save(tmp_path / f"a.{suffix}")
    assert np.array_equal(read_values(tmp_path / f"a.{suffix}"), VALUES)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_a_mask_is_turned_as_its_photo_is(suffix, tmp_path):
    exif = Image.Exif()
    exif[0x112] = 6
    Image.fromarray(VALUES).save(tmp_path / f"a.{suffix}", exif=exif)
    assert np.array_equal(read_values(tmp_path / f"a.{suffix}"), np.rot90(VALUES, -1))


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_a_file_of_several_masks_is_none(suffix, tmp_path):
    one = Image.fromarray(VALUES)
    one.save(tmp_path / f"a.{suffix}", save_all=True, append_images=[Image.fromarray(255 - VALUES)])
    with pytest.raises(InputError, match=rf"a.{suffix} has 2 pictures, and a mask is one"):
        read_values(tmp_path / f"a.{suffix}")


@pytest.mark.parametrize(("depth", "most"), [(1, 1), (2, 3), (4, 7)])
def test_few_bits_are_not_stretched(depth, most, tmp_path):
    """Optimisers of PNG write masks of few classes in fewer bits."""
    import struct
    import zlib

    values = VALUES.clip(max=most)
    ones = np.unpackbits(values[:, :, None], axis=2)[:, :, -depth:].reshape(len(values), -1)
    rows = b"".join(b"\0" + bytes(np.packbits(row)) for row in ones)
    header = struct.pack(">IIBBBBB", 4, 3, depth, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    data = b"".join(struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks)
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + data)
    assert np.array_equal(read_values(tmp_path / "a.png"), values)


@pytest.mark.parametrize("depth", [2, 4, 8])
def test_nor_are_those_of_a_tiff_and_white_is_not_zero(depth, tmp_path):
    import struct

    values = VALUES.clip(max=3)
    ones = np.unpackbits(values[:, :, None], axis=2)[:, :, -depth:].reshape(len(values), -1)
    rows = b"".join(bytes(np.packbits(row)) for row in ones)
    for photometric in (1, 0):
        tags = {
            256: 4,
            257: 3,
            258: depth,
            259: 1,
            262: photometric,
            273: 8 + 2 + 10 * 12 + 4,
            277: 1,
            278: 3,
            279: len(rows),
        }
        entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
        data = struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + struct.pack("<I", 0)
        (tmp_path / "a.tif").write_bytes(data.ljust(tags[273], b"\0") + rows)
        if photometric:
            assert np.array_equal(read_values(tmp_path / "a.tif"), values)
        else:
            with pytest.raises(InputError, match=r"a.tif has 0 for white"):
                read_values(tmp_path / "a.tif")


def test_colours_of_voc_are_told_and_those_beyond_the_classes_are_none(tmp_path):
    red, green, blue = VOC[1]
    Image.new("RGB", (4, 3), (red, green, blue)).save(tmp_path / "a.png")
    with pytest.warns(UserWarning, match="colours of masks are taken for VOC's: if they are others, write labelmap"):
        assert (read_values(tmp_path / "a.png") == 1).all()
    with pytest.raises(InputError, match=rf"such as {red},{green},{blue}: save indices or write labelmap"):
        read_values(tmp_path / "a.png", usual={0: 0})


def test_a_palette_has_a_labelmap_s_colours_or_is_voc_s(tmp_path):
    given = {red << 16 | green << 8 | blue: 1 + value % 100 for value, (red, green, blue) in VOC.items()}
    palette().save(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"its colour 0,1,2 is none of labelmap.txt's: add it there, or leave that"):
        read_values(tmp_path / "a.png", given)
    image = Image.fromarray(VALUES.clip(max=1))
    image.putpalette([0, 0, 0, 128, 0, 0])
    image.save(tmp_path / "a.png")
    assert np.array_equal(read_values(tmp_path / "a.png", {1: 5}), VALUES.clip(max=1))
    image = Image.fromarray(np.array([[0, 1, 255]], np.uint8))
    image.putpalette([0, 0, 0, 128, 0, 0, *[9] * 762])  # VOC's own, of which 255 has a colour that no list names
    image.save(tmp_path / "a.png")
    assert read_values(tmp_path / "a.png", {0: 7, 128 << 16: 8}).tolist() == [[7, 8, 255]]
    nines = 9 << 16 | 9 << 8 | 9
    assert read_values(tmp_path / "a.png", {0: 7, 128 << 16: 8, nines: 9}).tolist() == [[7, 8, 9]]
    with pytest.raises(InputError, match=r"its colour 128,0,0 is none of labelmap.txt's"):
        read_values(tmp_path / "a.png", {0: 7})


def test_colours_of_sixteen_bits_are_refused(tmp_path):
    import struct
    import zlib

    rows = b"\0" + bytes(6)
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    data = b"".join(struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks)
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + data)
    with pytest.raises(InputError, match=r"a.png has 16 bits for each of several colours"):
        read_values(tmp_path / "a.png")


def test_colours_are_those_that_are_given(tmp_path):
    Image.fromarray(voc()).save(tmp_path / "a.png")
    given = {red << 16 | green << 8 | blue: 100 - value % 100 for value, (red, green, blue) in VOC.items()}
    assert np.array_equal(read_values(tmp_path / "a.png", given), 100 - VALUES.astype(int) % 100)
    quantised = Image.fromarray(voc()).convert("P", palette=Image.Palette.ADAPTIVE)
    quantised.save(tmp_path / "a.png")
    assert np.array_equal(read_values(tmp_path / "a.png", given), 100 - VALUES.astype(int) % 100)


@pytest.mark.parametrize(
    ("name", "image", "said"),
    [
        ("a.png", Image.effect_noise((9, 9), 90).convert("RGB").rotate(3), "greys"),
        (
            "a.png",
            Image.new("RGB", (9, 9), (255, 0, 0)),
            "1 colours of no class, such as 255,0,0: save indices or write",
        ),
        ("a.png", Image.new("RGBA", (9, 9), (0, 0, 0, 9)), "has transparent pixels"),
        ("a.jpg", Image.new("L", (9, 9)), "is a JPEG picture, which may change values: save masks as PNG"),
        ("a.gif", Image.new("L", (9, 9)), "is a GIF picture"),
        ("a.tif", Image.new("F", (9, 9)), "floating-point values"),
        ("a.tif", Image.new("CMYK", (9, 9)), "is an RGB picture with|transparent"),
    ],
)
def test_what_cannot_be_indices_says_what_to_do(name, image, said, tmp_path):
    image.save(tmp_path / name)
    if said == "greys":
        assert read_values(tmp_path / name).max() > 9
        return
    with pytest.raises(InputError, match=rf"{name}.*({said})"):
        read_values(tmp_path / name)
    (tmp_path / name).rename(tmp_path / "b.png")  # the content counts
    with pytest.raises(InputError, match=said):
        read_values(tmp_path / "b.png")
