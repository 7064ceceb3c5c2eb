import pytest
import torch

from groupvit.models.config import TextEncoderConfig
from groupvit.models.text_encoder import TextEncoder


def encoder() -> TextEncoder:
    torch.manual_seed(0)
    return TextEncoder(TextEncoderConfig(width=32, heads=2, layers=3, context_length=20, vocab_size=100)).double()


def tokens(*lengths: int) -> torch.Tensor:
    rows = torch.zeros(len(lengths), 20, dtype=torch.int64)
    for row, length in zip(rows, lengths, strict=True):
        row[:length] = torch.randint(1, 98, (length,), generator=torch.Generator().manual_seed(length))
        row[length] = 99
    return rows


def test_weights_start_as_clips():
    model = TextEncoder(TextEncoderConfig(64, 2, 2))
    expected = {model.token_embedding.weight: 0.02, model.pos_embed: 0.01}
    for block in model.blocks:
        expected |= {block.attn.qkv.weight: 64**-0.5, block.attn.proj.weight: (64 * 4) ** -0.5}
        expected |= {block.mlp.fc1.weight: 128**-0.5, block.mlp.fc2.weight: (64 * 4) ** -0.5}
    for weight, std in expected.items():
        assert weight.std().item() == pytest.approx(std, rel=0.1)


def test_text_after_end_of_text_changes_nothing():
    model, rows = encoder(), tokens(5, 9)
    garbage = rows.clone()
    garbage[0, 6:] = torch.randint(1, 98, (14,))
    torch.testing.assert_close(model(garbage), model(rows))


def test_cutting_to_the_longest_text_is_exact():
    model, rows = encoder(), tokens(3, 19, 7)
    apart = torch.cat([model(row[None]) for row in rows])
    torch.testing.assert_close(model(rows), apart)


def test_every_word_before_the_end_counts():
    model, rows = encoder(), tokens(6)
    before = model(rows)
    for position in range(6):
        changed = rows.clone()
        changed[0, position] = (changed[0, position] + 1) % 97 + 1
        assert not torch.allclose(model(changed), before)


def test_the_words_of_a_text_end_with_its_feature_and_beyond_the_longest_there_is_nothing():
    model, rows = encoder(), tokens(5, 9)
    words = model.words(rows)
    torch.testing.assert_close(words[[0, 1], [5, 9]], model(rows))
    assert words.shape == (2, 20, 32)
    assert not words[:, 10:].any()


def test_work_is_spent_only_up_to_the_longest_text():
    model, seen = encoder(), []
    model.blocks[0].register_forward_hook(lambda module, inputs, output: seen.append(output.shape[1]))
    model(tokens(4, 6))
    assert seen == [7]
