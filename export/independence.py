"""Tries whether the rows of a batch are independent of each other."""

from __future__ import annotations

import contextlib
import itertools
import math
import random
from collections.abc import Callable, Iterator, Sequence

import torch
from torch.utils.flop_counter import FlopCounterMode

from slipway.export.gate import bindings
from slipway.export.resizing import binding_of
from slipway.export.rows import (
    EXTREMES,
    Tolerance,
    Values,
    as_drawn,
    first_difference,
    join,
    varied,
)
from slipway.program.batching import BatchingEvidence, batch_dimension
from slipway.program.method import Method

__all__ = ["Trial"]

_SEED = 0

_SETTINGS = 3
"""Of the symbols other than that which counts the rows."""

# What is done at most, so that a build does not wait for it. It must not depend on how fast a
# machine is, since what was tried is kept in the program.
_LARGEST_BATCH = 64
_BATCH_ELEMENTS = 1 << 18
_BATCH_OPERATIONS = 3 * 10**8
_HEAVY_ROW_OPERATIONS = 10**8
_LEAST_STEPS = 1000
_STEPS_OF_USUAL = 10
"""Loops may take so many steps, or so many times those of a usual call, before they count as
endless."""

Call = list[torch.Tensor]


class _EndlessLoopError(Exception):
    """Raised where a loop goes on for more steps than a call may take."""


class Trial:
    """What is tried of one method."""

    def __init__(
        self, method: Method, symbol: int, example: Sequence[object], tolerance: Tolerance
    ) -> None:
        """Nothing is run yet.

        Args:
          method: its graph draws no random numbers and keeps no state.
          symbol: the index of the one that counts the rows; `batching_problem` finds none with it.
          example: the leaves of the example call.
          tolerance: of what is no integer and no boolean.
        """
        contract = method.contract
        self._method, self._contract, self._symbol = method, contract, symbol
        self._tolerance = tolerance
        self._example = [leaf for leaf in example if isinstance(leaf, torch.Tensor)]
        self._usual = binding_of(contract, example)
        self._inputs = [
            batch_dimension(spec, symbol) or 0 for spec in contract.tensor_inputs.values()
        ]
        self._outputs = [
            batch_dimension(spec, symbol) or 0 for spec in contract.tensor_outputs.values()
        ]
        self._generator = torch.Generator().manual_seed(_SEED)
        self._sizes: set[int] = set()
        self._settings = self._comparisons = self._perturbations = 0
        self._most_steps = _LEAST_STEPS

    @property
    def evidence(self) -> BatchingEvidence:
        """Returns what has been tried."""
        return BatchingEvidence(
            tuple(sorted(self._sizes)),
            self._settings,
            self._comparisons,
            self._perturbations,
            _SEED,
        )

    def find_dependence(self) -> str | None:
        """Returns how a row depends on others, or why that was not tried; None if it does not."""
        if not all(tensor.numel() for tensor in self._example):
            return "it could not be tried: the example is empty"
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(_SEED)
            random_state = torch.get_rng_state()
            largest, operations = self._largest_batch()
            heavy = operations > _HEAVY_ROW_OPERATIONS
            for problem in self._try_usual_setting(largest, heavy):
                return problem
            if not heavy:
                for binding in self._other_settings(operations):
                    for problem in self._try_other_setting(binding):
                        return problem
            if not torch.equal(torch.get_rng_state(), random_state):
                return "it draws random numbers"
        return None

    # What is tried -------------------------------------------------------------------------------

    def _try_usual_setting(self, largest: int, heavy: bool) -> Iterator[str]:
        """Yields what is wrong where the other symbols are as in the example."""
        sizes = [2] if heavy else sorted({2, min(3, largest), largest})
        why, tried = "", 0
        for values in (varied, as_drawn, None):
            rows = self._example_rows() if values is None else self._rows(self._usual, values)
            if heavy:
                rows = rows[:2]
            alone = self._alone(rows)
            if isinstance(alone, str):
                why = alone
                continue
            # The first values that the model takes are tried at length.
            for size in sizes[-1:] if tried else sizes:
                yield from self._compare_batch(rows, alone, size)
            if not tried:
                yield from self._perturb(rows, alone, EXTREMES[:1] if heavy else EXTREMES)
            tried += 1
            if heavy or tried == 2:
                break
        if not tried:
            yield f"it could not be tried: {why}"
        self._settings += 1

    def _try_other_setting(self, binding: Sequence[int]) -> Iterator[str]:
        """Yields what is wrong for other values of the other symbols, if the model takes them."""
        for values in (varied, as_drawn):
            rows = self._rows(binding, values)
            alone = self._alone(rows)
            if isinstance(alone, str):
                continue
            yield from self._compare_batch(rows, alone, min(3, self._maximum))
            yield from self._perturb(rows, alone, EXTREMES[:1])
            self._settings += 1
            break

    def _compare_batch(
        self, rows: Sequence[Call], alone: Sequence[Call], size: int
    ) -> Iterator[str]:
        order = self._order(len(rows), size)
        try:
            actual = self._run(join([rows[row] for row in order], self._inputs))
        except Exception as error:
            # Whatever a graph raises: its rows alone have been taken.
            yield f"a batch of {size} rows fails, whose rows alone do not: {_one_line(error)}"
            return
        expected = join([alone[row] for row in order], self._outputs)
        yield from self._differing(
            actual, expected, None, f"in a batch of {size} rows is not what it is alone"
        )
        self._sizes.add(size)
        self._comparisons += size

    def _perturb(
        self,
        rows: Sequence[Call],
        alone: Sequence[Call],
        extremes: Sequence[Callable[[torch.Tensor], torch.Tensor]],
    ) -> Iterator[str]:
        """Yields what is wrong where one row has extreme values."""
        size = min(len(rows), self._maximum)
        expected = join(alone[:size], self._outputs)
        for place, extreme in enumerate(extremes):
            changed = place % size
            batch = list(rows[:size])
            batch[changed] = [extreme(tensor) for tensor in batch[changed]]
            try:
                actual = self._run(join(batch, self._inputs))
            except _EndlessLoopError as error:
                # Whose values are usual would wait for as long.
                yield f"{error} with extreme values in one row of several"
                continue
            except Exception:
                continue  # it takes no such values, and who joins calls tries them one by one then
            yield from self._differing(
                actual, expected, changed, "changes with the values of another row"
            )
            self._perturbations += 1

    def _run(self, inputs: Call) -> Call:
        """Returns the outputs. Raises: whatever the graph does, and if a loop does not end."""
        with _counted_steps(self._method.graph_module, self._most_steps):
            return self._method.run(inputs)

    def _differing(
        self, actual: Call, expected: Call, leaving_out: int | None, what: str
    ) -> Iterator[str]:
        found = first_difference(actual, expected, self._outputs, self._tolerance, leaving_out)
        if found is not None:
            name = list(self._contract.tensor_outputs)[found[0]]
            yield f"row {found[1]} of output '{name}' {what}"

    # What it is tried on -------------------------------------------------------------------------

    @property
    def _maximum(self) -> int:
        maximum = self._contract.symbols[self._symbol].maximum
        return _LARGEST_BATCH if maximum is None else min(maximum, _LARGEST_BATCH)

    def _largest_batch(self) -> tuple[int, int]:
        """Returns the size of the largest batch to try, and how many operations a row takes."""
        rows = self._rows(self._usual, as_drawn)
        counter = FlopCounterMode(display=False)
        try:
            with counter, _counted_steps(self._method.graph_module, None) as steps:
                self._method.run(rows[0])
            self._most_steps = max(_LEAST_STEPS, _STEPS_OF_USUAL * next(steps))
        except Exception:
            pass  # whether any row can be run is found out later
        operations = int(counter.get_total_flops())
        elements = sum(tensor.numel() for tensor in rows[0])
        affordable = min(
            _BATCH_ELEMENTS // max(elements, 1), _BATCH_OPERATIONS // max(operations, 1)
        )
        return max(2, min(self._maximum, affordable)), operations

    def _other_settings(self, operations: int) -> Iterator[tuple[int, ...]]:
        """Yields other legal sizes of the other dimensions, as many as are affordable."""
        seen = {self._with_rows(self._usual, 1)}
        usual = max(1, self._elements(self._usual))
        for binding in bindings(self._contract):
            single = self._with_rows(binding, 1)
            elements = self._elements(single)
            # Attention takes the square of a length.
            cost = operations * max(elements / usual, (elements / usual) ** 2)
            if (
                single in seen
                or not elements
                or not self._contract.is_legal(single)
                or 3 * elements > _BATCH_ELEMENTS
                or 10 * cost > _BATCH_OPERATIONS
            ):
                continue
            seen.add(single)
            yield single
            if len(seen) == _SETTINGS:
                return

    def _with_rows(self, binding: Sequence[int], rows: int) -> tuple[int, ...]:
        return (*binding[: self._symbol], rows, *binding[self._symbol + 1 :])

    def _shapes(self, binding: Sequence[int]) -> list[list[int]]:
        single = self._with_rows(binding, 1)
        return [
            [size.evaluate(single) for size in spec.shape]
            for spec in self._contract.tensor_inputs.values()
        ]

    def _elements(self, binding: Sequence[int]) -> int:
        return sum(math.prod(shape) for shape in self._shapes(binding))

    def _rows(self, binding: Sequence[int], values: Values) -> list[Call]:
        """Returns three calls of one row."""
        shapes = self._shapes(binding)
        return [
            [
                values(tensor, shape, self._generator)
                for tensor, shape in zip(self._example, shapes, strict=True)
            ]
            for _ in range(3)
        ]

    def _example_rows(self) -> list[Call]:
        """Returns up to three rows of the example itself."""
        return [
            [
                tensor.detach().narrow(dimension, row, 1).clone()
                for tensor, dimension in zip(self._example, self._inputs, strict=True)
            ]
            for row in range(min(3, self._usual[self._symbol]))
        ]

    def _order(self, rows: int, size: int) -> list[int]:
        """Returns which row to put at each place of a batch."""
        order = [(place + rows - 1) % rows for place in range(size)]
        random.Random(_SEED).shuffle(order)
        return order

    def _alone(self, rows: Sequence[Call]) -> list[Call] | str:
        """Returns what each row gives alone, or why that says nothing of batches."""
        if len(rows) < 2 or all(map(torch.equal, *rows[:2])):
            return "all values of the example are alike"
        results = []
        for row in rows:
            try:
                results.append([tensor.clone() for tensor in self._run(row)])
            except Exception as error:
                return f"a call of one row fails: {_one_line(error)}"
        # As float64, since some numbers of one byte cannot be asked.
        floating = [tensor.double() for tensor in results[0] if tensor.is_floating_point()]
        if floating and not any(bool(tensor.isfinite().any()) for tensor in floating):
            return "the results are no finite numbers"
        return results


@contextlib.contextmanager
def _counted_steps(graph: torch.fx.GraphModule, most: int | None) -> Iterator[Iterator[int]]:
    """Counts the steps that loops take whose number depends on values.

    Args:
      graph: where they are.
      most: after so many of them a loop raises _EndlessLoopError; None: it never does.

    Yields:
      What gives how many there were.
    """
    steps = itertools.count()

    def count(*_: object) -> None:
        if next(steps) == most:
            raise _EndlessLoopError(f"a loop does not end within {most} steps")

    with contextlib.ExitStack() as stack:
        for module in graph.modules():
            for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
                if node.target is torch.ops.higher_order.while_loop:
                    body = module.get_submodule(node.args[1].target)
                    stack.callback(body.register_forward_pre_hook(count).remove)
        yield steps


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
