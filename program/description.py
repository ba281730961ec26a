"""A program in words: what it takes and gives, for people, for reviews, and for tools."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
from collections.abc import Iterator
from typing import Any

from slipway.program.contract import Contract, InputSpec, OutputSpec, PythonValue
from slipway.program.contract_files import ContractFile
from slipway.proto import program_pb2 as pb

__all__ = ["as_json", "as_signatures", "as_text"]

_INDENT = "  "


def as_text(file: ContractFile, *, review: bool) -> str:
    """Returns a description by lines, made to be compared line by line.

    Args:
      file: the program or the baseline.
      review: leave out what changes while contract and graph stay as they are: who wrote it, the
        digests that depend on weights, and lines of the model.
    """
    lines: list[str] = []
    for contract in file.contracts.values():
        lines += _method_lines(contract, sources=not review)
        lines.append("")
    if file.container is not None:
        lines += _section("graph", _operators(file.container.graphs()))
        lines += _section("versions", _versions(file))
        if not review:
            lines += _section("written by", _producer(file))
        lines += _section("sha-256", _digests(file, review=review))
    while lines and not lines[-1]:
        lines.pop()
    return "\n".join(lines) + "\n"


def as_signatures(file: ContractFile) -> str:
    """Returns a line for each method and one for what its symbols may be."""
    lines = []
    for contract in file.contracts.values():
        inputs = ", ".join(f"{item.name}: {_input(item)}" for item in contract.inputs)
        outputs = ", ".join(f"{item.name}: {_output(item)}" for item in contract.outputs)
        lines.append(f"{contract.method}({inputs}) -> ({outputs})")
        conditions = [f"{symbol.name} in {symbol.allowed}" for symbol in contract.symbols]
        conditions += map(str, contract.relations)
        if conditions:
            lines.append(f"{_INDENT}where {', '.join(conditions)}")
    return "\n".join(lines) + "\n"


def as_json(file: ContractFile, *, review: bool) -> dict[str, Any]:
    """Returns the description as nested dicts and lists; expressions are strings, as in text."""
    document: dict[str, Any] = {
        "methods": {
            name: _method(contract, sources=not review) for name, contract in file.contracts.items()
        }
    }
    if file.container is not None:
        document["operators"] = dict(_operators(file.container.graphs()))
        document["versions"] = dict(_versions(file))
        if not review:
            document["producer"] = dict(_producer(file))
        document["digests"] = dict(_digests(file, review=review))
    return document


# Methods ------------------------------------------------------------------------------------------


def _method_lines(contract: Contract, *, sources: bool) -> Iterator[str]:
    yield f"method {contract.method}"
    symbols = [(symbol.name, symbol.allowed) for symbol in contract.symbols]
    parts = [
        ("inputs", [(item.name, _input(item)) for item in contract.inputs]),
        ("outputs", [(item.name, _output(item)) for item in contract.outputs]),
        ("symbols", symbols),
        ("relations", [(str(item), item.source if sources else "") for item in contract.relations]),
    ]
    for title, rows in parts:
        yield from (_INDENT + line if line else "" for line in _section(title, rows, gap=False))
    batch = _batch_symbol(contract)
    yield f"{_INDENT}batch symbol: {batch or '(none)'}"
    if contract.batching is not None:
        yield f"{_INDENT}batching: {contract.batching}"
        yield f"{_INDENT}tried with {contract.batching.evidence}"
    if contract.contiguous:
        yield f"{_INDENT}tensors must be contiguous"
    for note in contract.notes:
        yield f"{_INDENT}note: {note}"


def _section(title: str, rows: list[tuple[str, str]], *, gap: bool = True) -> Iterator[str]:
    if not rows:
        return
    width = max(len(name) for name, _ in rows)
    yield title
    for name, value in rows:
        yield f"{_INDENT}{name:<{width}}  {value}".rstrip()
    if gap:
        yield ""


def _method(contract: Contract, *, sources: bool) -> dict[str, Any]:
    return {
        "inputs": [_leaf(item) for item in contract.inputs],
        "outputs": [_leaf(item) for item in contract.outputs],
        "symbols": {
            item.name: {"minimum": item.minimum, "maximum": item.maximum}
            for item in contract.symbols
        },
        "relations": [
            {"condition": str(item)} | ({"source": item.source} if sources and item.source else {})
            for item in contract.relations
        ],
        "batch_symbol": _batch_symbol(contract),
        "batching": None if contract.batching is None else dataclasses.asdict(contract.batching),
        "contiguous": contract.contiguous,
        "notes": list(contract.notes),
    }


def _leaf(spec: InputSpec | OutputSpec) -> dict[str, Any]:
    if spec.tensor is not None:
        shape = [
            str(size) if (value := size.constant_value()) is None else value
            for size in spec.tensor.shape
        ]
        return {"name": spec.name, "dtype": spec.tensor.dtype.value, "shape": shape}
    if isinstance(spec, OutputSpec) and spec.integer is not None:
        return {"name": spec.name, "integer": str(spec.integer)}
    constant = spec.constant
    if isinstance(constant, float) and not -1e999 < constant < 1e999:
        constant = repr(constant)  # JSON has no such number
    return {"name": spec.name, "constant": constant}


def _input(spec: InputSpec) -> str:
    return _exactly(spec.constant) if spec.tensor is None else str(spec.tensor)


def _output(spec: OutputSpec) -> str:
    if spec.tensor is not None:
        return str(spec.tensor)
    return _exactly(spec.constant) if spec.integer is None else f"integer {spec.integer}"


def _exactly(value: PythonValue) -> str:
    return f"exactly {value!r}"


def _batch_symbol(contract: Contract) -> str | None:
    if contract.batch_symbol is None:
        return None
    return contract.symbols[contract.batch_symbol].name


# Programs -----------------------------------------------------------------------------------------


def _operators(graphs: pb.ProgramGraph) -> list[tuple[str, str]]:
    """Returns how often each operator is called, subgraphs included."""
    counts: collections.Counter[int] = collections.Counter()
    waiting = list(graphs.methods)
    while waiting:
        graph = waiting.pop()
        counts.update(node.operator for node in graph.nodes)
        waiting += graph.subgraphs
    return [(item.name, str(counts[index])) for index, item in enumerate(graphs.operators)]


def _versions(file: ContractFile) -> list[tuple[str, str]]:
    assert file.container is not None
    return [
        (name.replace("_", " "), f"{major}.{minor}")
        for name, (major, minor) in file.container.versions.items()
    ]


def _producer(file: ContractFile) -> list[tuple[str, str]]:
    assert file.container is not None
    return [
        ("slipway", file.container.slipway_version),
        ("torch", file.container.torch_version),
        ("python", file.container.python_version),
    ]


def _digests(file: ContractFile, *, review: bool) -> list[tuple[str, str]]:
    assert file.container is not None
    container = file.container
    sections = {"contract": container.contract, "graph": container.graph}
    if not review:
        sections |= {"weights": container.weights, "cases": container.cases}
    digests = [(name, hashlib.sha256(data).hexdigest()) for name, data in sections.items()]
    return digests if review else [*digests, ("program", container.digest)]
