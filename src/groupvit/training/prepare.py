"""What a training starts from: a new network, the weights of another one, or its own last checkpoint."""

from pathlib import Path

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from groupvit.checkpoints import load
from groupvit.checkpoints.native import check
from groupvit.checkpoints.trunks import load_trunk
from groupvit.data.index import CaptionedPhotos
from groupvit.errors import InputError, input_error
from groupvit.models import GroupViT, build_model
from groupvit.models.layers import resampled
from groupvit.models.trunks import EfficientNetLite, ViTTrunk
from groupvit.training.optim import make_optimizer
from groupvit.training.run import Run
from groupvit.training.self_supervised import modules_of
from groupvit.training.state import TrainingState, restore


def prepare(
    run: Run,
    seed: int,
    photos: CaptionedPhotos,
    nouns: tuple[str, ...],
    device: torch.device,
    bfloat16: bool,
    init: Path | None,
    trunk: Path | None,
    resumed: Path | None,
) -> TrainingState:
    """Return the state that a training starts in, with the weights of `init` or `trunk`, or goes on in."""
    torch.manual_seed(seed)
    with input_error("this run's model cannot be built", ValueError):
        model = build_model(run.model)
    pretrained = model.image_encoder.trunk
    if init and not resumed:
        initialise(model, init)
    elif pretrained is not None and not resumed:
        pretrained.load_state_dict(load_trunk(run.model.image.stem, trunk).state_dict())
    if pretrained is not None:
        pretrained.requires_grad_(False)
        for module in _tuned(pretrained, run):
            module.requires_grad_()
    model = model.to(device).train()
    extras = modules_of(run.objective, model, len(nouns)).to(device)
    optimizer = make_optimizer(nn.ModuleList([model, extras]), run.optimizer, bfloat16=bfloat16)
    average = None
    if decay := run.optimizer.ema:  # of the weights; buffers are copied
        average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay)).eval().requires_grad_(False)
    state = TrainingState(run, seed, nouns, photos, model, optimizer, average, extras=extras)
    return restore(resumed, state) if resumed else state


def _tuned(trunk: EfficientNetLite | ViTTrunk, run: Run) -> list[nn.Module]:
    """Return the parts of the trunk that the run tunes: none, those after the cached maps, or all."""
    if not run.optimizer.trunk:
        return []
    return trunk.late_modules() if run.data.cached_crops and isinstance(trunk, EfficientNetLite) else [trunk]


def initialise(model: GroupViT, source: Path) -> None:
    """Give `model` the weights of a checkpoint, whose positions are resampled if it saw images of another size.

    Raises `InputError` for a checkpoint of another architecture.
    """
    trained, _ = load(source)
    positions = trained.image_encoder.pos_embed
    if model.image_encoder.pos_embed is not None and positions is not None:
        side = int(model.image_encoder.pos_embed.shape[1] ** 0.5)
        with torch.no_grad():
            trained.image_encoder.pos_embed = nn.Parameter(resampled(positions, side, side).clone())
    with input_error("this run cannot start with another architecture's weights", InputError):
        check(trained.state_dict(), model.state_dict(), source)
    model.load_state_dict(trained.state_dict())
