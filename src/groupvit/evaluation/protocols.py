"""How a model is asked: everything that moves a number but is neither the model nor the data (docs/PROTOCOLS.md)."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from groupvit.errors import InputError
from groupvit.evaluation.datasets import CLASSES, Dataset
from groupvit.models import ModelConfig
from groupvit.segmentation.labels import BACKGROUND, Label, parse_labels
from groupvit.segmentation.segmenter import Options
from groupvit.text.templates import SIMPLE_TEMPLATE

RELEASE_NAMES: Mapping[str, Mapping[str, str]] = CLASSES["release"]
"""What the release calls classes of VOC and of Context, where it departs from the data set."""

SYNONYMS: Mapping[str, Sequence[str]] = CLASSES["synonyms"]
"""Words that stand for a class under `calibrated-native`; other classes stand for themselves."""

CONTRAST: Mapping[str, Sequence[str]] = CLASSES["contrast"]
"""Words for what is no class of a benchmark, which compete as background under `calibrated-native`."""


@dataclass(frozen=True)
class Protocol:
    """How photos are prepared, labels are worded and scores decided.

    `short_side`, `window` and `stride` are pixels, or multiples of the model's training size or of the short side that
    suits it best (`ImageEncoderConfig.short_side`).
    `contrast` are words that compete as background: the declared ones, or those that a model brings of its vocabulary
    (`Segmenter.with_rivals`).
    `scores="gated"` is the published code's product of softmaxes (see `Segmenter.segment`). `thresholds` are those of
    the background by benchmark; without them the threshold is chosen on one half of the photos for the other.
    """

    name: str
    class_names: Literal["dataset", "release", "synonyms"]
    contrast: bool | Literal["vocabulary"]
    templates: tuple[str, ...]
    unit: Literal["pixels", "training size", "best size"]
    short_side: int
    window: int | None
    stride: int | None
    antialias: bool
    maps: Literal["soft", "hard"]
    scores: Literal["softmax", "gated"]
    thresholds: Mapping[str, float] | None

    def labels(self, dataset: Dataset) -> tuple[Label, ...]:
        """What the segmenter looks for: every class but the background, and the contrast as background."""
        named = dataset.labels[1:] if dataset.has_background else dataset.labels
        labels = [label if "=" in label else Label(label, self._words(label, dataset.benchmark)) for label in named]
        contrast = CONTRAST.get(dataset.benchmark, ()) if self.contrast is True else ()
        try:
            return parse_labels([*([Label(BACKGROUND, tuple(contrast))] if contrast else []), *labels])
        except InputError as error:
            raise InputError(f"{dataset.root}: {error}") from error

    def _words(self, name: str, benchmark: str) -> tuple[str, ...]:
        if self.class_names == "release":
            return (RELEASE_NAMES.get(benchmark.rstrip("0123456789"), {}).get(name, name),)
        return tuple(SYNONYMS.get(name, (name,))) if self.class_names == "synonyms" else (name,)

    def calibrated(self, dataset: Dataset) -> bool:
        """Whether the threshold is to be found on the photos themselves."""
        return dataset.has_background and self.thresholds is None

    def threshold(self, dataset: Dataset) -> float | None:
        """The background's threshold; an `InputError` where the protocol gives none for this benchmark."""
        if not dataset.has_background or self.thresholds is None:
            return None
        if dataset.benchmark not in self.thresholds:
            raise InputError(
                f"protocol {self.name} has no background threshold for {dataset.benchmark}, only for "
                f"{', '.join(self.thresholds)}: take calibrated-native"
            )
        return self.thresholds[dataset.benchmark]

    def options(self, config: ModelConfig, dataset: Dataset) -> Options:
        """The keywords of `Segmenter.segment`."""
        unit = {"pixels": 1, "training size": config.image.image_size, "best size": config.image.short_side}[self.unit]
        own = self.contrast == "vocabulary" and dataset.has_background
        return {
            "templates": self.templates,
            "background": "auto" if own else self.threshold(dataset),
            "maps": self.maps,
            "scores": self.scores,
            "antialias": self.antialias,
            "short_side": self.short_side * unit,
            "window": self.window and self.window * unit,
            "stride": self.stride and self.stride * unit,
        }

    def record(self, config: ModelConfig, dataset: Dataset) -> dict[str, Any]:
        """What result files say: the protocol, the words that stood for each class, and the lengths in pixels."""
        words = {label.name: list(label.words) for label in self.labels(dataset)}
        return {**asdict(self), "words": words, "options": dict(self.options(config, dataset))}


RELEASE_2022 = Protocol(
    name="release-2022",
    class_names="release",
    contrast=False,
    templates=(SIMPLE_TEMPLATE,),
    unit="pixels",
    short_side=448,
    window=448,
    stride=224,
    antialias=False,
    maps="soft",
    scores="gated",
    thresholds={"voc21": 0.95, "context60": 0.35, "coco-object-stuff": 0.95, "coco-object-instances": 0.95},
)
"""The authors' code of May 2022, as its published numbers were made."""

PAPER_2022 = Protocol(
    name="paper-2022",
    class_names="dataset",
    contrast=False,
    templates=(SIMPLE_TEMPLATE,),
    unit="pixels",
    short_side=448,
    window=None,
    stride=None,
    antialias=True,
    maps="hard",
    scores="softmax",
    thresholds={"voc21": 0.9, "context60": 0.5},
)
"""§3.3 and §4.2 of the paper as printed."""

CALIBRATED_NATIVE = Protocol(
    name="calibrated-native",
    class_names="synonyms",
    contrast=True,
    templates=(SIMPLE_TEMPLATE,),
    unit="training size",
    short_side=2,
    window=1,
    stride=None,
    antialias=True,
    maps="soft",
    scores="softmax",
    thresholds=None,
)
"""For any model: windows of the training size over photos of twice that, the threshold cross-fitted on the photos."""

CALIBRATED_WHOLE = replace(CALIBRATED_NATIVE, name="calibrated-whole", unit="best size", short_side=1, window=2)
"""The same with one look at the whole photo, up to 2 : 1, at the size that suits the model best."""

PROTOCOLS = {protocol.name: protocol for protocol in (RELEASE_2022, PAPER_2022, CALIBRATED_NATIVE, CALIBRATED_WHOLE)}


def get_protocol(name: str) -> Protocol:
    """A protocol by its name."""
    if name not in PROTOCOLS:
        raise InputError(f"no protocol {name!r}: there are {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]
