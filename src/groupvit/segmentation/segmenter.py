"""From photos and words to label maps (§3.3)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack, overload

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, UInt
from PIL import Image
from torch import Tensor

from groupvit.errors import InputError
from groupvit.models import GroupViT, ImageFeatures, ModelConfig, normalize, temperature
from groupvit.segmentation import drawing
from groupvit.segmentation.labels import BACKGROUND, Label, parse_labels
from groupvit.segmentation.resampling import resampled_argmax
from groupvit.text.templates import SIMPLE_TEMPLATE
from groupvit.text.tokenizer import Tokenizer

_LONGEST = 2048 / 448  # the published evaluation's bound on the long side, in short sides
_TEXTS_AT_ONCE = 256


@dataclass(frozen=True, eq=False)
class Segmentation:
    """What each pixel of a photo is called.

    `label_map` holds indices into `names`, at the photo's size. `shares` are the labels' parts of the photo, `scores`
    the mean of the winning label's score over the label's pixels (0 where it has none). `groups` holds the index of the
    group that owns each pixel, stage by stage; it is empty for a plain ViT and when several windows were used, since
    each window has groups of its own.
    """

    image: Image.Image
    label_map: UInt[np.ndarray, "height width"]
    names: tuple[str, ...]
    shares: tuple[float, ...]
    scores: tuple[float, ...]
    groups: tuple[UInt[np.ndarray, "height width"], ...]

    def overlay(self) -> Image.Image:
        """The photo under its labels' colours, with a legend."""
        return drawing.overlay(self.image, self.label_map, self.names)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, without the maps."""
        rows = zip(self.names, self.shares, self.scores, strict=True)
        labels = [
            {"index": i, "name": name, "share": share, "score": score} for i, (name, share, score) in enumerate(rows)
        ]
        return {"width": self.image.width, "height": self.image.height, "labels": labels}


class Options(TypedDict, total=False):
    """The keywords of `Segmenter.segment`, which explains them."""

    templates: Sequence[str]
    background: float | None
    maps: Literal["soft", "hard"]
    window: int | None
    stride: int | None
    short_side: int | None
    batch_size: int


@dataclass(frozen=True)
class _Window:
    """One encoded window: which patches each group owns, stage by stage, and how well labels fit the final segments."""

    photo: int
    top: int
    left: int
    height: int
    width: int
    grid: tuple[int, int]
    groups: tuple[Float[Tensor, "_ rows columns"], ...]
    scores: Float[Tensor, "segments labels"]


class Segmenter:
    """A model that turns photos and words into label maps.

    Sets the model to evaluation and moves it to `device` (a GPU when there is one). Embeddings of recent label lists
    are kept, so make a new Segmenter when the weights have changed.
    """

    def __init__(self, model: GroupViT, config: ModelConfig, *, device: torch.device | str | None = None):
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.model = model.to(self.device).eval()
        self.config = config
        self._tokenizer = Tokenizer(config.text.context_length)
        self._embed = lru_cache(maxsize=8)(self._embed_words)

    @overload
    def segment(
        self, images: Image.Image | np.ndarray, labels: Sequence[str | Label], **options: Unpack[Options]
    ) -> Segmentation: ...

    @overload
    def segment(
        self, images: Sequence[Image.Image | np.ndarray], labels: Sequence[str | Label], **options: Unpack[Options]
    ) -> list[Segmentation]: ...

    def segment(
        self,
        images: Image.Image | np.ndarray | Sequence[Image.Image | np.ndarray],
        labels: Sequence[str | Label],
        *,
        templates: Sequence[str] = (SIMPLE_TEMPLATE,),
        background: float | None = None,
        maps: Literal["soft", "hard"] = "soft",
        window: int | None = None,
        stride: int | None = None,
        short_side: int | None = None,
        batch_size: int = 8,
    ) -> Segmentation | list[Segmentation]:
        """Names every pixel of a photo, or of each photo of a list (uint8 RGB arrays or PIL images).

        A segment's score for a label is the softmax over labels of scaled cosine similarities; of a label's several
        words the best one counts, because the mean of different senses is near none of them. Each pixel takes the
        scores of the group that owns it: `maps="soft"` multiplies the stages' soft assignments and compares groups
        after bilinear upsampling, as the published code does; `"hard"` multiplies hard assignments, as §3.3 says.
        A plain ViT upsamples its patches' scores.

        Photos are resized to `short_side` (default: the training size). `window` and `stride` (default: half a window)
        are pixels of the resized photo; windows overlap, their scores are averaged, and each costs one encoder pass.
        The published checkpoints were evaluated at `short_side=448, window=448, stride=224`.

        With `background`, pixels whose best score is below it become index 0, named "background", and the labels
        follow; without, indices are the labels' own (see `parse_labels` for labels called background).

        Raises `InputError` for anything but photos, for labels that cannot be told apart and for impossible settings.
        """
        single = isinstance(images, Image.Image | np.ndarray | str | Path)  # a path is refused as an image
        photos = [_to_rgb(image) for image in ([images] if single else images)]
        parsed = parse_labels(labels)
        short_side = self.config.image.image_size if short_side is None else short_side
        _check(parsed, templates, background, maps, short_side, window, stride, batch_size)

        step = stride or max(1, (window or 2) // 2)
        sizes = [_resized(photo.size, short_side) for photo in photos]
        plan = [
            (i, top, left, min(window or height, height), min(window or width, width))
            for i, (height, width) in sorted(enumerate(sizes), key=lambda item: item[1])
            for top in _starts(height, window or height, step)
            for left in _starts(width, window or width, step)
        ]
        results: dict[int, Segmentation] = {}
        with torch.inference_mode():
            words = self._embed(tuple(word for label in parsed for word in label.words), tuple(templates))
            windows = self._encode(photos, sizes, plan, words, [len(label.words) for label in parsed], maps, batch_size)
            for i, own in groupby(windows, key=lambda w: w.photo):
                results[i] = self._name(photos[i], sizes[i], list(own), parsed, background)
        return results[0] if single else [results[i] for i in range(len(photos))]

    def _embed_words(self, words: tuple[str, ...], templates: tuple[str, ...]) -> Float[Tensor, "words embed"]:
        """Unit vectors of words: the mean over templates of the prompts' embeddings, normalised."""
        prompts = [template.replace("{}", word) for word in words for template in templates]
        chunks = [prompts[i : i + _TEXTS_AT_ONCE] for i in range(0, len(prompts), _TEXTS_AT_ONCE)]
        embedded = torch.cat([self.model.encode_text(self._tokenizer(chunk).to(self.device)) for chunk in chunks])
        embedded = embedded.to(torch.promote_types(embedded.dtype, torch.float32))
        return F.normalize(rearrange(embedded, "(w t) d -> w t d", w=len(words)).mean(dim=1), dim=-1)

    def _encode(
        self,
        photos: Sequence[Image.Image],
        sizes: Sequence[tuple[int, int]],
        plan: Sequence[tuple[int, int, int, int, int]],
        words: Float[Tensor, "words embed"],
        lengths: list[int],
        maps: Literal["soft", "hard"],
        batch_size: int,
    ) -> Iterator[_Window]:
        """Windows in the plan's order, encoded in batches of one size."""
        pixels = lru_cache(maxsize=1)(lambda i: self._pixels(photos[i], sizes[i]))
        for _, same_size in groupby(plan, key=lambda place: place[3:]):
            places = list(same_size)
            for batch in (places[i : i + batch_size] for i in range(0, len(places), batch_size)):
                crops = [pixels(i)[:, top : top + height, left : left + width] for i, top, left, height, width in batch]
                features = self.model.image_encoder(torch.stack(crops))
                scores = self._scores(features, words, lengths)
                stages = self._groups(features, hard=maps == "hard")
                for j, place in enumerate(batch):
                    yield _Window(*place, features.grid, tuple(stage[j] for stage in stages), scores[j])

    def _pixels(self, photo: Image.Image, size: tuple[int, int]) -> Float[Tensor, "3 height width"]:
        height, width = size
        if photo.size != (width, height):
            photo = photo.resize((width, height), Image.Resampling.BILINEAR)
        dtype = self.model.image_encoder.pos_embed.dtype
        pixels = rearrange(torch.from_numpy(np.array(photo)), "h w c -> 1 c h w")
        return normalize(pixels.to(self.device), dtype)[0]

    def _scores(
        self, features: ImageFeatures, words: Float[Tensor, "words embed"], lengths: list[int]
    ) -> Float[Tensor, "batch segments labels"]:
        """Softmax over labels for each final segment, in at least float32."""
        segments = self.model.embed_image_features(features.segments)
        scale = self.model.segment_logit_scale if self.config.segment_loss else self.model.logit_scale
        with torch.autocast(self.device.type, enabled=False):
            cosines = segments.to(words.dtype) @ words.T
            best = torch.stack([own.amax(dim=-1) for own in cosines.split(lengths, dim=-1)], dim=-1)
            return (best * temperature(scale).to(best.dtype)).softmax(dim=-1)

    def _groups(self, features: ImageFeatures, *, hard: bool) -> list[Float[Tensor, "batch _ rows columns"]]:
        """The maps of every stage over the patches."""
        with torch.autocast(self.device.type, enabled=False):
            stages = [features.groups(stage, hard=hard) for stage in range(len(features.assignments))]
        if stages and not self.config.image.group_residual:
            # A group without patches is not a segment here, yet between patches its soft map may be the largest.
            stages[-1] = torch.where(features.occupied()[:, :, None, None], stages[-1], -1.0)
        return stages

    def _name(
        self,
        photo: Image.Image,
        size: tuple[int, int],
        windows: list[_Window],
        labels: tuple[Label, ...],
        background: float | None,
    ) -> Segmentation:
        """Averages a photo's windows and decides, at the photo's size."""
        patch = self.config.image.patch_size
        scores = _mean_scores(windows, size, patch)
        step = (size[0] / photo.height, size[1] / photo.width)
        best, index = resampled_argmax(scores, (photo.height, photo.width), step)
        names = tuple(label.name for label in labels)
        if background is not None:
            if names[0] != BACKGROUND:
                names, index = (BACKGROUND, *names), index + 1
            index = np.where(best < background, 0, index)
        counts = np.bincount(index.ravel(), minlength=len(names))
        sums = np.bincount(index.ravel(), best.ravel(), minlength=len(names))
        groups = windows[0].groups if len(windows) == 1 else ()
        patches = (step[0] / patch, step[1] / patch)
        return Segmentation(
            photo,
            index.astype(np.min_scalar_type(len(names) - 1)),
            names,
            tuple((counts / index.size).tolist()),
            tuple((sums / counts.clip(min=1)).tolist()),
            tuple(
                resampled_argmax(group, index.shape, patches)[1].astype(np.min_scalar_type(len(group) - 1))
                for group in groups
            ),
        )


def _to_rgb(image: object) -> Image.Image:
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise InputError(f"an image is an array of {image.dtype} {image.shape}: give uint8 RGB, (height, width, 3)")
        return Image.fromarray(image)
    if not isinstance(image, Image.Image) or not all(image.size):
        raise InputError(f"an image is {image!r}: give a PIL image or a uint8 RGB array that is not empty")
    try:
        return image.convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:  # the file behind a PIL image is read only now
        raise InputError(f"the image {getattr(image, 'filename', '')!r} cannot be read ({error})") from error


def _check(
    labels: tuple[Label, ...],
    templates: Sequence[str],
    background: float | None,
    maps: str,
    short_side: int,
    window: int | None,
    stride: int | None,
    batch_size: int,
) -> None:
    if not templates or not all("{}" in template for template in templates):
        raise InputError("templates must be a list of texts with {} in the place of the word")
    if background is not None and len(labels) == 1:
        raise InputError(
            f"a background threshold needs rivals for {labels[0].name!r}: labels for the rest of the photo"
        )
    if maps not in ("soft", "hard"):
        raise InputError(f"maps={maps!r} must be 'soft' or 'hard'")
    if min(batch_size, short_side, 1 if window is None else window, 1 if stride is None else stride) < 1:
        raise InputError("short side, window, stride and batch size must be at least 1")
    if stride is not None and (window is None or stride > window):
        raise InputError(f"a stride of {stride} needs a window of at least as many pixels, or some are left out")


def _resized(size: tuple[int, int], short_side: int) -> tuple[int, int]:
    """Height and width at which a photo of (width, height) is encoded; its shape is kept."""
    scale = min(short_side / min(size), _LONGEST * short_side / max(size))
    width, height = (max(1, int(side * scale + 0.5)) for side in size)
    return height, width


def _starts(length: int, window: int, stride: int) -> list[int]:
    """Where windows begin along one side; the last is flush with the border."""
    last = max(length - window, 0)
    return [*range(0, last, stride), last]


def _mean_scores(windows: Sequence[_Window], size: tuple[int, int], patch: int) -> Float[Tensor, "labels height width"]:
    """Label scores at every pixel of the resized photo, averaged where windows overlap."""
    total = windows[0].scores.new_zeros(windows[0].scores.shape[-1], *size)
    count = total.new_zeros(size)
    for w in windows:
        inside = (slice(w.top, w.top + w.height), slice(w.left, w.left + w.width))
        total[:, *inside] += _pixel_scores(w, patch)
        count[inside] += 1
    return total.div_(count)


def _pixel_scores(w: _Window, patch: int) -> Float[Tensor, "labels height width"]:
    """Each pixel has the scores of the final group that owns it; without groups, patches' scores are interpolated."""
    labels = w.scores.shape[-1]
    patches = w.groups[-1] if w.groups else w.scores.T.reshape(labels, *w.grid)
    pixels = F.interpolate(patches[None], scale_factor=patch, mode="bilinear", align_corners=False)[0]
    pixels = pixels[:, : w.height, : w.width]
    return w.scores.T[:, pixels.argmax(dim=0)] if w.groups else pixels
