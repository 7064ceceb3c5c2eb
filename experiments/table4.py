"""Table 4: is grouping while learning better than clustering what was learnt without?

    python -m experiments.table4 scenes --seeds 3
    python -m experiments.table4 pets --data FOLDER --captions SHARDS
    python -m experiments.table4 pets --data FOLDER --model CHECKPOINT --plain CHECKPOINT
    python -m experiments.table4 voc21 --data FOLDER --model photos-trunk --clusterings pixel-wise k-means

Prints one table: trivial baselines, the four groupings of a plain ViT, the model, and what each grouping would give
with the best true names (more groups flatter it, so their mean number stands beside it), all under one protocol, with
95 % intervals over photos. Writes result files and pictures.

A model whose groups learn nothing (`Stage.seeded`) is compared with its own patches: the same weights without groups.
`scenes` takes what `experiments.scenes` has trained, and trains two plain ViTs if need be (four minutes each): the same
pictures, width, depth and steps, no group tokens; one with the contrastive loss of captions alone, as in the paper, and
one with the noun losses of the run, to tell what is due to the groups from what is due to the losses.
"""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import tyro
from experiments.clustering import CLUSTERINGS, Clustering, clustered
from experiments.command import finish, run_script
from experiments.predictions import evaluate_predictions
from experiments.record import CONSOLE, commit, record_results
from experiments.scenes import mean_and_range
from experiments.scenes import row as scenes_row
from rich.console import Console
from rich.table import Table

from groupvit import api
from groupvit.checkpoints import native
from groupvit.data import scenes
from groupvit.errors import InputError
from groupvit.evaluation import pictures
from groupvit.evaluation.baselines import trivial_baselines
from groupvit.evaluation.benchmark import evaluate
from groupvit.evaluation.datasets import Dataset, open_benchmark, open_masks
from groupvit.evaluation.metrics import mean_iou
from groupvit.evaluation.protocols import PAPER_2022, Protocol, get_protocol
from groupvit.evaluation.results import Result, compare
from groupvit.models import Stage, build_model, with_stages
from groupvit.segmentation import Segmenter
from groupvit.training.objective import Captions, Nouns, terms_of
from groupvit.training.run import Run, vary
from groupvit.training.runs import get_run

SCENES = replace(PAPER_2022, name="scenes", view=replace(PAPER_2022.view, short_side=80), thresholds={})
"""What docs/RESULTS.md scores scenes with: the paper's hard maps, and a size that brings things to that of training."""


PHOTOS = vary(get_run("flickr8k"), train="{flickr8k-train,coco-person,catdog}-*.tar", steps=400)
"""What `--captions` trains on real photographs: too little to segment, enough to run the table."""


def plain_run(run: Run, *, nouns: bool) -> Run:
    """Return the same training without groups: as CLIP (the ViT of Table 4), or with the run's noun losses."""
    depth = sum(stage.depth for stage in run.model.image.stages)
    model = replace(with_stages(run.model, Stage(depth)), segment_loss=nouns)
    if nouns:  # without groups a patch is a segment, and the two noun losses are one
        losses = terms_of(run.objective, Nouns)
        one = replace(losses[0], of="segment", weight=sum(term.weight for term in losses))
        others = tuple(term for term in run.objective if not isinstance(term, Nouns))
        return replace(run, model=model, objective=(*others, one))
    return replace(run, model=model, objective=(Captions(),))


def oracle(result: Result) -> Result:
    """Return the same evaluation with each group named by the class of most of its pixels."""
    photos = tuple(replace(photo, matrix=photo.stages[-1].oracle) for photo in result.photos)
    return replace(result, photos=photos)


def rows(
    model: Segmenter,
    plain: dict[str, Segmenter],
    dataset: Dataset,
    protocol: Protocol,
    clusterings: Sequence[Clustering],
) -> Iterator[tuple[str, Result]]:
    """Yield the lines of the table."""
    for name, predict in trivial_baselines(model, dataset, protocol.labels(dataset), protocol.view.templates).items():
        yield name, evaluate_predictions(dataset, predict, name)
    for name, vit in plain.items():
        for method in clusterings:
            yield f"{name}, {method}", evaluate(clustered(vit, method), dataset, protocol)
    yield "GroupViT", evaluate(model, dataset, protocol)


def train_plain(folder: Path, seed: int) -> dict[str, Path]:
    """Train the two plain ViTs of the scenes; an interrupted training goes on."""
    names = {"plain ViT": "plain-vit", "plain ViT with noun losses": "plain-vit-nouns"}
    paths = {title: folder / f"{name}-seed{seed}" for title, name in names.items()}
    for nouns, path in enumerate(paths.values()):
        run = plain_run(get_run("scenes"), nouns=bool(nouns))
        finish(run, folder / f"data-v{scenes.VERSION}", path, seed)
    return paths


def without_groups(source: str, out: Path) -> dict[str, Path]:
    """Write the checkpoint's weights as those of a plain ViT, where its groups have none; otherwise return nothing."""
    model, config = api.load_model(source)
    if [stage.seeded for stage in config.image.stages] != [True]:
        return {}
    config = with_stages(config, Stage(config.image.stages[0].depth))
    plain = build_model(config)
    plain.load_state_dict(model.state_dict())
    native.save(out, plain, config)
    return {"the same weights": out}


def print_table(results: dict[str, list[Result]], title: str) -> None:
    """Mean IoU, and that of the same groups if naming were by majority, which more groups flatter.

    Intervals are over the photos, of the first seed; of several seeds there is the mean, and the range.
    """
    table = Table(title, "mIoU", "95 %", "with the best names", "95 %", "groups")
    for name, seeds in results.items():
        cells = []
        for counted in (seeds, [oracle(result) for result in seeds if result.photos[0].stages]):
            ends = counted[0].interval() if counted else None
            cells.append(mean_and_range([mean_iou(result.matrix) for result in counted]) if counted else "")
            cells.append(f"{ends[0]:.1f} to {ends[1]:.1f}" if ends else "")
        groups = [stages[-1]["groups"] for result in seeds if (stages := result.grouping())]
        table.add_row(name, *cells, f"{statistics.mean(groups):.1f}" if groups else "")
    Console(width=140).print(table)


def file_name(line: str) -> str:
    return f"{line.replace(', ', '-').replace(' ', '-')}.json"


def figures(result: Result) -> dict[str, Any]:
    """Return what docs/results.json keeps of a line; for scenes also the means over things and over grounds."""
    means = scenes_row(result.matrix) if result.benchmark == "scenes" else {"miou": mean_iou(result.matrix)}
    last = result.grouping()[-1] if result.photos[0].stages else {}
    best = {"best_names": last.get("oracle_miou"), "groups": last.get("groups")}
    return {**means, "interval": result.interval(), **best}


def measure(
    model: str,
    plain: dict[str, Path],
    dataset: Dataset,
    protocol: Protocol,
    folder: Path,
    clusterings: Sequence[Clustering],
) -> dict[str, Result]:
    """Return all lines for one model and its plain ViTs; write result files and pictures of the model."""
    folder.mkdir(parents=True, exist_ok=True)
    segmenter, results = api.load(model), dict[str, Result]()
    plains = {name: api.load(path) for name, path in plain.items()}
    for name, result in rows(segmenter, plains, dataset, protocol, clusterings):
        results[name] = result
        result.save(folder / file_name(name))
        CONSOLE.print(f"{name}: {mean_iou(result.matrix):.1f}")
    for other in results:
        gain = compare(folder / file_name("GroupViT"), folder / file_name(other))
        low, high = gain["interval"] or (float("nan"), float("nan"))
        if other != "GroupViT":
            print(f"GroupViT minus {other}: {gain['difference']:+.1f} ({low:+.1f} to {high:+.1f}, paired by photo)")
    ours = results["GroupViT"]
    for path in pictures.draw(ours, pictures.rows_of(ours, segmenter, dataset, protocol), folder):
        print(path)
    return results


def main(
    benchmark: Annotated[str, tyro.conf.Positional],
    data: Path | None = None,
    model: str | None = None,
    plain: Path | None = None,
    captions: Path | None = None,
    protocol: str = "calibrated-native",
    clusterings: tuple[Clustering, ...] = CLUSTERINGS,
    limit: int | None = None,
    seeds: int = 1,
    out: Path = Path("runs/table4"),
    record: bool = False,
) -> None:
    """Print the table of one benchmark.

    Args:
        benchmark: "scenes", or a name that `groupvit evaluate` knows.
        data: The benchmark's folder; for scenes the folder of `experiments.scenes`.
        model: Checkpoint of a GroupViT; scenes have their own.
        plain: Checkpoint of a plain ViT trained on the same; scenes have their own. Without one, the model's
            own patches where its groups learn nothing, and otherwise no baselines.
        captions: Folder of captioned photos on which to train both instead (OUT/photos-group and OUT/photos-plain).
        protocol: Of `groupvit evaluate`; scenes have their own.
        clusterings: Of the patches of plain ViTs.
        limit: At most so many photos, spread evenly.
        seeds: Of scenes, so many trainings of each model.
        out: Folder for result files and pictures.
        record: Write the figures to docs/results.json.
    """
    began_at = commit() if record else ""
    results: dict[str, list[Result]] = {}
    if benchmark == "scenes":
        data, settings = data or Path("runs/scenes"), SCENES
        dataset = replace(open_masks(data / f"data-v{scenes.VERSION}/eval"), benchmark="scenes").limited(limit)
        models = [(str(data / f"scenes-seed{seed}"), train_plain(data, seed)) for seed in range(seeds)]
    elif data and (model or captions):
        if captions:
            model, plain = str(out / "photos-group"), out / "photos-plain"
            finish(PHOTOS, captions, Path(model))
            finish(plain_run(PHOTOS, nouns=False), captions, plain)
        settings, dataset = get_protocol(protocol), open_benchmark(benchmark, data).limited(limit)
        plains = {"plain ViT": plain} if plain else without_groups(str(model), out / "without-groups")
        models = [(str(model), plains)]
    else:
        raise InputError(f"{benchmark} needs --data, and --model or --captions")
    for seed, (path, paths) in enumerate(models):
        folder = out / (f"{benchmark}-seed{seed}" if len(models) > 1 else benchmark)
        for name, result in measure(path, paths, dataset, settings, folder, clusterings).items():
            results.setdefault(name, []).append(result)
    print_table(results, f"{benchmark}, {len(dataset)} photos, protocol {settings.name}")
    if record:
        values = {name: [figures(result) for result in each] for name, each in results.items()}
        record_results(f"table4-{benchmark}", {"rows": values, "protocol": settings.settings()}, began_at)


if __name__ == "__main__":
    run_script(main, resumes=True)
