"""The gate of compiled code: it is kept only if it does what the graph does.

The graph has been compared with the model when the program was made. Calls are the program's cases,
the lowest and highest sizes, 0 and 1 where the contract allows them, and some between.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from slipway.export.compilation import CompilationError
from slipway.export.gate import bindings, call_text
from slipway.export.resizing import resized_leaves
from slipway.program.cases import AnsweredCase, difference
from slipway.program.compiled import use_compiled, use_graphs
from slipway.program.contract import Contract
from slipway.program.corners import corner_bindings
from slipway.program.interpreter import use_interpreter
from slipway.program.method import Method
from slipway.program.program import Program
from slipway.program.torch_types import to_torch

__all__ = ["Speed", "check_compiled", "measure_speed"]

_MAXIMUM_ELEMENTS = 1 << 18
_MAXIMUM_CALLS = 10
_ROUNDS = 15

_Call = tuple[str, list[torch.Tensor]]


def check_compiled(program: Program, directory: Path, methods: Sequence[str]) -> dict[str, int]:
    """Compares compiled methods with their graphs, and returns how many calls of each were.

    Args:
      program: as it was loaded; afterwards it runs its graphs.
      directory: of the program, with the compiled code.
      methods: the compiled ones.

    Raises:
      CompilationError: the code differs from the graph, or fails where the graph does not.
    """
    counts = {}
    for name in methods:
        method = program.methods[name]
        calls = list(example_calls(program, name))
        use_graphs(program)
        expected = [_run(method, tensors) for _, tensors in calls]
        use_compiled(program, directory)
        try:
            code = method.engine
            assert code is not None
            compared = 0
            for (where, tensors), answers in zip(calls, expected, strict=True):
                if answers is None:
                    continue  # values that the model itself refuses
                try:
                    found = code.run([tensor.clone() for tensor in tensors])
                    for index, (one, other) in enumerate(zip(found, answers, strict=True)):
                        difference(one, other, 1, f"output {index} of method '{name}' {where}")
                except Exception as error:
                    raise CompilationError(
                        f"the compiled code of method '{name}' does not do {where} what the graph "
                        f"does: {error}. Leave out compile, or try other compile_options"
                    ) from error
                compared += 1
            counts[name] = compared
        finally:
            use_graphs(program)
    return counts


def example_calls(program: Program, name: str) -> Iterator[_Call]:
    """Yields legal calls of a method, with what messages call them: the first is the example."""
    contract = program.methods[name].contract
    cases = [
        case for case in program.cases if isinstance(case, AnsweredCase) and case.method == name
    ]
    for number, case in enumerate(cases):
        yield f"for case {number}", [case.inputs[key] for key in contract.tensor_inputs]
    example = [cases[0].inputs[key] for key in contract.tensor_inputs] if cases else _made(contract)
    tried = dict.fromkeys(
        itertools.chain(
            itertools.islice(bindings(contract), _MAXIMUM_CALLS),
            itertools.islice(corner_bindings(contract, _MAXIMUM_ELEMENTS), _MAXIMUM_CALLS),
        )
    )
    for binding in tried:
        leaves = resized_leaves(contract, binding, example, _MAXIMUM_ELEMENTS)
        if leaves is not None:
            yield (
                f"for {call_text(contract, binding)}",
                [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)],
            )


def _made(contract: Contract) -> list[torch.Tensor]:
    """Returns inputs of moderate sizes for a method without cases; integers are 0."""
    binding = next(corner_bindings(contract, _MAXIMUM_ELEMENTS))
    for candidate in itertools.islice(corner_bindings(contract, _MAXIMUM_ELEMENTS), 64):
        if sum(candidate) > sum(binding):
            binding = candidate
    generator = torch.Generator().manual_seed(0)
    tensors = []
    for spec in contract.tensor_inputs.values():
        shape = [size.evaluate(binding) for size in spec.shape]
        dtype = to_torch(spec.dtype)
        if dtype.is_floating_point or dtype.is_complex:
            tensors.append(torch.randn(shape, generator=generator).to(dtype))
        else:
            tensors.append(torch.zeros(shape, dtype=dtype))
    return tensors


def _run(method: Method, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor] | None:
    try:
        with torch.no_grad():
            return [output.clone() for output in method.run([item.clone() for item in tensors])]
    except (RuntimeError, IndexError, ValueError):
        return None


@dataclass(frozen=True, slots=True)
class Speed:
    """Microseconds of a method's example call, by its graph and by its compiled code."""

    graph: float
    compiled: float

    @property
    def factor(self) -> float:
        """Returns how many times as fast the compiled code is."""
        return self.graph / self.compiled


def measure_speed(program: Program, directory: Path, name: str) -> Speed:
    """Returns how fast a method is either way as servers run it, here and on one thread."""
    _, tensors = next(example_calls(program, name))
    method = program.methods[name]
    use_interpreter(program)
    graph = method.engine
    use_compiled(program, directory)
    code = method.engine
    results: dict[str, list[float]] = {"graph": [], "compiled": []}
    with torch.inference_mode():
        for number in range(_ROUNDS + 2):
            for kind in results:
                method.use(code if kind == "compiled" else graph)
                start = time.perf_counter()
                for _ in range(3):
                    method.run(tensors)
                if number >= 2:
                    results[kind].append((time.perf_counter() - start) / 3 * 1e6)
    use_graphs(program)
    return Speed(*(statistics.median(values) for values in results.values()))
