"""Writes a program again, with its methods compiled to native code beside their graphs."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from slipway.export.compilation import CompilationError, compile_program
from slipway.export.compiled_gate import check_compiled, measure_speed
from slipway.program.compiled import use_compiled, use_graphs
from slipway.program.custom_ops import CustomOpsError, load_custom_ops
from slipway.program.errors import OperatorMismatchError, ProgramError
from slipway.program.instruction_sets import INSTRUCTION_SETS
from slipway.program.program import Program, load

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Compiles as the command line says; returns the exit status."""
    options = _parse(arguments)
    sys.path += [str(Path(root).absolute()) for root in options.import_root]
    torch.set_num_threads(1)
    try:
        _compile(options)
    except (CustomOpsError, ProgramError) as error:
        print(f"{options.label}: cannot be compiled: {error}", file=sys.stderr)
        return 1
    return 0


def _compile(options: argparse.Namespace) -> None:
    custom_ops = load_custom_ops(options.custom_ops)
    try:
        program = load(options.program, custom_ops=custom_ops)
    except OperatorMismatchError as error:
        raise CompilationError(
            f"{error}; in a BUILD file, name that library in the target's custom_ops"
        ) from error
    shutil.copytree(
        options.program, options.output, dirs_exist_ok=True, copy_function=shutil.copyfile
    )
    settings = dict(item.split("=", 1) for item in options.option)
    # The best last: each is then the best that there is when it is tried.
    wanted = sorted(set(options.instruction_set or ["avx2"]), key=_rank, reverse=True)
    for instruction_set in wanted:
        with tempfile.TemporaryDirectory(prefix="compile.") as work:
            target = compile_program(
                program,
                options.output,
                compiler=options.compiler,
                work=Path(work),
                instruction_set=instruction_set,
                options=settings,
            )
        compiled = load(options.output, custom_ops=custom_ops)
        _check(compiled, program_directory=options.output, target=target, options=options)


def _rank(instruction_set: str) -> int:
    """Returns the place of an instruction set among all, the best being 0."""
    names = list(INSTRUCTION_SETS)
    return names.index(instruction_set) if instruction_set in names else len(names)


def _check(
    program: Program, *, program_directory: Path, target: str, options: argparse.Namespace
) -> None:
    """Compares what was compiled with the graphs, and says where it is slower."""
    used = use_compiled(program, program_directory)
    compiled = [name for name, method in program.methods.items() if method.engine is not None]
    use_graphs(program)
    if used.target != target:
        raise CompilationError(f"{target} was made, and {used.target} would be used")
    counts = check_compiled(program, program_directory, compiled)
    for name in compiled:
        speed = measure_speed(program, program_directory, name)
        line = (
            f"{options.label}: method '{name}' compiled for {target}: {counts[name]} calls agree "
            f"with the graph; the example takes {speed.compiled:.0f} µs, and {speed.graph:.0f} µs "
            f"by the graph ({speed.factor:.2f} times as fast)"
        )
        if speed.factor < 1 and options.when_slower == "fail":
            raise CompilationError(
                f'{line}, which when_slower = "fail" forbids: leave out compile, or try other '
                "compile_options"
            )
        if speed.factor < 1 and options.when_slower == "warn":
            print(f"warning: {line}", file=sys.stderr)
        elif options.verbose:
            print(line, file=sys.stderr)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--label", default="program", help="the target, for messages")
    parser.add_argument("--compiler", required=True, type=Path, help="a GNU C++ compiler")
    parser.add_argument(
        "--instruction-set", action="append", help="avx2 (the default) or avx512; repeatable"
    )
    parser.add_argument(
        "--option", action="append", default=[], metavar="NAME=VALUE", help="of AOTInductor"
    )
    parser.add_argument(
        "--custom-ops",
        action="append",
        default=[],
        metavar="MODULE",
        help="a Python module that registers operators which the program calls; repeatable",
    )
    parser.add_argument(
        "--import-root", action="append", default=[], metavar="DIR", help="for such modules"
    )
    parser.add_argument(
        "--when-slower",
        default="warn",
        choices=["accept", "warn", "fail"],
        help="what to do about code that is slower than the graph",
    )
    parser.add_argument("--verbose", action="store_true", help="print how fast the code is")
    parser.add_argument("program", type=Path, help="the program's directory")
    parser.add_argument("output", type=Path, help="the directory that is written")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
