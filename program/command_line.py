"""`python -m slipway.program`: describes contracts, checks shapes against them, and compares them.

Nothing here imports torch, so that each command takes a fraction of a second.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import NoReturn

from slipway.program.container import read_container
from slipway.program.contract import DEFAULT_METHOD, Contract
from slipway.program.contract_files import baseline_text, read_contract_file
from slipway.program.errors import ContractViolation, ProgramError
from slipway.program.scalar_types import ScalarType

__all__ = ["main"]

FINE, REFUSED, USAGE = 0, 1, 2

_EPILOG = "exit codes: 0 yes, 1 no, 2 the command cannot be carried out"


class UsageError(Exception):
    """The command line asks for something that there is not."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; `{self.prog} --help` explains")


def main(arguments: Sequence[str]) -> int:
    """Runs a command and returns the exit code of the process."""
    try:
        options = _parser().parse_args(arguments)
        code: int = options.run(options)
        return code
    except (UsageError, ProgramError) as error:
        print(f"slipway: error: {error}", file=sys.stderr)
        return USAGE


@cache  # it takes longer to make than to describe a small program
def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m slipway.program", description=__doc__, epilog=_EPILOG)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    program = "a program's directory, or a baseline"

    describe = commands.add_parser("describe", help="say what a program takes and gives")
    describe.add_argument("program", type=_path, metavar="PROGRAM", help=program)
    describe.add_argument(
        "--format",
        choices=("text", "json", "shape"),
        default="text",
        help="text by lines, JSON, or a signature for each method (default: text)",
    )
    describe.add_argument(
        "--review",
        action="store_true",
        help="leave out what changes while contract and graph stay as they are: who wrote the "
        "program, the digests that depend on its weights, and lines of the model",
    )
    describe.add_argument("--output", type=_path, metavar="FILE", help="write there, not to stdout")
    describe.set_defaults(run=_describe)

    check = commands.add_parser("check", help="say whether a call with certain shapes is legal")
    check.add_argument("program", type=_path, metavar="PROGRAM", help=program)
    check.add_argument(
        "--shape",
        action="append",
        default=[],
        metavar="INPUT=SIZE,…",
        help="the shape of an input: tokens=3,12; a tensor without dimensions is scale=",
    )
    check.add_argument(
        "--dtype",
        action="append",
        default=[],
        metavar="INPUT=DTYPE",
        help="the dtype of an input, as torch names it (default: that of the contract)",
    )
    check.add_argument("--method", help="the method that is called (default: forward)")
    check.add_argument("--format", choices=("text", "json"), default="text")
    check.set_defaults(run=_check)

    diff = commands.add_parser(
        "diff", help="say what a change of a contract means for the clients of the old one"
    )
    diff.add_argument("old", type=_path, metavar="OLD", help=program)
    diff.add_argument("new", type=_path, metavar="NEW", help=program)
    diff.add_argument(
        "--python",
        action="store_true",
        help="some clients call the program as a Python object: how arguments and results are "
        "nested counts too, and arguments that are no tensors",
    )
    diff.add_argument("--format", choices=("text", "json"), default="text")
    diff.set_defaults(run=_diff)

    baseline = commands.add_parser(
        "baseline", help="write a program's contract as a file to check in, for later diffs"
    )
    baseline.add_argument("program", type=_path, metavar="PROGRAM", help="a program's directory")
    baseline.set_defaults(run=_baseline)

    graph = commands.add_parser("graph", help="say what a program runs, and for which line")
    graph.add_argument("program", type=_path, metavar="PROGRAM", help="a program's directory")
    graph.add_argument("--output", type=_path, metavar="FILE", help="write there, not to stdout")
    graph.set_defaults(run=_graph)

    manifest = commands.add_parser(
        "manifest", help="list programs with where they lie, who made them, and their digests"
    )
    manifest.add_argument(
        "entries",
        nargs="+",
        metavar="PLACE,LABEL,PROGRAM",
        help="MODEL/VERSION, the target that made it, and the program's directory, with commas or "
        "with tabs between them",
    )
    manifest.add_argument("--output", type=_path, metavar="FILE", help="write there, not to stdout")
    manifest.set_defaults(run=_manifest)
    return parser


def _path(text: str) -> Path:
    """Returns a path as the user meant it: `bazel run` starts programs in another folder."""
    return Path(os.environ.get("BUILD_WORKING_DIRECTORY", ""), text)


def _json(document: object) -> str:
    import json

    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def _describe(options: argparse.Namespace) -> int:
    from slipway.program import description

    file = read_contract_file(options.program)
    match options.format:
        case "text":
            text = description.as_text(file, review=options.review)
        case "shape":
            text = description.as_signatures(file)
        case _:
            text = _json(description.as_json(file, review=options.review))
    _write(text, options.output)
    return FINE


def _write(text: str, output: Path | None = None) -> None:
    if output is None:
        _print(text)
        return
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write {output}: {error.strerror}") from error


def _print(text: str) -> None:
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        # Python would complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        # Of a closed pipe, whoever read the output has read enough.
        if not isinstance(error, BrokenPipeError):
            raise UsageError(f"cannot write to standard output: {error.strerror}") from error


def _check(options: argparse.Namespace) -> int:
    contract = _method(read_contract_file(options.program).contracts, options.method)
    shapes = {name: _shape(name, text) for name, text in _pairs("--shape", options.shape)}
    dtypes = {name: _dtype(text) for name, text in _pairs("--dtype", options.dtype)}
    if unused := dtypes.keys() - shapes.keys():
        raise UsageError(f"--dtype {min(unused)}=…: there is no --shape {min(unused)}=…")
    specs = contract.tensor_inputs
    inputs = {
        # Of an input that there is not the dtype does not matter.
        name: (dtypes.get(name) or (specs[name].dtype if name in specs else ScalarType.BOOL), shape)
        for name, shape in shapes.items()
    }
    from slipway.program import check_report

    try:
        report = check_report.accepted(contract, contract.check(inputs))
    except ContractViolation as error:
        report = check_report.refused(contract, inputs, error.violations)
    _write(_json(report.document) if options.format == "json" else f"{report.text}\n")
    return FINE if report.legal else REFUSED


def _method(contracts: Mapping[str, Contract], name: str | None) -> Contract:
    if name is None:
        name = DEFAULT_METHOD if DEFAULT_METHOD in contracts or len(contracts) > 1 else None
        if name is None:
            return next(iter(contracts.values()))
    if name not in contracts:
        raise UsageError(
            f"there is no method '{name}'; name one with --method: {', '.join(contracts)}"
        )
    return contracts[name]


def _pairs(option: str, texts: Sequence[str]) -> list[tuple[str, str]]:
    pairs: list[tuple[str, str]] = []
    for text in texts:
        name, separator, value = text.partition("=")
        if not name or not separator:
            raise UsageError(f"{option} {text}: expected INPUT=…, as in tokens=3,12")
        if name in dict(pairs):
            raise UsageError(f"{option} {name}=… is given twice")
        pairs.append((name, value))
    return pairs


def _shape(name: str, text: str) -> tuple[int, ...]:
    sizes = [size.strip() for size in text.split(",")] if text.strip() else []
    # Not isdigit(): that is true of digits which int() refuses. int() bounds their number.
    if not all(size.isascii() and size.isdecimal() and len(size) <= 19 for size in sizes):
        raise UsageError(f"--shape {name}={text}: expected sizes separated by commas, as in 3,12")
    return tuple(map(int, sizes))


def _dtype(text: str) -> ScalarType:
    try:
        return ScalarType(text)
    except ValueError:
        known = ", ".join(item.value for item in ScalarType)
        raise UsageError(f"there is no dtype '{text}'; there are {known}") from None


def _diff(options: argparse.Namespace) -> int:
    from slipway.program import diff_report
    from slipway.program.compatibility import compare

    old, new = (read_contract_file(path).contracts for path in (options.old, options.new))
    differences = compare(old, new)
    if options.format == "json":
        _write(_json(diff_report.as_json(differences, python=options.python)))
    else:
        _write(diff_report.as_text(differences, python=options.python))
    return REFUSED if any(differences.breaking(python=options.python)) else FINE


def _baseline(options: argparse.Namespace) -> int:
    _write(baseline_text(read_container(options.program)))
    return FINE


def _graph(options: argparse.Namespace) -> int:
    from slipway.program.graph_text import graph_text

    _write(graph_text(read_container(options.program)), options.output)
    return FINE


def _manifest(options: argparse.Namespace) -> int:
    rows = []
    for entry in options.entries:
        try:
            # A label may have commas.
            place, label, program = entry.split("\t" if "\t" in entry else ",", 2)
        except ValueError:
            raise UsageError(f"{entry}: expected PLACE,LABEL,PROGRAM") from None
        rows.append((place, label, read_container(_path(program)).digest))
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    lines = [
        f"{place:<{widths[0]}}  {label:<{widths[1]}}  {digest}" for place, label, digest in rows
    ]
    _write("\n".join(lines) + "\n", options.output)
    return FINE
