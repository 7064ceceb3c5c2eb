"""Named protocols: everything that moves a number besides the model and the data (docs/PROTOCOLS.md)."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from groupvit.errors import InputError, input_error
from groupvit.evaluation.datasets import CLASSES, Dataset
from groupvit.models import ModelConfig
from groupvit.segmentation.labels import BACKGROUND, Label, parse_labels
from groupvit.segmentation.view import View

RELEASE_NAMES: Mapping[str, Mapping[str, str]] = CLASSES["release"]
"""Names of classes of VOC and Context in the release, where they differ from the data set's."""

SYNONYMS: Mapping[str, Sequence[str]] = CLASSES["synonyms"]
"""Words that stand for a class under the calibrated protocols; other classes stand for themselves."""

CONTRAST: Mapping[str, Sequence[str]] = {
    benchmark: (*CLASSES["surroundings"], *more) for benchmark, more in CLASSES["contrast"].items()
}
"""Words for what is no class of a benchmark, which compete as background under `calibrated-native` and `-whole`."""


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How labels are worded, photos shown and scores decided.

    The lengths of `view` are pixels, or multiples of the model's training size or of the short side that suits it best
    (`ImageEncoderConfig.short_side`). `contrast` are words that compete as background: the declared ones, or those that
    a model brings of its vocabulary (`WordBank.with_rivals`). `thresholds` are the background's by benchmark; without
    them the threshold is chosen on one half of the photos for the other.
    """

    name: str
    class_names: Literal["dataset", "release", "synonyms"]
    contrast: bool | Literal["vocabulary"]
    unit: Literal["pixels", "training size", "best size"]
    thresholds: Mapping[str, float] | None
    view: View

    def labels(self, dataset: Dataset) -> tuple[Label, ...]:
        """Return the labels to look for: every class but the background, and the contrast as background."""
        named = dataset.labels[1:] if dataset.has_background else dataset.labels
        with input_error(str(dataset.root), InputError):
            taken = {word.lower() for label in parse_labels(named) for word in label.words}

        def worded(name: str) -> Label:  # a synonym that another class has is that class's
            every = self._words(name, dataset.benchmark)
            words = tuple(word for word in every if word.lower() not in taken - {name.lower()})
            taken.update(map(str.lower, words))
            return Label(name, words or (name,))

        labels = [label if "=" in label else worded(label) for label in named]
        contrast = CONTRAST.get(dataset.benchmark, ()) if self.contrast is True else ()
        with input_error(str(dataset.root), InputError):
            return parse_labels([*([Label(BACKGROUND, tuple(contrast))] if contrast else []), *labels])

    def _words(self, name: str, benchmark: str) -> tuple[str, ...]:
        if self.class_names == "release":
            return (RELEASE_NAMES.get(benchmark.rstrip("0123456789"), {}).get(name, name),)
        return tuple(SYNONYMS.get(name.lower(), (name,))) if self.class_names == "synonyms" else (name,)

    def calibrated(self, dataset: Dataset) -> bool:
        """Return True if the threshold is chosen on the photos themselves, which takes two."""
        chosen = dataset.has_background and self.thresholds is None
        if chosen and len(dataset) < 2:
            raise InputError(f"{dataset.root}: to calibrate a threshold on one half for the other takes two photos")
        return chosen

    def threshold(self, dataset: Dataset) -> float | None:
        """Return the background's threshold; an `InputError` where the protocol gives none for this benchmark."""
        if not dataset.has_background or self.thresholds is None:
            return None
        if dataset.benchmark not in self.thresholds:
            raise InputError(
                f"protocol {self.name} has no background threshold for {dataset.benchmark}, only for "
                f"{', '.join(self.thresholds)}: take calibrated-native"
            )
        return self.thresholds[dataset.benchmark]

    def view_of(self, config: ModelConfig, dataset: Dataset) -> View:
        """Return the view of a model on a benchmark, with lengths in pixels."""
        unit = {"pixels": 1, "training size": config.image.image_size, "best size": config.image.short_side}[self.unit]
        vocabulary = self.contrast == "vocabulary" and dataset.has_background
        if vocabulary and not config.rivals:
            raise InputError(f"protocol {self.name} needs a model that brings its nouns: take calibrated-whole")
        if dataset.has_background and not vocabulary and len(self.labels(dataset)) == 1:
            raise InputError(
                f"{dataset.root}: one label alone fits every pixel: take --protocol calibrated-vocabulary, and a model "
                "that brings words for the rest (photos-trunk)"
            )
        return replace(
            self.view,
            short_side=self.view.short_side and self.view.short_side * unit,
            window=self.view.window and self.view.window * unit,
            stride=self.view.stride and self.view.stride * unit,
            background="auto" if vocabulary else self.threshold(dataset),
        )

    def settings(self) -> dict[str, Any]:
        """Return the protocol as plain values, the view's among the others."""
        values = asdict(self)
        view = values.pop("view")
        del view["background"]  # `thresholds` and `contrast` say it
        return values | view

    def record(self, config: ModelConfig, dataset: Dataset) -> dict[str, Any]:
        """Return what result files say: settings, the words that stood for each class, and the lengths in pixels."""
        words = {label.name: list(label.words) for label in self.labels(dataset)}
        return {**self.settings(), "words": words, "options": asdict(self.view_of(config, dataset))}


RELEASE_2022 = Protocol(
    name="release-2022",
    class_names="release",
    contrast=False,
    unit="pixels",
    thresholds={"voc21": 0.95, "context60": 0.35, "coco-object-stuff": 0.95, "coco-object-instances": 0.95},
    view=View(short_side=448, window=448, stride=224, antialias=False, scores="gated"),
)
"""The authors' code of May 2022, as its published numbers were made."""

PAPER_2022 = Protocol(
    name="paper-2022",
    class_names="dataset",
    contrast=False,
    unit="pixels",
    thresholds={"voc21": 0.9, "context60": 0.5},
    view=View(short_side=448, maps="hard"),
)
"""§3.3 and §4.2 of the paper as printed."""

CALIBRATED_NATIVE = Protocol(
    name="calibrated-native",
    class_names="synonyms",
    contrast=True,
    unit="training size",
    thresholds=None,
    view=View(short_side=2, window=1),
)
"""For any model: windows of the training size over photos of twice that, the threshold cross-fitted on the photos."""

CALIBRATED_WHOLE = replace(
    CALIBRATED_NATIVE, name="calibrated-whole", unit="best size", view=View(short_side=1, window=2)
)
"""The same with one look at the whole photo, up to 2 : 1, at the size that suits the model best."""

CALIBRATED_VOCABULARY = replace(CALIBRATED_WHOLE, name="calibrated-vocabulary", contrast="vocabulary")
"""The same without words that people declared: nouns of the model's own training compete, as `segment` lets them."""

PROTOCOLS = {
    protocol.name: protocol
    for protocol in (RELEASE_2022, PAPER_2022, CALIBRATED_NATIVE, CALIBRATED_WHOLE, CALIBRATED_VOCABULARY)
}


def get_protocol(name: str) -> Protocol:
    """Return the protocol of that name."""
    if name not in PROTOCOLS:
        raise InputError(f"no protocol {name!r}: there are {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]
