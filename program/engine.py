"""What runs a method's calls in the place of its graph in Python."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch

__all__ = ["Engine", "EngineFailure"]


class EngineFailure(Exception):
    """A call failed; what torch says is in the text."""


class Engine(Protocol):
    """Runs one method. Several threads may call it at the same time."""

    def run(self, tensors: Sequence[torch.Tensor]) -> list[Any]:
        """Returns what the graph gives: tensors, and integers where the method has some.

        Args:
          tensors: the method's tensor inputs, found legal by its contract.

        Raises:
          EngineFailure: it refused the tensors' values, or failed.
        """
