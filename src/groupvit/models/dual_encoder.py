"""GroupViT: an image encoder and a text encoder that meet in one space (Fig. 2)."""

import hashlib
import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from groupvit.models.config import ModelConfig
from groupvit.models.image_encoder import ImageEncoder
from groupvit.models.text_encoder import TextEncoder

SEGMENT_LOGIT_BIAS = -5.0
"""Where the bias of the segment-level noun loss starts: a segment is most nouns with a probability near 0."""


class Projector(nn.Module):
    """Two-layer perceptron into the joint space (§4.1); rows of any leading shape."""

    def __init__(self, dim: int, hidden_dim: int, out_dim: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.norm = nn.BatchNorm1d(hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, out_dim)

    def forward(self, x: Float[Tensor, "*rows dim"]) -> Float[Tensor, "*rows out"]:
        hidden = self.norm(self.fc1(x.flatten(0, -2)))
        return self.fc2(F.relu(hidden)).unflatten(0, x.shape[:-1])


class GroupViT(nn.Module):
    """The two encoders, their projectors and the learned temperatures.

    `multi_label_logit_scale` is the multi-label loss's own temperature; `segment_logit_scale` and `segment_logit_bias`
    belong to the noun losses, `teacher_logit_scale` to the loss by a trunk's classifier. All scales are logarithms,
    used through `temperature`. `rivals` are the embeddings of `ModelConfig.rivals`, if a checkpoint brings them: they
    follow from the weights, and no training reads them.
    """

    rivals: Float[Tensor, "rivals embed"] | None = None

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.image_encoder = ImageEncoder(config.image).apply(init_linear)
        self.text_encoder = TextEncoder(config.text)
        self.image_projector = Projector(config.image.dim, config.projector_dim, config.embed_dim)
        self.text_projector = Projector(config.text.width, config.projector_dim, config.embed_dim)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        if config.multi_label_scale:
            self.multi_label_logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        if config.segment_loss:
            self.segment_logit_scale = nn.Parameter(torch.tensor(math.log(10.0)))
            self.segment_logit_bias = nn.Parameter(torch.tensor(SEGMENT_LOGIT_BIAS))
        if config.teacher_loss:
            self.teacher_logit_scale = nn.Parameter(torch.tensor(math.log(20.0)))

    def embed_image_features(self, features: Float[Tensor, "*rows dim"]) -> Float[Tensor, "*rows embed"]:
        """Unit vectors of pooled features (Eq. 2) or of single segments (§3.3): one projector serves both."""
        return F.normalize(self.image_projector(features), dim=-1)

    def embed_text_features(self, features: Float[Tensor, "texts width"]) -> Float[Tensor, "texts embed"]:
        """Unit vectors of encoded texts."""
        return F.normalize(self.text_projector(features), dim=-1)

    def encode_image(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch embed"]:
        """Unit vectors of whole images, without noise."""
        return self.embed_image_features(self.image_encoder(images).pooled)

    def encode_text(self, tokens: Int[Tensor, "texts length"]) -> Float[Tensor, "texts embed"]:
        """Unit vectors of tokenised texts."""
        return self.embed_text_features(self.text_encoder(tokens))


def weights_digest(model: nn.Module) -> str:
    """Return a SHA-256 of a model's weights: their names, shapes, types and values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def temperature(log_scale: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """The factor on cosine similarities: exp of the learned logarithm, at most 100 (Radford et al., 2021)."""
    return log_scale.exp().clamp(max=100)


def build_model(config: ModelConfig) -> GroupViT:
    """A randomly initialised model."""
    return GroupViT(config)


def init_linear(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
