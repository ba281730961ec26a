"""Loads versions of models: their program, checked on the device that it will run on, and warm."""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from slipway.program import ProgramError, load, verify
from slipway.program.shards import Verification
from slipway.serving.memory import available_memory
from slipway.serving.model import Environment, Model, models_of
from slipway.serving.signature import SignatureError
from slipway.serving.versions import weights_size

__all__ = ["LoadError", "Loader"]

_LOGGER = logging.getLogger(__name__)

_MEMORY_MARGIN = 1.1
"""What a program takes beside its weights, as a factor."""


_PATH = re.compile(r"(?<![\w./])/(?:[^\s/'\":,;]+/)+([^\s/'\":,;]+)")


class LoadError(Exception):
    """A version cannot be served; the text says why, and names no path of the server's."""


@dataclass(frozen=True, slots=True)
class Loader:
    """Loads versions onto one device.

    Attributes:
      device: where the programs run.
      environment: what the models run in.
      custom_ops: namespaces of operators, beside torch's own, that programs may call.
      verification: what of the weights is compared with what was written.
      snapshot: whether to keep weights in memory rather than map files that others may change.
      swaps: whether a version that does not fit beside the one that it replaces is loaded after
        that one has gone, so that for a while there is none; else it is not loaded.
    """

    device: torch.device
    environment: Environment
    custom_ops: Collection[str] = ()
    verification: Verification = "full"
    snapshot: bool = False
    swaps: bool = False

    def load(
        self,
        path: Path,
        name: str,
        version: int,
        replaced: Sequence[Model],
        recent: Mapping[str, Model],
        is_taken: Callable[[str], bool],
    ) -> list[Model]:
        """Returns what a version is served as, ready for requests.

        Args:
          path: of the program's directory.
          name: of the model.
          version: of the model.
          replaced: what served the version so far.
          recent: models by name whose requests this version may get: it is warmed up for those.
          is_taken: whether a name is that of a model of the repository.

        Raises:
          LoadError: it cannot be served.
        """
        try:
            self._make_room(path, replaced)
            program = load(
                path,
                self.device,
                custom_ops=self.custom_ops,
                verify=self.verification,
                snapshot=self.snapshot,
            )
            verify(program)
            models = models_of(program, name, version, self.device, self.environment)
            for model in models:
                if model.name != name and is_taken(model.name):
                    raise SignatureError(
                        f"its method would be served as '{model.name}', which is another model's "
                        "name"
                    )
            for model in models:
                if model.name in recent:
                    model.executor.warm_up(recent[model.name].executor.recent_bindings)
        except (ProgramError, SignatureError) as error:
            # A path of the server's is nobody's business who can reach its port.
            raise LoadError(_without_paths(str(error), path)) from error
        except LoadError:
            raise
        except Exception as error:
            _LOGGER.exception("cannot load model '%s' version %d", name, version)
            raise LoadError(
                f"{type(error).__name__} while loading; the server's log has the cause"
            ) from error
        return models

    def retire(self, models: Sequence[Model]) -> None:
        """Lets models finish what they have, and frees them, without waiting for that."""
        for model in models:
            threading.Thread(target=model.scheduler.close, name="retire", daemon=True).start()

    def _make_room(self, path: Path, replaced: Sequence[Model]) -> None:
        needed = int(weights_size(path) * _MEMORY_MARGIN)
        if not self.snapshot and self.device.type == "cpu":
            return  # mapped files take no memory that the system could not have back
        free = available_memory(self.device)
        if needed <= free:
            return
        if not (self.swaps and replaced):
            raise LoadError(
                f"it needs {needed} bytes of memory on {self.device}, and {free} are free: remove "
                "other versions first, or let it take the place of the old one before it is loaded"
            )
        _LOGGER.warning("%s is unloaded first, to make room", replaced[0].subject)
        for model in replaced:
            model.scheduler.close()


def _without_paths(text: str, path: Path) -> str:
    """Returns `text` with MODEL/VERSION for the program's `path`, and names for other paths."""
    for root in {str(path.parent.parent), os.path.realpath(path.parent.parent)}:
        text = text.replace(root + os.sep, "")
    return _PATH.sub(r"\1", text)
