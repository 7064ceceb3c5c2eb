"""The runs: every number of a training, in one place. The paper's own are in `paper_runs`."""

from dataclasses import replace
from typing import Literal

from groupvit.errors import InputError
from groupvit.models import ImageEncoderConfig, ModelConfig, Stage, TextEncoderConfig, with_stages
from groupvit.training.objective import Captions, LocalAlignment, MultiLabel, Nouns, Teacher
from groupvit.training.optim import Optimizer, Schedule
from groupvit.training.paper_runs import PAPER_RUNS
from groupvit.training.run import Data, Run, vary
from groupvit.training.self_supervised import Classify, Dino, Moco


def _small(
    image_size: int,
    patch_size: int,
    dim: int,
    stages: tuple[Stage, ...],
    text_layers: int,
    drop_path: float = 0.0,
    stem: Literal["patch", "conv", "residual"] = "conv",
) -> ModelConfig:
    """Return a small model with the options under which segments keep to their own pixels."""
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
        multi_label_scale=False,
        segment_loss=True,
    )


SCENES = Run(
    model=_small(64, 8, 128, (Stage(3, 16, 16),), text_layers=2),
    data=Data("train/*.tar", batch_size=32, held_out="eval", crop=(0.6, 1.0)),
    objective=(Captions(0.1), Nouns("segment", 0.5), Nouns("patch", 0.5)),
    schedule=Schedule(steps=2400, warmup=200, lr=5e-4, evaluate_every=650, save_every=650),
)

# The published network's options and losses on a model of the size of `scenes`, and as many pictures. For its batch the
# rate is larger than the published one (1.6e-3 at 4,096 photos), and crops are not augmented further.
SCENES_RELEASE = Run(
    model=ModelConfig(
        image=ImageEncoderConfig(
            image_size=64, patch_size=8, dim=128, heads=4, stages=(Stage(2, 16, 16), Stage(1, 8, 8), Stage(1))
        ),
        text=TextEncoderConfig(width=128, heads=4, layers=2),
        embed_dim=128,
        projector_dim=512,
    ),
    data=Data("train/*.tar", batch_size=128, held_out="eval"),
    objective=(Captions(), MultiLabel(style="release")),
    schedule=Schedule(steps=600, warmup=40, lr=1.6e-3, lr_end=4e-5),
)

# Which losses survive a small batch? As many pictures for each, rates by the square root of the batch.
SCENES_64 = vary(
    SCENES,
    batch_size=64,
    objective=(Captions(0.1), MultiLabel(distinct=True), Nouns("segment", 0.5), Nouns("patch", 0.5)),
    steps=800,
    lr=7e-4,
    warmup=67,
)
SCENES_64_RELEASE = vary(
    SCENES_64, model=replace(SCENES.model, segment_loss=False), objective=(Captions(), MultiLabel())
)
# Segments meet the words of the caption too.
SCENES_LOCAL = replace(
    SCENES, objective=(Captions(0.1), LocalAlignment(0.1), Nouns("segment", 0.5), Nouns("patch", 0.5))
)

FLICKR8K = Run(
    model=_small(96, 16, 192, (Stage(4, 16, 8),), text_layers=3),
    data=Data("flickr8k-train-*.tar", batch_size=256, held_out="flickr8k-test-*.tar", crop=(0.4, 1.0), min_count=20),
    objective=(Captions(), Nouns("segment", 0.1), Nouns("patch", 0.1)),
    schedule=Schedule(steps=800, warmup=100, evaluate_every=100, save_every=100),
    optimizer=Optimizer(weight_decay=0.1),
)

# 36 patches a photo, or two cores would see too few photos in an evening; docs/LOG.md has what was compared.
PHOTOS_SMALL = Run(
    model=_small(96, 16, 192, (Stage(3, 16, 16),), text_layers=2, drop_path=0.1, stem="residual"),
    data=Data(
        "{flickr8k-train,coco-person,catdog}-*.tar",
        batch_size=256,
        held_out="flickr8k-test-*.tar",
        crop=(0.1, 1.0),
        augment="color",
        min_count=20,
    ),
    objective=(Captions(0.5), Nouns("segment", 0.1, prior=1.0), Nouns("patch", 0.1, prior=1.0)),
    schedule=Schedule(steps=1620, warmup=100, evaluate_every=330, save_every=330),
    optimizer=Optimizer(weight_decay=0.1, muon=4.0, ema=0.99),
)

_SOURCES = (
    *("flickr8k-train", "coco-person", "catdog", "coco-val2014"),
    *(f"{source}-tags" for source in ("coco", "places", "animals", "pacs", "caltech", "imagenet")),
)

# From nothing on a GPU: wider and deeper, 256 patches a photo, photos with tags too.
PHOTOS = vary(
    PHOTOS_SMALL,
    model=_small(128, 8, 256, (Stage(5, 16, 16),), text_layers=2, drop_path=0.1, stem="residual"),
    train=f"{{{','.join(_SOURCES)}}}-*.tar",
    batch_size=512,
    steps=1600,
    warmup=80,
    lr=1.4e-3,
    ema=0.994,
    evaluate_every=400,
    save_every=400,
)

# Recognition from ImageNet's trunk, segments and names from captions and tags.
PHOTOS_TRUNK = Run(
    model=ModelConfig(
        image=ImageEncoderConfig(
            patch_size=8,
            dim=256,
            heads=8,
            stages=(Stage(0, output_groups=16, seeded=True),),
            drop_path=0.0,
            stem="efficientnet-lite2",
            group_residual=False,
        ),
        text=TextEncoderConfig(width=192, heads=6, layers=2, context_length=32),
        projector_dim=1024,
        multi_label_scale=False,
        segment_loss=True,
        teacher_loss=True,
    ),
    data=Data(PHOTOS.data.train, batch_size=128, held_out="flickr8k-test-*.tar", crop=(0.3, 1.0), cached_crops=1),
    objective=(Captions(0.5), Nouns("segment", 0.1, prior=0.6), Nouns("patch", 0.1, prior=0.6), Teacher()),
    schedule=Schedule(steps=600, warmup=50, evaluate_every=200, save_every=100),
    optimizer=Optimizer(muon=4.0, ema=0.99),
)

# The same on a GPU: fresh crops, four times the batch, the rate by its square root.
PHOTOS_TRUNK_GPU = vary(
    PHOTOS_TRUNK,
    batch_size=512,
    augment="color",
    cached_crops=0,
    steps=800,
    lr=2e-3,
    warmup=40,
    ema=0.9875,
    evaluate_every=400,
    save_every=400,
)

# The rivals of Table 5: a plain ViT from the same photos, without captions or from their nouns. An average of the
# weights is shipped. Teachers follow as published: DINO's collapses here at ten times that pace (docs/LOG.md).
PHOTOS_ALONE = Run(
    model=replace(_small(128, 16, 192, (Stage(6),), text_layers=1, drop_path=0.1, stem="patch"), segment_loss=False),
    data=Data(PHOTOS_TRUNK.data.train, batch_size=64, crop=(1.0, 1.0)),
    objective=(Dino(prototypes=4096, local_crops=6, hidden=1024),),
    schedule=Schedule(steps=4000, warmup=400, lr=1e-3, save_every=500),
    optimizer=Optimizer(ema=0.996),
)

RUNS: dict[str, Run] = {
    "scenes": SCENES,
    "scenes-release": SCENES_RELEASE,
    "scenes-long": vary(SCENES, steps=14_000, lr=1e-3),
    "scenes-64": SCENES_64,
    "scenes-64-release": SCENES_64_RELEASE,
    "scenes-512-release": vary(SCENES_64_RELEASE, batch_size=512, chunk=64, steps=100, lr=2e-3, warmup=8),
    "scenes-local": SCENES_LOCAL,
    "flickr8k": FLICKR8K,
    "photos": PHOTOS,
    "photos-small": PHOTOS_SMALL,
    "photos-trunk": PHOTOS_TRUNK,
    "photos-trunk-gpu": PHOTOS_TRUNK_GPU,
    "photos-plain": vary(
        PHOTOS_SMALL,
        model=replace(with_stages(PHOTOS_SMALL.model, Stage(3)), segment_loss=False),
        objective=(Captions(),),
        steps=2400,
    ),
    "photos-dino": PHOTOS_ALONE,
    "photos-moco": vary(PHOTOS_ALONE, objective=(Moco(hidden=1024),), batch_size=128),
    "photos-classify": vary(
        PHOTOS_ALONE, objective=(Classify(),), augment="randaugment", crop=(0.08, 1.0), ema=0.0, batch_size=128
    ),
    "debug": vary(SCENES, steps=10, warmup=2, batch_size=16, evaluate_every=10, min_count=2),
    **PAPER_RUNS,
}
"""By name, the small ones first. `scenes*` and `debug` train on the folder that `groupvit data scenes` writes."""


def get_run(name: str) -> Run:
    """Return the run of that name; an unknown name is an `InputError` that lists the known ones."""
    if name not in RUNS:
        raise InputError(f"no run is called {name!r}; there are: {', '.join(RUNS)}")
    return RUNS[name]
