"""Asks about a mutant, loads it and runs it, where it can do no harm that goes unnoticed."""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import random
import resource
import signal
import struct
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from slipway.program import (
    CaseFailedError,
    Program,
    ProgramError,
    SlipwayError,
    load,
    verify,
)
from slipway.program.command_line import main
from slipway.program.torch_types import to_torch

__all__ = ["Outcome", "Tally", "run_trials"]

_SECONDS = 20
"""How long one mutant may take: generous, for machines that do other things too."""

_MEMORY = 3 << 30
"""Bytes of address space that a mutant may take beyond what the process has."""

_LARGEST = 1 << 16
"""Elements of an input that a mutant is called with, at most."""

REFUSED, LOADED, ESCAPED = range(3)

Outcome = tuple[int, str]
"""REFUSED, LOADED or ESCAPED, and for the last what happened."""


@dataclass
class Tally:
    """How many mutants came to what, and what escaped."""

    refused: int = 0
    loaded: int = 0
    escaped: list[str] = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        self.escaped = []

    def add(self, outcome: Outcome) -> None:
        """Counts an outcome."""
        kind, text = outcome
        self.refused += kind == REFUSED
        self.loaded += kind == LOADED
        if kind == ESCAPED:
            self.escaped.append(text)


def run_trials(directory: Path, file: str, mutants: Sequence[bytes]) -> Iterator[Outcome]:
    """Puts each mutant in a file's place, loads the program, runs it, and yields what came of it.

    Many share a child process; when one kills it, that one has escaped, and another child goes on.

    Args:
      directory: of the program; the file is put back at the end.
      file: which of its files is replaced.
      mutants: what it is replaced by.
    """
    path = directory / file
    whole = path.read_bytes()
    waiting = list(enumerate(mutants))
    try:
        while waiting:
            reader, writer = os.pipe()
            child = os.fork()
            if child == 0:
                os.close(reader)
                _run_child(directory, path, waiting, writer)
            os.close(writer)
            done = 0
            with os.fdopen(reader, "rb") as results:
                while header := results.read(5):
                    kind, length = struct.unpack("<BI", header)
                    yield kind, results.read(length).decode()
                    done += 1
            _, status = os.waitpid(child, 0)
            if done < len(waiting):
                number = waiting[done][0]
                code = os.waitstatus_to_exitcode(status)
                yield ESCAPED, f"mutant {number} of {file} ended the process with {code}"
                done += 1
            waiting = waiting[done:]
    finally:
        path.write_bytes(whole)


def _run_child(
    directory: Path, path: Path, mutants: Sequence[tuple[int, bytes]], writer: int
) -> None:
    """Tries mutants one by one, writes what came of each, and ends the process."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # a mutant that hangs ends the process
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + _MEMORY, used + _MEMORY))
    with os.fdopen(writer, "wb") as results:
        for number, data in mutants:
            signal.alarm(_SECONDS)
            path.unlink()  # to write over a file has the file system wait for the disk
            path.write_bytes(data)
            kind, text = _try(directory, f"mutant {number} of {path.name}", ask=number % 4 == 0)
            encoded = text.encode()
            results.write(struct.pack("<BI", kind, len(encoded)) + encoded)
            results.flush()
        signal.alarm(0)
    os._exit(0)


def _try(directory: Path, name: str, *, ask: bool) -> Outcome:
    before = _surroundings(directory)
    try:
        if ask:  # which takes longer than all the rest
            _ask(directory)
        program = load(directory)
        with contextlib.suppress(CaseFailedError):
            verify(program)
    except (ProgramError, MemoryError):
        return REFUSED, ""
    except BaseException as error:
        trace = "".join(traceback.format_tb(error.__traceback__)[-3:])
        return ESCAPED, f"{name} was loaded with {type(error).__name__}: {error}\n{trace}"
    try:
        _call(program)
    except Exception:
        pass  # its graph does not compute, which torch says without harm
    except BaseException as error:
        return ESCAPED, f"{name} ran into {type(error).__name__}: {error}"
    if _surroundings(directory) != before:
        return ESCAPED, f"{name} changed a file"
    return LOADED, ""


def _ask(directory: Path) -> None:
    """Has the command line describe a program, and compare it with itself."""
    path = str(directory)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        for arguments in (
            ["describe", path],
            ["describe", path, "--format=json"],
            ["graph", path],
            ["check", path, "--shape=x=1,2"],
            ["diff", path, path],
        ):
            main(arguments)


def _surroundings(directory: Path) -> list[tuple[str, int]]:
    """Returns the files around a program with their sizes."""
    return sorted(
        (str(path), path.stat().st_size) for path in directory.parent.rglob("*") if path.is_file()
    )


def _call(program: Program) -> None:
    source = random.Random(0)
    for method in program.methods.values():
        contract = method.contract
        near = [
            sorted({symbol.minimum, symbol.minimum + 1, min(symbol.maximum or 3, 3)})
            for symbol in contract.symbols
        ]
        legal = [item for item in itertools.product(*near) if contract.is_legal(item)]
        for binding in source.sample(legal, min(2, len(legal))):
            tensors = []
            for spec in contract.tensor_inputs.values():
                shape = [size.evaluate(binding) for size in spec.shape]
                if any(size < 0 for size in shape) or _product(shape) > _LARGEST:
                    return
                tensors.append(torch.zeros(shape, dtype=to_torch(spec.dtype)))
            with contextlib.suppress(SlipwayError), torch.inference_mode():
                method.run(tensors)


def _product(sizes: Sequence[int]) -> int:
    result = 1
    for size in sizes:
        result = min(result * size, _LARGEST + 1)
    return result
