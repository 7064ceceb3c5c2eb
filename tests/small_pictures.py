"""Small pictures for tests, and how far two are apart."""

import io

import numpy as np
from PIL import Image


def gradient(width=60, height=40):
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, 255 - x], axis=-1).astype(np.uint8))


def encoded(image, file_format, **options):
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def difference(first, second):
    return np.abs(np.asarray(first, dtype=float) - np.asarray(second, dtype=float)).mean()
