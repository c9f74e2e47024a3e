"""A small decoder-only transformer over characters, `gpt_char`.

Blocks as in GPT-2 (Radford et al. 2019, normalisation before attention and before the hidden layer, learned positions)
with RMSNorm (Zhang, Sennrich 2019) and without biases.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EXPANSION = 4
"""Width of the hidden layer of a block, in widths of the model."""


class CharGPT(nn.Module):
    """Predict each next token: int64 [n, length] -> [n, length, vocabulary], length at most `context`."""

    def __init__(self, vocabulary: int, context: int, *, n_layers: int, width: int, n_heads: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Parameter(torch.empty(context, width))
        self.blocks = nn.ModuleList(Block(width, n_heads) for _ in range(n_layers))
        self.norm = nn.RMSNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        nn.init.normal_(self.positions, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.positions[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class Block(nn.Module):
    """Causal attention and a hidden layer, each added to its input: [n, length, width] -> the same."""

    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.norm1, self.norm2 = nn.RMSNorm(width), nn.RMSNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, EXPANSION * width, bias=False)
        self.down = nn.Linear(EXPANSION * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.out(self.attend(self.qkv(self.norm1(x))))
        return x + self.down(F.gelu(self.up(self.norm2(x))))

    def attend(self, qkv: Tensor) -> Tensor:
        """Mix the values of no later places: [n, length, 3 * width] -> [n, length, width]."""
        query, key, value = qkv.unflatten(2, (3, self.n_heads, -1)).permute(2, 0, 3, 1, 4).unbind()
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return mixed.transpose(1, 2).flatten(2)
