"""Loads versions of models: their program, checked on the device that it will run on, and warm."""

from __future__ import annotations

import dataclasses
import logging
import os
import re
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

from slipway.program import Program, ProgramError, load, verify
from slipway.program.compiled import Execution, use_compiled, use_graphs, without_compiled
from slipway.program.container import load_contracts
from slipway.program.errors import CompiledCodeError
from slipway.program.interpreter import use_interpreter
from slipway.program.shards import Verification
from slipway.serving.devices import Device
from slipway.serving.instance import is_lack_of_memory
from slipway.serving.model import Environment, Model, models_of
from slipway.serving.signature import SignatureError
from slipway.serving.versions import name_clash, served_name, weights_size

__all__ = ["CompiledUse", "GraphEngine", "LoadError", "Loader"]

CompiledUse = Literal["never", "auto", "require"]
"""Whether compiled code of programs runs: not at all, where it can, or instead of not serving."""

GraphEngine = Literal["interpreter", "python"]
"""What runs graphs: torch's interpreter, or Python, which can be looked at and is slower."""

_LOGGER = logging.getLogger(__name__)

_MEMORY_MARGIN = 1.1
"""What a program takes beside its weights, as a factor."""


_PATH = re.compile(r"(?<![\w./])/(?:[^\s/'\":,;]+/)+([^\s/'\":,;]+)")


class LoadError(Exception):
    """A version cannot be served; the text says why, and names no path of the server's.

    Attributes:
      is_passing: whether it may be otherwise later though the files stay as they are.
    """

    def __init__(self, message: str, *, is_passing: bool = False) -> None:
        super().__init__(message)
        self.is_passing = is_passing


@dataclass(frozen=True, slots=True)
class Loader:
    """Loads versions onto devices.

    Attributes:
      device: where the programs run.
      environment: what the models run in.
      custom_ops: namespaces of operators, beside torch's own, that programs may call.
      verification: what of the weights is compared with what was written.
      snapshot: whether to keep weights in memory rather than map files that others may change.
      swaps: whether a version that does not fit beside the one that it replaces is loaded after
        that one has gone, so that for a while there is none; else it is not loaded.
      compiled: whether compiled code of programs runs, with all rights of this process.
      graph_engine: what runs graphs, where it can.
      model_devices: where models run that do not run on `device`, by their name.
    """

    device: Device
    environment: Environment
    custom_ops: Collection[str] = ()
    verification: Verification = "full"
    snapshot: bool = False
    swaps: bool = False
    compiled: CompiledUse = "never"
    graph_engine: GraphEngine = "interpreter"
    model_devices: Mapping[str, Device] = field(default_factory=dict)

    @property
    def devices(self) -> list[Device]:
        """Returns all devices, each once, the one for most models first."""
        return list(dict.fromkeys([self.device, *self.model_devices.values()]))

    def lack_of_memory(self, path: Path, name: str) -> str:
        """Returns why a version does not fit beside what is loaded, or "" if it does.

        Args:
          path: of the program's directory.
          name: of the model.
        """
        device = self._device(name)
        if not self.snapshot and device.torch_device.type == "cpu":
            return ""  # mapped files take no memory that the system could not have back
        needed = int(weights_size(path) * _MEMORY_MARGIN)
        free = device.available_memory()
        if needed <= free:
            return ""
        return (
            f"it needs {needed} bytes of memory on {device.torch_device}, and {free} are free: "
            "remove other versions first, or let it take the place of the old one before it is "
            "loaded (--when-memory-is-short=swap)"
        )

    def load(
        self,
        path: Path,
        name: str,
        version: int,
        recent: Mapping[str, Model],
        is_taken: Callable[[str], bool],
    ) -> list[Model]:
        """Returns what a version is served as, ready for requests.

        Args:
          path: of the program's directory.
          name: of the model.
          version: of the model.
          recent: models by name whose requests this version may get: it is warmed up for those.
          is_taken: whether a name means another model already.

        Raises:
          LoadError: it cannot be served.
        """
        started = time.monotonic()
        device = self._device(name)
        models: list[Model] = []
        try:
            # Before anything that takes long: it is tried at every look at the repository.
            methods = load_contracts(path)
            for method in methods:
                if is_taken(clients_name := served_name(name, method, methods)):
                    raise _NameTakenError(name_clash(clients_name))
            program = load(
                path,
                device.torch_device,
                custom_ops=self.custom_ops,
                verify=self.verification,
                snapshot=self.snapshot,
            )
            execution = device.prepare(partial(self._choose_execution, program, path, name))
            _LOGGER.info("model '%s' version %d runs as %s", name, version, execution)
            models = models_of(program, name, version, device, self.environment, execution)
            for model in models:
                if model.name in recent:
                    model.executor.warm_up(recent[model.name].executor.recent_bindings)
            device.prepare(program.reset)
        except Exception as error:
            for model in models:
                model.scheduler.close()
            raise _load_error(error, path, name, version) from error
        seconds = time.monotonic() - started
        return [dataclasses.replace(model, load_seconds=seconds) for model in models]

    def _device(self, name: str) -> Device:
        return self.model_devices.get(name, self.device)

    def _instances(self, name: str) -> int:
        options = self.environment.model_options.get(name, self.environment.options)
        return options.instances

    def _choose_execution(self, program: Program, path: Path, name: str) -> Execution:
        """Has a program run what is fastest of what is wanted, and verifies that by its cases.

        Raises:
          CompiledCodeError: compiled code is required, and cannot be used.
          CaseFailedError: nothing that may run gives what the cases say.
        """
        reason = "compiled code is not used (--compiled=never)"
        if self.compiled != "never":
            if self.graph_engine == "interpreter":
                use_interpreter(program)  # for methods that are not compiled
            try:
                execution = use_compiled(program, path, concurrency=self._instances(name))
                verify(program)
            except ProgramError as error:
                use_graphs(program)
                if self.compiled == "require":
                    raise CompiledCodeError(
                        f"no compiled code can be used, and it is required: {error}"
                    ) from error
                reason = _without_paths(str(error), path)
            else:
                missing = without_compiled(program)
                if missing and self.compiled == "require":
                    raise CompiledCodeError(
                        f"compiled code is required, and there is none of {', '.join(missing)}"
                    )
                return execution
        return Execution(None, f"{reason}; {self._use_graphs(program, name)}")

    def _use_graphs(self, program: Program, name: str) -> str:
        """Has a program run its graphs, verified by its cases, and returns by what."""
        if self.graph_engine == "interpreter":
            left = use_interpreter(program)
            try:
                verify(program)
            except ProgramError as error:
                _LOGGER.warning("model '%s' is run by Python, not the interpreter: %s", name, error)
                use_graphs(program)
            else:
                return f"run by Python: {', '.join(left)}" if left else "run by torch's interpreter"
        verify(program)
        return "run by Python"


class _NameTakenError(SignatureError):
    """A method's name means another model, which may go."""


def _load_error(error: Exception, path: Path, name: str, version: int) -> LoadError:
    if isinstance(error, ProgramError | SignatureError):
        # A path of the server's is nobody's business who can reach its port.
        text = _without_paths(str(error), path)
    elif is_lack_of_memory(error):
        text = "there is too little memory to load it: serve fewer versions, or give it more"
    else:
        _LOGGER.error("cannot load model '%s' version %d", name, version, exc_info=error)
        text = f"{type(error).__name__} while loading; the server's log has the cause"
    return LoadError(text, is_passing=_is_passing(error))


def _is_passing(error: BaseException | None) -> bool:
    """Returns whether something else than the files is the cause, such as a lack of memory."""
    while error is not None:
        if isinstance(error, _NameTakenError) or is_lack_of_memory(error):
            return True
        if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
            return True
        error = error.__cause__
    return False


def _without_paths(text: str, path: Path) -> str:
    """Returns `text` with MODEL/VERSION for the program's `path`, and names for other paths."""
    for root in {str(path.parent.parent), os.path.realpath(path.parent.parent)}:
        text = text.replace(root + os.sep, "")
    return _PATH.sub(r"\1", text)
