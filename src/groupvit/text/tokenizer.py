"""CLIP's byte-pair tokenizer (Radford et al., 2021), GroupViT's too (Xu et al., CVPR 2022, section 4.1).

`clip_tokenizer.json.gz` is a `tokenizers` file made by `experiments/build_tokenizer.py` from OpenAI's vocabulary
(MIT licence, copyright (c) 2021 OpenAI).
"""

import functools
import gzip
import html
import importlib.resources
from collections.abc import Sequence
from pathlib import Path

import ftfy
import tokenizers
import torch
from jaxtyping import Int64
from torch import Tensor

from groupvit.errors import input_error


@functools.cache
def _backend() -> tokenizers.Tokenizer:
    file = importlib.resources.files("groupvit.text") / "clip_tokenizer.json.gz"
    return tokenizers.Tokenizer.from_str(gzip.decompress(file.read_bytes()).decode())


def write_vocabulary(folder: Path) -> None:
    """Write CLIP's `vocab.json` and `merges.txt`, of which other packages build this tokenizer."""
    with input_error(f"cannot write the vocabulary in {folder}", Exception):  # the package raises nothing narrower
        _backend().model.save(str(folder))


def repaired(text: str) -> str:
    """Repair mojibake and HTML entities, and collapse white space."""
    # Printable ASCII without an ampersand, nearly every caption, needs no repair.
    if not (text.isascii() and text.isprintable()) or "&" in text:
        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split())


def clean(text: str) -> str:
    """Return the repaired text in lower case."""
    return repaired(text).lower()


class Tokenizer:
    """Turn texts into rows of token ids: start (49406), the text, end (49407), zeros up to `context_length`.

    A longer text is cut, and its row still ends with the end token. As in CLIP, a typed `<|endoftext|>` is that token.
    """

    start_of_text = 49406
    end_of_text = 49407

    def __init__(self, context_length: int = 77):
        self.context_length = context_length

    def __call__(self, texts: str | Sequence[str]) -> Int64[Tensor, "texts length"]:
        texts = [texts] if isinstance(texts, str) else texts
        tokens = torch.zeros(len(texts), self.context_length, dtype=torch.int64)
        for row, text in zip(tokens, texts, strict=True):
            # One text at a time: encode_batch starts threads, which do not survive the fork of a DataLoader worker.
            ids = _backend().encode(clean(text)).ids[: self.context_length - 2]
            row[: len(ids) + 2] = torch.tensor([self.start_of_text, *ids, self.end_of_text])
        return tokens
