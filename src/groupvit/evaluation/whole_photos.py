"""Scores of whole photos (Radford et al., 2021, §3.1).

Classification: what is the photo called? Retrieval: does a caption find its photo among all photos?
"""

import hashlib
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from pathlib import Path

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from groupvit.data.shards import find_shards, read_shard
from groupvit.data.storage import File
from groupvit.data.transforms import middle_square, to_tensor
from groupvit.errors import InputError
from groupvit.evaluation.class_lists import read_classes
from groupvit.evaluation.folders import photos_in, refuse_missing
from groupvit.models import GroupViT, ModelConfig
from groupvit.photos import load_rgb
from groupvit.segmentation.labels import clean
from groupvit.segmentation.segmenter import Segmenter
from groupvit.text.imagenet import imagenet_names
from groupvit.text.templates import IMAGENET_TEMPLATES_7, IMAGENET_TEMPLATES_80
from groupvit.text.tokenizer import Tokenizer

_CHUNK = 64


def recall_at_k(similarity: Float[Tensor, "queries items"], answers: Int[Tensor, "queries answers"], k: int) -> float:
    """Return the percentage of queries with one of their answers (indices of items, -1 pads) among the k nearest."""
    nearest = similarity.topk(min(k, similarity.shape[1]), dim=1).indices
    hits = (nearest[:, :, None] == answers[:, None, :]).any(dim=2).any(dim=1)
    return 100 * hits.double().mean().item()


class Retrieval:
    """Photos of shards with all their captions, decoded once; `digest` is a hash of files and captions.

    `shards` and `below` are those of `find_shards`.
    """

    def __init__(self, shards: File, config: ModelConfig, below: File | None = None):
        tokenizer = Tokenizer(config.text.context_length)
        size = config.image.image_size
        photos, captions, owners, digest = [], [], [], hashlib.sha256()
        for shard in find_shards(shards, below):
            for sample in read_shard(shard):
                photo = middle_square(load_rgb(sample.image, f"{sample.shard}: {sample.key}"), size, size)
                owners += [len(photos)] * len(sample.captions)
                captions += sample.captions
                digest.update(sample.image + "\n".join(sample.captions).encode())
                photos.append(to_tensor(photo))
        if not photos:
            raise InputError(f"{shards} holds no photos")
        self.digest = digest.hexdigest()
        self.photos = photos
        self.captions = tokenizer(captions)
        self.owners = torch.tensor(owners)

    def __len__(self) -> int:
        return len(self.photos)

    @torch.inference_mode()
    def __call__(self, model: GroupViT) -> dict[str, float]:
        """Return R@1, R@5 and R@10 from text to image and from image to text, in percent."""
        device = model.logit_scale.device
        chunks = (torch.stack(self.photos[i : i + _CHUNK]) for i in range(0, len(self), _CHUNK))
        encode, prepare = model.encode_image, model.image_encoder.preprocess
        images = torch.cat([encode(prepare(chunk.to(device))) for chunk in chunks]).float()
        texts = torch.cat([model.encode_text(chunk.to(device)) for chunk in self.captions.split(_CHUNK)]).float()
        similarity = (texts @ images.T).cpu()
        captions = [(self.owners == photo).nonzero()[:, 0] for photo in range(len(images))]
        answers = pad_sequence(captions, batch_first=True, padding_value=-1)
        to_image = {f"text_to_image_r{k}": recall_at_k(similarity, self.owners[:, None], k) for k in (1, 5, 10)}
        return to_image | {f"image_to_text_r{k}": recall_at_k(similarity.T, answers, k) for k in (1, 5, 10)}


@dataclass(frozen=True)
class ClassFolder:
    """Photos in one folder per class; `targets` are indices into `names`."""

    names: tuple[str, ...]
    files: tuple[Path, ...]
    targets: tuple[int, ...]

    @classmethod
    def open(cls, root: Path) -> "ClassFolder":
        """Read the folders of `root` in the order of their names, or of their numbers.

        Classes are called as `classes.txt` says (one name a line, in that order) if it is there; the 1,000 folders of
        ImageNet as CLIP calls them; others by their folders. An `InputError` says what does not fit.
        """
        refuse_missing(root)
        folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
        if all(folder.name.isdecimal() for folder in folders):
            by_number = sorted(folders, key=lambda folder: int(folder.name))
            if by_number != folders and (root / "classes.txt").is_file():
                raise InputError(f"{root}: orders by name and by number differ: pad the folders' numbers with zeros")
            folders = by_number
        if not folders:
            raise InputError(f"{root} holds no folders; classification needs one folder of photos for each class")
        photos = [photos_in(folder) for folder in folders]
        if empty := [folder.name for folder, files in zip(folders, photos, strict=True) if not files]:
            raise InputError(f"{root / empty[0]} holds no photos; fill or remove it")
        targets = (i for i, files in enumerate(photos) for _ in files)
        return cls(_names(root, folders), tuple(chain.from_iterable(photos)), tuple(targets))

    def __len__(self) -> int:
        return len(self.files)

    @cached_property
    def digest(self) -> str:
        """A hash of all files, names and targets."""
        digest = hashlib.sha256(repr((self.names, self.targets)).encode(errors="surrogatepass"))
        for file in self.files:
            digest.update(file.read_bytes())
        return digest.hexdigest()

    def __iter__(self) -> Iterator[Image.Image]:
        return (load_rgb(file, str(file)) for file in self.files)


def _names(root: Path, folders: Sequence[Path]) -> tuple[str, ...]:
    listing = root / "classes.txt"
    if not listing.is_file() and all(re.fullmatch(r"n\d{8}", folder.name) for folder in folders):
        if len(folders) != 1000:
            raise InputError(f"{root} has {len(folders)} of ImageNet's 1000 folders: write their names to {listing}")
        return imagenet_names()  # CLIP's own, of which some are equal
    names = tuple(folder.name.replace("_", " ") for folder in folders)
    if listing.is_file():
        names = tuple(map(clean, read_classes(listing)))
        if "=" in "".join(names):
            raise InputError(f"{listing} gives a class several words (=): write one name a line")
        if len(names) != len(folders):
            raise InputError(f"{listing} has {len(names)} names for {len(folders)} folders; write one line for each")
    for name, count in Counter(name.lower() for name in names).items():
        if count > 1:
            warnings.warn(f"{root}: {count} classes are called {name!r}, and the first gets all photos", stacklevel=2)
    return names


@torch.inference_mode()
def embed_photos(segmenter: Segmenter, photos: Iterable[Image.Image]) -> Float[Tensor, "photos embed"]:
    """Return unit vectors of whole photos.

    Photos are resized to a short side of 8/7 of the training size and cropped in the middle, as is usual for ImageNet.
    """
    size = segmenter.config.image.image_size
    rows, remaining = [], iter(photos)
    while chunk := list(islice(remaining, _CHUNK)):
        crops = torch.stack([to_tensor(middle_square(photo, size * 8 // 7, size)) for photo in chunk])
        pixels = segmenter.model.image_encoder.preprocess(crops.to(segmenter.device))
        rows.append(segmenter.model.encode_image(pixels))
    return torch.cat(rows)


@torch.inference_mode()
def similarities(
    segmenter: Segmenter, photos: Float[Tensor, "photos embed"], names: Sequence[str], templates: Sequence[str]
) -> Float[Tensor, "photos names"]:
    """Return cosines of whole photos (`embed_photos`) and names, each name the mean of its prompts."""
    words = segmenter.embed_words(names, templates)
    return (photos.to(words.dtype) @ words.T).cpu()


def classify(segmenter: Segmenter, folder: ClassFolder) -> dict[str, float]:
    """Return top-1 and top-5 accuracy in percent, with the seven of CLIP's templates that GroupViT took, and all 80."""
    photos, targets, accuracies = embed_photos(segmenter, folder), torch.tensor(folder.targets)[:, None], {}
    for templates in (IMAGENET_TEMPLATES_7, IMAGENET_TEMPLATES_80):
        cosines = similarities(segmenter, photos, folder.names, templates)
        for k in (1, 5):
            accuracies[f"top{k}, {len(templates)} templates"] = recall_at_k(cosines, targets, k)
    return accuracies
