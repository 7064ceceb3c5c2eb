"""Decode photos to upright 8-bit RGB, the same way for every command and for Python."""

import contextlib
import functools
import io
import os
import stat
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, TiffImagePlugin

from groupvit.errors import InputError
from groupvit.files import MAX_PIXELS, refuse_address, refuse_pointer

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "HEIF")
"""Without EPS, which starts Ghostscript."""

Photo = str | Path | Image.Image | np.ndarray
"""What `rgb_of` takes."""

_SETTINGS = threading.RLock()
"""Pillow's bound on pixels and Python's filters of warnings are those of all threads."""

_SUBFILE_TYPE = 254
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns a photo of each orientation upright; Pillow's own way writes all of its EXIF again, and fails with it."""

_EIGHT_BITS = ((np.arange(2**16) + 128) // 257).astype(np.uint8)


def load_rgb(
    file: str | Path | bytes, name: str, max_pixels: int = MAX_PIXELS, advice: str = "shrink it"
) -> Image.Image:
    """Load an image as 8-bit RGB: first frame, turned upright, transparency on white.

    A file that is absent, truncated, larger than `max_pixels` or no image is an `InputError` about `name`; `advice` is
    for a large one.
    """
    with naming(name, max_pixels, advice), opened(file) as image:
        return to_rgb(image)


def rgb_of(image: object) -> Image.Image:
    """Return a path's, a PIL image's or an array's photo as `load_rgb` would load it from a file.

    Arrays are uint8, uint16 or bool: (height, width), or uint8 with 3 or 4 channels. Others are an `InputError`.
    """
    if isinstance(image, str | Path):
        return load_rgb(image, str(image), advice="shrink it, or open it with PIL yourself")
    if isinstance(image, np.ndarray):
        pixels = image[..., 0] if image.shape[2:] == (1,) else image
        kinds = {2: (np.uint8, np.uint16, bool), 3: (np.uint8,) * (pixels.shape[-1:] in ((3,), (4,)))}
        if pixels.dtype not in kinds.get(pixels.ndim, ()) or not pixels.size:
            raise InputError(f"an image is an array of {image.dtype} {image.shape}: give uint8 RGB, (height, width, 3)")
        if pixels.dtype == np.uint16 and 0 < pixels.max() < 256:
            raise InputError("an image is an array of uint16 with values of 8 bits, which would be black: give uint8")
        return to_rgb(Image.fromarray(pixels))
    if not isinstance(image, Image.Image) or not all(image.size):
        kind = f"an empty {type(image).__name__}" if isinstance(image, Image.Image) else f"a {type(image).__name__}"
        raise InputError(f"an image is {kind}: give a file's path, a PIL image or a uint8 RGB array")
    with naming(f"image {getattr(image, 'filename', '')!r}"):
        return to_rgb(image)


@contextlib.contextmanager
def naming(name: str, max_pixels: int = MAX_PIXELS, advice: str = "shrink it") -> Iterator[None]:
    """Turn whatever goes wrong in the block into an `InputError` about the file `name`; `advice` is for a large one."""
    _SETTINGS.acquire()
    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, max_pixels
    try:
        with warnings.catch_warnings():
            # Of odd metadata; the pixels are what matters. Warnings of other threads are theirs.
            warnings.filterwarnings("ignore", module="PIL|pillow_heif")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except FileNotFoundError:
        refuse_address(name)
        raise InputError(f"{name}: no such file") from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise InputError(f"{name}: has more than {max_pixels:,} pixels: {advice}") from error
    except Image.UnidentifiedImageError:
        refuse_pointer(Path(name))
        heic = Path(name).suffix.lower() in (".heic", ".heif") and "HEIF" not in _formats()
        hint = "; for HEIC: pip install pillow-heif" if heic else ""
        raise InputError(f"{name}: not an image that can be read ({', '.join(_formats())}{hint})") from None
    except Exception as error:  # Pillow's decoders raise nearly anything on broken data
        raise InputError(f"{name}: cannot read the image: {str(error) or type(error).__name__}") from error
    finally:
        Image.MAX_IMAGE_PIXELS = before
        _SETTINGS.release()


def opened(file: str | Path | bytes) -> Image.Image:
    if isinstance(file, str | Path) and not stat.S_ISREG(os.stat(file).st_mode):  # reading a pipe may never end
        raise ValueError("it is a folder, a pipe or a device")
    return Image.open(io.BytesIO(file) if isinstance(file, bytes) else file, formats=_formats())


@functools.cache
def _formats() -> tuple[str, ...]:
    """Return those of the formats that are installed: HEIF by pillow-heif, AVIF from Pillow 11.3 on."""
    with contextlib.suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def orientation(image: Image.Image) -> int:
    with contextlib.suppress(Exception):  # a broken EXIF block tells none
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    return 1


def upright(image: Image.Image) -> Image.Image:
    """Return the image turned as its EXIF says, and without the EXIF, or it would be turned once more."""
    if (turn := _TURNS.get(orientation(image))) is None:
        return image
    turned = image.transpose(turn)
    for name in ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"):
        turned.info.pop(name, None)
    return turned


def _load(image: Image.Image) -> None:
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        image.load()
        return
    if image.tag_v2.get(_SUBFILE_TYPE, 0) == 1 and not image.tell():
        raise ValueError("its first picture is a preview, as in a camera's raw files: convert it to JPEG or TIFF")
    # Pillow maps an uncompressed TIFF by its name, and takes its width for its height if it has an orientation.
    name, image.filename = image.filename, ""
    try:
        image.load()
    finally:
        image.filename = name


def to_rgb(image: Image.Image) -> Image.Image:
    """Return the image, or the frame at which it stands, upright in 8 bits, with transparency on white."""
    _load(image)
    sixteen = image.format == "PPM"  # whose mode is that of 32
    image = upright(image)
    if image.mode == "F":
        raise ValueError("the range of its floating-point values is unknown, save it with 8 or 16 bits")
    if image.mode.startswith("I"):  # 16 bits; Pillow's own conversion clips at 255
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535 or (image.mode == "I" and not sixteen and 0 < values.max() < 256):
            raise ValueError("the range of its 32-bit values is unknown, save it with 8 or 16 bits")
        image = Image.fromarray(np.where(values == image.info.get("transparency"), 255, _EIGHT_BITS[values]))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")
