"""Baselines: whatever is in such a file ends in a ProgramError that names it."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slipway.program.container import Container
from slipway.program.contract import Contract, InputSpec, OutputSpec, Relation, Symbol, TensorSpec
from slipway.program.contract_codec import contract_to_proto
from slipway.program.contract_files import baseline_text, read_contract_file
from slipway.program.errors import CorruptProgramError, ProgramError, UnsupportedVersionError
from slipway.program.expressions import Add, Comparison, Constant, Modulo, SymbolReference, Unknown
from slipway.program.scalar_types import ScalarType
from slipway.program.trees import Kind, Tree
from slipway.proto import program_pb2 as pb

LEAF = Tree(Kind.LEAF)
BATCH = SymbolReference(0, "batch")
CONTRACT = Contract(
    method="forward",
    symbols=(Symbol("batch", 0, 2**62), Symbol("größe", 1, None)),
    inputs=(
        InputSpec("x", TensorSpec(ScalarType.FLOAT8_E5M2, (BATCH, SymbolReference(1, "größe")))),
        InputSpec("limit", constant=math.inf),
        InputSpec("none"),
        InputSpec("no", constant=False),
        InputSpec("large", constant=-(2**63)),
    ),
    input_tree=Tree(Kind.TUPLE, (Tree(Kind.TUPLE, (LEAF,) * 5), Tree(Kind.DICT))),
    parameters=("x", "limit", "none", "no", "large"),
    outputs=(
        OutputSpec("out", TensorSpec(ScalarType.BOOL, (Unknown(), Add((BATCH, Constant(-1)))))),
    ),
    output_tree=Tree(Kind.DICT, (LEAF,), ("out",)),
    relations=(Relation(Comparison("==", Modulo(BATCH, Constant(2)), Constant(0))),),
    batch_symbol=0,
    contiguous=True,
    notes=("a note",),
)
CONTAINER = Container(
    contract=pb.ProgramContract(methods=[contract_to_proto(CONTRACT)]).SerializeToString(),
    graph=b"",
    weights=b"",
    slipway_version="0.1.0",
    torch_version="2.13.0",
    python_version="3.11",
)


def test_a_baseline_holds_the_whole_contract(tmp_path: Path) -> None:
    path = tmp_path / "contract.json"
    path.write_text(baseline_text(CONTAINER), encoding="utf-8")
    read = read_contract_file(path)
    assert (read.contracts, read.container) == ({"forward": CONTRACT}, None)


def test_fields_of_a_newer_minor_version_are_ignored(tmp_path: Path) -> None:
    document = json.loads(baseline_text(CONTAINER))
    document["contract_language"] = "1.7"
    document["further"] = document["methods"][0]["further"] = {"x": 1}
    path = tmp_path / "contract.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    assert read_contract_file(path).contracts == {"forward": CONTRACT}


def changed(change: Callable[[dict[str, Any]], object]) -> bytes:
    document = json.loads(baseline_text(CONTAINER))
    change(document)
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    ("data", "error", "sentence"),
    [
        (b"", CorruptProgramError, "neither a program's directory nor a baseline"),
        (b"\xff\xfe", CorruptProgramError, "neither a program's directory nor a baseline"),
        (b"[]", CorruptProgramError, "make a baseline with `python -m slipway.program baseline"),
        (b"[" * 100_000, CorruptProgramError, "neither a program's directory nor a baseline"),
        (changed(lambda d: d.pop("format")), CorruptProgramError, "nor a baseline"),
        (changed(lambda d: d.pop("contract_language")), CorruptProgramError, "names no version"),
        (changed(lambda d: d.pop("methods")), CorruptProgramError, "must have methods"),
        (changed(lambda d: d["methods"].append(d["methods"][0])), CorruptProgramError, "another"),
        (changed(lambda d: d.update(methods=1)), CorruptProgramError, "contracts are malformed"),
        (
            changed(lambda d: d.update(contract_language="9" * 5000)),
            CorruptProgramError,
            "names no version",
        ),
        (
            changed(lambda d: d.update(methods=["\ud800"])),
            CorruptProgramError,
            "contracts are malformed",
        ),
        (
            changed(lambda d: d["methods"][0]["inputs"][0]["tensor"].update(dtype=math.inf)),
            CorruptProgramError,
            "contracts are malformed",
        ),
        (
            changed(lambda d: d["methods"][0].update(notes=["x" * 2**20])),
            CorruptProgramError,
            "1048576 are allowed",
        ),
        (
            changed(lambda d: d["methods"][0]["inputs"].pop()),
            CorruptProgramError,
            "do not have as many leaves",
        ),
        (
            changed(lambda d: d.update(contract_language="2.0", slipway_version="9.1")),
            UnsupportedVersionError,
            "version 2, written by Slipway 9.1; this Slipway reads 1",
        ),
    ],
)
def test_a_file_that_is_no_baseline_is_refused(
    data: bytes, error: type[ProgramError], sentence: str, tmp_path: Path
) -> None:
    path = tmp_path / "contract.json"
    path.write_bytes(data)
    with pytest.raises(error) as caught:
        read_contract_file(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert sentence in str(caught.value)


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "contract.json")
    with pytest.raises(CorruptProgramError, match="is not a file"):
        read_contract_file(tmp_path / "contract.json")


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_damaged_baseline_is_read_or_refused(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    text = bytearray(baseline_text(CONTAINER), "utf-8")
    for _ in range(data.draw(st.integers(1, 3))):
        text[data.draw(st.integers(0, len(text) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("damaged") / "contract.json"
    path.write_bytes(text)
    try:
        read_contract_file(path)
    except ProgramError as error:
        assert str(path) in str(error)
