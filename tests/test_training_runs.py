"""The runs against the paper (Xu et al., CVPR 2022, section 4) and the release; the documents against the runs."""

import csv
import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from groupvit.data.pack import pack
from groupvit.data.shards import Sample, find_shards, write_shards
from groupvit.errors import InputError
from groupvit.models import PAPER, GroupViT, Stage, build_model
from groupvit.training.objective import Captions, MultiLabel, Nouns, terms_of
from groupvit.training.paper_runs import PAIRS as COUNTED
from groupvit.training.run import Run, check, vary
from groupvit.training.runs import RUNS, get_run

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAIRS = {"cc3m": 2_891_445, "cc12m": 11_156_203, "yfcc14m": 14_615_499, "redcaps": 11_866_987}
SMALL = (
    *(
        "scenes",
        "scenes-release",
        "scenes-long",
        "scenes-64",
        "scenes-64-release",
        "scenes-512-release",
        "scenes-local",
    ),
    *(
        "flickr8k",
        "photos",
        "photos-small",
        "photos-plain",
        "photos-trunk",
        "photos-dino",
        "photos-moco",
        "photos-classify",
        "debug",
    ),
)
RIVALS = ("dino-vit-s", "moco-vit-s")
TRUNKS = ("photos-trunk", "photos-trunk-gpu")


def told(name: str) -> tuple[str, str, str]:
    """What the document says of a run: the row of the paper, the cost and the score."""
    _, tables = (DOCS / "TRAINING.md").read_text().split("| run | row of the paper |", maxsplit=1)
    [cells] = re.findall(rf"^\| `{name}` \| (.+) \| (.+) \| (.+) \|$", tables, re.M)
    return cells


@dataclass(frozen=True)
class Row:
    """What section 4 or the release's configuration says of one training, and the score that was reported."""

    sets: str
    stages: tuple[tuple[int, int, int], ...]
    patches_to_groups: tuple[tuple[int, int], ...]
    score: str
    row: str = ""
    hard: bool = True
    prompts: int = 3
    warmup_epochs: int = 2
    parameters: int = 0
    image_parameters: int = 0


ONE = ((6, 64, 8), (6, 0, 0))
TWO = ((6, 64, 64), (3, 8, 8), (3, 0, 0))
TWO_GROUPS = ((64, 196), (8, 64))
PRETRAINING = {
    "groupvit-s-gcc-yfcc": Row(
        "cc3m cc12m yfcc14m", TWO, TWO_GROUPS, "VOC 52.3, Context 22.4, COCO-Object 24.3", "published checkpoint",
        parameters=55_726_610, image_parameters=28_837_136,
    ),
    "groupvit-s-gcc-redcaps": Row(
        "cc3m cc12m redcaps", TWO, TWO_GROUPS, "VOC 50.8, Context 23.7, COCO-Object 27.5", "published checkpoint",
        prompts=0, parameters=55_726_609, image_parameters=28_837_136,
    ),
    "groupvit-s-1stage-cc12m-soft-no-multi-label": Row(
        "cc12m", ONE, ((8, 196),), "VOC 12.0", "Table 1 row 1", hard=False, prompts=0,
        parameters=52_144_201, image_parameters=25_254_728,
    ),
    "groupvit-s-1stage-cc12m-no-multi-label": Row(
        "cc12m", ONE, ((8, 196),), "VOC 36.7", "Table 1 row 2", prompts=0,
        parameters=52_144_201, image_parameters=25_254_728,
    ),
    "groupvit-s-1stage-cc12m-soft": Row(
        "cc12m", ONE, ((8, 196),), "VOC 25.1", "Table 1 row 3", hard=False,
        parameters=52_144_202, image_parameters=25_254_728,
    ),
    "groupvit-s-1stage-cc12m": Row(
        "cc12m", ONE, ((8, 196),), "VOC 39.3, boundary 31.6", "Table 1 row 4, Table 2 row 4, Table 3 row 1",
        parameters=52_144_202, image_parameters=25_254_728,
    ),
    "groupvit-s-1stage-cc12m-16-4": Row(
        "cc12m", ((6, 16, 4), (6, 0, 0)), ((4, 196),), "VOC 28.6", "Table 2 row 1",
        parameters=52_115_782, image_parameters=25_226_308,
    ),
    "groupvit-s-1stage-cc12m-16-8": Row(
        "cc12m", ((6, 16, 8), (6, 0, 0)), ((8, 196),), "VOC 37.1", "Table 2 row 2",
        parameters=52_116_554, image_parameters=25_227_080,
    ),
    "groupvit-s-1stage-cc12m-32-8": Row(
        "cc12m", ((6, 32, 8), (6, 0, 0)), ((8, 196),), "VOC 38.3", "Table 2 row 3",
        parameters=52_125_770, image_parameters=25_236_296,
    ),
    "groupvit-s-1stage-cc12m-64-16": Row(
        "cc12m", ((6, 64, 16), (6, 0, 0)), ((16, 196),), "VOC 38.0", "Table 2 row 5",
        parameters=52_145_746, image_parameters=25_256_272,
    ),
    "groupvit-s-cc12m": Row(
        "cc12m", TWO, TWO_GROUPS, "VOC 41.1, boundary 33.5", "Table 3 row 2",
        parameters=55_726_610, image_parameters=28_837_136,
    ),
    "groupvit-s-1stage-cc12m-yfcc": Row(
        "cc12m yfcc14m", ONE, ((8, 196),), "VOC 37.2, boundary 32.3", "Table 3 row 3",
        parameters=52_144_202, image_parameters=25_254_728,
    ),
    "clip-vit-s": Row(
        "cc12m yfcc14m", ((12, 0, 0),), (), "pixel-wise 20.1, k-means 25.0, mean-shift 20.7, spectral 19.7", "Table 4",
        prompts=0, parameters=48_555_137, image_parameters=21_665_664,
    ),
    "paper": Row(
        "cc12m yfcc14m", TWO, TWO_GROUPS, "VOC 51.2, Context 22.3, VOC boundary 40.3", "Table 3 row 4",
        warmup_epochs=5, parameters=91_837_313, image_parameters=22_879_104,
    ),
}  # fmt: skip


def on_meta(run: Run) -> GroupViT:
    with torch.device("meta"):
        return build_model(run.model)


def size(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_every_run_and_data_set_stands_in_the_tables_of_this_test() -> None:
    assert set(RUNS) == {*SMALL, *TRUNKS, *RIVALS, *PRETRAINING}
    assert COUNTED == PAIRS


@pytest.mark.parametrize("name", PRETRAINING)
def test_pretraining_has_the_numbers_of_the_paper(name: str) -> None:
    run, row = RUNS[name], PRETRAINING[name]
    sets = row.sets.split()
    pairs = sum(PAIRS[part] for part in sets)
    assert (run.data.batch_size, run.schedule.lr, run.optimizer.weight_decay) == (4096, 0.0016, 0.05)
    assert run.schedule.steps == 30 * pairs // 4096
    assert run.schedule.warmup == row.warmup_epochs * pairs // 4096
    assert [type(term) for term in run.objective] == [Captions] + [MultiLabel] * (row.prompts > 0)
    assert {term.weight for term in run.objective} == {1}
    assert [term.prompts for term in terms_of(run.objective, MultiLabel)] == [row.prompts] * (row.prompts > 0)
    assert run.data.train == (f"{{{','.join(sets)}}}/*.tar" if len(sets) > 1 else f"{sets[0]}/*.tar")
    reproduced, cost, expected = told(name)
    assert row.score in expected
    assert row.row in reproduced
    share = 100 * pairs / sum(PAIRS[part] for part in ("cc3m", "cc12m", "yfcc14m"))
    assert name in ("paper", "groupvit-s-gcc-yfcc") or f"; {share:.0f} % of the photos of" in cost
    image, text = run.model.image, run.model.text
    assert (image.image_size, image.patch_size, image.dim, image.heads) == (224, 16, 384, 6)
    assert image.stages == tuple(Stage(*stage) for stage in row.stages)
    assert sum(stage.depth for stage in image.stages) == 12
    assert image.hard_assignment == row.hard
    assert (text.layers, text.context_length) == (12, 77)


@pytest.mark.parametrize(
    ("name", "batch_size", "lr", "decay", "epochs", "score"),
    [
        ("dino-vit-s", 1024, 5e-4, 0.04, 10, "37.6, Context 22.8"),
        ("moco-vit-s", 4096, 1.5e-4, 0.1, 40, "36.1, Context 23.0"),
    ],
)
def test_the_rivals_have_their_authors_numbers_and_groupvits_vit(
    name: str, batch_size: int, lr: float, decay: float, epochs: int, score: str
) -> None:
    run, photos = RUNS[name], 1_281_167  # rates are published for 256 photos
    assert run.model.image == RUNS["clip-vit-s"].model.image
    assert run.data.train == RUNS["paper"].data.train
    assert (run.data.batch_size, run.optimizer.weight_decay) == (batch_size, decay)
    assert run.schedule.lr == pytest.approx(lr * batch_size / 256)
    assert (run.schedule.steps, run.schedule.warmup) == (300 * photos // batch_size, epochs * photos // batch_size)
    assert score in told(name)[2]


@pytest.mark.parametrize("name", [name for name in PRETRAINING if name != "paper"])
def test_all_but_the_paper_s_own_run_follow_the_release(name: str) -> None:
    run = RUNS[name]
    assert (run.schedule.lr_start, run.schedule.lr_end, run.schedule.warmup_prefix) == (4e-6, 4e-5, False)
    assert (run.data.augment, run.data.crop) == ("randaugment", (0.08, 1.0))
    assert run.objective[0] == Captions(form="release")
    assert set(run.objective[1:]) <= {MultiLabel(3, style="release", form="release")}
    image, text = run.model.image, run.model.text
    assert (image.assign_logits, image.assign_eps, image.token_mixer, image.group_residual) == (
        "scaled_dot", 1.0, True, True,
    )  # fmt: skip
    assert (image.pre_assign_attention, image.channel_mlp, image.drop_path) == (True, True, 0.1)
    assert (text.width, text.heads) == (256, 4)
    assert (run.model.projector_dim, run.model.embed_dim) == (4096, 256)


@pytest.mark.parametrize("name", PRETRAINING)
def test_a_temperature_that_no_loss_uses_is_not_in_the_model(name: str) -> None:
    own_temperature = hasattr(on_meta(RUNS[name]), "multi_label_logit_scale")
    assert own_temperature == (len(RUNS[name].objective) > 1 and name != "paper")


def test_the_paper_s_own_run_is_as_printed() -> None:
    run = RUNS["paper"]
    assert run.model == PAPER
    assert run.objective == (Captions(form="paper"), MultiLabel(3, style="paper", form="paper"))
    assert run.schedule.warmup_prefix
    image, text = run.model.image, run.model.text
    assert (image.assign_logits, image.assign_eps) == ("dot", 0.0)
    extras = (image.token_mixer, image.pre_assign_attention, image.channel_mlp, image.project_group_tokens)
    assert not any(extras)
    assert (text.width, text.heads, run.model.multi_label_scale) == (512, 8, False)


def test_the_release_s_rate_drops_a_little_where_the_warm_up_ends() -> None:
    run = RUNS["groupvit-s-gcc-yfcc"]
    steps, warmup = run.schedule.steps, run.schedule.warmup
    assert (steps, warmup) == (209_935, 13_995)
    rates = [run.schedule.rate(step) for step in (0, warmup - 1, warmup, steps)]
    assert rates == pytest.approx([4e-6, 1.6e-3, 1.583e-3, 4e-5], rel=3e-4)
    paper = RUNS["paper"].schedule
    rates = [paper.rate(step) for step in (0, paper.warmup, paper.steps)]
    assert rates == pytest.approx([0, 1.6e-3, 0], abs=1e-12)


@pytest.mark.parametrize("name", PRETRAINING)
def test_pretraining_builds_with_the_groups_of_the_paper(name: str) -> None:
    row, model = PRETRAINING[name], on_meta(RUNS[name])
    assert (size(model), size(model.image_encoder)) == (row.parameters, row.image_parameters)
    encoder = model.image_encoder.to_empty(device="cpu").eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.zero_()
        features = encoder(torch.zeros(1, 3, 224, 224))
    assert tuple(tuple(assignment.soft.shape[1:]) for assignment in features.assignments) == row.patches_to_groups
    assert features.segments.shape == (1, row.patches_to_groups[-1][0] if row.patches_to_groups else 196, 384)


@pytest.mark.parametrize("name", SMALL)
def test_small_runs_build_and_end_after_their_warm_up(name: str) -> None:
    assert size(on_meta(RUNS[name])) < 25_000_000
    assert 0 <= RUNS[name].schedule.warmup < RUNS[name].schedule.steps


@pytest.mark.parametrize("name", [name for name in SMALL if not name.startswith("photos")])
def test_measured_runs_are_what_they_were_when_measured(name: str) -> None:
    run = RUNS[name]
    schedule, data = run.schedule, run.data
    assert (data.augment, run.optimizer.ema, schedule.warmup_prefix) == ("crop", 0.0, True)
    assert (schedule.steps, data.batch_size, schedule.lr, schedule.warmup, data.crop[0]) == {
        "scenes": (2400, 32, 5e-4, 200, 0.6),
        "scenes-release": (600, 128, 1.6e-3, 40, 0.08),
        "scenes-long": (14_000, 32, 1e-3, 200, 0.6),
        "scenes-64": (800, 64, 7e-4, 67, 0.6),
        "scenes-64-release": (800, 64, 7e-4, 67, 0.6),
        "scenes-512-release": (100, 512, 2e-3, 8, 0.6),
        "scenes-local": (2400, 32, 5e-4, 200, 0.6),
        "flickr8k": (800, 256, 1e-3, 100, 0.4),
        "debug": (10, 16, 5e-4, 2, 0.6),
    }[name]


def test_photos_fits_in_two_parts_of_16_megabytes_without_the_words_it_never_saw() -> None:
    config = RUNS["photos"].model
    seen = 10_000  # byte pairs in the captions of its shards and in the templates
    values = sum(tensor.numel() for tensor in on_meta(RUNS["photos"]).state_dict().values())
    values -= (config.text.vocab_size - seen) * config.text.width
    assert 2 * values < 32e6


def test_patterns_with_braces_find_the_shards_of_each_data_set(tmp_path: Path) -> None:
    for name in PAIRS:
        write_shards([Sample("0", b"\xff\xd8\xff", ("a dog",))], tmp_path / name, prefix="part")
    for name, row in PRETRAINING.items():
        found = find_shards(tmp_path / RUNS[name].data.train)
        assert [Path(path).parent.name for path in found] == row.sets.split()


def test_an_unknown_run_is_answered_with_the_names_of_the_known() -> None:
    with pytest.raises(InputError, match="groupvit-s-gcc-yfcc"):
        get_run("nonsense")


@pytest.mark.parametrize("name", RUNS)
def test_the_document_names_each_run_with_its_row_cost_and_score(name: str) -> None:
    assert all(told(name))


def test_the_document_names_no_other_run_and_its_parameters_are_right() -> None:
    text = (DOCS / "TRAINING.md").read_text()
    assert set(re.findall(r"^\| `([\w-]+)` \|.*\|.*\|.*\|$", text, re.M)) == set(RUNS)
    counts = re.findall(r"^\| `([\w-]+)`: .* \| ([\d,]+) \| ([\d,]+) \|$", text, re.M)
    assert len(counts) == 9
    for name, total, image in counts:
        model = on_meta(RUNS[name])
        assert (total, image) == (f"{size(model):,}", f"{size(model.image_encoder):,}")


def test_the_document_has_the_pairs_of_the_authors() -> None:
    text = (DOCS / "DATA.md").read_text()
    assert all(f"| `{name}` | {pairs:,} |" in text for name, pairs in PAIRS.items())


def snippet(holding: str) -> str:
    blocks = re.findall(r"^```python\n(.*?)^```$", (DOCS / "DATA.md").read_text(), re.M | re.S)
    [found] = [block for block in blocks if holding in block]
    return found


def columns(path: str) -> list[tuple[str, str]]:
    table = pytest.importorskip("pyarrow.parquet").read_table(path)
    return list(zip(table["url"].to_pylist(), table["caption"].to_pylist(), strict=True))


def test_a_table_of_files_becomes_shards_as_documented(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [("0.jpg", "a dog, running"), ("1.png", 'a "red" café')]
    for file, _ in rows:
        Image.new("RGB", (8, 8)).save(file)
    with open("mine.csv", "w", encoding="utf-8", newline="") as table:
        csv.writer(table).writerows([("file", "caption"), *rows])
    assert "\ngroupvit data pack mine.csv data/mine " in (DOCS / "DATA.md").read_text()
    assert pack(Path("mine.csv"), Path("data/mine")).faults == []
    [shard] = find_shards(tmp_path / "data/mine")
    assert 'a "red" café'.encode() in Path(shard).read_bytes()


def test_lists_of_cc3m_and_cc12m_become_tables_as_documented(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyarrow")
    monkeypatch.chdir(tmp_path)
    rows = [("http://a/0.jpg", "a dog"), ("http://a/1.jpg", '"unbalanced'), ("http://a/2.jpg", 'a "red" car')]
    Path("Train_GCC-training.tsv").write_text("".join(f"{caption}\t{url}\n" for url, caption in rows))
    Path("cc12m.tsv").write_text("".join(f"{url}\t{caption}\n" for url, caption in rows))
    exec(compile(snippet("Train_GCC"), "DATA.md", "exec"), {})
    assert columns("cc3m.parquet") == columns("cc12m.parquet") == rows


def test_annotations_of_redcaps_become_a_table_as_documented(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyarrow")
    monkeypatch.chdir(tmp_path)
    Path("annotations").mkdir()
    posts = [{"url": "http://a/0.jpg", "caption": "my dog", "raw_caption": "My dog!"}]
    empty = [{"url": "http://a/1.jpg", "caption": "", "raw_caption": "!!!"}]
    for name, part in (("dogs_2019", posts), ("cats_2019", empty)):
        Path(f"annotations/{name}.json").write_text(json.dumps({"info": {}, "annotations": part}))
    exec(compile(snippet("annotations"), "DATA.md", "exec"), {})
    assert columns("redcaps.parquet") == [("http://a/0.jpg", "my dog")]


def test_the_subset_of_yfcc_becomes_a_table_as_documented(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyarrow")
    monkeypatch.chdir(tmp_path)
    descriptions = ["Our+%3Cb%3Edog%3C%2Fb%3E%0Aruns", "dog", "Our+dog+runs", "not+in+the+subset", "a+cat"]
    lines = []
    for number, description in enumerate(descriptions):
        fields = [str(number), f"id{number}", f"hash{number}"] + [""] * 22
        fields[8], fields[9], fields[16] = "title", description, f"http://a/{number}.jpg"
        lines.append(fields)
    Path("yfcc100m_dataset").write_text("".join("\t".join(fields) + "\n" for fields in lines))
    subset = [fields[:3] for fields in lines if fields[1] != "id3"]
    Path("yfcc100m_subset_data.tsv").write_text("".join("\t".join(fields) + "\n" for fields in subset))
    exec(compile(snippet("yfcc100m"), "DATA.md", "exec"), {})
    assert columns("yfcc14m.parquet") == [("http://a/0.jpg", "Our dog runs"), ("http://a/4.jpg", "a cat")]


def test_a_varied_run_differs_in_what_was_named_wherever_it_stands() -> None:
    run = vary(RUNS["debug"], steps=7, crop=(0.5, 1.0), ema=0.9, objective=(Captions(),))
    assert (run.schedule.steps, run.data.crop, run.optimizer.ema, run.objective) == (7, (0.5, 1.0), 0.9, (Captions(),))
    assert vary(run, steps=10, crop=(0.6, 1.0), ema=0.0, objective=RUNS["debug"].objective) == RUNS["debug"]
    with pytest.raises(TypeError, match="colour"):
        vary(run, colour="red")


@pytest.mark.parametrize("name", RUNS)
def test_every_run_goes_together(name: str) -> None:
    check(get_run(name), seed=0, workers=1, keep=2)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"objective": (Captions(), Captions(0.1))}, "one of each name: caption, caption"),
        ({"objective": (Nouns("patch", 1.0), Nouns("patch", 1.0, prior=1.0))}, "patch_nouns, patch_nouns"),
        ({"objective": ()}, "at least one term"),
        ({"model": replace(get_run("debug").model, segment_loss=False)}, "need a model with segment_loss"),
        ({"evaluate_every": 0}, "at least 1"),
        ({"save_every": 0}, "at least 1"),
        ({"chunk": -1}, "at least"),
        ({"steps": 10**8}, "at most 99,999,999"),
    ],
    ids=str,
)
def test_parts_that_do_not_go_together_are_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        check(vary(get_run("debug"), **changes), seed=0, workers=0, keep=1)


def test_a_slip_in_the_name_of_an_augmentation_is_refused() -> None:
    run = vary(get_run("debug"), min_count=3)
    object.__setattr__(run.data, "augment", "colour")  # as without the tests' check of types
    with pytest.raises(InputError, match="no augment 'colour': there are crop, color, randaugment"):
        check(run, seed=0, workers=0, keep=1)


@pytest.mark.parametrize("numbers", [(-1, 0, 1), (2**63, 0, 1), (0, -1, 1), (0, 0, 0)])
def test_numbers_of_no_training_are_refused_in_python_too(numbers: tuple[int, int, int]) -> None:
    with pytest.raises(InputError, match="at least"):
        check(get_run("debug"), *numbers)
