"""The runs of the paper and of its published checkpoints, which need the data and GPUs of the authors."""

from dataclasses import replace

from groupvit.models import PAPER, RELEASE, ModelConfig, Stage, with_stages
from groupvit.training.objective import Captions, MultiLabel
from groupvit.training.optim import Optimizer, Schedule
from groupvit.training.run import Data, Run
from groupvit.training.self_supervised import Dino, Moco, PhotoTerm

PAIRS = {"cc3m": 2_891_445, "cc12m": 11_156_203, "yfcc14m": 14_615_499, "redcaps": 11_866_987}
"""Captioned photos that the authors' trainings counted in each data set; whoever downloads today finds fewer."""

BATCH = 4096
BOTH = "{cc12m,yfcc14m}/*.tar"


def _one_stage(group_tokens: int = 64, output_groups: int = 8) -> ModelConfig:
    return with_stages(RELEASE, Stage(6, group_tokens, output_groups), Stage(6))


PLAIN = with_stages(RELEASE, Stage(12))
SOFT = replace(_one_stage(), image=replace(_one_stage().image, hard_assignment=False))


def _steps(epochs: int, train: str) -> int:
    return epochs * sum(pairs for name, pairs in PAIRS.items() if name in train) // BATCH


def _release(model: ModelConfig = RELEASE, train: str = "cc12m/*.tar", *, prompts: int = 3) -> Run:
    """Thirty epochs by the recipe of the published checkpoints (§4.1, and what the paper leaves out).

    The rows of §4.2 are on CC12M; the authors published no configuration of them.
    """
    return Run(
        model=replace(model, multi_label_scale=prompts > 0),
        data=Data(train, batch_size=BATCH, augment="randaugment"),
        objective=(Captions(), MultiLabel(prompts, style="release")) if prompts else (Captions(),),
        schedule=Schedule(
            steps=_steps(30, train),
            warmup=_steps(2, train),
            lr=1.6e-3,
            lr_end=4e-5,
            warmup_prefix=False,
            save_every=1000,
        ),
    )


# What the paper prints and nothing else: it names no start or end of the rate, so both are 0.
AS_PRINTED = Run(
    model=PAPER,
    data=Data(BOTH, batch_size=BATCH),
    objective=(Captions(form="paper"), MultiLabel(form="paper")),
    schedule=Schedule(
        steps=_steps(30, BOTH), warmup=_steps(5, BOTH), lr=1.6e-3, lr_start=0.0, lr_end=0.0, save_every=1000
    ),
)

IMAGENET = 1_281_167
"""Photos of its training set."""


def _photos_alone(term: PhotoTerm, batch_size: int, lr: float, weight_decay: float, *, warmup: int) -> Run:
    """A rival of Table 5 by its authors' recipe for ImageNet, on as many photos as 300 epochs of it.

    The paper does not say how it pre-trained them on other photos.
    """
    return Run(
        model=replace(PLAIN, text=replace(PLAIN.text, layers=1), multi_label_scale=False),
        data=Data(BOTH, batch_size=batch_size, crop=(1.0, 1.0)),
        objective=(term,),
        schedule=Schedule(
            steps=300 * IMAGENET // batch_size,
            warmup=warmup * IMAGENET // batch_size,
            lr=lr,
            lr_start=0.0,
            lr_end=1e-6,
            save_every=1000,
        ),
        optimizer=Optimizer(weight_decay),
    )


PAPER_RUNS: dict[str, Run] = {
    "groupvit-s-gcc-yfcc": _release(train="{cc3m,cc12m,yfcc14m}/*.tar"),
    "groupvit-s-gcc-redcaps": _release(train="{cc3m,cc12m,redcaps}/*.tar", prompts=0),
    "groupvit-s-1stage-cc12m": _release(_one_stage()),
    "groupvit-s-1stage-cc12m-no-multi-label": _release(_one_stage(), prompts=0),
    "groupvit-s-1stage-cc12m-soft": _release(SOFT),
    "groupvit-s-1stage-cc12m-soft-no-multi-label": _release(SOFT, prompts=0),
    "groupvit-s-1stage-cc12m-16-4": _release(_one_stage(16, 4)),
    "groupvit-s-1stage-cc12m-16-8": _release(_one_stage(16, 8)),
    "groupvit-s-1stage-cc12m-32-8": _release(_one_stage(32, 8)),
    "groupvit-s-1stage-cc12m-64-16": _release(_one_stage(64, 16)),
    "groupvit-s-cc12m": _release(),
    "groupvit-s-1stage-cc12m-yfcc": _release(_one_stage(), BOTH),
    "clip-vit-s": _release(PLAIN, BOTH, prompts=0),
    "dino-vit-s": _photos_alone(Dino(), 1024, 2e-3, 0.04, warmup=10),
    "moco-vit-s": _photos_alone(Moco(), BATCH, 2.4e-3, 0.1, warmup=40),
    "paper": AS_PRINTED,
}
