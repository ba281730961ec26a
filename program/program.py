"""Programs: loading them, saving them, and calling their methods."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import torch

from slipway.program.batching import Batching
from slipway.program.calls import check_constant, check_is_tensor, flatten_call, layout_violation
from slipway.program.cases import Case, read_cases, write_cases
from slipway.program.container import Container, read_container, write_container
from slipway.program.contract import DEFAULT_METHOD, Contract
from slipway.program.contract_codec import contract_to_proto
from slipway.program.engine import Engine, EngineFailure
from slipway.program.errors import (
    CompiledCodeError,
    ContractViolation,
    CorruptProgramError,
    DataViolation,
    ProgramError,
    Violation,
)
from slipway.program.graph_codec import check_graph_size, graph_from_proto
from slipway.program.index_checks import check_indices
from slipway.program.mutation import possibly_mutated_inputs
from slipway.program.scalar_types import ScalarType
from slipway.program.shards import Verification
from slipway.program.torch_types import is_fresh
from slipway.program.trees import StructureError
from slipway.program.version import VERSION
from slipway.program.vmap import leaving_nesting
from slipway.program.weights import SHARD_BYTES, read_weights, write_weights
from slipway.proto import program_pb2 as pb

__all__ = ["Method", "Program", "flatten_call", "load"]

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
        self._graph_module = module
        if checks_indices:
            self._graph_module = check_indices(module, self.weights.keys() - written)
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
            f"method '{contract.method}' promises {computed} outputs, its graph has "
            f"{len(graph.outputs)}"
        )
    return computed


def _checked(results: Sequence[Any], promised: int) -> Sequence[Any]:
    """Returns as many results, if what `check_indices` has found, behind them, is nothing."""
    for is_out_of_range in results[promised:]:
        if is_out_of_range.item():
            raise DataViolation(
                "a value of an input selects an element that does not exist, such as a token "
                "outside the vocabulary"
            )
    return results[:promised]


class Program:
    """A traced model: methods that share weights. It is callable, and checks its contract.

    Attributes:
      methods: by name.
      digest: the program's identity, a SHA-256 in hexadecimal; None until it has been saved.
      device: where its tensors are.
    """

    def __init__(
        self,
        contracts: Mapping[str, Contract],
        graphs: pb.ProgramGraph,
        weights: Mapping[str, torch.Tensor],
        *,
        device: torch.device,
        digest: str | None = None,
        custom_ops: Collection[str] = (),
        cases: Callable[[], Sequence[Case]] = tuple,
        sources: pb.Sources | None = None,
        torch_version: str = torch.__version__.partition("+")[0],
        checks_indices: bool | None = None,
    ) -> None:
        """Use `slipway.export.export` or `load`.

        Args:
          contracts: by method, sorted.
          graphs: one for each method, in the same order.
          weights: by name, sorted, as the graphs refer to them.
          device: where the weights are.
          digest: of the program that this was read from.
          custom_ops: namespaces, beside torch's own, whose operators it may call.
          cases: reads the cases, which not everybody wants.
          sources: where in the model's code things come from.
          torch_version: of the torch that captured it.
          checks_indices: see `load`.
        """
        if len(contracts) != len(graphs.methods):
            raise CorruptProgramError(
                f"the program has {len(contracts)} contracts and {len(graphs.methods)} graphs"
            )
        check_graph_size(graphs)
        self._graphs = graphs
        self._weights = dict(weights)
        self._torch_version = torch_version
        self._read_cases = cases
        self._sources = pb.Sources() if sources is None else sources
        self.device = device
        self.digest = digest
        modules = [
            graph_from_proto(graph, graphs.operators, device, custom_ops)
            for graph in graphs.methods
        ]
        self._state = _mutated_weights(graphs, modules, weights)
        live = {**weights, **{name: tensor.clone() for name, tensor in self._state.items()}}
        self._live = {name: live[name] for name in self._state}
        tensors = list(live.values())
        self.methods: dict[str, Method] = {
            name: Method(
                contract,
                graph,
                module,
                tensors,
                device,
                checks_indices=device.type != "cpu" if checks_indices is None else checks_indices,
            )
            for (name, contract), graph, module in zip(
                contracts.items(), graphs.methods, modules, strict=True
            )
        }

    @property
    def contract(self) -> Contract:
        """Returns the contract of the default method, `forward`. Raises: ProgramError."""
        return self._default.contract

    def __call__(self, *args: object, **kwargs: object) -> Any:
        """Calls the default method, `forward`. Raises: ContractViolation, ProgramError."""
        return self._default(*args, **kwargs)

    @property
    def _default(self) -> Method:
        if DEFAULT_METHOD not in self.methods:
            raise ProgramError(
                f"the program has no method '{DEFAULT_METHOD}'; call one of "
                f"{', '.join(self.methods)}: program.methods[NAME](…)"
            )
        return self.methods[DEFAULT_METHOD]

    @property
    def graphs(self) -> pb.ProgramGraph:
        """Returns the message that the methods' graphs were made of, in the methods' order."""
        return self._graphs

    @property
    def weights(self) -> Mapping[str, torch.Tensor]:
        """Returns the weights by name, as the graphs number them, as they are before any call."""
        return self._weights

    @property
    def cases(self) -> Sequence[Case]:
        """Returns the calls that travel with the program. Raises: ProgramError."""
        return self._read_cases()

    @property
    def state(self) -> Mapping[str, torch.Tensor]:
        """Returns the weights that calls change, by name, as they are now.

        They belong to this object: another one that is loaded from the same files has its own.
        """
        return self._live

    def reset(self) -> None:
        """Puts the weights that calls change back to what they are in the program."""
        for name, tensor in self._state.items():
            self._live[name].copy_(tensor)

    def save(self, directory: str | Path, *, shard_bytes: int = SHARD_BYTES) -> None:
        """Writes the program, with the weights that calls change as they were before any call.

        Args:
          directory: made if it does not exist; must be empty.
          shard_bytes: how many bytes of weights a file holds at most, unless one weight alone is
            larger. It decides how the weights are split, and so is part of the program's identity.

        Raises:
          ProgramError: the directory is not empty, or the program is too large for the format.
        """
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        if any(directory.iterdir()):
            raise ProgramError(f"{directory} is not empty; a program needs a directory of its own")
        contracts = pb.ProgramContract(
            methods=[contract_to_proto(method.contract) for method in self.methods.values()]
        )
        index = write_weights(directory, self._weights, shard_bytes)
        cases = write_cases(directory, self.cases)
        container = Container(
            contract=contracts.SerializeToString(deterministic=True),
            graph=self._graphs.SerializeToString(deterministic=True),
            weights=index.SerializeToString(deterministic=True),
            cases=cases.SerializeToString(deterministic=True),
            slipway_version=VERSION,
            torch_version=self._torch_version,
            python_version=f"{sys.version_info.major}.{sys.version_info.minor}",
            sources=self._sources.SerializeToString(deterministic=True),
        )
        write_container(directory, container)
        self.digest = container.digest


def _mutated_weights(
    graphs: pb.ProgramGraph,
    modules: Sequence[torch.fx.GraphModule],
    weights: Mapping[str, torch.Tensor],
) -> dict[str, torch.Tensor]:
    """Returns the weights that running one of the graphs may change, by name."""
    names = list(weights)
    mutated = {}
    for graph, module in zip(graphs.methods, modules, strict=True):
        for place in {*graph.mutated_inputs, *possibly_mutated_inputs(module.graph)}:
            if place >= len(graph.inputs):
                raise CorruptProgramError(f"a graph changes input {place} of {len(graph.inputs)}")
            item = graph.inputs[place]
            if item.WhichOneof("kind") == "weight" and item.weight < len(names):
                mutated[names[item.weight]] = weights[names[item.weight]]
    return mutated


def load(
    directory: str | Path,
    device: str | torch.device = "cpu",
    *,
    custom_ops: Collection[str] = (),
    verify: Verification = "full",
    snapshot: bool = False,
    checks_indices: bool | None = None,
) -> Program:
    """Returns the program in a directory.

    Args:
      directory: `NAME.program`, or `MODEL/VERSION` of a repository.
      device: where to run it.
      custom_ops: namespaces, beside torch's own, whose operators it may call. The libraries that
        register them must have been imported.
      verify: what of the weights is compared with what was written: "full", all bytes, by their
        SHA-256, or "sizes", of very large weights, how many there are and which tensors.
      snapshot: whether to keep the weights in memory of this process, for a directory that others
        may change or remove, rather than to map the files.
      checks_indices: whether calls check that what they select exists, such as a token's embedding,
        where that depends on values, and raise DataViolation if not. None for doing so on devices
        other than the host. There an error would leave the device of no use to the process; on the
        host torch raises one of its own without.

    Raises:
      CorruptProgramError: files are missing, truncated or malformed.
      DigestMismatchError: files have been altered.
      UnsupportedVersionError: a newer release wrote it.
      OperatorMismatchError: this torch lacks an operator that it calls.
    """
    if verify not in get_args(Verification):
        raise ValueError(f"verify is {verify!r}; it may be {' or '.join(get_args(Verification))}")
    directory = Path(directory)
    device = torch.device(device)
    container = read_container(directory)
    index = container.weights_index()
    try:
        tensors = read_weights(directory, index, device, verify, snapshot=snapshot)
        return Program(
            container.contracts(),
            container.graphs(),
            {item.name: tensor for item, tensor in zip(index.weights, tensors, strict=True)},
            device=device,
            digest=container.digest,
            custom_ops=custom_ops,
            cases=lambda: read_cases(directory, container.cases_index()),
            sources=container.sources_index(),
            torch_version=container.torch_version,
            checks_indices=checks_indices,
        )
    except ProgramError as error:
        raise type(error)(f"{directory}: {error}") from error
