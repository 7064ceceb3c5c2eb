"""Photos and words to label maps (§3.3)."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache, partial
from itertools import groupby, islice
from numbers import Integral
from typing import Any, Literal, overload

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from groupvit.errors import InputError, input_error
from groupvit.files import MAX_PIXELS
from groupvit.machine import bfloat16_is_faster, enough_memory, usable
from groupvit.models import GroupViT, ImageFeatures, ModelConfig, temperature
from groupvit.photos import Photo, rgb_of
from groupvit.segmentation.engine import Engine, chosen, encoder_in
from groupvit.segmentation.labels import BACKGROUND, Label, Labels
from groupvit.segmentation.result import Segmentation
from groupvit.segmentation.view import View
from groupvit.segmentation.windows import (
    Window,
    mean_scores,
    plan,
    resampled_argmax,
    resampled_rows,
    resized,
    shared_scores,
)
from groupvit.segmentation.words import WordBank
from groupvit.text.templates import SIMPLE_TEMPLATE

Precision = Literal["bf16", "fp32"]
"""Numbers of the image encoder; embeddings of words, scores and maps are float32 in either case."""

_COUNTED = 2**24
_ENCODED = 2**25  # pixels of one window: more hardly fit into memory
_GATE = 5  # labels of a window that the published evaluation lets through


class Segmenter:
    """A model that turns photos and words into label maps.

    Sets the model to evaluation and moves it to `device` (a GPU when there is one and PyTorch is the `engine`, which
    runs the image encoder). The default of `precision` is what is faster on this machine. Embeddings of recent label
    lists are kept, so make a new Segmenter when the weights have changed.
    """

    def __init__(
        self,
        model: GroupViT,
        config: ModelConfig,
        *,
        device: torch.device | str | None = None,
        precision: Precision | None = None,
        engine: Engine | Literal["auto"] = "torch",
    ):
        if precision not in (None, "bf16", "fp32"):
            raise InputError(f"precision={precision!r} must be 'bf16' or 'fp32'")
        elsewhere = not str(device or "cpu").startswith("cpu")
        engine = "torch" if engine == "auto" and elsewhere else chosen(engine)
        if engine == "onnxruntime" and precision == "bf16":
            raise InputError("onnxruntime computes in fp32: drop the precision bf16, or take another engine")
        gpu = engine == "torch" and torch.cuda.is_available()
        self.device = usable(device or ("cuda" if gpu else "cpu"))
        if engine != "torch" and self.device.type != "cpu":
            raise InputError(f"the engine {engine} computes on the CPU: leave out device={str(device)!r}")
        with enough_memory("with CUDA_VISIBLE_DEVICES='' the CPU computes"):
            self.model = model.to(self.device).eval()
        self.config = config
        self.words = WordBank(self.model, config, self.device)
        self.engine: Engine = engine
        self.encoder = encoder_in(engine, self.model.image_encoder)
        self.precision: Precision = precision or self._faster_precision()

    def __reduce__(self) -> tuple[Any, ...]:
        """Go to another process as a model and choices: embeddings of words and compiled networks are made there."""
        choices = {"device": self.device, "precision": self.precision, "engine": self.engine}
        return partial(type(self), **choices), (self.model, self.config)

    def _faster_precision(self) -> Precision:
        if self.engine == "onnxruntime":
            return "fp32"
        side, kind = self.config.image.image_size, repr(self.config.image)
        black = torch.zeros(1, 3, side, side, dtype=torch.uint8, device=self.device)
        image, kind = self.model.image_encoder.preprocess(black), f"{self.engine} " * (self.engine != "torch") + kind
        return "bf16" if bfloat16_is_faster(self.device, kind, lambda: self.encoder(image)) else "fp32"

    @overload
    def segment(self, images: Photo, labels: Labels, view: View | None = None, **_: Any) -> Segmentation: ...

    @overload
    def segment(
        self, images: Sequence[Photo], labels: Labels, view: View | None = None, **_: Any
    ) -> list[Segmentation]: ...

    def segment(
        self,
        images: Photo | Sequence[Photo],
        labels: Labels,
        view: View | None = None,
        *,
        batch_size: int = 8,
        keep_features: bool = False,
        **changes: Any,
    ) -> Segmentation | list[Segmentation]:
        """Name every pixel of a photo, or of each photo of a list: paths, PIL images or arrays (`photos.rgb_of`).

        A dictionary of labels has names and their words: `{"person": ["man", "woman"]}`.

        A segment's score for a label is the softmax over labels of scaled cosine similarities. Of a label's several
        words the best one counts: the mean of different senses is near none of them (`WordBank`). Each pixel
        takes the scores of the group that owns it, or the mean of those of three sizes where groups are seeded; a plain
        ViT upsamples its patches' scores. In the result, index 0 is "background" where it is looked for, and the labels
        follow.

        `changes` are fields of the `View`: `segment(photo, labels, background=None)`. With `keep_features` the
        result's windows hold the image encoder's features.

        Raises `InputError` for anything but photos, for labels that cannot be told apart and for impossible settings.
        """
        one = isinstance(images, str | bytes | bytearray | memoryview) or not isinstance(images, Sequence)
        listed: Any = [images] if one else images
        photos = [rgb_of(image) for image in listed]
        if "templates" in changes:
            with input_error("templates are a list of texts", TypeError):
                changes["templates"] = tuple(changes["templates"])
        view = replace(view or View(), **changes).of(self.config.image)
        parsed = self.labels_of(labels, view)
        if view.threshold is not None and len(parsed) == 1:
            raise InputError(
                f"a background threshold needs rivals for {parsed[0].name!r}: labels for the rest of the photo"
            )
        if not isinstance(batch_size, Integral) or not 1 <= batch_size <= 2**16:
            raise InputError("batch size must be a whole number from 1 to 65536")
        sizes = [resized(photo.size, view.short_side or 0) for photo in photos]
        _refuse_large(sizes, view)
        results: dict[int, Segmentation] = {}
        with self.precise():
            encoded = self._encode(photos, sizes, parsed, view, batch_size, keep_features)
            for i, pairs in groupby(encoded, key=lambda pair: pair[0]):
                windows = tuple(window for _, window in pairs)
                results[i] = self._name(photos[i], sizes[i], windows, parsed, view)
        return results[0] if one else [results[i] for i in range(len(photos))]

    @contextmanager
    def precise(self) -> Iterator[None]:
        """Compute in the segmenter's precision, without gradients."""
        bf16 = self.precision == "bf16"
        with torch.inference_mode(), torch.autocast(self.device.type, torch.bfloat16, enabled=bf16):
            yield

    def labels_of(self, labels: Labels, view: View) -> tuple[Label, ...]:
        """Return the labels that `segment` looks for under a view."""
        return self.words.with_rivals(labels) if view.background == "auto" else self.words.without_strangers(labels)

    def embed_words(
        self, words: Sequence[str], templates: Sequence[str] = (SIMPLE_TEMPLATE,)
    ) -> Float[Tensor, "words embed"]:
        """Return unit vectors of words (`WordBank.embed`)."""
        if isinstance(words, str) or isinstance(templates, str):
            raise InputError("words and templates are lists of texts, such as ['cat', 'dog']")
        if not words:
            raise InputError("no words: give a list of texts")
        return self.words.embed(words, templates).clone()  # no inference tensor, so that autograd takes it

    def _encode(
        self,
        photos: Sequence[Image.Image],
        sizes: Sequence[tuple[int, int]],
        labels: Sequence[Label],
        view: View,
        batch_size: int,
        keep_features: bool,
    ) -> Iterator[tuple[int, Window]]:
        """Yield photos' indices with their windows, encoded in batches of one size."""
        pixels = lru_cache(maxsize=1)(lambda i: self._pixels(photos[i], sizes[i], view.antialias))
        for _, same_size in groupby(plan(sizes, view.window, view.stride), key=lambda place: place[1][2:]):
            while batch := list(islice(same_size, batch_size)):
                crops = [pixels(i)[:, y : y + height, x : x + width] for i, (y, x, height, width) in batch]
                features = self.encoder(torch.stack(crops))
                scores, stages = self._named(features, labels, view)
                others = [self._named(again, labels, view) for again in self.model.image_encoder.regrouped(features)]
                for j, (i, place) in enumerate(batch):  # copies: a result that is kept does not keep its batch
                    owners = tuple(stage[j].clone() for stage in stages)
                    more = tuple((maps[-1][j].clone(), fit[j].clone()) for fit, maps in others)
                    fits, image = scores[j].clone(), features.image(j) if keep_features else None
                    yield i, Window(*place, features.grid, groups=owners, scores=fits, others=more, features=image)

    def _named(
        self, features: ImageFeatures, labels: Sequence[Label], view: View
    ) -> tuple[Float[Tensor, "batch segments names"], list[Float[Tensor, "batch _ rows columns"]]]:
        """Return how labels fit the final segments, and the maps of every stage."""
        scores = self.label_scores(features.segments, labels, view.templates)
        if view.scores == "gated":
            scores = self._gate(scores, features, labels, view)
        return scores, features.stages(hard=view.maps == "hard", keep_empty=self.config.image.group_residual)

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

    @torch.inference_mode()
    def label_scores(
        self, segments: Float[Tensor, "batch segments dim"], labels: Sequence[Label], templates: Sequence[str]
    ) -> Float[Tensor, "batch segments labels"]:
        """Return the softmax over labels for each final segment, in at least float32."""
        scale = self.model.segment_logit_scale if self.config.segment_loss else self.model.logit_scale
        return self._logits(segments, labels, templates, scale).softmax(dim=-1)

    def _logits(
        self, features: Float[Tensor, "batch _ dim"], labels: Sequence[Label], templates: Sequence[str], scale: Tensor
    ) -> Float[Tensor, "batch _ labels"]:
        words = self.words.embed([word for label in labels for word in label.words], templates)
        embedded = self.model.embed_image_features(features)
        with torch.autocast(self.device.type, enabled=False):
            cosines = (embedded.to(words.dtype) @ words.T).split([len(label.words) for label in labels], dim=-1)
            best = torch.stack([of_label.amax(dim=-1) for of_label in cosines], dim=-1)
            return best * temperature(scale).to(best.dtype)

    def _gate(
        self,
        scores: Float[Tensor, "batch segments labels"],
        features: ImageFeatures,
        labels: Sequence[Label],
        view: View,
    ) -> Float[Tensor, "batch segments names"]:
        """Return the published evaluation's scores, where rejected segments have 1 for the background."""
        whole = self._logits(features.pooled[:, None], labels, view.templates, self.model.logit_scale)
        best = whole.topk(min(_GATE, whole.shape[-1]), dim=-1).indices
        kept = scores * torch.zeros_like(whole).scatter_(-1, best, 1)
        # The softmax over some labels is that over all of them, made to sum to 1 over those.
        scores = scores * kept / kept.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(kept.dtype).tiny)
        if view.threshold is None:
            return scores
        limit = scores.amax(dim=(1, 2)).clamp(max=view.threshold)
        rejected = (scores.amax(dim=-1) < limit[:, None]).to(scores.dtype)[..., None]
        if labels[0].name == BACKGROUND:
            return torch.cat([torch.maximum(rejected, scores[..., :1]), scores[..., 1:]], dim=-1)
        return torch.cat([rejected, scores], dim=-1)

    def _name(
        self,
        photo: Image.Image,
        size: tuple[int, int],
        windows: tuple[Window, ...],
        labels: Sequence[Label],
        view: View,
    ) -> Segmentation:
        """Average a photo's windows and decide, at the photo's size."""
        patch = self.config.image.patch_size
        pixels, step = (photo.height, photo.width), (size[0] / photo.height, size[1] / photo.width)
        if windows[0].groups:
            best, index = resampled_rows(*shared_scores(windows, size, patch), pixels, step)
        else:
            best, index = resampled_argmax(mean_scores(windows, size, patch), pixels, step)
        names = tuple(label.name for label in labels)
        if view.threshold is not None and names[0] != BACKGROUND:
            names = (BACKGROUND, *names)
        if view.threshold is not None and view.scores == "softmax":
            index = np.where(best < view.threshold, 0, index + len(names) - len(labels))
        counts, sums = np.zeros(len(names), np.int64), np.zeros(len(names))
        for rows in range(0, photo.height, strip := max(1, _COUNTED // photo.width)):  # bincount copies to 64 bits
            part = index[rows : rows + strip].ravel()
            counts += np.bincount(part, minlength=len(names))
            sums += np.bincount(part, best[rows : rows + strip].ravel(), minlength=len(names))
        return Segmentation(
            image=photo,
            label_map=index.astype(np.min_scalar_type(len(names) - 1)),
            names=names,
            shares=tuple((counts / index.size).tolist()),
            scores=tuple((sums / counts.clip(min=1)).tolist()),
            confidence=best,
            windows=windows,
            step=step,
            patch_size=patch,
        )


def _refuse_large(sizes: Sequence[tuple[int, int]], view: View) -> None:
    """Refuse what could fill the memory."""
    for height, width in sizes:
        window = view.window or max(height, width)
        if height * width > MAX_PIXELS or min(height, window) * min(width, window) > _ENCODED:
            raise InputError(
                f"a short side of {view.short_side} enlarges a photo to {width} x {height} pixels, more than fit into "
                "memory: choose a smaller one, or a window"
            )
