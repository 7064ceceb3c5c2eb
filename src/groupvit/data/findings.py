"""The kinds of things that `groupvit data doctor` finds in shards, and what to do about each.

An error loses samples or teaches the wrong thing: training should wait until somebody has looked at it. A note is true
of many sound data sets.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

from groupvit.data.shards import FAULTS

MIN_SIDE = 32
"""Pixels; smaller images on the web are icons, and tracking pixels in the place of photos that are gone."""
MIN_NOUNS = 16
"""Distinct nouns in a batch: two for each of the 8 groups of GroupViT's last stage, which learn to differ only by what
captions tell apart. The synthetic scenes, where segments do emerge, have 21 in a batch of 256, and Flickr8k has 326."""
REPEATED = 0.01
"""Share of the photos with one caption; at 1 % a batch of 256 has two or three, each a wrong pair of the others."""

Severity = Literal["error", "note"]


class Kind(NamedTuple):
    """What a kind of finding means, and what to do about it."""

    severity: Severity
    meaning: str
    remedy: str


def _of_scan(fault: str, remedy: str) -> Kind:
    return Kind("error", FAULTS[fault], remedy)


_REMOVE = "write the shard again without the sample, or with what it lacks"
KINDS = {
    "unreadable": Kind("error", "the shard cannot be read, or is no tar", "fetch it again"),
    "no-samples": Kind("error", "the shard holds no whole sample", "fetch it again, or leave it out"),
    "cut": _of_scan("cut", "fetch the shard again; training loses every sample after that byte"),
    "link": _of_scan("link", "write the shard again with the file itself; training refuses the whole shard"),
    "twice": _of_scan("twice", "give each sample its own key; training sees the first only"),
    "no-image": _of_scan("no-image", _REMOVE),
    "two-images": _of_scan("two-images", "keep one image of the sample"),
    "empty-image": _of_scan("empty-image", _REMOVE),
    "undecodable": Kind("error", "the image cannot be decoded", _REMOVE),
    "bomb": Kind(
        "error", "more pixels than any photo has, refused unread", "remove it: such a file can fill the memory"
    ),
    "tiny": Kind("error", f"a side has fewer than {MIN_SIDE} pixels", "look at some; icons are best removed"),
    "no-caption": _of_scan("no-caption", _REMOVE),
    "not-utf8": _of_scan("not-utf8", "convert the captions to UTF-8"),
    "bad-json": _of_scan(
        "bad-json", "write the JSON again: an object with `captions`, a list, or `caption`; `tags` is a list"
    ),
    "no-vocabulary": Kind(
        "error",
        "photos have tags, and which words their source could have said is not known",
        "write that file, one word a line; training refuses the shard",
    ),
    "unlisted-tag": Kind(
        "error",
        "a tag is not in the vocabulary of its source",
        "add it there, or correct the tag; in shards of that source that do not use it, training takes it for unknown",
    ),
    "url-caption": Kind(
        "error",
        "a caption is a URL or a file's name",
        "give img2dataset --url_col and --caption_col the right way round",
    ),
    "in-evaluation": Kind(
        "error", "the photo is in the evaluation too", "remove it from training, or scores are untrue"
    ),
    "few-nouns": Kind(
        "error",
        f"a batch has fewer than {MIN_NOUNS} distinct nouns",
        "mix in photos of other things; groups learn to differ only where captions do",
    ),
    "duplicate": Kind("note", "the same pixels as another photo", "remove it unless its captions add something"),
    "repeated-caption": Kind(
        "note",
        f"{REPEATED:.0%} of the photos or more have this caption",
        "vary it: equal captions count as wrong pairs",
    ),
    "unreadable-evaluation": Kind("note", "a photo of the evaluation cannot be read", "repair it; it was not compared"),
}
"""All kinds of findings."""


@dataclass(frozen=True)
class Finding:
    """Something to look at; `key` is empty when it is about a whole shard, and `shard` too when about the whole set."""

    kind: str
    shard: str = ""
    key: str = ""
    detail: str = ""

    @property
    def severity(self) -> Severity:
        return KINDS[self.kind].severity
