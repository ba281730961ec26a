"""What a torch_export action runs: imports an entry point, exports what it returns, saves it."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib
import os
import random
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path

import numpy
import torch

from slipway.export.api import export_spec
from slipway.export.checkpoint import CheckpointFile
from slipway.export.child import run_in_child
from slipway.export.errors import ExportError, ExportErrorKind
from slipway.export.sources import user_line_of_exception
from slipway.export.spec import ExportSpec
from slipway.export.weights import load_files
from slipway.export.worker import serve
from slipway.program.custom_ops import CustomOpsError, load_custom_ops
from slipway.program.integers import multiply_integers_exactly

__all__ = ["load_entry_point", "main"]


def load_entry_point(name: str) -> ExportSpec:
    """Returns the spec that an entry point gives.

    Args:
      name: `MODULE:FUNCTION`.

    Raises:
      ExportError: there is no such function, it fails, or it returns something else.
    """
    module_name, _, function_name = name.partition(":")
    # What a module draws when it is imported must not depend on what was drawn before.
    _seed()
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise _invalid(
            f"the entry point '{name}' cannot be imported: {error}",
            "name the module as Python imports it from the workspace's root, and list its "
            "library in `model` and what it imports in that library's deps",
            error,
        ) from error
    except (Exception, SystemExit) as error:
        raise _invalid(
            f"the module '{module_name}' fails when it is imported: "
            f"{type(error).__name__}: {error}",
            _advice(error, "mend the module"),
            error,
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        found = sorted(key for key, value in vars(module).items() if _defined_in(value, module))
        raise _invalid(
            f"the module '{module_name}' has no function '{function_name}'"
            + ("" if function is None else f"; that name is of type {type(function).__name__}"),
            f"name one of its functions: {', '.join(found) or '(it has none)'}",
        )
    _seed()
    try:
        spec = function()
    except ExportError:
        raise
    except (Exception, SystemExit) as error:
        raise _invalid(
            f"the entry point '{name}' fails: {type(error).__name__}: {error}",
            _advice(
                error,
                "mend the function; it is called without arguments, and whatever it reads or would "
                "download has to be listed in `data`",
            ),
            error,
        ) from error
    if not isinstance(spec, ExportSpec):
        raise _invalid(
            f"the entry point '{name}' returns "
            + ("nothing" if spec is None else f"an object of type {type(spec).__name__}"),
            "return a slipway.export.ExportSpec, as in `return ExportSpec(model=..., args=...)`",
        )
    return spec


def _seed() -> None:
    """Makes random numbers the same ones in every process, whoever draws them."""
    torch.manual_seed(0)
    random.seed(0)
    numpy.random.seed(0)


def _defined_in(value: object, module: object) -> bool:
    return (
        callable(value)
        and not isinstance(value, type)
        and getattr(value, "__module__", None) == getattr(module, "__name__", "")
    )


def _advice(error: BaseException, otherwise: str) -> str:
    """Returns what to do about an error that is due to what an action sees, which is not all."""
    if isinstance(error, FileNotFoundError):
        return (
            "list the file in `data` of the torch_export or of the model's py_library, and open "
            'slipway.export.data_path("//PACKAGE:FILE")'
        )
    if _is_missing_variable(error):
        return (
            "put the value in the model's code, or in a file that is listed in `data` and opened "
            'with slipway.export.data_path("//PACKAGE:FILE"); an export sees no variables of the '
            "shell, nor those of --action_env, so that it gives the same program everywhere"
        )
    if "CUDA" in str(error):
        return (
            "make the model and its example on the CPU: an export sees no GPU, and a server puts "
            "programs on the --device that it is told"
        )
    return otherwise


def _is_missing_variable(error: BaseException) -> bool:
    """Returns whether an error is that of `os.environ[NAME]` for a variable that is not set."""
    frames = [frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__)]
    return isinstance(error, KeyError) and frames[-1] is type(os.environ).__getitem__.__code__


def _invalid(reason: str, advice: str, error: BaseException | None = None) -> ExportError:
    source = None if error is None else user_line_of_exception(error)
    return ExportError(ExportErrorKind.INVALID_SPEC, reason, advice, source)


def main(arguments: Sequence[str]) -> int:
    """Exports as the command line says; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--label", required=True, help="the target, for messages")
    parser.add_argument("--entry_point", required=True, help="MODULE:FUNCTION")
    parser.add_argument("--import_root", action="append", default=[], help="for sys.path")
    parser.add_argument(
        "--custom_ops", action="append", default=[], help="a module that registers operators"
    )
    parser.add_argument(
        "--weights",
        action="append",
        nargs=2,
        default=[],
        metavar=("NAME", "FILE"),
        help="a file of the checkpoint that the model gets, and what messages call it",
    )
    parser.add_argument("--output", required=True, help="the program's directory")
    options = parser.parse_args(arguments)
    # Behind what Slipway itself imports, so that a model's workspace cannot replace it.
    sys.path += [str(Path(root).absolute()) for root in options.import_root]
    torch.set_num_threads(1)
    multiply_integers_exactly()
    # An entry point may change the directory.
    output = Path(options.output).absolute()
    weights = [CheckpointFile(Path(path).absolute(), name) for name, path in options.weights]
    try:
        with contextlib.chdir("."):
            custom_ops = load_custom_ops(options.custom_ops)
            spec = load_entry_point(options.entry_point)
        if weights:
            load_files(spec.model, weights)
        spec = dataclasses.replace(spec, custom_ops=sorted({*spec.custom_ops, *custom_ops}))
        program = export_spec(spec)
    except (ExportError, CustomOpsError) as error:
        print(f"{options.label}: cannot be exported: {error}", file=sys.stderr)
        return 1
    program.save(output)
    return 0


def _warm_up() -> None:
    """Exports and saves something small, so that children find done what every export does once.

    Imports above all. A dynamic dimension is what brings in most of sympy.
    """
    batch = torch.export.Dim("batch", min=1, max=8)
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    spec = ExportSpec(
        model=model.eval(),
        args=torch.randn(2, 4),
        dynamic_shapes={"input": {0: batch}},
        output_names=["output"],
    )
    with tempfile.TemporaryDirectory() as folder:
        export_spec(spec).save(Path(folder, "warm_up.program"))


def _serve() -> None:
    # Libraries may print; answers have a descriptor of their own.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    torch.set_num_threads(1)
    _warm_up()
    serve(main, sys.stdin.fileno(), answers)


if __name__ == "__main__":
    if "--persistent_worker" in sys.argv:
        _serve()
    else:
        # A child, so that a model which ends its process fails the action, and says so.
        sys.exit(run_in_child(main, sys.argv[1:]))
