"""From photos and words to label maps (§3.3)."""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import groupby, islice
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
from groupvit.models import GroupViT, ImageFeatures, ModelConfig, temperature
from groupvit.segmentation.labels import BACKGROUND, Label, parse_labels
from groupvit.segmentation.resampling import resampled_argmax, resampled_rows
from groupvit.segmentation.result import Segmentation
from groupvit.segmentation.rivals import choose_rivals
from groupvit.segmentation.windows import Window, covered, mean_scores, patch_shares, plan, resized, shared_scores
from groupvit.text.templates import SIMPLE_TEMPLATE
from groupvit.text.tokenizer import Tokenizer

Regions = UInt[np.ndarray, "_ _"]
"""An index map; photos of several sizes come in one list."""

_TEXTS_AT_ONCE = 256
_GATE = 5  # labels of a window that the published evaluation lets through


class Options(TypedDict, total=False):
    """The keywords of `Segmenter.segment`, which explains them."""

    templates: Sequence[str]
    background: float | Literal["auto"] | None
    maps: Literal["soft", "hard"]
    scores: Literal["softmax", "gated"]
    window: int | None
    stride: int | None
    short_side: int | None
    antialias: bool
    batch_size: int
    regions: Sequence[Regions]


@dataclass(frozen=True)
class _Settings:
    """What `Segmenter.segment` was asked, checked."""

    labels: tuple[Label, ...]
    templates: tuple[str, ...]
    background: float | None
    maps: Literal["soft", "hard"]
    scores: Literal["softmax", "gated"]
    short_side: int
    window: int | None
    stride: int | None
    antialias: bool
    batch_size: int

    def __post_init__(self):
        if not self.templates or not all("{}" in template for template in self.templates):
            raise InputError("templates must be a list of texts with {} in the place of the word")
        if isinstance(self.background, str):
            raise InputError(f"background={self.background!r} must be 'auto', a number or None")
        if self.background is not None and len(self.labels) == 1:
            raise InputError(
                f"a background threshold needs rivals for {self.labels[0].name!r}: labels for the rest of the photo"
            )
        if self.maps not in ("soft", "hard"):
            raise InputError(f"maps={self.maps!r} must be 'soft' or 'hard'")
        if self.scores not in ("softmax", "gated"):
            raise InputError(f"scores={self.scores!r} must be 'softmax' or 'gated'")
        lengths = (self.batch_size, self.short_side, self.window, self.stride)
        if min(1 if length is None else length for length in lengths) < 1:
            raise InputError("short side, window, stride and batch size must be at least 1")
        if self.stride is not None and (self.window is None or self.stride > self.window):
            raise InputError(
                f"a stride of {self.stride} needs a window of at least as many pixels, or some are left out"
            )

    @property
    def names(self) -> tuple[str, ...]:
        """Of the result: the threshold's background comes first where no label is called so."""
        names = tuple(label.name for label in self.labels)
        return names if self.background is None or names[0] == BACKGROUND else (BACKGROUND, *names)


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
        self._embed = lru_cache(maxsize=8)(self._embed_uncached)

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
        background: float | Literal["auto"] | None = "auto",
        maps: Literal["soft", "hard"] = "soft",
        scores: Literal["softmax", "gated"] = "softmax",
        window: int | None = None,
        stride: int | None = None,
        short_side: int | None = None,
        antialias: bool = True,
        batch_size: int = 8,
        regions: Sequence[Regions] = (),
    ) -> Segmentation | list[Segmentation]:
        """Names every pixel of a photo, or of each photo of a list (uint8 RGB arrays or PIL images).

        A segment's score for a label is the softmax over labels of scaled cosine similarities; of a label's several
        words the best one counts, because the mean of different senses is near none of them. Each pixel takes the
        scores of the group that owns it: `maps="soft"` multiplies the stages' soft assignments and compares groups
        after bilinear upsampling, as the published code does; `"hard"` multiplies hard assignments, as §3.3 says.
        A plain ViT upsamples its patches' scores.

        Photos are resized to `short_side` (default: the training size, twice that for a model with a trunk). `window`
        and `stride` (default: half a window) are pixels of the resized photo; windows overlap, their scores are
        averaged, and each costs one encoder pass. Without a window the photo is seen as a whole, by a model with a
        trunk up to 2 : 1.
        With `antialias` off, a pixel of the resized photo is interpolated between four pixels of the photo only.

        Index 0 is "background" where it is looked for, and the labels follow. By default nouns that the model learnt
        compete with the labels, and what these win is background (`with_rivals`). With a number, background is where
        the best score is below it. With None every pixel gets a label, as it does by a model without such nouns (see
        `parse_labels` for labels called background).

        `scores="gated"` is what the published evaluation does, beyond the paper: a segment's softmax is multiplied with
        its softmax over the five labels that fit its window as a whole best, and the threshold acts on the segments of
        each window, where it is at most the window's best score. The published checkpoints were evaluated with it, at
        `short_side=448, window=448, stride=224, antialias=False`.

        `regions`, an index map for each photo (255: no region), changes no map: each region is named besides, as if the
        model had found it (`ImageEncoder.segments_of`), and the result's windows hold the softmax of its scores.

        Raises `InputError` for anything but photos, for labels that cannot be told apart and for impossible settings.
        """
        single = isinstance(images, Image.Image | np.ndarray | str | Path)  # a path is refused as an image
        photos = [_to_rgb(image) for image in ([images] if single else images)]
        side = self.config.image.short_side if short_side is None else short_side
        if window is None and self.config.image.has_trunk:
            window = 2 * side
        auto = background == "auto"
        settings = _Settings(
            self.with_rivals(labels) if auto else parse_labels(labels),
            tuple(templates),
            None if auto else background,
            maps,
            scores,
            side,
            window,
            stride,
            antialias,
            batch_size,
        )
        if regions and [region.shape for region in regions] != [photo.size[::-1] for photo in photos]:
            raise InputError("regions must be one map for each photo, of the photo's height and width")
        sizes = [resized(photo.size, side) for photo in photos]
        results: dict[int, Segmentation] = {}
        with torch.inference_mode():
            for i, own in groupby(self._encode(photos, sizes, settings, regions), key=lambda pair: pair[0]):
                results[i] = self._name(photos[i], sizes[i], tuple(window for _, window in own), settings)
        return results[0] if single else [results[i] for i in range(len(photos))]

    def with_rivals(self, labels: Sequence[str | Label]) -> tuple[Label, ...]:
        """The labels, and before them as background what competes with them (`choose_rivals`).

        They stay alone where one is called background, and with a model that has no words to choose from.
        """
        parsed = parse_labels(labels)
        words = [word for label in parsed for word in label.words]
        rivals = () if parsed[0].name == BACKGROUND else choose_rivals(words, self.config.rivals)
        return (Label(BACKGROUND, rivals), *parsed) if rivals else parsed

    @torch.inference_mode()
    def embed_words(self, words: Sequence[str], templates: Sequence[str]) -> Float[Tensor, "words embed"]:
        """Unit vectors of words: the mean over templates of the prompts' embeddings, normalised. Never in autocast."""
        return self._embed(tuple(words), tuple(templates))

    def _embed_uncached(self, words: tuple[str, ...], templates: tuple[str, ...]) -> Float[Tensor, "words embed"]:
        if unseen := [word for word in words if self._unseen(word)]:
            warnings.warn(f"this model's training never saw: {', '.join(unseen)}", stacklevel=2)
        prompts = [template.replace("{}", word) for word in words for template in templates]
        chunks = [prompts[i : i + _TEXTS_AT_ONCE] for i in range(0, len(prompts), _TEXTS_AT_ONCE)]
        with torch.autocast(self.device.type, enabled=False):
            embedded = torch.cat([self.model.encode_text(self._tokenizer(chunk).to(self.device)) for chunk in chunks])
            embedded = embedded.to(torch.promote_types(embedded.dtype, torch.float32))
            return F.normalize(rearrange(embedded, "(w t) d -> w t d", w=len(words)).mean(dim=1), dim=-1)

    def _unseen(self, word: str) -> bool:
        """Whether a part of the word is known to be in no caption of training (`native.forget_unseen`)."""
        tokens = self._tokenizer(word)[0]
        inner = tokens[1 : int(tokens.argmax())].to(self.device)
        return not self.model.text_encoder.token_embedding.weight[inner].any(dim=1).all()

    def _encode(
        self,
        photos: Sequence[Image.Image],
        sizes: Sequence[tuple[int, int]],
        settings: _Settings,
        regions: Sequence[Regions],
    ) -> Iterator[tuple[int, Window]]:
        """Photos' indices with their windows, encoded in batches of one size."""
        words = self.embed_words([word for label in settings.labels for word in label.words], settings.templates)
        lengths = [len(label.words) for label in settings.labels]
        pixels = lru_cache(maxsize=1)(lambda i: self._pixels(photos[i], sizes[i], settings.antialias))
        places = plan(sizes, settings.window, settings.stride)
        for _, same_size in groupby(places, key=lambda place: place[1][2:]):
            while batch := list(islice(same_size, settings.batch_size)):
                crops = [
                    pixels(i)[:, top : top + height, left : left + width] for i, (top, left, height, width) in batch
                ]
                features = self.model.image_encoder(torch.stack(crops))
                scores, stages = self._named(features, words, lengths, settings)
                others = [
                    self._named(again, words, lengths, settings)
                    for again in self.model.image_encoder.regrouped(features)
                ]
                for j, (i, place) in enumerate(batch):
                    window = Window(
                        *place,
                        features.grid,
                        groups=tuple(stage[j] for stage in stages),
                        scores=scores[j],
                        others=tuple((maps[-1][j], fit[j]) for fit, maps in others),
                    )
                    if regions:
                        step = (sizes[i][0] / photos[i].height, sizes[i][1] / photos[i].width)
                        part = regions[i][covered(place, step)]
                        window = replace(window, **self._name_regions(features, j, part, place[2:], words, lengths))
                    yield i, window

    def _named(
        self, features: ImageFeatures, words: Float[Tensor, "words embed"], lengths: list[int], settings: _Settings
    ) -> tuple[Float[Tensor, "batch segments names"], list[Float[Tensor, "batch _ rows columns"]]]:
        """How labels fit the final segments, and the maps of every stage."""
        scores = self._scores(features.segments, words, lengths)
        if settings.scores == "gated":
            scores = self._gate(scores, features, words, lengths, settings)
        return scores, self._groups(features, hard=settings.maps == "hard")

    def _name_regions(
        self,
        features: ImageFeatures,
        image: int,
        regions: Regions,
        size: tuple[int, int],
        words: Float[Tensor, "words embed"],
        lengths: list[int],
    ) -> dict[str, Any]:
        """The fields of `Window` that hold a window's regions."""
        found, shares = patch_shares(regions, size, self.config.image.patch_size)
        if not found:
            return {}
        segments = [
            self.model.image_encoder.segments_of(features, image, shares.to(self.device), stage)
            for stage in range(max(1, sum(stage.groups for stage in self.config.image.stages)))
        ]
        return {"regions": found, "region_scores": tuple(self._scores(torch.stack(segments), words, lengths))}

    def _pixels(
        self, photo: Image.Image, size: tuple[int, int], antialias: bool = True
    ) -> Float[Tensor, "3 height width"]:
        height, width = size
        if antialias and photo.size != (width, height):
            photo = photo.resize((width, height), Image.Resampling.BILINEAR)
        pixels = rearrange(torch.from_numpy(np.array(photo)).to(self.device), "h w c -> 1 c h w")
        if photo.size != (width, height):
            pixels = F.interpolate(pixels.float(), size, mode="bilinear", align_corners=False).round().to(torch.uint8)
        return self.model.image_encoder.preprocess(pixels)[0]

    def _scores(
        self, segments: Float[Tensor, "batch segments dim"], words: Float[Tensor, "words embed"], lengths: list[int]
    ) -> Float[Tensor, "batch segments labels"]:
        """Softmax over labels for each final segment, in at least float32."""
        scale = self.model.segment_logit_scale if self.config.segment_loss else self.model.logit_scale
        return self._logits(segments, words, lengths, scale).softmax(dim=-1)

    def _logits(
        self,
        features: Float[Tensor, "batch _ dim"],
        words: Float[Tensor, "words embed"],
        lengths: list[int],
        scale: Tensor,
    ) -> Float[Tensor, "batch _ labels"]:
        embedded = self.model.embed_image_features(features)
        with torch.autocast(self.device.type, enabled=False):
            cosines = embedded.to(words.dtype) @ words.T
            best = torch.stack([own.amax(dim=-1) for own in cosines.split(lengths, dim=-1)], dim=-1)
            return best * temperature(scale).to(best.dtype)

    def _gate(
        self,
        scores: Float[Tensor, "batch segments labels"],
        features: ImageFeatures,
        words: Float[Tensor, "words embed"],
        lengths: list[int],
        settings: _Settings,
    ) -> Float[Tensor, "batch segments names"]:
        """The published evaluation's scores, where rejected segments have 1 for the background."""
        whole = self._logits(features.pooled[:, None], words, lengths, self.model.logit_scale)
        best = whole.topk(min(_GATE, whole.shape[-1]), dim=-1).indices
        kept = scores * torch.zeros_like(whole).scatter_(-1, best, 1)
        # The softmax over some labels is that over all of them, made to sum to 1 over those.
        scores = scores * kept / kept.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(kept.dtype).tiny)
        if settings.background is None:
            return scores
        limit = scores.amax(dim=(1, 2)).clamp(max=settings.background)
        rejected = (scores.amax(dim=-1) < limit[:, None]).to(scores.dtype)[..., None]
        if settings.labels[0].name == BACKGROUND:
            return torch.cat([torch.maximum(rejected, scores[..., :1]), scores[..., 1:]], dim=-1)
        return torch.cat([rejected, scores], dim=-1)

    def _groups(self, features: ImageFeatures, *, hard: bool) -> list[Float[Tensor, "batch _ rows columns"]]:
        """The maps of every stage over the patches."""
        with torch.autocast(self.device.type, enabled=False):
            stages = [features.groups(stage, hard=hard) for stage in range(len(features.assignments))]
        if stages and not self.config.image.group_residual:
            # A group without patches is not a segment here, yet between patches its soft map may be the largest.
            stages[-1] = torch.where(features.occupied()[:, :, None, None], stages[-1], -1.0)
        return stages

    def _name(
        self, photo: Image.Image, size: tuple[int, int], windows: tuple[Window, ...], settings: _Settings
    ) -> Segmentation:
        """Averages a photo's windows and decides, at the photo's size."""
        patch = self.config.image.patch_size
        step = (size[0] / photo.height, size[1] / photo.width)
        pixels = (photo.height, photo.width)
        if windows[0].groups:
            best, index = resampled_rows(*shared_scores(windows, size, patch), pixels, step)
        else:
            best, index = resampled_argmax(mean_scores(windows, size, patch), pixels, step)
        names = settings.names
        if settings.background is not None and settings.scores == "softmax":
            index = np.where(best < settings.background, 0, index + len(names) - len(settings.labels))
        counts = np.bincount(index.ravel(), minlength=len(names))
        sums = np.bincount(index.ravel(), best.ravel(), minlength=len(names))
        return Segmentation(
            photo,
            index.astype(np.min_scalar_type(len(names) - 1)),
            names,
            tuple((counts / index.size).tolist()),
            tuple((sums / counts.clip(min=1)).tolist()),
            best,
            windows,
            step,
            patch,
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
