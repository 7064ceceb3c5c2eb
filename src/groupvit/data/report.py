"""Report of `groupvit data doctor`: each kind of finding, its remedy, and the statistics of captions and nouns."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Literal, NamedTuple

import numpy as np

from groupvit.data.tar import FAULTS
from groupvit.text.tokenizer import Tokenizer

MIN_SIDE = 32
"""Pixels; smaller images on the web are icons, and tracking pixels in the place of photos that are gone."""
MIN_NOUNS = 16
"""Distinct nouns in a batch: two for each of the 8 groups of GroupViT's last stage, which learn to differ only by what
captions tell apart. The synthetic scenes, where segments do emerge, have 21 in a batch of 256, and Flickr8k has 326."""
REPEATED = 0.01
"""Share of the photos with one caption; at 1 % a batch of 256 has two or three, each a wrong pair of the others."""
MOST = 10_000
"""Findings of a kind that are kept; further ones are counted. Millions would fill the memory."""
_NAMED = 3  # findings of a kind that the text names


class Kind(NamedTuple):
    """What a kind of finding means, and what to do about it. An error should keep training waiting, a note need not."""

    meaning: str
    remedy: str
    severity: Literal["error", "note"] = "error"


_REMOVE = "write the shard again without the sample, or with what it lacks"
KINDS = {
    "unreadable": Kind("the shard cannot be read, or is no tar", "fetch it again, unless its line says more"),
    "no-samples": Kind(FAULTS["no-samples"], "fetch it again, or leave it out"),
    "cut": Kind(FAULTS["cut"], "fetch the shard again; training loses every sample after that byte"),
    "link": Kind(FAULTS["link"], "write the shard again with the file itself; training refuses the whole shard"),
    "twice": Kind(FAULTS["twice"], "give each sample its own key; training sees the first only"),
    "no-image": Kind(FAULTS["no-image"], _REMOVE),
    "two-images": Kind(FAULTS["two-images"], "keep one image of the sample"),
    "empty-image": Kind(FAULTS["empty-image"], _REMOVE),
    "undecodable": Kind("the image cannot be decoded", _REMOVE),
    "bomb": Kind("more pixels than any photo has, refused unread", "remove it: such a file can fill the memory"),
    "tiny": Kind(f"a side has fewer than {MIN_SIDE} pixels", "look at some; icons are best removed"),
    "no-caption": Kind(FAULTS["no-caption"], _REMOVE),
    "not-utf8": Kind(FAULTS["not-utf8"], "convert the captions to UTF-8"),
    "bad-json": Kind(
        FAULTS["bad-json"], "write the JSON again: an object with `captions`, a list, or `caption`; `tags` is a list"
    ),
    "long-text": Kind(FAULTS["long-text"], "cut the caption, or leave the sample out"),
    "no-vocabulary": Kind(
        "photos have tags, and which words their source could have said is not known",
        "write that file, one word a line; training refuses the shard",
    ),
    "unlisted-tag": Kind(
        "a tag is not in the vocabulary of its source",
        "add it there, or correct the tag; in shards of that source that do not use it, training takes it for unknown",
    ),
    "url-caption": Kind(
        "a caption is a URL or a file's name", "give img2dataset --url_col and --caption_col the right way round"
    ),
    "in-evaluation": Kind("the photo is in the evaluation too", "remove it from training, or scores are untrue"),
    "few-nouns": Kind(
        f"a batch has fewer than {MIN_NOUNS} distinct nouns",
        "mix in photos of other things; groups learn to differ only where captions do",
    ),
    "duplicate": Kind("the same pixels as another photo", "remove it unless its captions add something", "note"),
    "repeated-caption": Kind(
        f"{REPEATED:.0%} of the photos or more have this caption",
        "vary it: equal captions count as wrong pairs",
        "note",
    ),
    "unreadable-evaluation": Kind("a photo of the evaluation cannot be read", "repair it; it was not compared", "note"),
}


@dataclass(frozen=True)
class Finding:
    """Something to look at; `key` is empty when it is about a whole shard, and `shard` too when about the whole set."""

    kind: str
    shard: str = ""
    key: str = ""
    detail: str = ""

    @property
    def severity(self) -> str:
        return KINDS[self.kind].severity


@dataclass
class Findings:
    """The first `MOST` findings of each kind, and how many there are."""

    kept: list[Finding] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def add(self, findings: Iterable[Finding]) -> None:
        for finding in findings:
            self.counts[finding.kind] += 1
            if self.counts[finding.kind] <= MOST:
                self.kept.append(finding)


@dataclass(frozen=True)
class CaptionStatistics:
    """Lengths are in CLIP's tokens with start and end; `cut` and `one_word` are shares of the captions."""

    captions: int = 0
    median_length: float = 0.0
    length_95: float = 0.0
    cut: float = 0.0
    one_word: float = 0.0


def caption_statistics(counts: Counter[int], one_word: int) -> CaptionStatistics:
    """Return the statistics of `counts` captions of each length in tokens, of which `one_word` have a single word."""
    if not counts:
        return CaptionStatistics()
    lengths = np.repeat(np.array(list(counts), dtype=np.int16), list(counts.values()))
    median, long = np.percentile(lengths, [50, 95]).tolist()
    return CaptionStatistics(
        captions=len(lengths),
        median_length=median,
        length_95=long,
        cut=float((lengths > Tokenizer().context_length).mean()),
        one_word=one_word / len(lengths),
    )


@dataclass(frozen=True)
class NounStatistics:
    """`frequent` nouns stand in ten photos' captions or more; a batch is expected to have `per_batch` distinct ones."""

    distinct: int
    frequent: int
    photos_without: int
    batch_size: int
    per_batch: float


@dataclass(frozen=True)
class Report:
    """The result of `examine`; `photos` are those that training would be given, `tagged` those of them with tags.

    `counts` is how many findings of each kind there are, `findings` the first `MOST` of these.
    """

    shards: int
    photos: int
    tagged: int
    captions: CaptionStatistics
    nouns: NounStatistics
    findings: tuple[Finding, ...]
    counts: dict[str, int]

    @property
    def errors(self) -> int:
        return sum(count for kind, count in self.counts.items() if KINDS[kind].severity == "error")

    @property
    def ready(self) -> bool:
        """True if there are no errors, so that training may start."""
        return not self.errors

    def json(self) -> str:
        findings = [{"severity": finding.severity, **asdict(finding)} for finding in self.findings]
        return json.dumps({"ready": self.ready, **asdict(self), "findings": findings}, indent=2)

    def __str__(self) -> str:
        captions, nouns = self.captions, self.nouns
        tagged = f"; {self.tagged:,} photos have tags instead" if self.tagged else ""
        notes = sum(self.counts.values()) - self.errors
        verdict = "training can start" if self.ready else "training should wait until the errors have been looked at"
        return "\n".join(
            (
                f"{self.shards:,} shards, {self.photos:,} photos, {captions.captions:,} captions{tagged}",
                f"captions have {captions.median_length:.0f} tokens (median), {captions.length_95:.0f} (95th"
                f" percentile); {captions.cut:.1%} are cut at 77; {captions.one_word:.1%} are one word",
                f"nouns: {nouns.distinct:,} distinct, {nouns.frequent:,} of them in ten photos or more;"
                f" {nouns.photos_without:,} photos have none;"
                f" a batch of {nouns.batch_size} has {nouns.per_batch:.0f} distinct",
                *self._sections(),
                "",
                f"errors: {self.errors:,}; notes: {notes:,}; {verdict}",
            )
        )

    def _sections(self) -> Iterator[str]:
        for name in sorted(self.counts, key=lambda kind: KINDS[kind].severity):
            kind, findings = KINDS[name], [finding for finding in self.findings if finding.kind == name]
            yield from ("", f"{kind.severity} {name}, {self.counts[name]:,} x: {kind.meaning}")
            for finding in findings[:_NAMED]:
                line = ": ".join(filter(None, (finding.shard, finding.key, finding.detail)))
                yield "  " + " ".join(line.splitlines())
            if self.counts[name] > _NAMED:
                shown = "all" if self.counts[name] == len(findings) else f"{MOST:,}"
                yield f"  and {self.counts[name] - _NAMED:,} more (--json names {shown})"
            yield f"  -> {kind.remedy}"
