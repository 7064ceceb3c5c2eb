"""The miniatures of Tables 1 to 3 and groups against patches: what each line changes, and that a whole table runs."""

from pathlib import Path

import pytest
from experiments import ablations, record
from rich.console import Console

from groupvit.data import scenes
from groupvit.models import Stage
from groupvit.training.objective import Captions, MultiLabel, Nouns, terms_of
from groupvit.training.run import Run, vary
from groupvit.training.runs import get_run


def runs_of(table: str) -> list[tuple[str, Run, Run]]:
    """Return lines' names, what they are made of and what they make of it."""
    columns = [get_run(name) for name in ablations.LOSSES.values()]
    return [(line, run, change(run)) for run in columns for line, change in ablations.TABLES[table].items()]


def test_table_1_varies_the_assignment_and_the_multi_label_loss() -> None:
    for line, base, run in runs_of("1"):
        assert run.model.image.hard_assignment == line.startswith("hard")
        assert len(terms_of(run.objective, MultiLabel)) == ("multi-label" in line)
        assert vary(run, hard_assignment=True).model == base.model
        assert (run.data, run.schedule, run.optimizer) == (base.data, base.schedule, base.optimizer)


def test_table_2_has_the_papers_numbers_of_tokens() -> None:
    for line, base, run in runs_of("2"):
        (stage,) = run.model.image.stages
        assert line == f"{stage.group_tokens} group tokens, {stage.output_groups} output tokens"
        assert vary(run, stages=base.model.image.stages) == base


def test_table_3_varies_stages_and_data(tmp_path: Path) -> None:
    for line, base, run in runs_of("3"):
        assert len(run.model.image.stages) == (2 if line.startswith("two") else 1)
        assert sum(stage.depth for stage in run.model.image.stages) == 3
        assert (run.data == base.data) == line.endswith("30,000 scenes")
    shards = [f"train/scenes-{i:04d}.tar" for i in range(30)]
    assert sum(Path(shard).match(ablations.THIRD) for shard in shards) == 10


def test_table_4_clusters_a_vit_that_has_seen_captions_alone() -> None:
    base = get_run(ablations.LOSSES["paper"])
    runs = {line: change(base) for line, change in ablations.TABLES["4"].items()}
    vit = runs.pop("ViT, pixel-wise")
    assert vit.objective == (Captions(),)
    assert not any(stage.has_grouping for stage in vit.model.image.stages)
    assert [line for line, run in runs.items() if run == vit] == ["ViT, k-means", "ViT, mean-shift", "ViT, spectral"]
    assert runs["GroupViT"] == base
    assert runs["GroupViT, no multi-label loss"].objective == vit.objective
    assert all((run.data, run.schedule) == (vit.data, vit.schedule) for run in runs.values())


def test_groups_or_patches_varies_the_groups_and_keeps_the_losses_weights() -> None:
    base = get_run(ablations.LOSSES["nouns"])
    for line, change in ablations.TABLES["groups-or-patches"].items():
        run = change(base)
        weights = sum(term.weight for term in terms_of(run.objective, Nouns))
        assert weights == sum(term.weight for term in terms_of(base.objective, Nouns))
        assert sum(stage.depth for stage in run.model.image.stages) == 3
        assert any(stage.has_grouping for stage in run.model.image.stages) != ("alone" in line)
        assert run.model.image.patch_size == (4 if "4 px" in line else 8)
        assert (run.data, run.schedule) == (base.data, base.schedule)


def test_patches_and_refined_groups_are_scored_and_trained_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scenes.write(tmp_path / f"data-v{scenes.VERSION}", train=40, evaluation=4, size=32)
    small = vary(get_run("debug"), image_size=32, dim=32, heads=1, batch_size=8)
    monkeypatch.setattr(ablations, "get_run", lambda name: small)
    monkeypatch.setattr(record, "print_rows", Console(width=200).print)
    lines = {
        name: ablations.TABLES["groups-or-patches"][name]
        for name in ("patches alone", "16 groups", "16 groups, refined")
    }
    monkeypatch.setitem(ablations.TABLES, "groups-or-patches", lines)
    ablations.main("groups-or-patches", out=tmp_path, seeds=1, size=32, steps=2, limit=3)
    clustered = {line: ablations.TABLES["4"][line] for line in ("ViT, pixel-wise", "ViT, k-means")}
    monkeypatch.setitem(ablations.TABLES, "4", clustered)
    ablations.main("4", out=tmp_path, seeds=1, size=32, steps=2, limit=3)
    printed = capsys.readouterr().out
    assert printed.count("'losses': 'nouns'") == 3
    assert printed.count("'losses': 'paper'") == 2
    assert printed.count("'best names': ''") == 2
    groups = "table1-nouns-hard-seed0"  # the first line that trains the same: this run has no multi-label loss
    assert {file.parent.name for file in tmp_path.glob("32px/2-steps/*/*.json")} == {
        "groups-or-patches-nouns-patches-alone-seed0",
        groups,
        "table4-paper-ViT-pixel-wise-seed0",
    }
    assert len([*tmp_path.glob("32px/2-steps/table4-*/*.json")]) == 2
    assert (tmp_path / "32px" / "2-steps" / groups / "refined.json").is_file()


def test_each_encoder_is_scored_untrained_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scenes.write(tmp_path / f"data-v{scenes.VERSION}", train=1, evaluation=2, size=32)
    small = vary(get_run("debug"), dim=32, heads=1)
    monkeypatch.setattr(ablations, "get_run", lambda name: small)
    monkeypatch.setattr(record, "print_rows", Console(width=200).print)
    ablations.main("untrained", out=tmp_path, seeds=2, size=32)
    printed = capsys.readouterr().out
    assert printed.count("'best names': ") == 11
    assert printed.count("32 to 32, then 8 to 8, patches of 8 px") == printed.count("16 to 16, patches of 4 px") == 1


def test_another_size_has_the_same_patches_and_is_scored_two_patches_larger() -> None:
    assert ablations.protocol_for(64) == ablations.SCENES
    smaller = ablations.protocol_for(48)
    assert smaller.view.short_side == 64
    assert smaller.thresholds == ablations.SCENES.thresholds


def test_trainings_share_a_name_if_and_only_if_they_are_the_same() -> None:
    runs: dict[str, Run] = {}
    for lines in ablations.TABLES.values():
        for change in lines.values():
            run = change(get_run(ablations.LOSSES["nouns"]))
            assert runs.setdefault(ablations.trained_as("nouns", change), run) == run
    assert all(a == b or runs[a] != runs[b] for a in runs for b in runs)
    assert len(runs) == 4 + 5 + 4 + 1 + 5


def test_a_table_is_printed_and_nothing_is_trained_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scenes.write(tmp_path / f"data-v{scenes.VERSION}", train=40, evaluation=4, size=32)
    small = vary(get_run("debug"), image_size=32, dim=32, heads=1, batch_size=8)
    small = vary(small, stages=(Stage(1, 4, 4),))
    monkeypatch.setattr(ablations, "get_run", lambda name: small)
    monkeypatch.setattr(record, "print_rows", Console(width=200).print)
    lines = {"soft": ablations.TABLES["1"]["soft"], "hard": ablations.TABLES["1"]["hard"]}
    monkeypatch.setitem(ablations.TABLES, "1", lines)
    printed = []
    for _ in range(2):
        ablations.main("1", out=tmp_path, seeds=2, size=32, steps=2, limit=3)
        printed.append(capsys.readouterr())
    assert printed[0].out == printed[1].out
    assert "'Table 1': 'soft'" in printed[0].out
    assert " to " in printed[0].out
    assert "step 2/2" not in printed[1].err
    assert len([*tmp_path.glob("32px/2-steps/table1-*/result.json")]) == 8
