"""Makes src/groupvit/text/clip_tokenizer.json.gz from the vocabulary in an open_clip_torch wheel (OpenAI's, MIT).

    pip download --no-deps open_clip_torch
    python experiments/build_tokenizer.py open_clip_torch-3.3.0-py3-none-any.whl

The wheel is unzipped, never imported.
"""

import gzip
import zipfile
from pathlib import Path

import tokenizers
import tyro
from tokenizers import pre_tokenizers

from groupvit.files import write_atomically

SPECIAL_TOKENS = ["<|startoftext|>", "<|endoftext|>"]
WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
OUTPUT = Path(__file__).parents[1] / "src/groupvit/text/clip_tokenizer.json.gz"


def read_merges(wheel: Path) -> list[tuple[str, str]]:
    """Read the 48,894 merges that fill CLIP's 49,408 ids, beside 2 x 256 bytes and two special tokens."""
    with zipfile.ZipFile(wheel) as archive:
        lines = gzip.decompress(archive.read("open_clip/bpe_simple_vocab_16e6.txt.gz")).decode().split("\n")
    return [(left, right) for left, right in map(str.split, lines[1 : 49408 - 512 - 2 + 1])]


def build(merges: list[tuple[str, str]]) -> tokenizers.Tokenizer:
    """Return the tokenizer of cleaned text: no normalizer, no special tokens around the text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, *(byte + "</w>" for byte in alphabet), *(left + right for left, right in merges)]
    vocab = {token: index for index, token in enumerate(tokens + SPECIAL_TOKENS)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, merges, end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.add_special_tokens([tokenizers.AddedToken(token, normalized=False) for token in SPECIAL_TOKENS])
    return tokenizer


def main(wheel: tyro.conf.Positional[Path], output: Path = OUTPUT) -> None:
    """Write the tokenizer file.

    Args:
        wheel: an open_clip_torch wheel.
        output: the file to write.
    """
    write_atomically(output, gzip.compress(build(read_merges(wheel)).to_str().encode(), 9, mtime=0))
    print(f"{output}: {output.stat().st_size:,} bytes")


if __name__ == "__main__":
    tyro.cli(main)
