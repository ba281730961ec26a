"""program.pb: whatever happens to its bytes ends in a ProgramError that names the file."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from slipway.program import load_contracts
from slipway.program.container import Container, read_container, write_container
from slipway.program.contract import (
    Contract,
    InputSpec,
    OutputSpec,
    Relation,
    Symbol,
    TensorSpec,
)
from slipway.program.contract_codec import contract_to_proto
from slipway.program.errors import (
    CorruptProgramError,
    DigestMismatchError,
    ProgramError,
    UnsupportedVersionError,
)
from slipway.program.expressions import Comparison, Constant, Modulo, SymbolReference
from slipway.program.scalar_types import ScalarType
from slipway.program.trees import Kind, Tree
from slipway.proto import program_pb2 as pb

BATCH = SymbolReference(0, "batch")
CONTRACT = Contract(
    method="forward",
    symbols=(Symbol("batch", 1, 64),),
    inputs=(InputSpec("x", TensorSpec(ScalarType.FLOAT32, (BATCH, Constant(4)))),),
    input_tree=Tree(Kind.TUPLE, (Tree(Kind.TUPLE, (Tree(Kind.LEAF),)), Tree(Kind.DICT))),
    parameters=("x",),
    outputs=(OutputSpec("out", TensorSpec(ScalarType.FLOAT32, (BATCH,))),),
    output_tree=Tree(Kind.LEAF),
    relations=(Relation(Comparison("==", Modulo(BATCH, Constant(2)), Constant(0)), "model.py:12"),),
    batch_symbol=0,
)


def container(*contracts: Contract) -> Container:
    methods = [contract_to_proto(contract) for contract in contracts]
    sources = [
        pb.MethodSources(relations=[relation.source for relation in contract.relations])
        for contract in contracts
    ]
    return Container(
        contract=pb.ProgramContract(methods=methods).SerializeToString(),
        graph=pb.ProgramGraph(methods=[pb.Graph() for _ in methods]).SerializeToString(),
        weights=pb.WeightsIndex().SerializeToString(),
        slipway_version="0.1.0",
        torch_version="2.13.0",
        python_version="3.11",
        sources=pb.Sources(methods=sources).SerializeToString(),
    )


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    write_container(tmp_path, container(CONTRACT))
    return tmp_path


def test_what_is_written_is_read(directory: Path) -> None:
    read = read_container(directory)
    assert read == container(CONTRACT)
    assert read.digest == container(CONTRACT).digest
    assert len(read.digest) == 64
    assert load_contracts(directory) == {"forward": CONTRACT}


def test_writing_again_gives_the_same_bytes(directory: Path, tmp_path: Path) -> None:
    second = tmp_path / "second"
    second.mkdir()
    write_container(second, read_container(directory))
    for name in ("program.pb", "sources.pb"):
        assert (second / name).read_bytes() == (directory / name).read_bytes()


def test_every_part_takes_part_in_the_digest() -> None:
    original = container(CONTRACT)
    other = container(replace(CONTRACT, method="other"))
    changed = [
        replace(original, contract=other.contract),
        replace(original, graph=b""),
        replace(original, weights=pb.WeightsIndex(shards=[pb.Shard()]).SerializeToString()),
        replace(original, cases=pb.ProgramCases(cases=[pb.Case()]).SerializeToString()),
        replace(original, slipway_version="0.2.0"),
        replace(original, torch_version="2.14.0"),
        replace(original, python_version="3.12"),
        replace(original, versions={**original.versions, "operator_dialect": (1, 1)}),
    ]
    assert len({original.digest, *(item.digest for item in changed)}) == len(changed) + 1
    assert replace(original, sources=b"").digest == original.digest


def test_sources_can_be_dropped(directory: Path) -> None:
    (directory / "sources.pb").unlink()
    (relation,) = load_contracts(directory)["forward"].relations
    assert (str(relation), relation.source) == ("batch % 2 == 0", "")


def test_a_program_without_methods_or_with_two_of_one_name_is_corrupt() -> None:
    for contracts in ([], [CONTRACT, CONTRACT]):
        with pytest.raises(CorruptProgramError, match="methods"):
            container(*contracts).contracts()


def test_nesting_beyond_what_protobuf_reads_is_corrupt() -> None:
    nested = pb.Expression(constant=1).SerializeToString()
    for _ in range(200):
        for tag in (b"\x0a", b"\x1a"):  # Operands.operands, Expression.add
            length = bytes(
                [len(nested) & 127 | 128, len(nested) >> 7 & 127 | 128, len(nested) >> 14]
            )
            nested = tag + length + nested
    for tag in (b"\x12", b"\x12", b"\x1a", b"\x0a"):  # methods, inputs, tensor, shape, outwards
        length = bytes([len(nested) & 127 | 128, len(nested) >> 7 & 127 | 128, len(nested) >> 14])
        nested = tag + length + nested
    with pytest.raises(CorruptProgramError, match="contract section"):
        replace(container(CONTRACT), contract=nested).contracts()


# Damage -------------------------------------------------------------------------------------------


def test_a_program_cut_off_at_any_byte_is_a_program_error(directory: Path) -> None:
    path = directory / "program.pb"
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(ProgramError) as caught:
            load_contracts(directory)
        assert str(path) in str(caught.value)


def test_any_changed_bytes_are_a_program_error_or_change_nothing(directory: Path) -> None:
    path = directory / "program.pb"
    content = path.read_bytes()
    original = read_container(directory)
    source = random.Random(20230511)
    kinds: dict[type[Exception], int] = {}
    for _ in range(4000):
        damaged = bytearray(content)
        for _ in range(source.choice([1, 1, 2, 5])):
            damaged[source.randrange(len(damaged))] = source.randrange(256)
        path.write_bytes(damaged)
        try:
            read = read_container(directory)
            contracts = read.contracts()
        except ProgramError as error:
            kinds[type(error)] = kinds.get(type(error), 0) + 1
            assert str(path) in str(error)
        else:
            assert read == original
            assert contracts == {"forward": CONTRACT}
    assert kinds[CorruptProgramError] > 100
    assert kinds[DigestMismatchError] > 1000


def test_a_damaged_section_is_a_program_error_even_with_fitting_digests() -> None:
    original = container(CONTRACT)
    source = random.Random(7)
    for _ in range(4000):
        damaged = bytearray(original.contract)
        damaged[source.randrange(len(damaged))] = source.randrange(256)
        try:
            contracts = replace(original, contract=bytes(damaged)).contracts()
        except CorruptProgramError:
            continue
        assert all(isinstance(contract, Contract) for contract in contracts.values())


def test_altered_sources_never_change_what_is_legal(directory: Path) -> None:
    path = directory / "sources.pb"
    content = path.read_bytes()
    source = random.Random(3)
    for _ in range(500):
        damaged = bytearray(content)
        damaged[source.randrange(len(damaged))] = source.randrange(256)
        path.write_bytes(damaged)
        try:
            (relation,) = load_contracts(directory)["forward"].relations
        except ProgramError:
            continue
        assert relation.condition == CONTRACT.relations[0].condition


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "No such file"),
        (lambda path: path.write_bytes(b""), "the file is empty; copy or build it again"),
        (lambda path: path.write_bytes(b"\x10\x01"), "not a Slipway program"),
        (lambda path: path.write_bytes(b"PK\x03\x04 a zip archive"), "not a valid message"),
        (lambda path: os.truncate(path, 99), "not a valid message: .*; copy or build it again"),
        (lambda path: (path.unlink(), path.mkdir()), "is not a file"),
        (lambda path: (path.unlink(), os.mkfifo(path)), "is not a file"),
        (lambda path: (path.unlink(), path.symlink_to("/dev/zero")), "is not a file"),
        (lambda path: os.truncate(path, 2**40), "larger than a protobuf message"),
    ],
)
def test_what_is_no_program_is_named(
    directory: Path, damage: Callable[[Path], object], message: str
) -> None:
    path = directory / "program.pb"
    damage(path)
    with pytest.raises(CorruptProgramError, match=message) as caught:
        read_container(directory)
    assert str(caught.value).count(str(path)) == 1


def test_sources_that_are_no_file_are_not_waited_for(directory: Path) -> None:
    path = directory / "sources.pb"
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(CorruptProgramError, match=r"sources\.pb is not a file"):
        read_container(directory)


@pytest.mark.parametrize("missing", ["", "nowhere"])
def test_a_directory_that_is_empty_or_missing_says_what_a_program_is(
    tmp_path: Path, missing: str
) -> None:
    with pytest.raises(CorruptProgramError, match=r"a program is a directory with program\.pb"):
        read_container(tmp_path / missing)


# Versions -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["container", "contract_language", "operator_dialect"])
def test_a_newer_major_version_is_refused_naming_the_release_that_wrote_it(
    tmp_path: Path, part: str
) -> None:
    newer = container(CONTRACT)
    newer = replace(newer, slipway_version="7.1.0", versions={**newer.versions, part: (2, 3)})
    write_container(tmp_path, newer)
    with pytest.raises(UnsupportedVersionError) as caught:
        load_contracts(tmp_path)
    assert f"{part.replace('_', ' ')} is version 2.3, written by Slipway 7.1.0" in str(caught.value)


@pytest.mark.parametrize("part", ["container", "contract_language", "operator_dialect"])
def test_a_newer_minor_version_is_read(tmp_path: Path, part: str) -> None:
    newer = container(CONTRACT)
    newer = replace(newer, versions={**newer.versions, part: (1, 99)})
    write_container(tmp_path, newer)
    assert read_container(tmp_path) == newer


@pytest.mark.parametrize("part", ["container", "contract_language", "operator_dialect"])
def test_a_program_that_names_no_version_is_corrupt(tmp_path: Path, part: str) -> None:
    older = container(CONTRACT)
    write_container(tmp_path, replace(older, versions={**older.versions, part: (0, 5)}))
    with pytest.raises(CorruptProgramError, match="names no version"):
        read_container(tmp_path)


UNKNOWN_FIELD = bytes([0xBA, 0x3E, 3]) + b"new"  # field 999, of length 3


@pytest.mark.parametrize("part", ["", "versions", "producer", "digests"])
def test_fields_that_a_newer_minor_version_added_are_ignored(directory: Path, part: str) -> None:
    path = directory / "program.pb"
    message = pb.Program.FromString(path.read_bytes())
    section = getattr(message, part) if part else message
    section.MergeFromString(UNKNOWN_FIELD)
    assert UNKNOWN_FIELD in message.SerializeToString()
    path.write_bytes(message.SerializeToString())
    assert load_contracts(directory) == {"forward": CONTRACT}


# Without torch ------------------------------------------------------------------------------------


def test_contracts_are_read_and_checked_without_torch(directory: Path) -> None:
    script = """
import sys
from slipway.program import ContractViolation, ScalarType, load_contracts
contract = load_contracts(sys.argv[1])["forward"]
assert contract.check({"x": (ScalarType.FLOAT32, [2, 4])}) == (2,)
try:
    contract.check({"x": (ScalarType.FLOAT32, [65, 4])})
except ContractViolation as error:
    print(error.violations[0].nearest)
print(sorted({"torch", "numpy", "sympy"} & sys.modules.keys()))
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(directory)],
        env={"PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("64\n[]\n", "")


@pytest.mark.parametrize("section", ["contract", "graph", "weights", "cases", "sources"])
def test_a_section_that_is_too_large_is_not_even_parsed(section: str) -> None:
    large = replace(container(CONTRACT), **{section: bytes(2**26 + 1)})  # type: ignore[arg-type]
    read = {
        "contract": large.contracts,
        "graph": large.graphs,
        "weights": large.weights_index,
        "cases": large.cases_index,
        "sources": large.sources_index,
    }
    with pytest.raises(CorruptProgramError, match=f"the {section} section has 67108865 bytes"):
        read[section]()


def test_a_program_that_nobody_would_read_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ProgramError, match="the graph section has"):
        write_container(tmp_path, replace(container(CONTRACT), graph=bytes(2**25 + 1)))
    assert not list(tmp_path.iterdir())
    write_container(tmp_path, replace(container(CONTRACT), graph=bytes(2**25)))
    assert len(read_container(tmp_path).graph) == 2**25
