import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from experiments.atlas import Look, clustered, main, tokens
from PIL import Image

from groupvit import api
from groupvit.errors import InputError
from groupvit.models import Stage, build_model, with_stages
from groupvit.segmentation import Segmenter
from test_evaluation_scoring import random_segmenter
from test_experiments_trunk_baselines import ONE, TWO
from test_training_loop import TINY

LEARNED = with_stages(TINY, Stage(1, 6, 6), Stage(1, 4, 4))
WORDS = ["cat", "sky", "grass"]


def look(owner, noun, share=1.0, vectors=((1.0, 0.0),) * 3):
    owner, noun = np.array(owner), np.array(noun)
    shares = np.broadcast_to(np.array(share, np.float32), owner.shape)
    return Look(Path("a.png"), owner, shares, noun, np.array(vectors, np.float32), (8.0, 8.0))


@pytest.fixture
def photos(tmp_path):
    (tmp_path / "photos/below").mkdir(parents=True)
    for name, colour in {"red.png": "red", "below/blue.jpg": "blue"}.items():
        Image.new("RGB", (50, 40), colour).save(tmp_path / "photos" / name)
    (tmp_path / "words.txt").write_text("cat\nsky # above\na <grass>y\n")
    return tmp_path / "photos"


def test_a_token_is_counted_over_all_photos():
    stage = [look([[0, 0], [0, 2]], [[0, 0], [1, 2]]), look([[0, 2], [2, 2]], [[0, 2], [2, 2]])]
    first, second = sorted(tokens(stage, WORDS, 5), key=lambda token: token.index)
    assert (first.index, first.patches, first.photos) == (0, 0.5, 1.0)
    assert first.nouns == (("cat", 0.75), ("sky", 0.25))
    assert (second.index, second.purity) == (2, 1.0)


def test_the_strongest_patch_of_each_photo_is_shown_the_surest_first():
    sure = look([[0, 0], [0, 1]], [[0, 0], [0, 1]], [[0.5, 0.9], [0.6, 1.0]])
    unsure = look([[0, 1], [1, 1]], [[0, 1], [1, 1]], 0.7)
    token = next(token for token in tokens([unsure, sure], WORDS, 5) if token.index == 0)
    assert [crop.share for crop in token.strongest] == pytest.approx([0.9, 0.7])
    assert (token.strongest[0].y, token.strongest[0].x) == (4, 12)
    assert len(tokens([unsure, sure], WORDS, 1)[0].strongest) == 1


def test_groups_without_tokens_are_known_by_what_they_became():
    stage = [
        look([[0, 1]], [[0, 1]], vectors=((1.0, 0.0), (0.0, 1.0))),
        look([[0, 1]], [[1, 0]], vectors=((0.0, 1.0), (1.0, 0.0))),
    ]
    one, other = clustered(stage, 2)
    assert one.owner[0, 0] == other.owner[0, 1] != one.owner[0, 1]
    assert [token.purity for token in tokens([one, other], WORDS, 1)] == [1.0, 1.0]


@pytest.mark.filterwarnings("ignore:this model's training never saw")
@pytest.mark.parametrize("config", [TINY, LEARNED, ONE, TWO], ids=["one", "two", "seeded", "seeded, then learned"])
def test_a_page_holds_every_stage_and_needs_nothing_else(photos, monkeypatch, config, tmp_path, capsys):
    monkeypatch.setattr(api, "load", lambda _: Segmenter(build_model(config), config, precision="fp32"))
    (photos / "torn.png").write_bytes((photos / "red.png").read_bytes()[:60])
    if config in (ONE, TWO):
        Image.new("RGB", (150, 40)).save(photos / "torn.png")  # a window would slide over it
    main("tiny", photos, tmp_path / "atlas.html", tmp_path / "words.txt")
    page, told = (tmp_path / "atlas.html").read_text(), capsys.readouterr()
    assert re.findall(r"<h2>Stage (\d)", page) == [str(i + 1) for i in range(len(config.image.stages))]
    assert page.count("this stage has no tokens") == config.image.stages[0].seeded
    assert page.count("<section>") == page.count("<img") > 0
    assert not re.search(r"https?://|<grass>", page)
    assert "2 photos, 1 left out" in told.out
    assert "torn.png" in told.err


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"photos": Path("nowhere")}, "nowhere holds no photos"),
        ({"limit": 0}, "limit of 0"),
        ({"words": None}, "add --words"),
        ({"words": Path("none.txt")}, "none.txt"),
        ({"words": Path("twice.txt")}, "given twice"),
        ({"crops": 0}, "at least one"),
    ],
)
def test_what_cannot_be_shown_is_one_line(photos, monkeypatch, tmp_path, changes, said):
    segmenter = random_segmenter()
    segmenter.config = replace(segmenter.config, rivals=())
    monkeypatch.setattr(api, "load", lambda _: segmenter)
    monkeypatch.chdir(tmp_path)
    Path("twice.txt").write_text("cat\ncat\n")
    given = {"model": "tiny", "photos": photos, "out": tmp_path / "a.html", "words": tmp_path / "words.txt"} | changes
    with pytest.raises(InputError, match=said):
        main(**given)
    assert not (tmp_path / "a.html").exists()


def test_a_plain_vit_has_no_atlas(photos, monkeypatch, tmp_path):
    monkeypatch.setattr(api, "load", lambda _: random_segmenter(Stage(1)))
    with pytest.raises(InputError, match="plain ViT"):
        main("tiny", photos, tmp_path / "a.html", tmp_path / "words.txt")
