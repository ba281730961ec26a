"""Programs: making, loading and saving them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import torch

from slipway.program.cases import Case, read_cases, write_cases
from slipway.program.container import Container, read_container, write_container
from slipway.program.contract import DEFAULT_METHOD, Contract
from slipway.program.contract_codec import contract_to_proto
from slipway.program.errors import CorruptProgramError, ProgramError
from slipway.program.graph_codec import check_graph_size, graph_from_proto
from slipway.program.integers import multiply_integers_exactly
from slipway.program.method import Method
from slipway.program.mutation import possibly_mutated_inputs
from slipway.program.shards import Verification
from slipway.program.version import VERSION
from slipway.program.weights import SHARD_BYTES, read_weights, write_weights
from slipway.program.words import counted
from slipway.proto import program_pb2 as pb

__all__ = ["Program", "load"]


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
                f"the program has {counted(len(contracts), 'contract')} and "
                f"{counted(len(graphs.methods), 'graph')}"
            )
        check_graph_size(graphs)
        self._graphs = graphs
        self._weights = dict(weights)
        self._torch_version = torch_version
        self._read_cases = cases
        self._sources = pb.Sources() if sources is None else sources
        self.device = device
        self.digest = digest
        if any(item.name.startswith("aten::_int_mm.") for item in graphs.operators):
            multiply_integers_exactly()
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
          ProgramError: the directory cannot be made, or is not empty, or the program is too large
            for the format.
        """
        directory = Path(directory)
        try:
            directory.mkdir(parents=True, exist_ok=True)
            is_empty = not any(directory.iterdir())
        except OSError as error:
            raise ProgramError(
                f"cannot make the directory {directory}: {error.strerror}; save it elsewhere"
            ) from error
        if not is_empty:
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
        host torch raises one of its own without, but for where bags of embeddings, segments and
        compressed rows begin, lengths of segments that are declared safe, rows to be compressed,
        and labels of `ctc_loss`, which are always checked.

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
