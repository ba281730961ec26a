"""Fourteen ways in which torch.export 2.13 accepts what its graph is not valid for, or the reverse.

Each hole has two sides. `torch` shows that torch still has it; when it fails, torch has closed it,
and what we do about it may be reconsidered. `slipway` shows that ours is closed. Both return what
they saw, in a line.
"""

from __future__ import annotations

import atexit
import copy
import functools
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch._decomp import core_aten_decompositions
from torch._export.serde import serialize
from torch.export import ExportedProgram
from torch.fx.experimental.proxy_tensor import make_fx

from slipway.export import Dim, export
from slipway.program import (
    ContractViolation,
    Program,
    ProgramError,
    ScalarType,
    load,
    load_contracts,
)
from slipway.program.container import Container, read_container, write_container
from slipway.proto import program_pb2 as pb

__all__ = ["HOLES", "Hole", "NotShownError"]


class NotShownError(Exception):
    """This machine lacks what it takes to show torch's side."""


@dataclass(frozen=True, slots=True)
class Hole:
    """A hole in what torch enforces.

    Attributes:
      number: as docs/soundness.md counts them.
      title: what is wrong.
      torch: raises AssertionError if torch does not have it any more.
      slipway: raises AssertionError if we have it too.
    """

    number: int
    title: str
    torch: Callable[[], str]
    slipway: Callable[[], str]


def _exported(
    f: Callable[..., Any], args: tuple[Any, ...], shapes: dict[str, Any] | None = None
) -> ExportedProgram:
    module = torch.nn.Module()
    module.forward = f
    return torch.export.export(module, args, dynamic_shapes=shapes)


def _decompositions() -> dict[Any, Callable[..., Any]]:
    return dict(core_aten_decompositions().items())  # type: ignore[no-untyped-call]


def _refusal(program: Program, *args: object) -> str:
    """Returns the text of the refusal of a call; fails if it is not refused."""
    try:
        result = program(*args)
    except ContractViolation as error:
        return f"refused: {error}"
    raise AssertionError(f"it is not refused, and gives {result!r}")


def _saved(program: Program) -> Program:
    """Returns a program as it is after it has been written and read."""
    with tempfile.TemporaryDirectory() as scratch:
        program.save(Path(scratch) / "program")
        return load(Path(scratch) / "program")


# 1. A symbol that never appears alone: what is derived from it loses its parity.


def _odd_and_even(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return x[1:] + y


_ODD_AND_EVEN = (torch.zeros(7), torch.zeros(6))


def _odd_and_even_shapes() -> dict[str, Any]:
    n = Dim("n", min=1, max=64)
    return {"x": {0: 2 * n + 1}, "y": {0: 2 * n}}


def _torch_1() -> str:
    module = _exported(_odd_and_even, _ODD_AND_EVEN, _odd_and_even_shapes()).module()
    assert module(torch.zeros(10), torch.zeros(9)).shape == (9,)
    return "2*n + 1 and 2*n accept 10 and 9"


def _slipway_1() -> str:
    program = export(_odd_and_even, _ODD_AND_EVEN, dynamic_shapes=_odd_and_even_shapes())
    assert program(torch.zeros(9), torch.zeros(8)).shape == (8,)
    return _refusal(program, torch.zeros(10), torch.zeros(9))


# 2. Lower bounds up to 2.


def _double(x: torch.Tensor) -> torch.Tensor:
    return x * 2


def _two_to_sixteen() -> dict[str, Any]:
    return {"x": {0: Dim("batch", min=2, max=16)}}


def _torch_2() -> str:
    module = _exported(_double, (torch.zeros(3, 8),), _two_to_sixteen()).module()
    for size in (0, 1):
        assert module(torch.zeros(size, 8)).shape == (size, 8)
    return "Dim(min=2) accepts 1 and 0"


def _slipway_2() -> str:
    program = export(_double, torch.zeros(3, 8), dynamic_shapes=_two_to_sixteen())
    assert program(torch.zeros(2, 8)).shape == (2, 8)
    _refusal(program, torch.zeros(0, 8))
    return _refusal(program, torch.zeros(1, 8))


# 3. The rank.


def _sum(x: torch.Tensor) -> torch.Tensor:
    return x.sum(0)


def _batch() -> dict[str, Any]:
    return {"x": {0: Dim("batch", min=1, max=16)}}


def _torch_3() -> str:
    module = _exported(_sum, (torch.zeros(4, 8),), _batch()).module()
    assert module(torch.zeros(4, 8, 3)).shape == (8, 3)
    return "a graph for (batch, 8) sums (4, 8, 3)"


def _slipway_3() -> str:
    program = export(_sum, torch.zeros(4, 8), dynamic_shapes=_batch())
    return _refusal(program, torch.zeros(4, 8, 3))


# 4. The dtype.


def _by_dtype(x: torch.Tensor) -> torch.Tensor:
    return x * 2 if x.dtype == torch.float32 else x * 3


def _torch_4() -> str:
    x = torch.ones(2, dtype=torch.float64)
    result = _exported(_by_dtype, (torch.ones(2),)).module()(x)
    assert result[0] == 2 != _by_dtype(x)[0]
    return "float64 silently takes the branch of float32: 2 instead of 3"


def _slipway_4() -> str:
    return _refusal(export(_by_dtype, torch.ones(2)), torch.ones(2, dtype=torch.float64))


# 5. How a tensor lies in memory.


def _by_stride(x: torch.Tensor) -> torch.Tensor:
    return x * 2 if x.stride(0) == x.shape[1] else x * 3


def _torch_5() -> str:
    x = torch.ones(3, 2).t()
    module = _exported(_by_stride, (torch.ones(2, 3),)).module()
    assert module(x)[0, 0] == 2 != _by_stride(x)[0, 0]
    module = _exported(_double, (torch.ones(2, 3),)).module()
    assert module(torch.eye(2, 3).to_sparse()).layout is torch.sparse_coo
    return "a transposed tensor silently takes the wrong branch; a sparse one is accepted"


def _slipway_5() -> str:
    sparse = torch.eye(2, 3).to_sparse()
    for strict in (False, True):
        program = _saved(export(_by_stride, torch.ones(2, 3), strict=strict))
        assert program(torch.ones(2, 3))[0, 0] == 2
        _refusal(program, sparse)
        refusal = _refusal(program, torch.ones(3, 2).t())
    # Where the model does not ask, any strides will do.
    indifferent = export(_double, torch.ones(2, 3))
    assert indifferent(torch.ones(3, 2).t()).shape == (2, 3)
    _refusal(indifferent, sparse)
    return refusal


# 6, 7, 8. Relations that are lost on the way.


def _by_eights(x: torch.Tensor) -> torch.Tensor:
    return x * 2 if x.shape[0] % 8 == 0 else x


_SIXTEEN = (torch.ones(16),)
_AUTOMATIC = {"x": {0: Dim.AUTO}}


def _accepts_nine(module: Callable[..., Any]) -> bool:
    result = module(torch.ones(9))
    assert result[0] == 2 != _by_eights(torch.ones(9))[0]
    return True


def _torch_6() -> str:
    exported = _exported(_by_eights, _SIXTEEN, _AUTOMATIC)
    try:
        exported.module()(torch.ones(9))
    except AssertionError:
        pass
    else:
        raise RuntimeError("the guard is not enforced in the first place")
    stripped = copy.copy(exported)
    stripped._example_inputs = None
    artifact = serialize.serialize(stripped)
    assert _accepts_nine(serialize.deserialize(artifact).module())
    return "without example inputs in the file, x.shape[0] % 8 == 0 is not enforced"


def _slipway_6() -> str:
    # No example is ever written, so none can be missing.
    return _refusal(_saved(export(_by_eights, _SIXTEEN, dynamic_shapes=_AUTOMATIC)), torch.ones(9))


def _torch_7() -> str:
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "exported.pt2"
        torch.export.save(_exported(_by_eights, _SIXTEEN, _AUTOMATIC), file)
        loaded = torch.export.load(file)
    assert _accepts_nine(loaded.run_decompositions({}).module())
    return "loading and run_decompositions({}) drop x.shape[0] % 8 == 0"


def _slipway_7() -> str:
    program = _saved(export(_by_eights, _SIXTEEN, dynamic_shapes=_AUTOMATIC))
    decomposed = make_fx(program.methods["forward"].graph_module, _decompositions())(torch.ones(8))
    assert decomposed(torch.ones(8))[0][0] == 2
    # The contract is no part of the graph, so nothing that is done to the graph can drop it.
    return _refusal(program, torch.ones(9))


def _torch_8() -> str:
    exported = _exported(_by_eights, _SIXTEEN, _AUTOMATIC)
    assert _accepts_nine(exported.module(check_guards=False))
    assert _accepts_nine(torch.export.unflatten(exported))
    return "unflatten() and module(check_guards=False) ignore x.shape[0] % 8 == 0"


def _slipway_8() -> str:
    program = export(_by_eights, _SIXTEEN, dynamic_shapes=_AUTOMATIC)
    with tempfile.TemporaryDirectory() as scratch:
        program.save(Path(scratch) / "program")
        (contract,) = load_contracts(Path(scratch) / "program").values()
    try:
        contract.check({"x": (ScalarType.FLOAT32, (9,))})
    except ContractViolation:
        return _refusal(program, torch.ones(9))
    raise AssertionError("the contract alone accepts 9")


# 9, 10, 11. Compiled code. What checks the call is the contract, before any engine sees it.


def _compiled_model(
    x: torch.Tensor, y: torch.Tensor, z: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    total = torch.cat([x, x, x[:1]]) + y
    return (total * 2 if x.shape[0] % 8 == 0 else total), z + 1


_COMPILED_ARGS = (torch.ones(8), torch.ones(17), torch.ones(3))


def _compiled_shapes() -> dict[str, Any]:
    return {"x": {0: Dim.AUTO}, "y": {0: Dim.AUTO}, "z": {0: Dim("batch", min=1, max=64)}}


def _run_compiled(loader: Any, *args: torch.Tensor) -> Any:
    return loader.run(list(args))


@functools.cache
def _compiled() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Returns what AOTInductor compiles, without and with its own check of inputs."""
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        raise NotShownError("there is no C++ compiler")
    scratch = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, scratch, ignore_errors=True)
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", f"{scratch}/cache")
    exported = _exported(_compiled_model, _COMPILED_ARGS, _compiled_shapes())
    runners: list[Callable[..., Any]] = []
    for name, check in (("unchecked", "0"), ("checked", "1")):
        package = f"{scratch}/{name}.pt2"
        if not runners:
            torch._inductor.aoti_compile_and_package(exported, package_path=package)
            first = package
        else:
            shutil.copy(first, package)
        # Read once by each library, when it runs first.
        os.environ["AOTI_RUNTIME_CHECK_INPUTS"] = check
        loader = torch._C._aoti.AOTIModelPackageLoader(package, "model", False, 1, -1)
        loader.run(list(_COMPILED_ARGS))
        runners.append(functools.partial(_run_compiled, loader))
    del os.environ["AOTI_RUNTIME_CHECK_INPUTS"]
    return runners[0], runners[1]


def _torch_9() -> str:
    args = (torch.ones(9), torch.ones(19), torch.ones(3))
    expected, _ = _compiled_model(*args)
    for run in _compiled():
        result = run(*args)[0]
        assert result.shape == expected.shape and result[0] == 2 * expected[0]
    return "AOTInductor takes the branch of 8 for 9, also with AOTI_RUNTIME_CHECK_INPUTS=1"


def _torch_10() -> str:
    run, _ = _compiled()
    result = run(torch.ones(8), torch.ones(3), torch.ones(3))[0]
    assert result.shape == (17,)
    return "AOTInductor reads 17 elements of an input that has 3"


def _torch_11() -> str:
    _, run = _compiled()
    try:
        run(torch.ones(8), torch.ones(17), torch.ones(1))
    except RuntimeError:
        return "with AOTI_RUNTIME_CHECK_INPUTS=1, AOTInductor refuses 1 where min=1 was declared"
    raise AssertionError("it accepts 1")


@functools.cache
def _contracted() -> Program:
    return _saved(export(_compiled_model, _COMPILED_ARGS, dynamic_shapes=_compiled_shapes()))


def _slipway_9() -> str:
    return _refusal(_contracted(), torch.ones(9), torch.ones(19), torch.ones(3))


def _slipway_10() -> str:
    program = _contracted()
    _refusal(program, torch.ones(8), torch.ones(17, dtype=torch.int32), torch.ones(3))
    _refusal(program, torch.ones(8), torch.ones(17, 1), torch.ones(3))
    _refusal(program, torch.ones(8), torch.ones(17), torch.ones(65))
    return _refusal(program, torch.ones(8), torch.ones(3), torch.ones(3))


def _slipway_11() -> str:
    result = _contracted()(torch.ones(8), torch.ones(17), torch.ones(1))
    assert result[1].shape == (1,)
    return "accepted: 1, as declared"


# 12. Guards are text that is executed.


def _torch_12() -> str:
    with tempfile.TemporaryDirectory() as scratch:
        trace = Path(scratch) / "executed"
        artifact = serialize.serialize(_exported(_by_eights, _SIXTEEN, _AUTOMATIC))
        document = json.loads(artifact.exported_program)
        document["guards_code"] = [f"__import__('pathlib').Path({str(trace)!r}).touch() is None"]
        artifact.exported_program = json.dumps(document).encode()
        serialize.deserialize(artifact).module()(torch.ones(16))
        assert trace.exists()
    return "text from guards_code of the file is executed"


def _slipway_12() -> str:
    with tempfile.TemporaryDirectory() as scratch:
        trace = Path(scratch) / "executed"
        code = f"__import__('pathlib').Path({str(trace)!r}).touch()"
        tampered = 0
        for alter in _alterations(code):
            directory = Path(scratch) / str(tampered)
            export(_by_eights, _SIXTEEN, dynamic_shapes=_AUTOMATIC).save(directory)
            container = read_container(directory)
            contract = pb.ProgramContract.FromString(container.contract)
            graph = pb.ProgramGraph.FromString(container.graph)
            alter(contract.methods[0], graph)
            _write_again(directory, container, contract, graph)
            tampered += 1
            try:
                program = load(directory)
                program(torch.ones(9))
            except (ProgramError, ContractViolation):
                pass
            assert not trace.exists()
    return (
        f"code in each of {tampered} texts of a program, with the digests made to fit, never runs"
    )


def _alterations(code: str) -> Sequence[Callable[[pb.Contract, pb.ProgramGraph], None]]:
    def operator_name(contract: pb.Contract, graph: pb.ProgramGraph) -> None:
        graph.operators[0].name = code

    def operator_schema(contract: pb.Contract, graph: pb.ProgramGraph) -> None:
        graph.operators[0].schema = code

    def symbol(contract: pb.Contract, graph: pb.ProgramGraph) -> None:
        contract.symbols[0].name = code

    def method(contract: pb.Contract, graph: pb.ProgramGraph) -> None:
        contract.method = code

    def names(contract: pb.Contract, graph: pb.ProgramGraph) -> None:
        contract.inputs[0].name = contract.parameters[0] = contract.outputs[0].name = code

    def container(contract: pb.Contract, graph: pb.ProgramGraph) -> None:
        tree = contract.output_tree
        tree.kind = pb.Tree.RECORD
        tree.type_name = code
        tree.children.add(kind=pb.Tree.LEAF)
        tree.keys.add(string=code)

    return (operator_name, operator_schema, symbol, method, names, container)


def _write_again(
    directory: Path, container: Container, contract: pb.ProgramContract, graph: pb.ProgramGraph
) -> None:
    altered = replace(
        container,
        contract=contract.SerializeToString(deterministic=True),
        graph=graph.SerializeToString(deterministic=True),
    )
    (directory / "program.pb").unlink()
    write_container(directory, altered)


# 13. A program with a derived dimension cannot be decomposed once it has been loaded.


def _torch_13() -> str:
    k = Dim("k", min=1, max=8)
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "exported.pt2"
        torch.export.save(_exported(_double, (torch.ones(6),), {"x": {0: 2 * k}}), file)
        loaded = torch.export.load(file)
    try:
        loaded.run_decompositions({})
    except AssertionError:
        return "run_decompositions({}) of a loaded program with 2*k crashes"
    raise AssertionError("it can be decomposed")


def _slipway_13() -> str:
    k = Dim("k", min=1, max=8)
    program = _saved(export(_double, torch.ones(6), dynamic_shapes={"x": {0: 2 * k}}))
    graph = program.methods["forward"].graph_module
    decomposed = make_fx(graph, _decompositions(), tracing_mode="symbolic")(torch.ones(6))
    assert decomposed(torch.ones(10))[0].shape == (10,)
    return "a loaded program with 2*k is an fx graph that can be decomposed"


# 14. Legal sizes are refused, because tracing took 0 and 1 for special.


def _heads(x: torch.Tensor) -> torch.Tensor:
    return x.view(-1, 8, 8)


def _multiples_of_eight() -> dict[str, Any]:
    return {"x": {0: 8 * Dim("b", min=1, max=16)}}


def _torch_14() -> str:
    module = _exported(_heads, (torch.ones(16, 8),), _multiples_of_eight()).module()
    try:
        module(torch.ones(8, 8))
    except AssertionError:
        return "8*b with min=1 refuses 8"
    raise AssertionError("it accepts 8")


def _slipway_14() -> str:
    for rows in (8, 16):
        example = torch.ones(rows, 8)
        program = export(_heads, example, dynamic_shapes=_multiples_of_eight())
        assert program(torch.ones(8, 8)).shape == (1, 8, 8)
        assert program(torch.ones(128, 8)).shape == (16, 8, 8)
    return "accepted: 8, also with 8 as the example"


HOLES = (
    Hole(1, "derived sizes lose their form where the symbol is hidden", _torch_1, _slipway_1),
    Hole(2, "lower bounds up to 2 are not enforced", _torch_2, _slipway_2),
    Hole(3, "the rank is not checked", _torch_3, _slipway_3),
    Hole(4, "the dtype is not checked", _torch_4, _slipway_4),
    Hole(5, "strides and layout are not checked", _torch_5, _slipway_5),
    Hole(6, "guards vanish with the example inputs", _torch_6, _slipway_6),
    Hole(7, "guards vanish with decompositions after loading", _torch_7, _slipway_7),
    Hole(8, "guards are ignored by unflatten", _torch_8, _slipway_8),
    Hole(9, "compiled code ignores relations", _torch_9, _slipway_9),
    Hole(10, "compiled code reads beyond its inputs", _torch_10, _slipway_10),
    Hole(11, "compiled code refuses a legal size of 1", _torch_11, _slipway_11),
    Hole(12, "guards are text that is executed", _torch_12, _slipway_12),
    Hole(13, "a loaded program with derived sizes cannot be decomposed", _torch_13, _slipway_13),
    Hole(14, "legal sizes of 1 are refused", _torch_14, _slipway_14),
)
