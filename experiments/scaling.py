"""How long the paper's run takes on 1, 8 and 64 GPUs, and where more of them stop helping.

    python -m experiments.scaling --record    # a table of docs/SCALING.md

Nothing here is measured on a GPU. FLOPs are counted in one step of the model, bytes follow from its shapes, the rate
of one GPU is what the paper's own training comes to, and the speed of the network is given.
"""

from dataclasses import replace

import torch
import tyro
from benchmarks.memory import random_batch
from benchmarks.peak import flops
from experiments.record import commit, report_table

from groupvit.models import build_model, noise
from groupvit.text.tokenizer import Tokenizer
from groupvit.training.embedding import encode_images, encode_texts, loss_terms, texts_of
from groupvit.training.objective import Images, PairTerm, Vocabulary
from groupvit.training.paper_runs import PAIRS
from groupvit.training.runs import get_run

BATCH = 4096
PROMPTS = 3
BUCKET = 25 << 20
"""Bytes of gradients that DistributedDataParallel sends at a time."""
PHOTOS = 30 * (PAIRS["cc12m"] + PAIRS["yfcc14m"])
PAPER_RATE = PHOTOS / (16 * 48 * 3600)
"""Photos a second and V100: the release's 30 epochs in two days on 16 of them, loss and messages included, which
the table counts once more."""


def count_flops(size: int = BATCH) -> tuple[float, float]:
    """Count FLOPs of a step, forward and backward: encoders for one photo, projectors and loss for a batch.

    Of the latter each process has an equal share: it projects its own rows and compares them with all.
    """
    torch.manual_seed(0)
    run = get_run("groupvit-s-gcc-yfcc")
    objective = tuple(term for term in run.objective if isinstance(term, PairTerm))
    model, words = build_model(run.model).train(), Vocabulary.from_counts({}, 1, Tokenizer(77))
    few = random_batch(8, run)

    def encoders() -> None:
        images = encode_images(model, few.images, objective, noise.sample_keys(0, 0, torch.arange(8)))
        features = [images.pooled, *(encode_texts(model, tokens) for tokens, _ in texts_of(few, objective, words))]
        torch.cat([feature.flatten() for feature in features]).sum().backward()

    none = torch.zeros(size, 0, dtype=torch.bool)
    masks = {"present": none, "human": torch.ones(size, dtype=torch.bool)}
    batch = replace(few, captions=few.captions.repeat(size // 8, 1), **masks)
    nothing = torch.zeros(size, 0, run.model.image.dim)
    pooled = torch.randn(size, run.model.image.dim, requires_grad=True)
    texts = [torch.randn(count, run.model.text.width, requires_grad=True) for count in (size, size * PROMPTS, 0)]

    def loss() -> None:
        of_images = Images(pooled, nothing, nothing, none, none, nothing, ())
        torch.stack(list(loss_terms(model, objective, of_images, texts, batch, words).values())).sum().backward()

    return flops(encoders) / 8, flops(loss)


def main(
    gpus: tuple[int, ...] = (1, 8, 16, 64, 256),
    rate: float = PAPER_RATE,
    bandwidth: float = 25e9,
    record: bool = False,
) -> None:
    """Print the table.

    Args:
        gpus: Numbers of GPUs.
        rate: Photos that one of them trains a second.
        bandwidth: Bytes a second that each can send and receive at a time.
        record: Write the table to docs/results.json and docs/SCALING.md.
    """
    began_at = commit() if record else ""
    each, whole = count_flops()
    print(f"encoders: {each / 1e9:.1f} GFLOP a photo; projectors and loss: {whole / 1e9:.0f} GFLOP a step of {BATCH}")
    with torch.device("meta"):
        run = get_run("groupvit-s-gcc-yfcc")
        gradients = 4 * sum(parameter.numel() for parameter in build_model(run.model).parameters())
    embeddings = 4 * BATCH * (2 + PROMPTS) * run.model.embed_dim
    rows = []
    for count in gpus:
        encode = BATCH / (rate * count)
        loss = whole / (each * rate) / count
        # Embeddings are gathered once and their gradients summed. The weights' gradients go while the backward pass,
        # two thirds of a step, still runs; the last bucket comes after it.
        others = (count - 1) / count / bandwidth
        late = max(2 * gradients * others - 2 / 3 * encode, 2 * BUCKET * others)
        send = 3 * embeddings * others + late
        speed = BATCH / (encode + loss + send)
        rows.append(
            {
                "GPUs": count,
                "encoders, ms a step": f"{1000 * encode:,.0f}",
                "projectors and loss": f"{1000 * loss:.1f}",
                "messages": f"{1000 * send:.1f}",
                "photos/s": f"{speed:,.0f}",
                "of perfect scaling, %": f"{100 * speed / (count * rate):.0f}",
                "the paper's run, days": f"{PHOTOS / speed / 86400:.1f}",
                "from storage, MB/s, at 50 kB a photo": f"{speed * 0.05:,.0f}",
            }
        )
    report_table("SCALING.md", "scaling", rows, began_at)


if __name__ == "__main__":
    tyro.cli(main)
