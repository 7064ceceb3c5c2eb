import shutil
import tarfile
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from groupvit.data.shards import Sample, write_shards
from groupvit.errors import InputError
from groupvit.evaluation.emergence import evaluation_of
from groupvit.evaluation.whole_photos import Retrieval, recall_at_k
from groupvit.models import ImageEncoderConfig, ModelConfig, Stage, TextEncoderConfig, build_model

CONFIG = ModelConfig(
    ImageEncoderConfig(16, 8, 16, 2, stages=(Stage(1, 2, 2),)),
    TextEncoderConfig(16, 2, 1, context_length=16),
    embed_dim=8,
    projector_dim=16,
)


def test_recall_is_counted_by_hand():
    similarity = torch.tensor([[0.9, 0.1, 0.5], [0.8, 0.2, 0.5], [0.1, 0.2, 0.3]])
    answers = torch.tensor([[0, -1], [1, 2], [0, 1]])
    assert recall_at_k(similarity, answers, 1) == pytest.approx(100 / 3)
    assert recall_at_k(similarity, answers, 2) == pytest.approx(100)
    assert recall_at_k(similarity, answers, 10) == 100


def test_padding_is_never_an_answer():
    assert recall_at_k(torch.eye(2), torch.tensor([[-1], [-1]]), 2) == 0


@pytest.fixture
def retrieval(tmp_path):
    def jpeg(colour: str) -> bytes:
        file = BytesIO()
        Image.new("RGB", (20, 18), colour).save(file, "JPEG")
        return file.getvalue()

    colours = ("red", "green", "blue", "white")
    samples = [Sample(c, jpeg(c), tuple(f"a {c} photo {i}" for i in range(n))) for n, c in enumerate(colours, start=1)]
    write_shards(samples, tmp_path, prefix="test")
    return Retrieval(tmp_path, CONFIG)


def test_each_caption_belongs_to_its_photo(retrieval):
    assert [photo.shape for photo in retrieval.photos] == [(3, 16, 16)] * 4
    assert retrieval.owners.tolist() == [0, 1, 1, 2, 2, 2, 3, 3, 3, 3]


def test_a_photo_is_seen_whole_along_its_short_side(tmp_path):
    pixels, file = np.random.default_rng(0).integers(0, 256, (16, 20, 3), dtype=np.uint8), BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    write_shards([Sample("a", file.getvalue(), ("a",))], tmp_path, prefix="a")
    (seen,) = Retrieval(tmp_path, CONFIG).photos
    assert np.array_equal(seen.permute(1, 2, 0).numpy(), pixels[:, 2:18])


def test_a_model_that_knows_the_photos_has_full_recall_and_a_constant_one_has_not(retrieval, monkeypatch):
    model = build_model(CONFIG).eval()
    position = iter(range(100))
    vectors = torch.eye(8)[:4]
    monkeypatch.setattr(model, "encode_image", lambda images: vectors[[next(position) for _ in images]])
    monkeypatch.setattr(model, "encode_text", lambda tokens: vectors[retrieval.owners])
    assert set(retrieval(model).values()) == {100.0}
    position = iter(range(100))
    monkeypatch.setattr(model, "encode_text", lambda tokens: vectors[(retrieval.owners + 1) % 4])
    assert retrieval(model)["text_to_image_r1"] == 0


def test_the_folder_of_held_out_shards_may_have_any_name(retrieval, tmp_path):
    folder = tmp_path / "photos [2024] {a,b}"
    folder.mkdir()
    shutil.copy(next(tmp_path.glob("*.tar")), folder)
    assert evaluation_of(CONFIG, folder, "test-*.tar").digest == retrieval.digest
    [shard] = tmp_path.glob("*.tar")
    assert evaluation_of(CONFIG, tmp_path / "elsewhere", str(shard)).digest == retrieval.digest


def test_shards_without_photos_are_named(tmp_path):
    with tarfile.open(tmp_path / "empty.tar", "w"):
        pass
    with pytest.raises(InputError, match=r"empty.tar holds no photos"):
        Retrieval(tmp_path / "empty.tar", CONFIG)


def test_other_captions_are_other_data(tmp_path):
    file = BytesIO()
    Image.new("RGB", (20, 18)).save(file, "JPEG")
    for caption in ("cat", "dog"):
        write_shards([Sample("a", file.getvalue(), (caption,))], tmp_path / caption, prefix="a")
    assert len({Retrieval(tmp_path / caption, CONFIG).digest for caption in ("cat", "dog")}) == 2
