import html
import itertools
import json

import ftfy
import pytest
import torch
from torch.utils.data import DataLoader

from groupvit.data.shards import find_shards, scan_shard
from groupvit.models import TextEncoderConfig
from groupvit.text.tokenizer import Tokenizer, _backend, clean

ODDITIES = [
    "🐶 dog",
    "👩‍👩‍👧‍👦 family 🏳️‍🌈",
    "e\u0301te\u0301 café, e&#769;te",
    "狗在草地上 犬とねこ 한국어 ไทย नमस्ते",
    "כלב על الدشا كلب",
    "schÃ¶n â€œdogâ€\x9d",
    "a &amp;amp; b &lt;b&gt; &nbsp;&#x27;",
    "a\u00a0dog\u2003on\u200bgrass\u2028\t\n",
    "it's they're I'd WE'LL I've I'm don't ''s ?'s",
    "it’s “quoted” ﬁsh ＦＵＬＬ straße ΟΔΟΣ İstanbul",
    "123 4.5 ½ Ⅳ ٣ ²",
    "a dog <|endoftext|> cat",
    "a dog<|endoftext|>cat <|startoftext|>",
    "<|dog|> <|ENDOFTEXT|>",
    "",
    " \t",
    "\x00\x07bell \x1b[31mred",
    "\ud800 lone surrogate",
    "𝔡𝔬𝔤 a_b-c/d http://a.b/c?d=e&f=g",
    "dog " * 500,
    "x" * 5000,
]


@pytest.fixture(scope="module")
def peer():
    """CLIP's tokenizer as transformers builds it from the same vocabulary."""
    transformers = pytest.importorskip("transformers")
    model = json.loads(_backend().to_str())["model"]
    tokenizer = transformers.CLIPTokenizer(vocab=model["vocab"], merges=[tuple(merge) for merge in model["merges"]])

    def encode(texts):
        texts = [html.unescape(html.unescape(ftfy.fix_text(text))) for text in texts]
        texts = [" ".join(text.split()).lower() for text in texts]
        rows = tokenizer(texts, truncation=True, max_length=77)["input_ids"]
        return torch.tensor([row + [0] * (77 - len(row)) for row in rows])

    return encode


def test_a_known_sentence_has_the_ids_that_clip_gives_it():
    assert Tokenizer()("a photo of a dog.")[0, :9].tolist() == [49406, 320, 1125, 539, 320, 1929, 269, 49407, 0]


def test_oddities_get_the_ids_of_transformers(peer):
    tokens = Tokenizer()(ODDITIES)
    for text, row, reference in zip(ODDITIES, tokens, peer(ODDITIES), strict=True):
        assert torch.equal(row, reference), ascii(text)


def test_every_letter_gets_the_ids_of_transformers(peer):
    texts = [f"a{chr(code)}b {chr(code)}" for code in range(0x21, 0x3000) if chr(code).isprintable()]
    assert torch.equal(Tokenizer()(texts), peer(texts))


def test_ten_thousand_captions_get_the_ids_of_transformers(data_dir, peer):
    rows = (row for shard in find_shards(data_dir / "captions/*-train-*.tar") for row in scan_shard(shard)[0])
    captions = list(itertools.islice((caption for row in rows for caption in row.captions), 10_000))
    assert len(captions) == 10_000
    assert torch.equal(Tokenizer()(captions), peer(captions))


def test_text_is_composed_before_it_is_lowered_as_in_clip():
    # transformers composes once more after lowering: there, J with a caron becomes the one letter ǰ.
    assert Tokenizer()("J\u030c")[0, :5].tolist() == [49406, 329, 136, 490, 49407]


def test_a_long_text_ends_with_end_of_text_at_the_last_position():
    tokens = Tokenizer(context_length=16)(["dog " * 100, "dog"])
    assert tokens.shape == (2, 16)
    assert tokens.dtype == torch.int64
    assert tokens[0, -1] == Tokenizer.end_of_text
    assert tokens[1, 2] == Tokenizer.end_of_text
    assert tokens[1, 3:].sum() == 0


def test_end_of_text_is_the_greatest_id():
    assert max(_backend().get_vocab().values()) == Tokenizer.end_of_text == TextEncoderConfig().vocab_size - 1


def test_no_text_makes_no_row():
    assert Tokenizer()([]).shape == (0, 77)


@pytest.mark.parametrize("text", ["a dog, on Grass!", "'quoted' 50% off", "A  double   space ", "(x) [y] {z} ~^`|\\"])
def test_the_short_way_for_plain_text_is_the_long_way(text):
    assert clean(text) == " ".join(html.unescape(ftfy.fix_text(text)).split()).lower()


def test_it_works_in_forked_workers_after_it_was_used():
    tokenizer = Tokenizer(8)
    expected = tokenizer(["dog", "cat"])
    loader = DataLoader(["dog", "cat"], batch_size=2, num_workers=1, collate_fn=tokenizer)
    assert torch.equal(next(iter(loader)), expected)
