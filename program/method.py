"""The methods of programs: what a call goes through."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch

from slipway.program.batching import Batching
from slipway.program.calls import check_constant, check_is_tensor, flatten_call, layout_violation
from slipway.program.contract import Contract
from slipway.program.engine import Engine, EngineFailure
from slipway.program.errors import (
    CompiledCodeError,
    ContractViolation,
    CorruptProgramError,
    DataViolation,
    Violation,
)
from slipway.program.index_bounds import NOT_THERE
from slipway.program.index_checks import check_indices
from slipway.program.mutation import possibly_mutated_inputs
from slipway.program.packed_products import fill_vectors
from slipway.program.scalar_types import ScalarType
from slipway.program.torch_types import is_fresh
from slipway.program.traps import avoid_traps
from slipway.program.trees import StructureError
from slipway.program.vmap import leaving_nesting
from slipway.program.words import counted
from slipway.proto import program_pb2 as pb

__all__ = ["Method"]

_LOGGER = logging.getLogger(__name__)


class Method:
    """One entry point of a program: a contract and the graph that is valid under it."""

    def __init__(
        self,
        contract: Contract,
        graph: pb.Graph,
        module: torch.fx.GraphModule,
        weights: Sequence[torch.Tensor],
        device: torch.device,
        *,
        checks_indices: bool,
    ) -> None:
        """Programs make their methods.

        Args:
          contract: of the graph.
          graph: the message that `module` was made of.
          module: takes what `graph.inputs` lists.
          weights: of the program, on its device.
          device: where the weights are.
          checks_indices: see `load`.
        """
        self.contract = contract
        self.device = device
        self._engine: Engine | None = None
        self._computed = _count_computed(contract, graph)
        # The graph's inputs in its own order: weights in place, and where the call's tensors go.
        self._template: list[torch.Tensor | None] = []
        self._places: list[tuple[int, int]] = []
        tensors = {
            leaf: position
            for position, leaf in enumerate(
                index for index, spec in enumerate(contract.inputs) if spec.tensor is not None
            )
        }
        for place, item in enumerate(graph.inputs):
            if item.WhichOneof("kind") == "weight" and item.weight < len(weights):
                self._template.append(weights[item.weight])
            elif item.WhichOneof("kind") == "input" and item.input in tensors:
                self._template.append(None)
                self._places.append((place, tensors[item.input]))
            else:
                raise CorruptProgramError(
                    f"input {place} of method '{contract.method}' is neither a weight nor a tensor"
                )
        written = {*graph.mutated_inputs, *possibly_mutated_inputs(module.graph)}
        self._written = [position for place, position in self._places if place in written]
        self._changes_state = any(
            weight is not None and place in written for place, weight in enumerate(self._template)
        )
        constants = self.weights.keys() - written
        self._graph_module = check_indices(
            avoid_traps(fill_vectors(module, self.weights)),
            constants,
            unchecked_only=not checks_indices,
        )
        self._checks_indices = self._graph_module is not module
        self._forward = leaving_nesting(self._graph_module)

    @property
    def batching(self) -> Batching | None:
        """Returns how calls of the method can be joined into one; None where they cannot."""
        return self.contract.batching

    @property
    def graph_module(self) -> torch.fx.GraphModule:
        """Returns the graph as torch.fx has it.

        Its inputs include the weights; its last output is that of `check_indices`, if the method
        checks any.
        """
        return self._graph_module

    @property
    def weights(self) -> dict[int, torch.Tensor]:
        """Returns the weights that the graph takes, by which of its inputs they are."""
        return {place: weight for place, weight in enumerate(self._template) if weight is not None}

    @property
    def engine(self) -> Engine | None:
        """Returns what calls run; None where Python runs the graph."""
        return self._engine

    @property
    def checks_indices(self) -> bool:
        """Returns whether calls look at values before operators: see `load` and `avoid_traps`."""
        return self._checks_indices

    @property
    def changes_state(self) -> bool:
        """Returns whether calls may change weights of the program, and so what later calls give."""
        return self._changes_state

    def use(self, engine: Engine | None) -> None:
        """Has calls run an engine from now on, or the graph in Python if there is none."""
        self._engine = engine

    def run(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Runs the method on tensors that are known to satisfy the contract.

        Args:
          tensors: one for each of `contract.tensor_inputs`, in that order, on the method's device.

        Returns:
          A tensor for each of `contract.tensor_outputs`, in that order.

        Raises:
          DataViolation: the method cannot take these values.
        """
        return self.finish(self.start(tensors))

    def start(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Does what `run` does, without waiting for a device that computes meanwhile.

        Returns tensors for `finish`, which may be moved to the host before.
        """
        return [value for value in self._execute(tensors) if isinstance(value, torch.Tensor)]

    def finish(self, results: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Returns the outputs among what `start` returned, once that is there.

        Raises:
          DataViolation: see `run`.
        """
        return list(_checked(results, len(self.contract.tensor_outputs)))

    def _execute(self, tensors: Sequence[torch.Tensor]) -> tuple[Any, ...]:
        # Engines keep no record for gradients.
        if self._engine is None or (
            torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
        ):
            return self._run_graph(tensors)
        before = [(tensors[position], tensors[position].clone()) for position in self._written]
        try:
            return tuple(self._engine.run(tensors))
        except EngineFailure as error:
            for tensor, value in before:
                tensor.copy_(value)
            # It may be the values' fault, and the graph says more about those.
            results = self._run_graph(tensors)
            _LOGGER.warning(
                "the engine of method '%s' failed where its graph does not: %s",
                self.contract.method,
                error,
            )
            return results

    def _run_graph(self, tensors: Sequence[torch.Tensor]) -> tuple[Any, ...]:
        arguments = self._template.copy()
        for place, position in self._places:
            arguments[place] = tensors[position]
        results: tuple[Any, ...] = self._forward(*arguments)
        return results

    def __call__(self, *args: object, **kwargs: object) -> Any:
        """Checks the call against the contract and runs it.

        Args:
          *args, **kwargs: as the function that was exported took them. Positional arguments may be
            passed by keyword too.

        Returns:
          What the function that was exported would return.

        Raises:
          ContractViolation: naming every way in which the call breaks the contract.
          DataViolation: the method cannot take these values.
        """
        tensors, binding = self._checked_tensors(args, kwargs)
        values = _checked(self._execute(tensors), self._computed)
        if self._engine is not None:
            self._check_promised(values, binding)
        results = iter(values)
        return self.contract.output_tree.unflatten(
            next(results) if spec.tensor is not None or spec.integer is not None else spec.constant
            for spec in self.contract.outputs
        )

    def _checked_tensors(
        self, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> tuple[list[torch.Tensor], tuple[int, ...]]:
        """Returns the tensors of a legal call, and the values of the contract's symbols."""
        contract = self.contract
        try:
            leaves = flatten_call(contract, args, kwargs)
        except StructureError as error:
            raise ContractViolation(contract.method, [error.violation]) from None
        violations: list[Violation] = []
        tensors: list[torch.Tensor] = []
        described: dict[str, tuple[ScalarType, Sequence[int]]] = {}
        for spec, leaf in zip(contract.inputs, leaves, strict=True):
            if spec.tensor is None:
                violations += check_constant(spec.name, leaf, spec.constant)
                continue
            problem = check_is_tensor(spec.name, leaf, str(spec.tensor), self.device)
            if isinstance(problem, Violation):
                violations.append(problem)
                # Described as legal, so that the rest is still compared.
                continue
            assert isinstance(leaf, torch.Tensor)
            tensors.append(leaf)
            described[spec.name] = (problem, leaf.shape)
            if contract.contiguous and not is_fresh(leaf):
                violations.append(layout_violation(spec.name, leaf))
        binding: tuple[int, ...] = ()
        try:
            binding = contract.check(described)
        except ContractViolation as error:
            already = {violation.input for violation in violations}
            violations += [item for item in error.violations if item.input not in already]
        if violations:
            raise ContractViolation(contract.method, violations)
        return tensors, binding

    def _check_promised(self, values: Sequence[Any], binding: tuple[int, ...]) -> None:
        """Raises CompiledCodeError unless an engine gave what the contract promises."""
        promised = self.contract.output_shapes(binding)
        tensors = [value for value in values if isinstance(value, torch.Tensor)]
        for value, (name, shape) in zip(tensors, promised.items(), strict=True):
            if len(shape) != value.dim() or any(
                size not in (None, actual) for size, actual in zip(shape, value.shape, strict=True)
            ):
                raise CompiledCodeError(
                    f"output '{name}' of method '{self.contract.method}' is {list(value.shape)}; "
                    f"the contract promises {list(shape)}: this is a defect of the compiled code"
                )


def _count_computed(contract: Contract, graph: pb.Graph) -> int:
    """Returns how many outputs a graph computes, which has to be all that are no constants."""
    computed = sum(spec.tensor is not None or spec.integer is not None for spec in contract.outputs)
    if computed != len(graph.outputs):
        raise CorruptProgramError(
            f"method '{contract.method}' promises {counted(computed, 'output')}, its graph has "
            f"{len(graph.outputs)}"
        )
    return computed


def _checked(results: Sequence[Any], promised: int) -> Sequence[Any]:
    """Returns as many results, if what `check_indices` has found, behind them, is nothing."""
    for is_out_of_range in results[promised:]:
        if is_out_of_range.item():
            raise DataViolation(NOT_THERE)
    return results[:promised]
