"""The runs of the paper and of its published checkpoints, which need the data and GPUs of the authors."""

from dataclasses import replace

from groupvit.models import PAPER, RELEASE, ModelConfig, Stage, with_stages
from groupvit.training.data import Data
from groupvit.training.objective import Captions, MultiLabel, Objective
from groupvit.training.optim import Schedule
from groupvit.training.run import Run

PAIRS = {"cc3m": 2_891_445, "cc12m": 11_156_203, "yfcc14m": 14_615_499, "redcaps": 11_866_987}
"""Captioned photos that the authors' trainings counted in each data set; whoever downloads today finds fewer."""

BATCH = 4096


def _one_stage(group_tokens: int = 64, output_groups: int = 8) -> ModelConfig:
    return with_stages(RELEASE, Stage(6, group_tokens, output_groups), Stage(6))


SOFT = replace(_one_stage(), image=replace(_one_stage().image, hard_assignment=False))


def _pairs(train: str) -> int:
    return sum(pairs for name, pairs in PAIRS.items() if name in train)


def _steps(epochs: int, train: str) -> int:
    return epochs * _pairs(train) // BATCH


def _release(train: str, paper: str, expected: str, *, model: ModelConfig = RELEASE, prompts: int = 3) -> Run:
    """Thirty epochs by the recipe of the published checkpoints (§4.1, and what the paper leaves out)."""
    share = _pairs(train) / _pairs("cc3m cc12m yfcc14m")
    objective: Objective = (Captions(), MultiLabel(prompts, style="release")) if prompts else (Captions(),)
    return Run(
        model=replace(model, multi_label_scale=prompts > 0),
        data=Data(train, batch_size=BATCH, augment="randaugment"),
        objective=objective,
        schedule=Schedule(
            steps=_steps(30, train),
            warmup=_steps(2, train),
            lr=1.6e-3,
            lr_end=4e-5,
            warmup_prefix=False,
            save_every=1000,
        ),
        paper=paper,
        cost=f"not published; {100 * share:.0f} % of the photos of `groupvit-s-gcc-yfcc`",
        expected=expected,
    )


def _ablation(paper: str, miou: str, model: ModelConfig, *, prompts: int = 3) -> Run:
    """A row of §4.2 on CC12M. The authors published no configuration: this is the recipe of their checkpoints."""
    return _release("cc12m/*.tar", paper, f"VOC {miou}", model=model, prompts=prompts)


# What the paper prints and nothing else: it names no start or end of the rate, so both are 0.
AS_PRINTED = Run(
    model=PAPER,
    data=Data("{cc12m,yfcc14m}/*.tar", batch_size=BATCH),
    objective=(Captions(form="paper"), MultiLabel(form="paper")),
    schedule=Schedule(
        steps=_steps(30, "cc12m yfcc14m"),
        warmup=_steps(5, "cc12m yfcc14m"),
        lr=1.6e-3,
        lr_start=0.0,
        lr_end=0.0,
        save_every=1000,
    ),
    paper="Table 3 row 4, Tables 4 and 5: Ours",
    cost="the authors: 2 days on 16 V100",
    expected="VOC 51.2, Context 22.3, VOC boundary 40.3",
)

PAPER_RUNS: dict[str, Run] = {
    "groupvit-s-gcc-yfcc": replace(
        _release(
            "{cc3m,cc12m,yfcc14m}/*.tar",
            "the published checkpoint; Table 3 row 4 with CC3M",
            "VOC 52.3, Context 22.4, COCO-Object 24.3; ImageNet 43.7 %",
        ),
        cost="not published; 11 % more photos than `paper`",
    ),
    "groupvit-s-gcc-redcaps": _release(
        "{cc3m,cc12m,redcaps}/*.tar",
        "the second published checkpoint; not in the paper",
        "VOC 50.8, Context 23.7, COCO-Object 27.5; ImageNet 51.6 %",
        prompts=0,
    ),
    "groupvit-s-1stage-cc12m": _ablation(
        "Table 1 row 4, Table 2 row 4, Table 3 row 1", "39.3, boundary 31.6", _one_stage()
    ),
    "groupvit-s-1stage-cc12m-no-multi-label": _ablation("Table 1 row 2", "36.7", _one_stage(), prompts=0),
    "groupvit-s-1stage-cc12m-soft": _ablation("Table 1 row 3", "25.1", SOFT),
    "groupvit-s-1stage-cc12m-soft-no-multi-label": _ablation("Table 1 row 1", "12.0", SOFT, prompts=0),
    "groupvit-s-1stage-cc12m-16-4": _ablation("Table 2 row 1", "28.6", _one_stage(16, 4)),
    "groupvit-s-1stage-cc12m-16-8": _ablation("Table 2 row 2", "37.1", _one_stage(16, 8)),
    "groupvit-s-1stage-cc12m-32-8": _ablation("Table 2 row 3", "38.3", _one_stage(32, 8)),
    "groupvit-s-1stage-cc12m-64-16": _ablation("Table 2 row 5", "38.0", _one_stage(64, 16)),
    "groupvit-s-cc12m": _ablation("Table 3 row 2", "41.1, boundary 33.5", RELEASE),
    "groupvit-s-1stage-cc12m-yfcc": _release(
        "{cc12m,yfcc14m}/*.tar", "Table 3 row 3", "VOC 37.2, boundary 32.3", model=_one_stage()
    ),
    "clip-vit-s": _release(
        "{cc12m,yfcc14m}/*.tar",
        "Table 4 rows 1 to 4: ViT",
        "VOC, features grouped afterwards: pixel-wise 20.1, k-means 25.0, mean-shift 20.7, spectral 19.7",
        model=with_stages(RELEASE, Stage(12)),
        prompts=0,
    ),
    "paper": AS_PRINTED,
}
