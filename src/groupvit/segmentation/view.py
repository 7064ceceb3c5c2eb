"""The view: how a photo is shown to a model, and how its scores become names."""

from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import Literal

from groupvit.errors import InputError
from groupvit.models import ImageEncoderConfig
from groupvit.text.templates import SIMPLE_TEMPLATE


@dataclass(frozen=True, kw_only=True)
class View:
    """Everything that moves a label map besides the model, the photo and the labels.

    Photos are resized to `short_side` (default: what suits the model). `window` and `stride` (default: half a window)
    are pixels of the resized photo. Windows overlap, their scores are averaged, and each costs one encoder pass.
    Without a window the model sees the photo as a whole; a model with a trunk does so up to 2 : 1.
    With `antialias` off, a pixel of the resized photo is interpolated between four pixels of the photo only.

    `maps="soft"` multiplies the stages' soft assignments and compares groups after bilinear upsampling, as the
    published code does; `"hard"` multiplies hard assignments, as §3.3 says.

    `background="auto"` lets nouns that the model learnt compete with the labels; what these win is background
    (`WordBank.with_rivals`). With a number, background is where the best score is lower. With None every pixel gets a
    label. A model without such nouns treats "auto" as None.

    `scores="gated"` is the published evaluation's product: a segment's softmax times its softmax over the five labels
    that fit its window as a whole best. The threshold then acts on the segments of each window, where it is at most
    the window's best score. The published checkpoints were evaluated with it, at `short_side=448, window=448,
    stride=224, antialias=False`.

    `templates` are the prompts around each word, with {} in its place.
    """

    short_side: int | None = None
    window: int | None = None
    stride: int | None = None
    antialias: bool = True
    maps: Literal["soft", "hard"] = "soft"
    scores: Literal["softmax", "gated"] = "softmax"
    background: float | Literal["auto"] | None = "auto"
    templates: tuple[str, ...] = (SIMPLE_TEMPLATE,)

    def __post_init__(self):
        texts = self.templates if isinstance(self.templates, tuple) else ()
        if not texts or not all(isinstance(text, str) and "{}" in text for text in texts):
            raise InputError("templates must be a list of texts with {} in the place of the word")
        given = self.background
        is_score = isinstance(given, Real) and not isinstance(given, bool | str) and 0 <= given <= 1
        if not is_score and given not in ("auto", None):
            raise InputError(f"background={given!r} must be auto, none (None in Python), or a score between 0 and 1")
        if not isinstance(self.antialias, bool):
            raise InputError(f"antialias={self.antialias!r} must be True or False")
        if self.maps not in ("soft", "hard"):
            raise InputError(f"maps={self.maps!r} must be 'soft' or 'hard'")
        if self.scores not in ("softmax", "gated"):
            raise InputError(f"scores={self.scores!r} must be 'softmax' or 'gated'")
        lengths = [length for length in (self.short_side, self.window, self.stride) if length is not None]
        if not all(isinstance(length, Integral) and length >= 1 for length in lengths):
            raise InputError("short side, window and stride must be whole numbers, at least 1")

    @property
    def threshold(self) -> float | None:
        """Score below which a pixel is background, if there is one."""
        return None if isinstance(self.background, str) else self.background

    def of(self, image: ImageEncoderConfig) -> "View":
        """Return the view with the lengths that suit a model in the place of defaults."""
        side = self.short_side or image.short_side
        window = self.window or (2 * side if image.has_trunk else None)
        if self.stride is not None and (window is None or self.stride > window):
            raise InputError(
                f"a stride of {self.stride} needs a window of at least as many pixels, or some are left out"
            )
        return replace(self, short_side=side, window=window)
