"""One shard, looked at in full: each member, image and caption."""

import contextlib
import hashlib
import json
import re
import tarfile
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from groupvit.data.findings import MIN_SIDE, Finding
from groupvit.data.shards import TEXT_ENDINGS, Fault, Row, read_image, read_vocabulary, scan_shard
from groupvit.data.storage import File, open_file, stamp
from groupvit.data.transforms import load_rgb
from groupvit.errors import InputError
from groupvit.text.nouns import nouns, nouns_of_photo, nouns_of_tags, with_person
from groupvit.text.tokenizer import Tokenizer

_LONGEST = 256  # tokens; longer captions count as this long
_URL = re.compile(r"(\w+://|www\.)\S+|\S+\.(jpe?g|png|webp|gif)(\?\S*)?", re.IGNORECASE)


@dataclass
class Examined:
    """What a process says of one shard: the decoded photos' keys and digests, and of captions what statistics need."""

    shard: str
    findings: list[Finding] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    digests: "array[int]" = field(default_factory=lambda: array("Q"))  # eight bytes each: there may be millions
    lengths: Counter[int] = field(default_factory=Counter)
    one_word: int = 0
    captions: Counter[str] = field(default_factory=Counter)
    noun_counts: Counter[str] = field(default_factory=Counter)
    drawn_nouns: list[tuple[str, ...]] = field(default_factory=list)
    without_noun: int = 0
    tagged: int = 0

    @property
    def photos(self) -> int:
        return len(self.drawn_nouns)

    def add(self, kind: str, key: str = "", detail: str = "") -> None:
        self.findings.append(Finding(kind, self.shard, key, detail))


def digest(image: Image.Image) -> int:
    content = hashlib.blake2b(np.asarray(image).tobytes(), digest_size=8, salt=f"{image.width}".encode())
    return int.from_bytes(content.digest())


def _texts(shard: File) -> dict[str, dict[str, bytes]]:
    """The text members of every sample, as far as the tar can be read; damage, if any, goes through the last sample."""
    texts: dict[str, dict[str, bytes]] = {}
    with (
        contextlib.suppress(tarfile.TarError, OSError),
        open_file(shard) as file,
        tarfile.open(fileobj=file, mode="r:") as tar,
    ):
        for member in tar:
            if not member.isdir():
                of_sample = texts.setdefault(_stem(member.name), {})
                ending = member.name.rpartition("/")[2].partition(".")[2].lower()
                regular = member.isreg() and not member.issparse()
                if regular and ending in TEXT_ENDINGS and (content := tar.extractfile(member)):
                    of_sample[ending] = content.read()
    return texts


def _stem(name: str) -> str:
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.partition(".")[0]


def _add_faults(found: Examined, faults: Sequence[Fault], texts: dict[str, dict[str, bytes]]) -> None:
    """Each fault once a sample, and without those that only follow from another one."""
    damaged = {_stem(fault.key) for fault in faults if fault.kind == "link"}
    if any(fault.kind == "cut" for fault in faults):
        damaged.add(list(texts)[-1] if texts else "")
    seen = set()
    for fault in faults:
        key = _stem(fault.key) if fault.kind in ("link", "twice") else fault.key
        follows = fault.kind in ("no-image", "no-caption", "bad-json") and key in damaged
        if not follows and (key, fault.kind) not in seen:
            seen.add((key, fault.kind))
            empty = fault.kind == "no-caption" and texts.get(key)
            found.add(fault.kind, key, "it is empty" if empty else fault.detail)


def _decoded(found: Examined, row: Row, data: bytes) -> None:
    try:
        image = load_rgb(data, row.key)
    except InputError as error:
        bomb = isinstance(error.__cause__, (Image.DecompressionBombError, Image.DecompressionBombWarning))
        found.add("bomb" if bomb else "undecodable", row.key, str(error).removeprefix(f"{row.key}: "))
        return
    if min(image.size) < MIN_SIDE:
        found.add("tiny", row.key, f"{image.width} x {image.height}")
    found.keys.append(row.key)
    found.digests.append(digest(image))


def _add_texts(found: Examined, row: Row, generator: np.random.Generator, tokenizer: Tokenizer) -> None:
    if row.tags is None:
        _add_captions(found, row, tokenizer)
        of_photo, drawn = nouns_of_photo(row.captions), nouns(row.captions[int(generator.integers(len(row.captions)))])
    else:  # captions made of them are no sentences, and the caption losses leave them out
        drawn = nouns_of_tags(row.tags)
        of_photo = with_person(drawn)
    found.tagged += row.tags is not None
    found.noun_counts.update(of_photo)
    found.without_noun += not of_photo
    found.drawn_nouns.append(drawn)


def _add_captions(found: Examined, row: Row, tokenizer: Tokenizer) -> None:
    ends = tokenizer(row.captions) == tokenizer.end_of_text
    found.lengths.update((ends.int().argmax(dim=1) + 1).tolist())
    found.one_word += sum(len(caption.split()) == 1 for caption in row.captions)
    found.captions.update(set(row.captions))


def _add_unlisted(found: Examined, shard: File, rows: Sequence[Row]) -> None:
    try:
        listed = set(nouns_of_tags(read_vocabulary(shard)))
    except InputError as error:
        found.add("no-vocabulary", detail=str(error).partition(";")[0])
        return
    used = Counter(noun for row in rows for noun in nouns_of_tags(row.tags or ()))
    for noun in sorted(used.keys() - listed):
        found.add("unlisted-tag", detail=f'"{noun}", {used[noun]:,} photos')


def _add_url(found: Examined, row: Row, texts: dict[str, dict[str, bytes]]) -> None:
    caption = next(filter(_URL.fullmatch, row.captions), None)
    if caption:
        url = ""
        with contextlib.suppress(ValueError, KeyError, AttributeError, TypeError):
            url = json.loads(texts[row.key]["json"])["url"].strip()
        swapped = f', and its url is "{url[:60]}"' if url and not _URL.fullmatch(url) else ""
        found.add("url-caption", row.key, f'"{caption[:60]}"{swapped}')


def examine_shard(shard: File) -> Examined:
    """All that can be said of one shard; nothing that is wrong with it is raised."""
    found = Examined(str(shard))
    generator, tokenizer = np.random.default_rng(0), Tokenizer(_LONGEST)
    try:
        expected = stamp(shard)
        rows, faults = scan_shard(shard) if expected[0] else ([], [])
        suspicious = faults or any(_URL.fullmatch(caption) for row in rows for caption in row.captions)
        texts = _texts(shard) if suspicious else {}
        _add_faults(found, faults, texts)
        for row in rows:
            _decoded(found, row, read_image(shard, row, expected))
            _add_texts(found, row, generator, tokenizer)
            _add_url(found, row, texts)
        if found.tagged:
            _add_unlisted(found, shard, rows)
        if not rows and not found.findings:
            found.add("no-samples", detail="" if expected[0] else "the file is empty")
    except InputError as error:
        found.add("unreadable", detail=str(error).removeprefix(f"{shard}: "))
    # Captions that are frequent in the whole are frequent in its shards, and all of them would not fit into memory.
    found.captions = Counter({caption: count for caption, count in found.captions.items() if count > 1})
    return found
