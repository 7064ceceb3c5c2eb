"""The named runs: every number of a training, in one place."""

from dataclasses import dataclass, replace
from typing import Literal

from groupvit.errors import InputError
from groupvit.models import (
    PAPER,
    RELEASE,
    ImageEncoderConfig,
    ModelConfig,
    Stage,
    TextEncoderConfig,
    with_stages,
)
from groupvit.models.config import ViTConfig
from groupvit.text.nouns import Style
from groupvit.training.losses import Form

Balance = Literal["weights", "prior"]
"""How the noun losses let rare nouns stand up to frequent ones: "weights" that fall with the root of the frequency, or
each noun's log odds among the photos added to its logit ("prior"), so that what is learnt is by how much a segment
makes the noun likelier than it is anyway (logit adjustment, Menon et al., 2021); words are compared without it."""


@dataclass(frozen=True)
class Run:
    """What a training is made of besides its data folder and its seed.

    `train` and `held_out` are patterns of shards inside the data folder (`held_out` may be a folder with masks).
    `chunk` photos are encoded at a time (0: the whole batch; see `cached_batch`). Rates are per step; `warmup` and
    `steps` count optimiser steps. With `warmup_prefix` (timm's name) the cosine starts where the warm-up ends; without,
    its clock starts at step 0 and the rate jumps a little. `muon` has the matrices of hidden layers stepped by Muon, at
    so many times the rate (0: AdamW alone; see `optim.MuonAndAdamW`).

    `caption_loss` is that of Eq. 6, or a sigmoid of each pair with a model that has a `logit_bias`. `prompts` is K of
    the multi-label loss (Eq. 7; 0 turns it off); with `distinct_prompts` each is encoded once, and is a positive of all
    photos that drew it. `local_weight` weighs the alignment of segments with words of the caption. `segment_weight` and
    `patch_weight` weigh the noun loss over segments, and over patches as segments of their own, for the nouns that at
    least `min_count` photos have; `prior` is the part of the log odds that a balance by prior adds.

    `crop` is the share of a photo's area. `augment` adds to crop and mirror: `color` changes brightness, contrast and
    saturation, `randaugment` is the release's RandAugment and erasing. `in_memory` keeps every photo on the device,
    squashed to that many pixels a side (0 reads from disk). `ema` is the decay of the average of the weights (0: none).
    `mix` is the share of the steps in which photos share their attention in fours (see `ImageEncoder.forward`).

    A model with a trunk starts with the trunk's published weights, which stay as they are. `teacher_weight` weighs what
    the trunk's classifier teaches (`losses.teacher_loss`). `cached_crops` is how many crops of a photo are put through
    the trunk before the training (`trunk_cache`; 0: photos are read, cropped and encoded at every step).

    `paper`, `cost` and `expected` say which row the run reproduces, what it costs, and what it should score; they are
    the table of docs/TRAINING.md.
    """

    model: ModelConfig
    train: str
    steps: int
    batch_size: int
    chunk: int = 0
    held_out: str = ""
    lr: float = 1e-3
    lr_start: float = 4e-6
    lr_end: float = 1e-5
    warmup: int = 200
    weight_decay: float = 0.05
    clip_grad: float = 5.0
    muon: float = 0.0
    crop: tuple[float, float] = (0.08, 1.0)
    caption_weight: float = 1.0
    caption_loss: Literal["softmax", "sigmoid"] = "softmax"
    loss_form: Form = "release"
    prompts: int = 0
    distinct_prompts: bool = False
    local_weight: float = 0.0
    noun_style: Style = "paper"
    segment_weight: float = 0.0
    patch_weight: float = 0.0
    balance: Balance = "weights"
    prior: float = 1.0
    min_count: int = 10
    precision: Literal["bfloat16", "float32"] = "bfloat16"
    evaluate_every: int = 500
    save_every: int = 500
    augment: Literal["crop", "color", "randaugment"] = "crop"
    ema: float = 0.0
    in_memory: int = 0
    mix: float = 0.0
    teacher_weight: float = 0.0
    cached_crops: int = 0
    warmup_prefix: bool = True
    paper: str = ""
    cost: str = ""
    expected: str = ""

    def mixed(self, step: int) -> int:
        """How many photos share their attention in a step: 4 in a share `mix` of them, evenly spread, or 1."""
        return 4 if int((step + 1) * self.mix) > int(step * self.mix) else 1


def _small(
    image_size: int,
    patch_size: int,
    dim: int,
    stages: tuple[Stage, ...],
    text_layers: int,
    drop_path: float = 0.0,
    stem: Literal["conv", "residual"] = "conv",
) -> ModelConfig:
    """What the small runs share: the options under which segments keep to their own pixels."""
    return ModelConfig(
        image=ImageEncoderConfig(
            image_size=image_size,
            patch_size=patch_size,
            dim=dim,
            heads=dim // 32,
            stages=stages,
            drop_path=drop_path,
            stem=stem,
            assign_logits="cosine",
            token_mixer=False,
            pre_assign_attention=False,
            group_residual=False,
        ),
        text=TextEncoderConfig(width=dim, heads=dim // 32, layers=text_layers, context_length=32),
        embed_dim=128,
        projector_dim=512,
        projector_norm="batch",
        multi_label_scale=False,
        segment_loss=True,
    )


SCENES = Run(
    model=_small(64, 8, 128, (Stage(3, 16, 16),), text_layers=2),
    train="train/*.tar",
    held_out="eval",
    steps=2400,
    batch_size=32,
    lr=5e-4,
    warmup=200,
    crop=(0.6, 1.0),
    caption_weight=0.1,
    segment_weight=0.5,
    patch_weight=0.5,
    evaluate_every=650,
    save_every=650,
    paper="none: ours, in miniature",
    cost="measured: 5.0 minutes on two cores",
    expected="54.9 mIoU on scenes, mean of three seeds ([RESULTS.md](RESULTS.md))",
)

# The published recipe, options and losses untouched, on a model of the size of `scenes` and as many pictures: only the
# numbers of layers, tokens and photos are scaled down.
SCENES_RELEASE = Run(
    model=ModelConfig(
        image=ImageEncoderConfig(
            image_size=64, patch_size=8, dim=128, heads=4, stages=(Stage(2, 16, 16), Stage(1, 8, 8), Stage(1))
        ),
        text=TextEncoderConfig(width=128, heads=4, layers=2),
        embed_dim=128,
        projector_dim=512,
    ),
    train="train/*.tar",
    held_out="eval",
    steps=600,
    batch_size=128,
    lr=1.6e-3,
    lr_end=4e-5,
    warmup=40,
    prompts=3,
    noun_style="release",
    paper="none: the release's recipe in miniature",
    cost="not measured alone; as many pictures as `scenes`",
    expected="23.1 mIoU on scenes, one seed ([RESULTS.md](RESULTS.md))",
)

# Which losses survive a small batch? As many pictures for each, rates by the square root of the batch.
SCENES_64 = replace(
    SCENES,
    steps=800,
    batch_size=64,
    lr=7e-4,
    warmup=67,
    prompts=3,
    distinct_prompts=True,
    cost="measured: 5.2 minutes on one core",
    expected="46.4 mIoU on scenes, mean of three seeds ([RESULTS.md](RESULTS.md))",
)
SCENES_64_RELEASE = replace(
    SCENES_64,
    model=replace(SCENES.model, segment_loss=False),
    caption_weight=1.0,
    distinct_prompts=False,
    segment_weight=0.0,
    patch_weight=0.0,
    cost="measured: 6.6 minutes on one core",
    expected="36.4 mIoU on scenes, mean of three seeds ([RESULTS.md](RESULTS.md))",
)
SCENES_512_RELEASE = replace(
    SCENES_64_RELEASE,
    steps=100,
    batch_size=512,
    chunk=64,
    lr=2e-3,
    warmup=8,
    cost="measured: 5.3 minutes on one core",
    expected="31.6 mIoU on scenes, mean of three seeds ([RESULTS.md](RESULTS.md))",
)

FLICKR8K = Run(
    model=_small(96, 16, 192, (Stage(4, 16, 8),), text_layers=3),
    train="flickr8k-train-*.tar",
    held_out="flickr8k-test-*.tar",
    steps=800,
    batch_size=256,
    warmup=100,
    weight_decay=0.1,
    crop=(0.4, 1.0),
    caption_weight=1.0,
    segment_weight=0.1,
    patch_weight=0.1,
    min_count=20,
    evaluate_every=100,
    save_every=100,
    paper="none: ours",
    cost="measured: 14 minutes for the first 400 of 800 steps on one thread",
    expected="10.0 % R@10, text to image, at step 400 ([LOG.md](LOG.md)); to the end not measured",
)

PHOTOS = Run(
    model=_small(128, 8, 192, (Stage(6, 32, 8),), text_layers=3, drop_path=0.1),
    train="{flickr8k-train,coco-person,catdog}-*.tar",
    held_out="flickr8k-test-*.tar",
    steps=8000,
    batch_size=256,
    warmup=400,
    weight_decay=0.1,
    muon=4.0,
    crop=(0.1, 1.0),
    caption_weight=0.5,
    segment_weight=0.1,
    patch_weight=0.1,
    balance="prior",
    min_count=20,
    augment="color",
    ema=0.999,
    in_memory=144,
    paper="none: ours, on 11,074 photos",
    cost="not measured",
    expected="not measured",
)

# 36 patches a photo, or two cores would see too few photos in an evening; docs/LOG.md has what was compared.
PHOTOS_SMALL = replace(
    PHOTOS,
    model=_small(96, 16, 192, (Stage(3, 16, 16),), text_layers=2, drop_path=0.1, stem="residual"),
    steps=1620,
    warmup=100,
    mix=0.25,
    ema=0.99,
    in_memory=176,
    evaluate_every=330,
    save_every=330,
    cost="measured: 56 minutes on one core, the other one busy",
    expected="29.6 mIoU on voc4, 30.8 % R@10, text to image ([MODEL_CARD_PHOTOS.md](MODEL_CARD_PHOTOS.md))",
)

_SOURCES = (
    *("flickr8k-train", "coco-person", "catdog", "coco-val2014"),
    *(f"{source}-tags" for source in ("coco", "places", "animals", "pacs", "caltech", "imagenet")),
)

# Recognition from ImageNet's trunk, segments and names from captions and tags.
PHOTOS_TRUNK = Run(
    model=ModelConfig(
        image=ImageEncoderConfig(
            image_size=224,
            patch_size=8,
            dim=256,
            heads=8,
            stages=(Stage(0, output_groups=16, seeded=True),),
            drop_path=0.0,
            stem="efficientnet-lite2",
            group_residual=False,
        ),
        text=TextEncoderConfig(width=192, heads=6, layers=2, context_length=32),
        embed_dim=256,
        projector_dim=1024,
        multi_label_scale=False,
        segment_loss=True,
        teacher_loss=True,
    ),
    train=f"{{{','.join(_SOURCES)}}}-*.tar",
    held_out="flickr8k-test-*.tar",
    steps=600,
    batch_size=128,
    warmup=50,
    weight_decay=0.05,
    muon=4.0,
    crop=(0.3, 1.0),
    caption_weight=0.5,
    segment_weight=0.1,
    patch_weight=0.1,
    teacher_weight=1.0,
    balance="prior",
    prior=0.6,
    ema=0.99,
    cached_crops=1,
    evaluate_every=200,
    save_every=100,
    paper="none: ours, on 27,644 photos",
    cost="measured: 38 minutes on two cores, other work beside it, and 10 for the trunk's maps",
    expected="40.1 mIoU on VOC 2012, 79.3 on Pets ([MODEL_CARD.md](MODEL_CARD.md))",
)


# The same on a GPU: fresh crops of photos that wait there, four times the batch, the rate by its square root.
PHOTOS_TRUNK_GPU = replace(
    PHOTOS_TRUNK,
    steps=3000,
    batch_size=512,
    lr=2e-3,
    warmup=150,
    augment="color",
    ema=0.995,
    in_memory=112,
    cached_crops=0,
    evaluate_every=1000,
    save_every=1000,
    cost="not measured",
    expected="not measured",
)


def with_vit(run: Run, vit: ViTConfig) -> Run:
    """The run on top of a ViT, which has neither a classifier that teaches nor maps that are cached."""
    image = replace(run.model.image, stem="vit", vit=vit, patch_size=vit.patch_size)
    model = replace(run.model, image=image, teacher_loss=False)
    return replace(run, model=model, teacher_weight=0.0, cached_crops=0)


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
    return Run(
        model=replace(model, multi_label_scale=prompts > 0),
        train=train,
        steps=_steps(30, train),
        batch_size=BATCH,
        lr=1.6e-3,
        lr_end=4e-5,
        warmup=_steps(2, train),
        warmup_prefix=False,
        prompts=prompts,
        noun_style="release",
        augment="randaugment",
        save_every=1000,
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
    train="{cc12m,yfcc14m}/*.tar",
    steps=_steps(30, "cc12m yfcc14m"),
    batch_size=BATCH,
    lr=1.6e-3,
    lr_start=0.0,
    lr_end=0.0,
    warmup=_steps(5, "cc12m yfcc14m"),
    loss_form="paper",
    prompts=3,
    save_every=1000,
    paper="Table 3 row 4, Tables 4 and 5: Ours",
    cost="the authors: 2 days on 16 V100",
    expected="VOC 51.2, Context 22.3, VOC boundary 40.3",
)

RUNS: dict[str, Run] = {
    "scenes": SCENES,
    "scenes-release": SCENES_RELEASE,
    "scenes-long": replace(
        SCENES,
        steps=14_000,
        lr=1e-3,
        cost="about half an hour on two cores, from 278 pictures/s measured",
        expected="65.3 mIoU on scenes at step 6,500 ([RESULTS.md](RESULTS.md)); to the end not measured",
    ),
    "scenes-64": SCENES_64,
    "scenes-64-release": SCENES_64_RELEASE,
    "scenes-512-release": SCENES_512_RELEASE,
    "flickr8k": FLICKR8K,
    "photos": PHOTOS,
    "photos-small": PHOTOS_SMALL,
    "photos-trunk": PHOTOS_TRUNK,
    "photos-trunk-gpu": PHOTOS_TRUNK_GPU,
    "photos-plain": replace(
        PHOTOS_SMALL,
        model=replace(with_stages(PHOTOS_SMALL.model, Stage(3)), segment_loss=False),
        caption_weight=1.0,
        segment_weight=0.0,
        patch_weight=0.0,
        mix=0.0,
        steps=2400,
        paper="Table 4 rows 1 to 4: ViT, in miniature",
        cost="measured: 67 minutes on one core, the other one busy",
        expected="30.8 % R@10, text to image",
    ),
    "debug": replace(
        SCENES,
        steps=10,
        warmup=2,
        batch_size=16,
        evaluate_every=10,
        min_count=2,
        paper="none: ten steps, to see that all runs",
        cost="seconds on a CPU",
        expected="nothing: it learns nothing",
    ),
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
"""By name, the small ones first. `scenes*` and `debug` train on the folder that `groupvit data scenes` writes."""


def get_run(name: str) -> Run:
    """The run of that name; an unknown name is an `InputError` that lists the known ones."""
    if name not in RUNS:
        raise InputError(f"no run is called {name!r}; there are: {', '.join(RUNS)}")
    return RUNS[name]
