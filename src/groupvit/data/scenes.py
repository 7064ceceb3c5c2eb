"""Draw a synthetic captioned set with exact masks, to see in minutes whether words find their segments.

Ten things stand on six textured grounds. Things differ by shape and texture. Their hues are close to each other, and
each has a second part or pattern of any hue, so that colours tell few of them. Later things hide earlier ones,
captions leave things out, some things have two names. Only the evaluation folder holds masks.

The generator is frozen: a change that moves one pixel or one word is a new `VERSION`, with new tables in the docs.
"""

import json
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from itertools import chain
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, UInt8
from numpy.random import Generator, default_rng
from PIL import Image

from groupvit.data.shards import Sample, write_shards
from groupvit.data.workers import mapped
from groupvit.errors import InputError, input_error
from groupvit.files import new_folder
from groupvit.machine import cores
from groupvit.progress import tracked

VERSION = 1
SIZE = 64
THINGS = ("ball", "box", "tent", "ring", "cross", "star", "house", "mushroom", "flower", "fish")
GROUNDS = ("grass", "sand", "water", "brick", "snow", "night")
CLASSES = THINGS + GROUNDS
SYNONYMS = {"ball": "sphere", "box": "crate", "house": "cottage", "flower": "blossom", "water": "sea"}
OMISSION = 0.15
VISIBLE = 0.4
HUE_SPREAD = 0.06

Plane = Float[np.ndarray, "height width"]
Mask = Bool[np.ndarray, "height width"]
_COLOURS = ("red", "orange", "yellow", "green", "turquoise", "blue", "purple", "pink")


@dataclass(frozen=True)
class Scene:
    """A picture, the class of every pixel (index into `CLASSES`) and one sentence about it."""

    image: UInt8[np.ndarray, "height width 3"]
    mask: UInt8[np.ndarray, "height width"]
    caption: str


def _polygon(u: Plane, v: Plane, *points: tuple[float, float]) -> Mask:
    """Convex, corners clockwise on the screen (v points down)."""
    inside = np.ones(u.shape, dtype=bool)
    for (u0, v0), (u1, v1) in zip(points, points[1:] + points[:1], strict=True):
        inside &= (u1 - u0) * (v - v0) - (v1 - v0) * (u - u0) >= 0
    return inside


def _disc(u: Plane, v: Plane, radius: float = 1.0, at: tuple[float, float] = (0.0, 0.0)) -> Mask:
    return (u - at[0]) ** 2 + (v - at[1]) ** 2 <= radius**2


def _box(u: Plane, v: Plane, left: float, top: float, right: float, bottom: float) -> Mask:
    return (left <= u) & (u <= right) & (top <= v) & (v <= bottom)


def _ball(u: Plane, v: Plane) -> tuple[Mask, Mask]:
    return _disc(u, v), np.sin(9 * (u + 0.25 * v**2)) > 0.3


def _crate(u: Plane, v: Plane) -> tuple[Mask, Mask]:
    frame = np.maximum(np.abs(u), np.abs(v)) > 0.58
    return _box(u, v, -0.8, -0.8, 0.8, 0.8), frame | (np.abs(u - v) < 0.16)


def _tent(u: Plane, v: Plane) -> tuple[Mask, Mask]:
    return _polygon(u, v, (0.0, -0.95), (1.0, 0.8), (-1.0, 0.8)), _polygon(u, v, (0.0, -0.2), (0.35, 0.8), (-0.35, 0.8))


def _ring(u: Plane, v: Plane) -> tuple[Mask, Mask]:
    return _disc(u, v) & ~_disc(u, v, 0.52), np.sin(6 * np.arctan2(v, u)) > 0.6


def _cross(u: Plane, v: Plane) -> tuple[Mask, Mask]:
    return _box(u, v, -0.32, -1.0, 0.32, 1.0) | _box(u, v, -1.0, -0.32, 1.0, 0.32), np.sin(14 * (u + v)) > 0.4


def _star(u: Plane, v: Plane) -> tuple[Mask, Mask]:
    angle = np.arctan2(u, -v)
    wedge = np.abs((angle / (2 * np.pi / 5) + 0.5) % 1 - 0.5) * (2 * np.pi / 5)
    radius = np.hypot(u, v)
    return radius * (np.cos(wedge) + 1.6 * np.sin(wedge)) <= 1.05, np.sin(16 * radius) > 0.5


def _house(u: Plane, v: Plane) -> tuple[Mask, Mask]:
    roof = _polygon(u, v, (0.0, -1.0), (1.0, -0.15), (-1.0, -0.15))
    return _box(u, v, -0.75, -0.15, 0.75, 0.9) | roof, roof | _box(u, v, -0.2, 0.3, 0.2, 0.9)


def _mushroom(u: Plane, v: Plane) -> tuple[Mask, Mask]:
    cap = (u**2 + (v * 1.2) ** 2 <= 1) & (v <= 0.05)
    spots = _disc(u, v, 0.17, (-0.45, -0.25)) | _disc(u, v, 0.2, (0.1, -0.5)) | _disc(u, v, 0.15, (0.55, -0.2))
    return cap | _box(u, v, -0.28, 0.0, 0.28, 0.95), cap & ~spots


def _flower(u: Plane, v: Plane) -> tuple[Mask, Mask]:
    radius = np.hypot(u, v)
    return radius <= 0.68 + 0.32 * np.cos(6 * np.arctan2(v, u)), radius < 0.36


def _fish(u: Plane, v: Plane) -> tuple[Mask, Mask]:
    body = ((u + 0.2) / 0.75) ** 2 + (v / 0.5) ** 2 <= 1
    tail = _polygon(u, v, (0.4, 0.0), (1.0, -0.55), (1.0, 0.55))
    scales = (np.sin(14 * u) * np.sin(14 * v) > 0.1) & (u > -0.45)
    return body | tail, scales | _disc(u, v, 0.1, (-0.65, -0.1))


_SHAPES = (_ball, _crate, _tent, _ring, _cross, _star, _house, _mushroom, _flower, _fish)  # as THINGS


def _rgb(hue: float, saturation: float, value: float) -> Float[np.ndarray, " 3"]:
    sector = (np.array([5.0, 3.0, 1.0]) + hue * 6) % 6
    return value - value * saturation * np.clip(np.minimum(sector, 4 - sector), 0, 1)


def _smooth(generator: Generator, size: int, cells: int) -> Plane:
    """Value noise in [-1, 1]: a coarse random grid, bilinearly enlarged."""
    grid = Image.fromarray(generator.uniform(-1, 1, (cells, cells)).astype(np.float32))
    return np.asarray(grid.resize((size, size), Image.Resampling.BILINEAR), dtype=np.float64)


def _ground(name: str, generator: Generator, size: int) -> Float[np.ndarray, "height width 3"]:
    y, x = np.mgrid[:size, :size] / size
    grain = generator.uniform(-1, 1, (size, size))
    if name == "grass":
        hue, saturation, value = 0.28, 0.6, 0.45
        texture = 0.5 * np.repeat(generator.uniform(-1, 1, (size // 8, size)), 8, axis=0) + 0.2 * grain
    elif name == "sand":
        hue, saturation, value = 0.11, 0.4, 0.75
        texture = 0.25 * grain + 0.15 * np.sin(30 * (y + 0.1 * _smooth(generator, size, 4)))
    elif name == "water":
        hue, saturation, value = 0.56, 0.6, 0.6
        texture = 0.35 * np.sin(50 * y + 3 * _smooth(generator, size, 6)) + 0.05 * grain
    elif name == "brick":
        hue, saturation, value = 0.03, 0.55, 0.55
        row = (y * 9).astype(int)
        mortar = ((y * 9) % 1 < 0.2) | ((x * 5 + 0.5 * (row % 2)) % 1 < 0.12)
        texture = np.where(mortar, 0.5, -0.1) + 0.1 * grain
    elif name == "snow":
        hue, saturation, value = 0.6, 0.08, 0.88
        texture = 0.12 * _smooth(generator, size, 5) + 0.05 * grain
    else:
        hue, saturation, value = 0.66, 0.55, 0.2
        texture = 0.2 * _smooth(generator, size, 3) + 3.0 * (grain > 0.96)
    colour = _rgb(hue + generator.normal(0, 0.03), saturation * generator.uniform(0.6, 1.3), value)
    return colour * (1 + texture[..., None]) * generator.uniform(0.75, 1.2)


def _paint(image: np.ndarray, mask: np.ndarray, index: int, generator: Generator) -> tuple[Mask, str]:
    """Draw one thing in place; return its whole silhouette and the name of its colour."""
    size = len(mask)
    radius = generator.uniform(0.19, 0.30) * size
    centre = generator.uniform(0.15, 0.85, 2) * size
    angle = generator.uniform(-0.45, 0.45)
    y, x = (np.mgrid[:size, :size] + 0.5 - centre[:, None, None]) / radius
    u, v = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
    if generator.random() < 0.5:
        u = -u
    shape, part = _SHAPES[index](u, v)
    hue = index / len(THINGS) + generator.normal(0, HUE_SPREAD)
    first = _rgb(hue, generator.uniform(0.35, 0.9), generator.uniform(0.4, 0.95))
    second = _rgb(hue + generator.uniform(0.15, 0.85), generator.uniform(0.2, 0.9), generator.uniform(0.3, 0.95))
    shade = 1 - 0.15 * (u + v)
    colour = np.where(part[..., None], second, first) * shade[..., None]
    image[shape] = colour[shape]
    mask[shape] = index
    return shape, _COLOURS[round(hue % 1 * 8) % 8]


def _caption(things: list[tuple[str, str]], ground: str, generator: Generator) -> str:
    """One sentence; every thing, and the ground, is left out with probability `OMISSION`."""
    phrases = []
    for name, colour in (things[i] for i in generator.permutation(len(things))):
        if generator.random() < OMISSION:
            continue
        word = SYNONYMS[name] if name in SYNONYMS and generator.random() < 0.3 else name
        adjective = f"{colour} " if generator.random() < 0.2 else ""
        phrases.append(f"{'an' if adjective.startswith('o') else 'a'} {adjective}{word}")
    ground = SYNONYMS[ground] if ground in SYNONYMS and generator.random() < 0.3 else ground
    preposition = generator.choice(["on the", "in front of the", "with the", "near the"])
    place = "" if generator.random() < OMISSION else f" {preposition} {ground}"
    listed = " and ".join([", ".join(phrases[:-1]), phrases[-1]] if len(phrases) > 1 else phrases)
    return (listed or "something") + place


def draw(seed: int, index: int, *, size: int = SIZE) -> Scene:
    """Draw scene number `index` of the set `seed`: a pure function of the two."""
    generator = default_rng([VERSION, seed, index])
    ground = int(generator.integers(len(GROUNDS)))
    image = _ground(GROUNDS[ground], generator, size)
    mask = np.full((size, size), len(THINGS) + ground, dtype=np.uint8)
    drawn = generator.choice(len(THINGS), size=generator.integers(1, 4), replace=False)
    painted = [(int(thing), *_paint(image, mask, int(thing), generator)) for thing in drawn]
    visible = [
        (THINGS[thing], colour)
        for thing, shape, colour in painted
        if (mask[shape] == thing).sum() >= VISIBLE * max(shape.sum(), 1)
    ]
    light = 1 + 0.15 * _smooth(generator, size, 2)[..., None]
    image = image * light * generator.uniform(0.85, 1.15) + generator.normal(0, 0.02, image.shape)
    return Scene((image.clip(0, 1) * 255).astype(np.uint8), mask, _caption(visible, GROUNDS[ground], generator))


def sample(index: int, scene: Scene) -> Sample:
    """Return the captioned picture of a scene, as training reads it."""
    file = BytesIO()
    Image.fromarray(scene.image).save(file, "JPEG", quality=95)
    return Sample(f"{index:08d}", file.getvalue(), (scene.caption,))


def _samples(indices: range, *, seed: int, size: int) -> list[Sample]:
    return [sample(index, draw(seed, index, size=size)) for index in indices]


def _write_evaluation(folder: Path, count: int, *, seed: int, size: int) -> None:
    captions = {}
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for index in range(count):
        scene = draw(seed, index, size=size)
        Image.fromarray(scene.image).save(folder / "images" / f"{index:05d}.jpg", quality=95)
        Image.fromarray(scene.mask).save(folder / "masks" / f"{index:05d}.png")
        captions[f"{index:05d}"] = scene.caption
    (folder / "classes.txt").write_text("".join(f"{label}\n" for label in LABELS))
    (folder / "captions.json").write_text(json.dumps(captions, indent=0))


LABELS = tuple(f"{name}={name},{SYNONYMS[name]}" if name in SYNONYMS else name for name in CLASSES)
"""One label per class, in the order of the masks' indices, with both words where a class has two."""


def write(folder: Path, *, train: int = 30_000, evaluation: int = 500, size: int = SIZE, seed: int = 0) -> None:
    """Write `folder/train/*.tar` and `folder/eval/{images,masks,classes.txt,captions.json}`, or nothing at all.

    The two sets have different seeds. A folder that holds the same set already is left as it is.
    """
    if not 8 <= size <= 4096 or size % 8 or min(train, evaluation) < 1 or seed < 0:
        raise InputError("scenes need a size of 8 to 4,096 in steps of 8, pictures of both kinds, a seed from 0 on")
    settings = json.dumps({"version": VERSION, "train": train, "evaluation": evaluation, "size": size, "seed": seed})
    with input_error(f"cannot write scenes to {folder}", OSError):
        made = folder / "scenes.json"
        if made.is_file() and made.read_bytes() == settings.encode():
            return
        if folder.exists() and any(folder.iterdir()):
            raise InputError(f"{folder} is not empty and no set of this version, size and seed; name a new folder")
        with new_folder(folder) as unfinished:
            _write_evaluation(unfinished / "eval", evaluation, seed=2 * seed + 1, size=size)
            chunks = [range(first, min(first + 100, train)) for first in range(0, train, 100)]
            drawn = mapped(partial(_samples, seed=2 * seed, size=size), chunks, cores())
            samples = tracked("drawing scenes", chain.from_iterable(drawn), train)
            write_shards(samples, unfinished / "train", prefix="scenes", per_shard=1000)
            (unfinished / "scenes.json").write_text(settings)
