"""Photos per second of one core: our loader beside torch.utils.data and PIL as one would write it first.

    python -m benchmarks.loader --shards FOLDER_OR_PATTERN

Both read the same tars and make the same things of a photo: a random crop mirrored or not, a caption and three noun
prompts in CLIP's tokens. They take turns, and CPU time counts: what else the machine does concerns neither.
"""

import io
import tarfile
import time
from collections.abc import Iterator

import numpy as np
import torch
from experiments.command import run_script
from experiments.record import commit, report_table
from PIL import Image
from rich.console import Console
from rich.progress import track
from torch.utils.data import DataLoader, IterableDataset

from groupvit.data.batches import Augmentation, Batch, Batches
from groupvit.data.index import CaptionedPhotos
from groupvit.data.order import BatchSampler, Order
from groupvit.data.shards import find_shards
from groupvit.data.storage import File
from groupvit.text.nouns import nouns
from groupvit.text.templates import IMAGENET_TEMPLATES_80
from groupvit.text.tokenizer import Tokenizer

PROMPTS = 3
Pair = tuple[torch.Tensor, torch.Tensor]


class Straightforward(IterableDataset[Pair]):
    """Every tar from its start to its end; each photo decoded whole, cropped, its caption tagged when it comes."""

    def __init__(self, shards: list[File], size: int):
        self.shards = shards
        self.size = size
        self.tokenizer = Tokenizer()
        self.generator = np.random.default_rng(0)

    def __iter__(self) -> Iterator[Pair]:
        while True:
            for shard in self.generator.permutation(np.array(self.shards, dtype=object)):
                with tarfile.open(shard) as tar:
                    files: dict[str, bytes] = {}
                    for member in tar:
                        _, _, ending = member.name.rpartition(".")
                        file = tar.extractfile(member)
                        files[ending] = file.read() if file else b""
                        if "jpg" in files and "txt" in files and ending == "json":
                            yield self._pair(files["jpg"], files["txt"].decode())
                            files = {}

    def _pair(self, jpeg: bytes, caption: str) -> Pair:
        image = Image.open(io.BytesIO(jpeg)).convert("RGB")
        area = image.width * image.height * self.generator.uniform(0.4, 1)
        ratio = np.exp(self.generator.uniform(np.log(3 / 4), np.log(4 / 3)))
        width = min(image.width, round(np.sqrt(area * ratio)))
        height = min(image.height, round(np.sqrt(area / ratio)))
        left = int(self.generator.integers(image.width - width + 1))
        top = int(self.generator.integers(image.height - height + 1))
        image = image.crop((left, top, left + width, top + height))
        image = image.resize((self.size, self.size), Image.Resampling.BILINEAR)
        if self.generator.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        words = nouns(caption, style="release") or ("photo",)
        templates = self.generator.choice(IMAGENET_TEMPLATES_80, PROMPTS)
        prompts = [template.format(self.generator.choice(words)) for template in templates]
        return torch.from_numpy(np.array(image)).permute(2, 0, 1), self.tokenizer([caption, *prompts])


def straightforward(shards: list[File], size: int, batch_size: int) -> Iterator[Pair]:
    return iter(DataLoader(Straightforward(shards, size), batch_size=batch_size))


def ours(shards: list[File], size: int, batch_size: int, augmentation: Augmentation) -> Iterator[Batch]:
    photos = CaptionedPhotos.open(shards)
    batches = Batches(
        photos,
        seed=0,
        image_size=size,
        scale=(0.4, 1.0),
        augmentation=augmentation,
        prompts=PROMPTS,
        noun_style="release",
        vocabulary=(),
        tokenizer=Tokenizer(),
    )
    sampler = BatchSampler(Order(photos.counts, seed=0), batch_size)
    return iter(DataLoader(batches, sampler=sampler, batch_size=None))


def measure(files: list[File], size: int, batch_size: int, turns: int) -> list[dict[str, str]]:
    """The rows of the table; one thread, whatever PyTorch had before."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    nouns.cache_clear()
    loaders: dict[str, Iterator[object]] = {
        "straightforward": straightforward(files, size, batch_size),
        "ours": ours(files, size, batch_size, "crop"),
        "ours, colours": ours(files, size, batch_size, "color"),
        "ours, RandAugment and erasing": ours(files, size, batch_size, "randaugment"),
    }
    seconds = dict.fromkeys(loaders, 0.0)
    for loader in loaders.values():
        next(loader)  # opens files, and the tagger's lexicon
    for _ in track(range(turns), "loading", console=Console(stderr=True)):
        for name, loader in loaders.items():
            start = time.process_time()
            next(loader)
            seconds[name] += time.process_time() - start
    torch.set_num_threads(threads)
    return [
        {
            "loader": name,
            "photos/s of one core": f"{turns * batch_size / spent:,.0f}",
            "times the straightforward way": f"{seconds['straightforward'] / spent:.2f}",
        }
        for name, spent in seconds.items()
    ]


def main(shards: str, size: int = 224, batch_size: int = 64, turns: int = 20, record: bool = False) -> None:
    """Print the table.

    Args:
        shards: Tar files: a folder of them or a pattern.
        size: Side of the crops in pixels.
        batch_size: Photos a batch; each turn is one batch of each loader.
        turns: Batches of each.
        record: Write the table into docs/RELIABILITY.md and docs/results.json.
    """
    began = commit() if record else ""
    rows = measure(find_shards(shards), size, batch_size, turns)
    report_table("RELIABILITY.md", "loader", rows, began)


if __name__ == "__main__":
    run_script(main)
