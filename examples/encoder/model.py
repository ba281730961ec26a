"""A transformer encoder (Vaswani et al., 2017, arXiv:1706.03762) over padded token sequences."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional

from slipway.export import Dim, ExportSpec


class EncoderLayer(nn.Module):
    """Self-attention and a feed-forward network, each normalised before and added to its input."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.projections = nn.Linear(width, 3 * width)
        self.attended = nn.Linear(width, width)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, 4 * width),
            nn.GELU(),
            nn.Linear(4 * width, width),
        )

    def forward(self, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        batch, length, width = states.shape
        projected = self.projections(self.attention_norm(states))
        split = projected.view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = split.permute(2, 0, 3, 1, 4).unbind(0)
        scores = query @ key.transpose(-2, -1) / math.sqrt(width // self.heads)
        # Padding gets a weight of zero; every sequence has at least one real token.
        scores = scores.masked_fill(~mask[:, None, None, :], -1e9)
        mixed = functional.softmax(scores, dim=-1) @ value
        states = states + self.attended(mixed.transpose(1, 2).reshape(batch, length, width))
        return states + self.feed_forward(states)


class Encoder(nn.Module):
    """Embeds token sequences.

    Takes tokens of shape (batch, seq), int64 in 0..999, and a mask of the same shape, bool, true
    where there is a token. Gives one embedding for each sequence, (batch, 64), float32: the mean
    over its tokens.
    """

    def __init__(self, vocabulary: int = 1000, width: int = 64, longest: int = 128) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(vocabulary, width)
        self.position_embedding = nn.Embedding(longest, width)
        self.layers = nn.ModuleList(EncoderLayer(width, heads=4) for _ in range(2))
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        states = self.token_embedding(tokens) + self.position_embedding(positions)
        for layer in self.layers:
            states = layer(states, mask)
        weights = mask.to(states.dtype).unsqueeze(-1)
        return (self.norm(states) * weights).sum(1) / weights.sum(1).clamp(min=1)


def build_model() -> Encoder:
    """Returns the model with the weights that a seed gives, the same everywhere."""
    torch.manual_seed(17)
    return Encoder().eval()


def export_spec() -> ExportSpec:
    batch = Dim("batch", min=1, max=32)
    sequence = Dim("seq", min=1, max=128)
    return ExportSpec(
        model=build_model(),
        args=(torch.randint(1000, (2, 12)), torch.ones(2, 12, dtype=torch.bool)),
        dynamic_shapes={
            "tokens": {0: batch, 1: sequence},
            "mask": {0: batch, 1: sequence},
        },
        output_names=["embedding"],
        # What the mask leaves out has no part in the embedding.
        padding={"seq": {"tokens": 0, "mask": False}},
    )
