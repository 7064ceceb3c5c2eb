"""One step: the gradient of a batch, in one piece or in chunks, and what the optimiser makes of it.

A contrastive loss compares all photos of a batch, but sees only a few features of each. In chunks (GradCache, Gao et
al., 2021) the encoders make these without a graph. The loss and its gradient are taken of all features at once. Then
the encoders run again, chunk by chunk, with a graph that takes the features' gradients back. Noise is keyed by sample
and assignments are repeated, so both passes are the same function. Projectors and BatchNorm belong to the loss.
"""

import copy
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from groupvit.data.batches import Batch
from groupvit.models import GroupViT
from groupvit.models.image_encoder import ImageEncoder
from groupvit.models.layers import Block, at_least_float32
from groupvit.models.noise import Keys
from groupvit.training.distributed import ALONE, BatchNormOfAll, World
from groupvit.training.embedding import encode_images, encode_texts, loss_terms, texts_of
from groupvit.training.objective import Images, Objective, Vocabulary
from groupvit.training.self_supervised import PhotoTerm, modules_of

Terms = dict[str, Float[Tensor, ""]]
Texts = Sequence[tuple[Int[Tensor, "_ _"], bool]]
Features = Sequence[Tensor]
Encode = Callable[[slice], Features]
Gradient = Callable[[Batch, Keys], Terms]

_CLIP = 5.0
_VARIANTS = 64  # of one block, after which PyTorch stops compiling; its own limit of 8 is for code that is one function


class Learner(nn.Module):
    """A model with its objective. Each process encodes its share of the batch; the loss sees all shares."""

    def __init__(
        self,
        model: GroupViT,
        objective: Objective,
        vocabulary: Vocabulary,
        bfloat16: bool = False,
        world: World = ALONE,
        extras: nn.ModuleDict | None = None,
    ):
        super().__init__()
        self.model = model
        for projector in (model.image_projector, model.text_projector) if world.size > 1 else ():
            projector.norm.__class__ = BatchNormOfAll  # with its weights and sums
        self.objective = tuple(term for term in objective if not isinstance(term, PhotoTerm))
        self.photo_terms = [term for term in objective if isinstance(term, PhotoTerm)]
        self.extras = extras or modules_of(objective, model, len(vocabulary.nouns))
        self.vocabulary = vocabulary
        self.world = world
        self._autocast = partial(torch.autocast, vocabulary.tokens.device.type, torch.bfloat16, enabled=bfloat16)

    def forward(self, batch: Batch, keys: Keys) -> Terms:
        """Return this process's part of the weighted terms, whose mean over the processes is the loss of the batch;
        `batch` and `keys` are its share."""
        whole, texts = self.gathered(batch)
        terms: Terms = {}
        if self.objective:
            encoders = self.encoders(batch, texts, keys)
            terms = self.loss(whole, texts, [encode(slice(0, count)) for encode, count in encoders])
        return terms | {term.name: term.weight * self._of_photos(term.name, whole, keys) for term in self.photo_terms}

    def _of_photos(self, name: str, whole: Batch, keys: Keys) -> Float[Tensor, ""]:
        def pool(encoder: ImageEncoder, images: Tensor, keys: Keys | None) -> Tensor:
            with self._autocast():
                return self.world.gather(at_least_float32(encoder(encoder.preprocess(images), keys).pooled))

        return self.extras[name](self.model.image_encoder, whole, keys, pool)

    def gathered(self, batch: Batch) -> tuple[Batch, Texts]:
        """Return the batch of all processes, but for its images, which stay this one's, and its texts."""
        names = ("captions", "prompts", "present", "known", "human")
        whole = replace(batch, early=(), **{name: self.world.gather(getattr(batch, name)) for name in names})
        return whole, texts_of(whole, self.objective, self.vocabulary)

    def encoders(self, batch: Batch, texts: Texts, keys: Keys) -> list[tuple[Encode, int]]:
        """Return what encodes rows of the images, captions, prompts and vocabulary, and the number of rows."""
        joined: dict[int, tuple[Tensor, ...]] = {}  # images that were encoded before keep to their groups

        def images(rows: slice) -> Features:
            early = tuple(each[rows] for each in batch.early)
            of, before = batch.images[rows], joined.get(rows.start, ())
            with self._autocast():
                made = encode_images(self.model, of, self.objective, keys[rows], joined=before, early=early)
            joined.setdefault(rows.start, made.joined)
            return made.pooled, made.segments, made.patches, made.occupied, made.patches_occupied, made.taught

        def rows_of(tokens: Int[Tensor, "texts length"], words: bool, rows: slice) -> Features:
            with self._autocast():
                return (encode_texts(self.model, tokens[rows], words=words),)

        shares = [(self.world.share(tokens), words) for tokens, words in texts]
        return [(images, len(batch.captions)), *((partial(rows_of, *share), len(share[0])) for share in shares)]

    def loss(self, whole: Batch, texts: Texts, features: Sequence[Features]) -> Terms:
        """Return this process's part of the weighted terms from the features of its share."""
        images, *encoded = features
        counts = [len(tokens) for tokens, _ in texts]
        own = [every[: of.stop - of.start] for (every,), of in zip(encoded, map(self.world.own, counts), strict=True)]
        with self._autocast():
            given = (self.model, self.objective, Images(*images, joined=()), own, whole, self.vocabulary)
            return loss_terms(*given, self.world, counts)


def gradient_of(learner: Learner, chunk: int = 0) -> Gradient:
    """Return the function that leaves the gradient of a batch in the parameters and gives the loss's terms.

    With `chunk` so many photos and as many texts are encoded at a time.
    """
    world = learner.world
    module: nn.Module = learner
    if world.size > 1 and not chunk:
        warnings.filterwarnings("ignore", "Grad strides do not match", UserWarning)  # of 1 x 1 kernels, channels last
        module = DistributedDataParallel(learner, static_graph=True)

    def ordinary(batch: Batch, keys: Keys) -> Terms:
        terms = module(batch, keys)
        _total(terms).backward()
        return world.mean(terms)

    def chunked(batch: Batch, keys: Keys) -> Terms:
        whole, texts = learner.gathered(batch)
        encoders, counts = zip(*learner.encoders(batch, texts, keys), strict=True)
        chunks = [_chunks(count, chunk) for count in counts]
        terms = cached_backward(encoders, partial(learner.loss, whole, texts), chunks)
        # DistributedDataParallel averages a gradient at the first backward pass; here each chunk has one of its own.
        world.average_gradients(learner.parameters())
        return world.mean(terms)

    return chunked if chunk else ordinary


def cached_backward(
    encode: Sequence[Encode], loss: Callable[[Sequence[Features]], Terms], chunks: Sequence[Sequence[slice]]
) -> Terms:
    """Leave the gradient of `loss` in the parameters; no graph is kept for more than a chunk of one encoder."""
    with torch.no_grad():
        made = [[encoder(rows) for rows in pieces] for encoder, pieces in zip(encode, chunks, strict=True)]
    joined = [[torch.cat(column) for column in zip(*pieces, strict=True)] for pieces in made]
    leaves = [[each.requires_grad_(each.is_floating_point()) for each in columns] for columns in joined]
    terms = loss(leaves)
    _total(terms).backward()
    for encoder, pieces, of in zip(encode, chunks, leaves, strict=True):
        for rows in pieces:
            pairs = [(x, leaf.grad[rows]) for x, leaf in zip(encoder(rows), of, strict=True) if leaf.grad is not None]
            if pairs := [(x, gradient) for x, gradient in pairs if x.requires_grad]:
                torch.autograd.backward([x for x, _ in pairs], [gradient for _, gradient in pairs])
    return terms


def _chunks(count: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, count)) for start in range(0, max(count, 1), size)]


def _total(terms: Terms) -> Float[Tensor, ""]:
    return torch.stack(list(terms.values())).sum()


def step(
    model: nn.Module, gradient: Callable[[], Terms], optimizer: torch.optim.Optimizer
) -> tuple[Terms, Float[Tensor, ""]]:
    """Take one step; return the loss's terms with their total, and the norm of the gradient before clipping.

    A gradient that is not finite changes nothing. It is the mean over all processes, so they agree on that.
    """
    buffers = [buffer.clone() for buffer in model.buffers()]
    terms = {name: term.detach() for name, term in gradient().items()}
    norm = nn.utils.clip_grad_norm_(model.parameters(), _CLIP)
    if torch.isfinite(norm):
        optimizer.step()
    else:
        for buffer, value in zip(model.buffers(), buffers, strict=True):
            buffer.copy_(value)
    optimizer.zero_grad()
    return {"loss": _total(terms), **terms}, norm


def compile_blocks(model: GroupViT) -> bool:
    """Fuse every transformer block in place (`torch.compile`); return False where the machine cannot, and say why.

    Blocks of one kind share their code: they are compiled once for each way of calling them (with gradients or without,
    under autocast or not), and not again for other numbers of images or lengths of texts.
    """
    blocks = [module for module in model.modules() if isinstance(module, Block)]
    config = torch._dynamo.config
    limit = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"  # until PyTorch 2.6
    setattr(config, limit, max(getattr(config, limit), _VARIANTS))
    try:
        for block in {block.norm1.weight.shape: block for block in blocks}.values():
            weight = block.norm1.weight
            trial = copy.deepcopy(block)
            trial.compile()
            trial(torch.zeros(2, 4, len(weight), device=weight.device)).sum().backward()
    except Exception as error:  # whatever the compiler raises
        reason = next((line for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)
        print(f"cannot compile here, training goes on without: {reason.strip()}", file=sys.stderr)
        return False
    for block in blocks:
        block.compile()
    return True
