"""What a user says of a model so that it can be exported."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["ExportSpec"]


@dataclass(frozen=True, kw_only=True)
class ExportSpec:
    """What to export; what the entry point of a `torch_export` target returns.

    Example:

        batch = Dim("batch", min=1, max=64)
        ExportSpec(
            model=Ranker().eval(),
            args=torch.zeros(2, 256),
            dynamic_shapes={"features": {0: batch}},
        )

    Attributes:
      model: a module or a function.
      args: example positional arguments: a tensor, or a tuple of them and of nested tuples, lists
        and dicts. Their values matter only as examples: the graph is valid for every call that
        satisfies the contract.
      kwargs: example keyword arguments.
      dynamic_shapes: which dimensions are dynamic, as `torch.export.export` takes it: by parameter
        name, or a tuple in the order of `args`; for each tensor a dict from dimension to `Dim`. A
        dimension that is not mentioned is static.
      output_names: a name for each leaf of the output, for clients; by default the keys of a dict,
        `output`, or `output_0`, `output_1`, …
      strict: whether torch traces by interpreting bytecode; the default runs the Python code on
        symbolic tensors.
    """

    model: torch.nn.Module | Callable[..., Any]
    args: torch.Tensor | tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] | None = None
    dynamic_shapes: Mapping[str, Any] | Sequence[Any] | None = None
    output_names: Sequence[str] | None = None
    strict: bool = False
