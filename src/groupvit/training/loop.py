"""Pre-training, top to bottom: shards in, a checkpoint out."""

import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader

from groupvit.data.batches import Batch, BatchMaker
from groupvit.data.shards import CaptionBatches, captions_of, find_shards
from groupvit.errors import InputError
from groupvit.models import GroupViT, build_model, noise, normalize, temperature
from groupvit.text.nouns import vocabulary
from groupvit.text.templates import SIMPLE_TEMPLATE
from groupvit.text.tokenizer import Tokenizer
from groupvit.training import losses
from groupvit.training.optim import learning_rate, parameter_groups
from groupvit.training.progress import Progress
from groupvit.training.runs import Run
from groupvit.training.state import TrainingState, latest, restore, save

Evaluate = Callable[[GroupViT], dict[str, float]]


@dataclass(frozen=True)
class Vocabulary:
    """The nouns of the segment-level loss: their prompts, and weights that fall with the root of their frequency."""

    nouns: tuple[str, ...]
    tokens: Int[Tensor, "vocabulary length"]
    weights: Float[Tensor, " vocabulary"]

    @classmethod
    def from_counts(cls, counts: dict[str, int], tokenizer: Tokenizer) -> "Vocabulary":
        """`counts`: in how many photos' captions each noun stands."""
        weights = torch.tensor(list(counts.values()), dtype=torch.float32).rsqrt()
        tokens = tokenizer([SIMPLE_TEMPLATE.format(noun) for noun in counts])
        return cls(tuple(counts), tokens, weights / weights.mean())

    def to(self, device: torch.device) -> "Vocabulary":
        return Vocabulary(self.nouns, self.tokens.to(device), self.weights.to(device))


def loss_terms(
    model: GroupViT, batch: Batch, run: Run, words: Vocabulary, keys: Int[Tensor, " batch"]
) -> dict[str, Float[Tensor, ""]]:
    """Every term of the objective, weighted (Eq. 8, and the segment-level noun loss)."""
    features = model.image_encoder(normalize(batch.images), keys)
    texts = [batch.captions, batch.prompts.flatten(0, 1)][: 2 if run.prompts else 1]
    # Sentences of one kind have one length: encoding the kinds apart spares padding; BatchNorm sees them together.
    encoded = torch.cat([model.text_encoder(tokens) for tokens in texts])
    embeddings = nn.functional.normalize(model.text_projector(encoded), dim=-1).float()
    captions, prompts = embeddings[: len(batch.captions)], embeddings[len(batch.captions) :]
    images = model.embed_images(features).float()
    terms = {}
    if run.caption_weight:
        caption = losses.contrastive_loss(images, captions, temperature(model.logit_scale), run.loss_form)
        terms["caption"] = run.caption_weight * caption
    if run.prompts:
        scale = getattr(model, "multi_label_logit_scale", model.logit_scale)
        prompts = prompts.unflatten(0, (-1, run.prompts))
        terms["multi_label"] = losses.multi_label_loss(images, prompts, temperature(scale), run.loss_form)
    if run.segment_weight:
        terms["segment_nouns"] = run.segment_weight * losses.segment_noun_loss(
            model.embed_segments(features).float(),
            features.occupied(),
            model.encode_text(words.tokens).float(),
            batch.present,
            temperature(model.segment_logit_scale),
            model.segment_logit_bias,
            words.weights,
        )
    return terms


@contextmanager
def _stop_requests() -> Iterator[list[int]]:
    """Signals that ask to stop, collected: the loop ends after the step it is in."""
    received: list[int] = []
    handlers = {s: signal.signal(s, lambda number, _: received.append(number)) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _attention(device: torch.device) -> AbstractContextManager[object]:
    """On a CPU the gradient of fused attention is many times slower than matrix products at our short lengths."""
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()


def _next(batches: Iterator[Batch]) -> Batch:
    try:
        return next(batches)
    except InputError as error:  # from a worker it comes wrapped in the worker's traceback
        raise InputError(str(error).strip().splitlines()[-1].rpartition("InputError: ")[2]) from error


def make_vocabulary(run: Run, shards: list[Path], tokenizer: Tokenizer) -> Vocabulary:
    """The nouns of the training captions that are frequent enough to learn."""
    counts = vocabulary(captions_of(shards), run.min_count) if run.segment_weight else {}
    if run.segment_weight and not counts:
        raise InputError(
            f"no noun stands in the captions of {run.min_count} photos of {shards[0].parent}; need more data"
        )
    return Vocabulary.from_counts(counts, tokenizer)


def train(
    run: Run,
    data: Path,
    out: Path,
    *,
    seed: int = 0,
    resume: bool = False,
    workers: int = 1,
    device: torch.device | None = None,
    evaluate: Evaluate | None = None,
) -> TrainingState:
    """Train `run` on the shards of `data` into the folder `out`; returns the state it ended in.

    Writes `out/step-*/` (checkpoints; `out/latest` names the newest) and `out/metrics.jsonl`. SIGINT or SIGTERM ends
    the training after the current step with a checkpoint. With `resume` it goes on from the newest checkpoint, to the
    bit as if it had not been interrupted: order, augmentation and noise depend on (seed, step, sample) alone.
    """
    shards = find_shards(data / run.train)
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not resume and latest(out):
        raise InputError(f"{out} holds a training at {latest(out)}; add --resume to continue it, or name another --out")
    tokenizer = Tokenizer(run.model.text.context_length)
    words = make_vocabulary(run, shards, tokenizer)
    torch.manual_seed(seed)
    model = build_model(run.model).to(device).train()
    groups = parameter_groups(model, run.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=run.lr, fused=True)
    state = TrainingState(run, seed, 0, words.nouns, model, optimizer)
    if resume:
        state = restore(out, state)
    words = words.to(device)
    maker = BatchMaker(run.model.image.image_size, run.crop, run.prompts, run.noun_style, words.nouns, tokenizer)
    stream = CaptionBatches(shards, batch_size=run.batch_size, seed=seed, make_batch=maker, start_batch=state.step)
    loader = DataLoader(stream, batch_size=None, num_workers=workers, pin_memory=device.type == "cuda")
    positions = torch.arange(run.batch_size, device=device)
    with _stop_requests() as stop, Progress(out / "metrics.jsonl", state.step, run.steps, run.batch_size) as progress:
        batches = iter(loader)
        while state.step < run.steps and not stop:
            batch = _next(batches).to(device)
            rate = learning_rate(
                state.step, steps=run.steps, warmup=run.warmup, peak=run.lr, start=run.lr_start, end=run.lr_end
            )
            for group in optimizer.param_groups:
                group["lr"] = rate
            keys = noise.sample_keys(seed, state.step, positions)
            with _attention(device), torch.autocast(device.type, torch.bfloat16, enabled=run.precision == "bfloat16"):
                terms = loss_terms(model, batch, run, words, keys)
                loss = torch.stack(list(terms.values())).sum()
            loss.backward()
            norm = nn.utils.clip_grad_norm_(model.parameters(), run.clip_grad)
            if not torch.isfinite(norm):
                raise FloatingPointError(
                    f"the gradient is not finite at step {state.step}; last checkpoint: {latest(out)}"
                )
            optimizer.step()
            optimizer.zero_grad()
            state = state.advance()
            values = {"loss": loss, **terms, "grad_norm": norm, "logit_scale": temperature(model.logit_scale)}
            progress.step(state.step, rate, values)
            last = state.step == run.steps
            if evaluate and (last or state.step % run.evaluate_every == 0):
                model.eval()
                progress.write(state.step, evaluate(model))
                model.train()
            if last or stop or state.step % run.save_every == 0:
                save(out, state)
    return state
