"""The rewrite that Mamba needs: its loop over the sequence as one operator.

The library computes the states of a state-space model one position after the other, in a Python
loop. A graph of that has as many copies of the loop's body as the example has positions, and is
valid for that length alone. `torch.scan` keeps the body once, and runs it as often as the sequence
is long.
"""

from __future__ import annotations

from typing import Any
from unittest import mock

import torch
from torch import nn
from torch._higher_order_ops.scan import scan
from torch.nn import functional
from transformers.models.mamba import modeling_mamba

__all__ = ["ScannedMamba"]


class ScannedMamba(nn.Module):
    """A model of the library's, called in the same way, with its loops replaced.

    Attributes:
      model: the library's own model, which is left as it is.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        with mock.patch.object(modeling_mamba, "mamba_selective_scan", _selective_scan):
            return self.model(input_ids=input_ids, attention_mask=attention_mask)


def _selective_scan(
    values: torch.Tensor,
    step: torch.Tensor,
    decay: torch.Tensor,
    inputs: torch.Tensor,
    outputs: torch.Tensor,
    *,
    D: torch.Tensor,
    z: torch.Tensor,
    delta_bias: torch.Tensor,
    **_: object,
) -> torch.Tensor:
    """Returns what `mamba_selective_scan` does where it is called for a whole sequence.

    Args:
      values, step: (batch, channels, seq), what the channels hold and how far each step goes.
      decay: (channels, states).
      inputs, outputs: (batch, states, seq), how states are written and read.
      D, z, delta_bias: as the library calls them: the weight of a bypass (channels,), the gate
        (batch, channels, seq), and what is added to `step` (channels,).
    """
    step = functional.softplus(step + delta_bias[:, None])
    # The sequence is the first dimension, as scan takes it.
    step, written, values_first = (item.permute(2, 0, 1) for item in (step, inputs, values))
    kept = torch.exp(decay * step[..., None])
    added = step[..., None] * written[:, :, None, :] * values_first[..., None]

    def advance(
        state: torch.Tensor, position: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        factor, summand, read = position
        state = factor * state + summand
        return state, (state @ read[..., None]).squeeze(-1)

    start = torch.zeros_like(kept[0])
    _, scanned = scan(advance, start, (kept, added, outputs.permute(2, 0, 1)), dim=0)
    return (scanned.permute(1, 2, 0) + values * D[:, None]) * functional.silu(z)
