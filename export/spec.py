"""What a user says of a model so that it can be exported."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.export import AdditionalInputs, ShapesCollection

from slipway.export.shape_language import SymbolRange
from slipway.program.batching import PaddingNumber

__all__ = ["DynamicShapes", "ExportSpec", "MethodSpec"]

DynamicShapes = Mapping[str, Any] | Sequence[Any] | ShapesCollection | AdditionalInputs


@dataclass(frozen=True, kw_only=True)
class MethodSpec:
    """A call of a model that becomes one entry point of a program.

    Attributes:
      function: what is called; None for the model itself, or, in `ExportSpec.methods`, for the
        model's function of the method's name.
      args: example positional arguments: a tensor, or a tuple of them and of nested tuples, lists,
        dicts, named tuples and registered dataclasses. Their values matter only as examples: the
        graph is valid for every call that satisfies the contract.
      kwargs: example keyword arguments.
      dynamic_shapes: which dimensions are dynamic. By parameter name (or a tuple in the order of
        `args`), nested as the arguments are, and for each tensor either a dict from dimension to
        `Dim`, as `torch.export.export` takes it, or a text with an entry for each dimension:
        `"batch, 8*k, 256, _"`, where `_` is the example's size. A dimension that is not mentioned
        is static. Torch's `ShapesCollection` and `AdditionalInputs` are taken too.
      symbols: what the names in such texts may be: `{"batch": (1, 64), "k": (1, None),
        "width": {1, 2, 4, 8}}`; any size if they are not mentioned.
      relations: conditions on symbols that every call must satisfy, beside those that tracing
        finds: `"tokens == heads * width"`, `"batch % 8 == 0"`.
      output_names: a name for each leaf of the output, for clients; by default the keys of a dict,
        `output`, or `output_0`, `output_1`, …
      batching: whether a server may join several calls into one and split the result. True: over
        the symbol that is the first dimension of every input and output, if each row is found to be
        computed from that row alone. The name of a symbol: over that one, along whichever
        dimension it is, and it is an error if rows depend on each other. False: never.
      batching_tolerance: by how much a row of a batch may differ from what it is alone: absolute,
        and relative to the largest magnitude in the row. None: by the dtypes of the tensors,
        1e-5 and 1e-4 for float32.
      padding: calls that differ in a symbol may be joined too, since the inputs can be made longer:
        by symbol, the value to append to each input that has it, `{"seq": {"tokens": 0,
        "mask": False}}`. It is an error if results, cut back, are not what they were.
      accept_narrowing: why it is all right that the model works for fewer shapes than are declared;
        the reason is kept in the program. None: it is an error.
    """

    function: Callable[..., Any] | None = None
    args: torch.Tensor | tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] | None = None
    dynamic_shapes: (
        Mapping[str, Any] | Sequence[Any] | ShapesCollection | AdditionalInputs | None
    ) = None
    symbols: Mapping[str, SymbolRange] | None = None
    relations: Sequence[str] = ()
    output_names: Sequence[str] | None = None
    batching: bool | str = True
    batching_tolerance: tuple[float, float] | None = None
    padding: Mapping[str, Mapping[str, PaddingNumber]] | None = None
    accept_narrowing: str | None = None


@dataclass(frozen=True, kw_only=True)
class ExportSpec(MethodSpec):
    """What to export; what the entry point of a `torch_export` target returns.

    Example:

        batch = Dim("batch", min=1, max=64)
        ExportSpec(
            model=Ranker().eval(),
            args=torch.zeros(2, 256),
            dynamic_shapes={"features": {0: batch}},
        )

    Attributes, beside those of `MethodSpec`, which describe the method `forward`:
      model: a module or a function.
      methods: instead of the one method `forward`, several that share the model's weights, by name.
      custom_ops: namespaces of operators outside torch that the graph may call, `"my_ops"` for
        `torch.ops.my_ops`. In Bazel they are those of the target's `custom_ops`.
      cases: how many calls of each method, with their results, travel with the program, to be tried
        where it is loaded. Their inputs have the values of the example's. 0: none.
      strict: whether torch traces by interpreting bytecode; the default runs the Python code on
        symbolic tensors.
    """

    model: torch.nn.Module | Callable[..., Any]
    methods: Mapping[str, MethodSpec] | None = None
    custom_ops: Sequence[str] = ()
    cases: int = 3
    strict: bool = False
