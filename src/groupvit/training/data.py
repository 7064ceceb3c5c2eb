"""The data of a run: its photos and its vocabulary."""

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from groupvit.data.batches import Augmentation
from groupvit.data.index import CaptionedPhotos
from groupvit.data.storage import File
from groupvit.data.tar import FAULTS
from groupvit.errors import InputError
from groupvit.text.imagenet import imagenet_texts
from groupvit.text.nouns import vocabulary
from groupvit.text.tokenizer import Tokenizer
from groupvit.training.objective import Nouns, Objective, Teacher, Vocabulary, terms_of
from groupvit.training.self_supervised import Classify


@dataclass(frozen=True)
class Data:
    """The photos of a run and what is drawn from them.

    `train` and `held_out` are patterns of shards inside the data folder (`held_out` may be a folder with masks).
    `chunk` photos are encoded at a time (0: the whole batch; see `step`). `crop` is the share of a photo's area.
    `augment` adds to crop and mirror: `color` changes brightness, contrast and saturation, `randaugment` is the
    release's RandAugment and erasing. `min_count` is how many photos must have a noun for the noun losses to learn it.
    `cached_crops` is how many crops of a photo are put through the trunk before the training (see `trunk_cache`; 0:
    photos are read, cropped and encoded at every step).
    """

    train: str
    batch_size: int
    held_out: str = ""
    chunk: int = 0
    crop: tuple[float, float] = (0.08, 1.0)
    augment: Augmentation = "crop"
    min_count: int = 10
    cached_crops: int = 0


def open_photos(shards: Sequence[File], processes: int) -> CaptionedPhotos:
    """Open the training photos, indexed first where they are not; say on stderr what was left out."""
    photos = CaptionedPhotos.open(shards, processes=processes)
    if faults := Counter(fault.kind for index in photos.indexes for fault in index.faults):
        kinds = ", ".join(f"{count} x {FAULTS[kind]}" for kind, count in faults.most_common())
        print(f"left out of the training: {kinds}; groupvit data doctor names them", file=sys.stderr)
    return photos


def make_vocabulary(data: Data, objective: Objective, photos: CaptionedPhotos, tokenizer: Tokenizer) -> Vocabulary:
    """Return the nouns of the training captions and tags that are frequent enough to learn."""
    classes = imagenet_texts() if terms_of(objective, Teacher) else ()
    if not (terms_of(objective, Nouns) or terms_of(objective, Classify)):
        return Vocabulary.from_counts({}, len(photos), tokenizer, classes)
    in_photos, known = photos.noun_counts()
    counts = vocabulary(in_photos, data.min_count)
    if not counts:
        least = f"no noun stands in the captions of {data.min_count} photos of {data.train}"
        raise InputError(f"{least}; need more data (nouns are English)")
    # Photos whose source could not say the noun do not make it rare.
    expected = {noun: count * len(photos) / known[noun] for noun, count in counts.items()}
    return Vocabulary.from_counts(expected, len(photos), tokenizer, classes)
