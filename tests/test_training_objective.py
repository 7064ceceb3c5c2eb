from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from groupvit.data.batches import Batch
from groupvit.models import (
    GroupViT,
    ImageEncoderConfig,
    ModelConfig,
    Stage,
    TextEncoderConfig,
    build_model,
    noise,
    normalize,
    temperature,
)
from groupvit.text.tokenizer import Tokenizer
from groupvit.training import losses
from groupvit.training.distributed import ALONE
from groupvit.training.embedding import encode_images, encode_texts, loss_terms, texts_of
from groupvit.training.objective import (
    Captions,
    Embeddings,
    Images,
    LocalAlignment,
    MultiLabel,
    Nouns,
    Objective,
    Teacher,
    Vocabulary,
)

CONFIG = ModelConfig(
    ImageEncoderConfig(16, 8, 32, 2, stages=(Stage(1, 3, 3),), group_residual=False),
    TextEncoderConfig(32, 2, 1, context_length=24),
    embed_dim=16,
    projector_dim=32,
    segment_loss=True,
)
PROMPTS = MultiLabel(prompts=2)
OBJECTIVE: Objective = (Captions(2.0), PROMPTS, Nouns("segment", 0.5), Nouns("patch", 0.25))
TOKENIZER = Tokenizer(24)
WORDS = Vocabulary.from_counts({"dog": 9, "cat": 4, "hat": 1}, 10, TOKENIZER)
KEYS = noise.sample_keys(0, 0, torch.arange(4))


def make_batch() -> Batch:
    captions = ["a dog in a hat", "a cat", "two dogs", "a hat on a cat and a very long story about it"]
    prompts = TOKENIZER([f"a photo of a {noun}." for noun in ("dog", "hat", "cat", "cat", "dog", "dog", "hat", "cat")])
    return Batch(
        torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8),
        TOKENIZER(captions),
        prompts.unflatten(0, (4, 2)),
        torch.tensor([[1, 0, 1], [0, 1, 0], [1, 0, 0], [0, 1, 1]]).bool(),
        torch.ones(4, 3, dtype=torch.bool),
        torch.ones(4, dtype=torch.bool),
    )


def terms_of(
    model: GroupViT, batch: Batch, objective: Objective, words: Vocabulary, keys: torch.Tensor
) -> dict[str, torch.Tensor]:
    texts = [encode_texts(model, tokens, words=places) for tokens, places in texts_of(batch, objective, words)]
    images = encode_images(model, batch.images, objective, keys)
    return loss_terms(model, objective, images, texts, batch, words)


def test_terms_carry_their_weights_and_zero_weight_means_no_term():
    model, batch = build_model(CONFIG).eval(), make_batch()
    terms = terms_of(model, batch, OBJECTIVE, WORDS, KEYS)
    assert list(terms) == ["caption", "multi_label", "segment_nouns", "patch_nouns"]
    heavier = (Captions(4.0), PROMPTS, Nouns("segment", 1.0), Nouns("patch", 0.25))
    doubled = terms_of(model, batch, heavier, WORDS, KEYS)
    torch.testing.assert_close(doubled["segment_nouns"], 2 * terms["segment_nouns"])
    torch.testing.assert_close(doubled["caption"], 2 * terms["caption"])
    torch.testing.assert_close(doubled["patch_nouns"], terms["patch_nouns"])
    nothing = replace(batch, prompts=batch.prompts[:, :0])
    no_words = Vocabulary.from_counts({}, 10, TOKENIZER)
    assert list(terms_of(model, nothing, (Captions(),), no_words, KEYS)) == ["caption"]


def test_terms_are_the_losses_of_the_embeddings():
    model, batch = build_model(CONFIG).eval(), make_batch()
    features = model.image_encoder(normalize(batch.images), KEYS)
    captions = model.encode_text(batch.captions)
    images = model.embed_image_features(features.pooled)
    terms = terms_of(model, batch, OBJECTIVE, WORDS, KEYS)
    caption = losses.contrastive_loss(images, captions, temperature(model.logit_scale))
    torch.testing.assert_close(terms["caption"], 2 * caption)
    segments = losses.segment_noun_loss(
        model.embed_image_features(features.segments),
        features.occupied(),
        model.encode_text(WORDS.tokens),
        batch.present,
        batch.known,
        temperature(model.segment_logit_scale),
        model.segment_logit_bias,
        WORDS.weights,
    )
    torch.testing.assert_close(terms["segment_nouns"], 0.5 * segments)


def test_losses_are_in_float32_under_autocast(monkeypatch):
    seen = []
    loss = losses.contrastive_loss
    monkeypatch.setattr(losses, "contrastive_loss", lambda *given: seen.append(loss(*given).dtype) or loss(*given))
    with torch.autocast("cpu", torch.bfloat16):
        terms = terms_of(build_model(CONFIG).eval(), make_batch(), OBJECTIVE, WORDS, KEYS)
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == torch.bfloat16
    assert {term.dtype for term in terms.values()} == set(seen) == {torch.float32}


def test_batch_norm_sees_every_text_of_the_step_at_once():
    model, batch = build_model(CONFIG).train(), make_batch()
    seen = []
    model.text_projector.norm.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    terms_of(model, batch, OBJECTIVE, WORDS, KEYS)
    assert seen == [4 + 8 + 3]


def test_every_parameter_that_the_run_uses_gets_a_gradient():
    model = build_model(CONFIG).train()
    torch.stack(list(terms_of(model, make_batch(), OBJECTIVE, WORDS, KEYS).values())).sum().backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert without == []


def test_weights_of_nouns_fall_with_the_root_of_their_frequency():
    assert WORDS.nouns == ("dog", "cat", "hat")
    assert WORDS.weights.mean().item() == pytest.approx(1)
    assert (WORDS.weights[2] / WORDS.weights[0]).item() == pytest.approx(3)


def test_the_prior_is_what_is_predicted_of_a_photo_that_tells_nothing():
    """Where no segment is nearer to one noun than to another, each has the probability of its frequency."""
    words = Vocabulary.from_counts({"dog": 9, "cat": 4, "hat": 1}, 10, TOKENIZER)
    torch.testing.assert_close(words.log_odds.sigmoid(), torch.tensor([0.9, 0.4, 0.1]))
    objective = (Nouns("segment", 1.0, prior=1.0), Nouns("patch", 1.0, prior=1.0))
    model, batch = build_model(CONFIG).eval(), make_batch()
    with torch.no_grad():
        model.segment_logit_scale.fill_(-torch.inf)  # a factor of 0
    terms = terms_of(model, batch, objective, words, KEYS)
    probability = torch.where(batch.present, words.log_odds.sigmoid(), 1 - words.log_odds.sigmoid())
    for name in ("segment_nouns", "patch_nouns"):
        torch.testing.assert_close(terms[name], -probability.log().sum(dim=1).mean())


def test_the_teacher_compares_cells_of_patches_with_the_mean_word_of_each_class():
    words = Vocabulary.from_counts({"dog": 2, "cat": 1}, 10, TOKENIZER, [["cat"], ["dog", "wolf"]])
    assert words.classes.tolist() == [[0, 1, 0], [0.5, 0, 0.5]]
    model = build_model(replace(CONFIG, teacher_loss=True))
    texts, patches = F.normalize(torch.randn(3, 8), dim=-1), F.normalize(torch.randn(4, 16, 8), dim=-1)
    taught, nothing, nowhere = torch.randn(4, 4, 2).softmax(dim=-1), torch.zeros(4, 0, 8), torch.zeros(4, 0).bool()
    images = Images(patches[:, 0], nothing, patches, nowhere, nowhere, taught, ())
    of_texts = (patches[:, 0], texts, texts, nothing, nowhere)
    of = Embeddings(make_batch(), words, ALONE, images, patches[:, 0], nothing, nowhere, *of_texts)
    cells = F.normalize(patches.view(4, 2, 2, 2, 2, 8).mean(dim=(2, 4)).flatten(1, 2), dim=-1)
    classes = F.normalize(torch.stack([texts[1], texts[0] + texts[2]]), dim=-1)
    expected = losses.teacher_loss(cells, classes, taught, temperature(model.teacher_logit_scale))
    torch.testing.assert_close(Teacher()(model, of), expected)


def test_distinct_prompts_are_encoded_once_and_are_positives_of_all_who_drew_them():
    model, batch = build_model(CONFIG).eval(), make_batch()
    objective = (MultiLabel(prompts=2, distinct=True),)
    prompts, counts = (
        texts_of(batch, objective, WORDS)[1][0],
        torch.tensor([[1, 0, 1], [0, 2, 0], [2, 0, 0], [0, 1, 1]]),
    )
    assert torch.equal(prompts, TOKENIZER([f"a photo of a {noun}." for noun in ("dog", "cat", "hat")]))
    images = model.embed_image_features(model.image_encoder(normalize(batch.images), KEYS).pooled)
    scale = temperature(model.multi_label_logit_scale)
    expected = losses.multi_positive_multi_label_loss(images, model.encode_text(prompts), counts, scale)
    torch.testing.assert_close(terms_of(model, batch, objective, WORDS, KEYS)["multi_label"], expected)


def test_captions_made_of_tags_take_no_part_in_the_caption_losses():
    objective = (*OBJECTIVE, LocalAlignment(1.0))
    model, whole = build_model(CONFIG).eval(), make_batch()
    human = torch.tensor([True, False, True, True])
    names = ("images", "captions", "prompts", "present", "known", "human")
    fewer = {name: getattr(whole, name)[human] for name in names}
    expected = terms_of(model, replace(whole, **fewer), objective, WORDS, KEYS[human])
    found = terms_of(model, replace(whole, human=human), objective, WORDS, KEYS)
    everyone = terms_of(model, whole, objective, WORDS, KEYS)
    for name in ("caption", "local"):
        torch.testing.assert_close(found[name], expected[name])
        assert (found[name] - everyone[name]).abs() > 1e-3
    for name in ("multi_label", "segment_nouns", "patch_nouns"):
        assert torch.equal(found[name], everyone[name])


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_human_captions_have_nothing_to_tell_apart(count):
    objective = (Captions(), LocalAlignment(1.0))
    model, batch = build_model(CONFIG).train(), make_batch()
    batch = replace(batch, prompts=batch.prompts[:, :0], human=torch.arange(4) < count)
    terms = terms_of(model, batch, objective, WORDS, KEYS)
    assert {name: term.item() for name, term in terms.items()} == {"caption": 0, "local": 0}
    torch.stack(list(terms.values())).sum().backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert not any(gradient.any() for gradient in gradients)


def test_segments_are_aligned_with_the_words_between_start_and_end():
    model, batch = build_model(CONFIG).eval(), make_batch()
    objective = (*OBJECTIVE, LocalAlignment(3.0))
    features = model.image_encoder(normalize(batch.images), KEYS)
    ends = batch.captions.argmax(dim=1)
    grid = model.embed_text_features(model.text_encoder.words(batch.captions).flatten(0, 1)).unflatten(0, (4, -1))
    place = torch.arange(24)
    exist = (place > 0) & (place < ends[:, None])
    segments = model.embed_image_features(features.segments)
    scale = temperature(model.logit_scale)
    expected = losses.local_alignment_loss(segments, features.occupied(), grid, exist, scale)
    terms = terms_of(model, batch, objective, WORDS, KEYS)
    torch.testing.assert_close(terms["local"], 3 * expected)
    torch.testing.assert_close(terms["caption"], terms_of(model, batch, OBJECTIVE, WORDS, KEYS)["caption"])


def test_of_an_empty_caption_the_end_stands_for_a_word():
    model, batch = build_model(CONFIG).eval(), make_batch()
    batch = replace(batch, captions=torch.cat([TOKENIZER([""]), batch.captions[1:]]))
    assert terms_of(model, batch, (LocalAlignment(1.0),), WORDS, KEYS)["local"].isfinite()


def test_rare_nouns_have_the_prior_of_their_own_frequency():
    words = Vocabulary.from_counts({"dog": 1000, "cat": 100, "hat": 10}, 100_000, TOKENIZER)
    torch.testing.assert_close(words.log_odds.sigmoid(), torch.tensor([1e-2, 1e-3, 1e-4]))
