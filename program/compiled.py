"""Compiled code beside a program: `compiled/TARGET/`, where TARGET is a kind of machine.

It is native code, so that loading it is running it. Digests say that it is what was written for
this program, not who wrote it: whoever can write a program's directory can run code in a process
that uses its compiled code. Hence nothing here happens unless the caller asks for it.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from google.protobuf.message import DecodeError

from slipway.program.errors import CompiledCodeError
from slipway.program.instruction_sets import INSTRUCTION_SETS, missing_features
from slipway.program.method import Method
from slipway.program.native_code import NativeCode
from slipway.program.program import Program
from slipway.proto import program_pb2 as pb

__all__ = [
    "COMPILED_DIRECTORY",
    "COMPILED_FILE",
    "COMPILED_VERSION",
    "Execution",
    "target_name",
    "torch_release",
    "use_compiled",
    "use_graphs",
    "without_compiled",
]

COMPILED_DIRECTORY = "compiled"
COMPILED_FILE = "compiled.pb"
COMPILED_VERSION = (1, 0)

_MAXIMUM_BYTES = 2**30
"""Of a library: it holds no weights."""


@dataclass(frozen=True, slots=True)
class Execution:
    """What runs a program's calls, and why.

    Attributes:
      target: the compiled code that is used; None where the graphs run.
      reason: for people.
    """

    target: str | None
    reason: str

    def __str__(self) -> str:
        return f"{'graph' if self.target is None else self.target}: {self.reason}"


def torch_release() -> str:
    """Returns the version of torch that runs, without what it was built for."""
    return torch.__version__.partition("+")[0]


def target_name(device: str, instruction_set: str, torch_version: str) -> str:
    """Returns what a kind of machine is called."""
    return f"{device}-{instruction_set}-torch{torch_version}"


def use_compiled(program: Program, directory: str | Path, *, concurrency: int = 4) -> Execution:
    """Has a program's methods run compiled code, of the best target that this machine can use.

    The contract is checked before it as it is before the graph. Where the code refuses a call's
    values, the graph runs the call, and says why.

    Args:
      program: as `load` returned it.
      directory: that it was loaded from. The code in it runs with all rights of this process.
      concurrency: how many calls of a method run at the same time; others wait.

    Raises:
      CompiledCodeError: there is no code for this machine, torch and program, or it is damaged. The
        program is as it was.
    """
    folder = Path(directory) / COMPILED_DIRECTORY
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        raise CompiledCodeError("the program has no compiled code") from None
    targets: list[tuple[int, str, pb.CompiledTarget]] = []
    problems = []
    ranks = list(INSTRUCTION_SETS)
    for name in names:
        try:
            target = _read_target(folder / name)
            _check_target(program, target)
            targets.append((ranks.index(target.instruction_set), name, target))
        except CompiledCodeError as error:
            problems.append(f"{name}: {error}")
    for _, name, target in sorted(targets, key=lambda item: item[:2]):
        try:
            code = _load(program, folder / name, target, concurrency)
        except CompiledCodeError as error:
            problems.append(f"{name}: {error}")
            continue
        for method, native in code.items():
            program.methods[method].use(native)
        rest = sorted(program.methods.keys() - code.keys())
        reason = f"compiled with {', '.join(_options(target)) or 'the usual options'}"
        if rest:
            reason += f"; not compiled, and run as graphs: {', '.join(rest)}"
        return Execution(name, reason)
    raise CompiledCodeError("; ".join(problems) or "the program has no compiled code")


def use_graphs(program: Program) -> None:
    """Has a program's methods run their graphs in Python again."""
    for method in program.methods.values():
        method.use(None)


def without_compiled(program: Program) -> list[str]:
    """Returns the methods that do not run compiled code."""
    return [
        name
        for name, method in program.methods.items()
        if not isinstance(method.engine, NativeCode)
    ]


def _options(target: pb.CompiledTarget) -> list[str]:
    return [f"{item.name}={item.value}" for item in target.options]


def _read_target(folder: Path) -> pb.CompiledTarget:
    target = pb.CompiledTarget()
    try:
        target.ParseFromString(_read_plain_file(folder / COMPILED_FILE))
    except DecodeError as error:
        raise CompiledCodeError(f"{COMPILED_FILE} is not a valid message: {error}") from error
    return target


def _check_target(program: Program, target: pb.CompiledTarget) -> None:
    if target.version.major != COMPILED_VERSION[0]:
        raise CompiledCodeError(
            f"its format is version {target.version.major}.{target.version.minor}; this Slipway "
            f"reads {COMPILED_VERSION[0]}.x"
        )
    if program.digest is None or target.program.hex() != program.digest:
        raise CompiledCodeError("it was compiled from another program (digests differ)")
    if target.device != program.device.type:
        raise CompiledCodeError(f"it is for {target.device}; the program is on {program.device}")
    if target.torch_version != torch_release():
        raise CompiledCodeError(f"it needs torch {target.torch_version}; this is {torch_release()}")
    if problem := missing_features(target.instruction_set):
        raise CompiledCodeError(f"it needs {target.instruction_set}; {problem}")


def _load(
    program: Program, folder: Path, target: pb.CompiledTarget, concurrency: int
) -> Mapping[str, NativeCode]:
    code = {}
    for item in target.methods:
        method = program.methods.get(item.method)
        if method is None:
            raise CompiledCodeError(f"the program has no method '{item.method}'")
        code[item.method] = _load_method(program, method, folder, item.library, concurrency)
    if not code:
        raise CompiledCodeError("it has no methods")
    return code


def _load_method(
    program: Program, method: Method, folder: Path, library: pb.Shard, concurrency: int
) -> NativeCode:
    # The name comes from the artifact: nothing but a plain file in the folder may be meant.
    if not library.file or library.file in {".", ".."} or set(library.file) & {"/", "\\", "\0"}:
        raise CompiledCodeError(f"{library.file!r} is not a plain file name")
    content = _read_plain_file(folder / library.file)
    if hashlib.sha256(content).digest() != library.sha256:
        raise CompiledCodeError(
            f"{library.file} is not what was written (SHA-256 differs); build the program again"
        )
    return NativeCode(
        content,
        library.sha256,
        program.weights,
        inputs=len(method.contract.tensor_inputs),
        outputs=len(method.contract.tensor_outputs),
        concurrency=concurrency,
    )


def _read_plain_file(path: Path) -> bytes:
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode) or status.st_size > _MAXIMUM_BYTES:
            raise CompiledCodeError(f"{path.name} is no file, or too large")
        return path.read_bytes()
    except OSError as error:
        raise CompiledCodeError(f"cannot read {path.name}: {error.strerror}") from error
