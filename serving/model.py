"""Versions of models that take requests."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from slipway.program import Contract, Program
from slipway.program.compiled import Execution
from slipway.program.native_code import NativeCode
from slipway.serving.arrivals import Arrivals
from slipway.serving.batch_executor import BatchExecutor
from slipway.serving.devices import Device
from slipway.serving.instance import Instance
from slipway.serving.memory_budget import MemoryBudget
from slipway.serving.scheduler import Scheduler, SchedulingOptions
from slipway.serving.signature import Signature
from slipway.serving.statistics import ModelStatistics
from slipway.serving.versions import served_name

__all__ = ["Environment", "Model", "models_of"]


def _nothing() -> None:
    pass


@dataclass(frozen=True, slots=True)
class Environment:
    """What models run in.

    Attributes:
      options: how the requests of each model are run.
      model_options: of models for which it is something else, by their name.
      memory: for the requests of all models.
      on_device_failure: called when a device fails for good.
      arrivals: who takes in what arrives while batches run on the host.
    """

    options: SchedulingOptions = field(default_factory=SchedulingOptions)
    memory: MemoryBudget = field(default_factory=lambda: MemoryBudget(sys.maxsize))
    on_device_failure: Callable[[], None] = _nothing
    model_options: Mapping[str, SchedulingOptions] = field(default_factory=dict)
    arrivals: Arrivals = field(default_factory=lambda: Arrivals(1))


@dataclass(frozen=True, slots=True)
class Model:
    """A version of a model that takes requests.

    Attributes:
      name: the model's name.
      version: from 1.
      digest: the program's identity, as hexadecimal digits.
      contract: of the method that is served.
      signature: what clients are told of it.
      device: where it runs.
      statistics: of its requests.
      executor: what runs them.
      scheduler: when they run.
      execution: whether compiled code runs them, and why.
      load_seconds: how long it took to load, verify and warm up.
    """

    name: str
    version: int
    digest: str
    contract: Contract
    signature: Signature
    device: torch.device
    statistics: ModelStatistics
    executor: BatchExecutor
    scheduler: Scheduler
    execution: Execution
    load_seconds: float = 0.0

    @property
    def subject(self) -> str:
        """Returns what messages call it."""
        return _subject(self.name, self.version)

    def batch_of(self, binding: tuple[int, ...]) -> tuple[int, tuple[int, ...] | None]:
        """Returns how many rows a request has, and what others must equal it in to join it.

        Args:
          binding: the values of the contract's symbols for the request.

        Returns:
          The size of the batch dimension, and the values of the other symbols but one that can be
          padded; None instead of these if the request runs alone.
        """
        contract = self.contract
        batching = contract.batching
        if batching is None:
            symbol = contract.batch_symbol
            return 1 if symbol is None else binding[symbol], None
        sizes = dict(zip((symbol.name for symbol in contract.symbols), binding, strict=True))
        rows = sizes.pop(batching.symbol)
        if not rows:
            # No rows are a batch of their own: there is nothing to tell them from another's.
            return 0, None
        for place, padding in enumerate(batching.paddings):
            # One size may differ by what its batch finds worthwhile; more than one, only by little.
            sizes[padding.symbol] = _size_class(sizes[padding.symbol]) if place else 0
        return rows, tuple(sizes.values())


def _size_class(size: int) -> int:
    """Returns a number that sizes have in common which are within a quarter of each other.

    They can be padded to the largest among them without computing much for nothing.
    """
    return math.ceil(math.log(size, 1.25)) if size else -1


def models_of(
    program: Program,
    name: str,
    version: int,
    device: Device,
    environment: Environment,
    execution: Execution,
) -> list[Model]:
    """Returns what a program is served as.

    That is its method `forward`, or its only one, by the model's name, and the others as
    MODEL.METHOD. They share the weights.

    Args:
      program: as it was loaded.
      name: of the model.
      version: of the model.
      device: where the program lies.
      environment: what the models run in.
      execution: whether its methods run compiled code, and why.

    Raises:
      SignatureError: the protocol cannot carry one of a method's tensors.
    """
    signatures = {
        method_name: Signature.of(method.contract)
        for method_name, method in program.methods.items()
    }
    options = environment.model_options.get(name, environment.options)
    if program.state:
        # Each call changes what the next one sees.
        options = dataclasses.replace(options, instances=1)
    models = []
    for method_name, method in program.methods.items():
        own_name = served_name(name, method_name, program.methods)
        statistics = ModelStatistics()
        executor = BatchExecutor(
            Instance(_subject(own_name, version), method, device),
            method.contract,
            statistics,
        )
        models.append(
            Model(
                name=own_name,
                version=version,
                digest=program.digest or "",
                contract=method.contract,
                signature=signatures[method_name],
                device=device.torch_device,
                statistics=statistics,
                executor=executor,
                scheduler=Scheduler(
                    executor,
                    options,
                    environment.memory,
                    environment.on_device_failure,
                    environment.arrivals if device.takes_processors else Arrivals(sys.maxsize),
                ),
                execution=execution
                if isinstance(method.engine, NativeCode) or execution.target is None
                else Execution(None, "the method has no compiled code"),
            )
        )
    return models


def _subject(name: str, version: int) -> str:
    return f"model '{name}' version {version}"
