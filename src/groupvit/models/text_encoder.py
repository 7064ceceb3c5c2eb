"""CLIP's causal text transformer, without the padding."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from groupvit.models.config import TextEncoderConfig
from groupvit.models.layers import Block


class TextEncoder(nn.Module):
    """Token ids to the feature at end-of-text (Radford et al., 2021), which is the largest id of a row."""

    def __init__(self, config: TextEncoderConfig):
        super().__init__()
        width, layers = config.width, config.layers
        self.token_embedding = nn.Embedding(config.vocab_size, width)
        self.pos_embed = nn.Parameter(torch.empty(config.context_length, width))
        blocks = [Block(width, config.heads, causal=True) for _ in range(layers)]
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(width)
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.pos_embed, std=0.01)
        for block in blocks:
            for linear, std in (
                (block.attn.qkv, width**-0.5),
                (block.attn.proj, width**-0.5 * (2 * layers) ** -0.5),
                (block.mlp.fc1, (2 * width) ** -0.5),
                (block.mlp.fc2, width**-0.5 * (2 * layers) ** -0.5),
            ):
                nn.init.normal_(linear.weight, std=std)
                nn.init.zeros_(linear.bias)

    def forward(self, tokens: Int[Tensor, "texts length"]) -> Float[Tensor, "texts width"]:
        """Return the feature at end-of-text."""
        ends = tokens.argmax(dim=-1)
        return self.norm(self._encode(tokens)[torch.arange(tokens.shape[0], device=tokens.device), ends])

    def words(self, tokens: Int[Tensor, "texts length"]) -> Float[Tensor, "texts length width"]:
        """Return the features at all places, each of the text up to there; zeros beyond the longest text."""
        x = self.norm(self._encode(tokens))
        return F.pad(x, (0, 0, 0, tokens.shape[1] - x.shape[1]))

    def _encode(self, tokens: Int[Tensor, "texts length"]) -> Float[Tensor, "texts longest width"]:
        """Cutting the batch to its longest text is exact: attention is causal and nothing beyond is read."""
        tokens = tokens[:, : int(tokens.argmax(dim=-1).max()) + 1]
        x = self.token_embedding(tokens) + self.pos_embed[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return x
