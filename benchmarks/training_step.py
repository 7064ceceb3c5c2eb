"""A training step beside `transformers`: GroupViT-S, 32 photos of 224 px with their captions, gradients and AdamW.

Both have the losses of the published recipe, with and without three noun prompts a photo; clipping, reading and
augmentation are left out on both sides. The peer encodes all sentences with their padding.
"""

import statistics
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch
from benchmarks import loader, peer
from benchmarks.peak import flops, matrix_rates
from benchmarks.timing import Clock, Rows, alternate, bfloat16_pays, versus, worthwhile

from groupvit.data import scenes
from groupvit.data.batches import Batch
from groupvit.data.shards import find_shards
from groupvit.models import build_model, noise, normalize
from groupvit.text.tokenizer import Tokenizer
from groupvit.training.objective import Captions, MultiLabel, Vocabulary
from groupvit.training.optim import make_optimizer
from groupvit.training.run import Run
from groupvit.training.runs import get_run
from groupvit.training.step import Learner, compile_blocks, gradient_of

PHOTOS = 32
PROMPTS = (0, 3)
PEER = "transformers, float32"


def captioned(data: Path, size: int) -> Batch:
    """A batch of Flickr8k's test photos, or where there are none of synthetic scenes."""
    with tempfile.TemporaryDirectory() as folder:
        shards: Path | str = data / "captions" / "flickr8k-test-*.tar"
        if not list((data / "captions").glob("flickr8k-test-*.tar")):
            scenes.write(Path(folder, "scenes"), train=PHOTOS, evaluation=1)
            shards = Path(folder, "scenes", "train")
        return next(iter(loader.ours(find_shards(str(shards)), size, PHOTOS, "crop")))


def our_step(
    run: Run, batch: Batch, *, bfloat16: bool = True, chunk: int = 0, compiled: bool = False
) -> Callable[[], None]:
    """Loss, gradients and the run's optimiser where the batch is."""
    device = batch.captions.device
    torch.manual_seed(0)
    model = build_model(run.model).to(device).train()
    if compiled and not compile_blocks(model):
        raise NotImplementedError("this machine cannot compile")
    optimizer = make_optimizer(model, run.optimizer, bfloat16=bfloat16)
    words = Vocabulary.from_counts({}, 1, Tokenizer(run.model.text.context_length)).to(device)
    keys = noise.sample_keys(0, 0, torch.arange(len(batch.images), device=device))
    gradient = gradient_of(Learner(model, run.objective, words, bfloat16), chunk)

    def step() -> None:
        gradient(batch, keys)
        optimizer.step()
        optimizer.zero_grad()

    return step


def their_step(run: Run, batch: Batch, *, bfloat16: bool) -> Callable[[], None]:
    torch.manual_seed(0)
    device = batch.captions.device
    model = peer.port(build_model(run.model), run.model).to(device).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=run.schedule.lr, weight_decay=run.optimizer.weight_decay, fused=True
    )
    tokens = torch.cat([batch.captions[:, None], batch.prompts], dim=1)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            loss = peer.loss(model, normalize(batch.images), tokens)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def rows(rounds: int, clock: Clock, data: Path) -> Rows:
    recipe, rates, table = get_run("groupvit-s-gcc-yfcc"), matrix_rates(clock), []
    whole = captioned(data, recipe.model.image.image_size)
    for prompts in PROMPTS:
        batch = replace(whole, prompts=whole.prompts[:, :prompts])
        objective = (Captions(), MultiLabel(prompts, style="release")) if prompts else (Captions(),)
        run = replace(recipe, objective=objective)
        ways: dict[str, Callable[[], None]] = {
            PEER: their_step(run, batch, bfloat16=False),
            "transformers, bfloat16": their_step(run, batch, bfloat16=True),
            "ours, float32": our_step(run, batch, bfloat16=False),
            "ours, bfloat16": our_step(run, batch),
        }
        ways = worthwhile(ways)
        work = {name: flops(way) for name, way in ways.items()}
        fast = "bfloat16" if bfloat16_pays() else "float32"
        with suppress(NotImplementedError):
            ways[f"ours, compiled, {fast}"] = our_step(run, batch, bfloat16=bfloat16_pays(), compiled=True)
            work[f"ours, compiled, {fast}"] = work[f"ours, {fast}"]  # fused kernels hide their products
        seconds = alternate(ways, rounds, clock)
        for name in ways:
            rate = work[name] / statistics.median(seconds[name])
            peak = rates[torch.bfloat16 if name.endswith("bfloat16") else torch.float32]
            table.append(
                {
                    "prompts a photo": str(prompts),
                    "way": name,
                    **versus(seconds, name, PEER),
                    "GFLOP a photo": f"{work[name] / PHOTOS / 1e9:.1f}",
                    "% of peak": f"{100 * rate / peak:.0f}",
                }
            )
    return table
