"""CLIP's causal text transformer, without the padding."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from groupvit.models.layers import Block


class TextEncoder(nn.Module):
    """Token ids to the feature at end-of-text (Radford et al., 2021), which is the largest id of a row."""

    def __init__(self, *, width: int, heads: int, layers: int, context_length: int, vocab_size: int):
        super().__init__()
        self.token_embedding = nn.Embedding(vocab_size, width)
        self.pos_embed = nn.Parameter(torch.empty(context_length, width))
        self.blocks = nn.ModuleList(Block(width, heads, causal=True, quick=True) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self._init_weights(width, layers)

    def _init_weights(self, width: int, layers: int) -> None:
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.pos_embed, std=0.01)
        for block in self.blocks:
            assert isinstance(block, Block)
            for linear, std in (
                (block.attn.qkv, width**-0.5),
                (block.attn.proj, width**-0.5 * (2 * layers) ** -0.5),
                (block.mlp.fc1, (2 * width) ** -0.5),
                (block.mlp.fc2, width**-0.5 * (2 * layers) ** -0.5),
            ):
                nn.init.normal_(linear.weight, std=std)
                nn.init.zeros_(linear.bias)

    def forward(self, tokens: Int[Tensor, "texts length"]) -> Float[Tensor, "texts width"]:
        """Cutting the batch to its longest text is exact: attention is causal and only end-of-text is read."""
        ends = tokens.argmax(dim=-1)
        tokens = tokens[:, : int(ends.max()) + 1]
        x = self.token_embedding(tokens) + self.pos_embed[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.norm(x[torch.arange(len(x), device=x.device), ends])
