"""A language model that generates: two methods that share weights, with the cache as tensors.

The library keeps attention's keys and values in an object of its own, which no graph can take or
return. A thin wrapper turns it into tensors and back; the model itself is the library's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import transformers
from torch import nn

from slipway.export import ExportSpec, MethodSpec

__all__ = ["export_spec"]

_LAYERS, _HEADS, _WIDTH = 2, 2, 8

Cache = Sequence[tuple[torch.Tensor, torch.Tensor]]
"""For each layer the keys and the values of the tokens so far, (batch, heads, past, width)."""


class CachedModel(nn.Module):
    """A causal language model of the library's, called with a cache and without."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def prefill(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> dict[str, Any]:
        """Returns the scores of the token after the last one, and the cache."""
        return self._call(input_ids, attention_mask, transformers.DynamicCache())

    def step(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, past: Cache
    ) -> dict[str, Any]:
        """Does the same where all tokens but one are in the cache."""
        return self._call(input_ids, attention_mask, transformers.DynamicCache(past))

    def _call(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, cache: transformers.Cache
    ) -> dict[str, Any]:
        result = self.model(
            input_ids=input_ids, attention_mask=attention_mask, cache=cache, use_cache=True
        )
        layers = [(layer.keys, layer.values) for layer in cache.layers]
        return {"scores": result.logits[:, -1], "past": layers}


def export_spec() -> ExportSpec:
    config = transformers.LlamaConfig(
        vocab_size=99,
        hidden_size=4 * _WIDTH,
        num_hidden_layers=_LAYERS,
        num_attention_heads=4,
        num_key_value_heads=_HEADS,
        intermediate_size=64,
        max_position_embeddings=64,
        eos_token_id=None,
    )
    tokens = torch.randint(3, 99, (2, 9))
    mask = torch.ones_like(tokens)
    cached = torch.randn(2, _HEADS, 8, _WIDTH)
    shape = f"batch, {_HEADS}, past, {_WIDTH}"
    return ExportSpec(
        model=CachedModel(transformers.LlamaForCausalLM(config)).eval(),
        methods={
            "prefill": MethodSpec(
                args=(tokens, mask),
                dynamic_shapes={"input_ids": "batch, seq", "attention_mask": "batch, seq"},
                symbols={"batch": (1, 16), "seq": (1, 48)},
            ),
            "step": MethodSpec(
                args=(tokens[:, -1:], mask, [(cached, cached)] * _LAYERS),
                dynamic_shapes={
                    "input_ids": "batch, 1",
                    "attention_mask": "batch, total",
                    "past": [(shape, shape)] * _LAYERS,
                },
                symbols={"batch": (1, 16), "past": (1, 47), "total": (2, 48)},
                relations=["total == past + 1"],
            ),
        },
    )
