"""No artifact of the examples tells where, when, by whom or on what machine it was built."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from slipway.proto import program_pb2 as pb
from slipway.tests.reproducibility.leaks import (
    leaks_of_bytes,
    leaks_of_message,
    leaks_of_program,
    machine_names,
)

# This file is RUNFILES/slipway/tests/reproducibility/leak_test.py.
ROOT = Path(__file__).absolute().parents[2]
PROGRAMS = sorted(ROOT.glob("examples/*/*.program"))
CONTRACTS = sorted(Path(__file__).absolute().parent.glob("*_contract.txt"))

NAMES = {"host name": "builder-17", "home": "/home/ada", "user name": "ada"}


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.stem)
def test_a_program_tells_nothing_of_its_build(program: Path) -> None:
    assert leaks_of_program(program, machine_names()) == []


@pytest.mark.parametrize("contract", CONTRACTS, ids=lambda path: path.stem)
def test_a_contract_tells_nothing_of_its_build(contract: Path) -> None:
    assert leaks_of_bytes(contract.read_bytes(), machine_names()) == []


def test_there_is_something_to_look_at() -> None:
    assert len(PROGRAMS) >= 4
    assert len(CONTRACTS) >= 4


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (os.getcwd().encode(), "path"),
        (__file__.encode(), "path"),
        (b"\x12\x09/tmp/x.py", "path"),
        (b"bazel-out/k8-fastbuild/bin/x", "path"),
        (b"built by ada.", "user name"),
        (b"\x00\x0abuilder-17\x00", "host name"),
        (b"/home/ada", "home"),
        (b"on 2026-11-24", "time"),
        (time.ctime().encode(), "time"),
    ],
)
def test_a_leak_is_found(data: bytes, kind: str) -> None:
    assert kind in [leak.partition(":")[0] for leak in leaks_of_bytes(data, NAMES)]


@pytest.mark.parametrize(
    "data",
    [b"", b"examples/mlp/model.py:23", b"aten::add.Tensor", b"cascadal /rootless", b"1.2.3"],
)
def test_other_text_is_no_leak(data: bytes) -> None:
    assert leaks_of_bytes(data, NAMES) == []


@pytest.mark.parametrize("unit", [1, 10**3, 10**6, 10**9])
def test_a_time_as_a_number_is_found(unit: int) -> None:
    symbol = pb.Symbol(name="batch", maximum=int(time.time() * unit))
    contract = pb.ProgramContract(methods=[pb.Contract(symbols=[symbol])])
    assert len(leaks_of_message(contract)) == 1


def test_a_bound_is_no_time() -> None:
    symbol = pb.Symbol(name="batch", minimum=1, maximum=2**63 - 1)
    assert leaks_of_message(symbol) == []
