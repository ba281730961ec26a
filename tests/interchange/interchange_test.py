"""torch's exported programs as programs, and programs as torch's."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.export import Dim, ExportedProgram

from slipway.export import (
    ExportError,
    ExportErrorKind,
    export,
    from_exported_program,
    from_pt2,
    to_exported_program,
)
from slipway.export.gate import assert_same
from slipway.program import ContractViolation, load
from slipway.tests.interchange.subjects import SUBJECTS, Subject


@pytest.fixture(params=SUBJECTS, scope="module")
def archived(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Subject, Path]:
    subject = SUBJECTS[request.param]()
    path = tmp_path_factory.mktemp("archive") / "model.pt2"
    torch.export.save(subject.exported(), path)
    return subject, path


def test_a_program_of_an_archive_gives_what_torch_gives(
    archived: tuple[Subject, Path], tmp_path: Path
) -> None:
    subject, path = archived
    from_pt2(path).save(tmp_path / "it.program")
    program = load(tmp_path / "it.program")
    theirs = torch.export.load(path).module()
    for sizes in subject.sizes:
        args, kwargs = subject.call(*sizes)
        # Twice, since calls may change buffers.
        for _ in range(2):
            assert_same(program(*args, **kwargs), theirs(*args, **kwargs))


def test_the_contract_is_what_torch_says_and_no_wider(archived: tuple[Subject, Path]) -> None:
    subject, path = archived
    program = from_pt2(path)
    found = {item.name: (item.minimum, item.maximum) for item in program.contract.symbols}
    assert found == subject.symbols
    assert tuple(map(str, program.contract.relations)) == subject.relations
    for sizes in subject.illegal:
        args, kwargs = subject.call(*sizes)
        with pytest.raises(ContractViolation):
            program(*args, **kwargs)


def test_a_program_of_an_archive_is_the_same_every_time(
    archived: tuple[Subject, Path], tmp_path: Path
) -> None:
    _, path = archived
    for name in ("one", "other"):
        from_pt2(path).save(tmp_path / name)
    assert load(tmp_path / "one").digest == load(tmp_path / "other").digest


def test_torchs_program_of_a_program_gives_what_the_program_gives(
    archived: tuple[Subject, Path], tmp_path: Path
) -> None:
    subject, path = archived
    program = from_pt2(path)
    exported = to_exported_program(program)
    torch.export.save(exported, tmp_path / "back.pt2")
    theirs = torch.export.load(tmp_path / "back.pt2").module()
    for sizes in subject.sizes:
        args, kwargs = subject.call(*sizes)
        for _ in range(2):
            assert_same(theirs(*args, **kwargs), program(*args, **kwargs))
    program.reset()
    args, kwargs = subject.call(*subject.sizes[0])
    fresh = from_pt2(path)
    assert_same(program(*args, **kwargs), fresh(*args, **kwargs))


def test_all_three_let_in_the_same_sizes(archived: tuple[Subject, Path]) -> None:
    subject, path = archived
    program = from_pt2(path)
    back = to_exported_program(program)
    back_module = back.module()
    theirs = torch.export.load(path).module()
    again = from_exported_program(back, *subject.call(*subject.sizes[0]))
    for sizes in itertools.product(range(24), repeat=len(subject.sizes[0])):
        args, kwargs = subject.call(*sizes)
        taken = takes(program, args, kwargs)
        assert takes(again, args, kwargs) is taken, sizes
        # Torch lets in more: it forgets lower bounds below 3.
        assert not taken or takes(theirs, args, kwargs), sizes
        assert not taken or takes(back_module, args, kwargs), sizes


def takes(f: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    try:
        f(*args, **kwargs)
    except (AssertionError, ContractViolation, RuntimeError):
        return False
    return True


def exported(f: Callable[..., Any], *args: Any, dynamic: Any = None) -> ExportedProgram:
    module = torch.nn.Module()
    module.forward = f
    return torch.export.export(module, args, dynamic_shapes=dynamic)


def test_symbols_can_be_renamed() -> None:
    traced = exported(lambda x: x * 2, torch.ones(3), dynamic={"x": {0: Dim("n", min=1, max=4)}})
    program = from_exported_program(traced, symbol_names={"x_0": "batch"})
    assert program.contract.symbols[0].name == "batch"
    for names in ({"y_0": "batch"}, {"x_0": "no name"}):
        with pytest.raises(ExportError, match="symbol_names"):
            from_exported_program(traced, symbol_names=names)


def test_a_note_says_that_torch_does_not_look_at_sizes_0_and_1() -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        return x + 5 if x.shape[0] == 1 else x * 2

    def trace(minimum: int) -> ExportedProgram:
        dynamic = {"x": {0: Dim("n", min=minimum, max=64)}}
        return exported(model, torch.ones(8), dynamic=dynamic)

    # This is torch's own: it lets 1 in, and gives something else than the model.
    torch.testing.assert_close(trace(1).module()(torch.ones(1)), torch.full((1,), 2.0))
    notes = from_exported_program(trace(1)).contract.notes
    assert any(note.startswith("x_0 may be 1, since torch says so") for note in notes)
    # With 2 for its minimum there is nothing to warn of.
    (note,) = from_exported_program(trace(2)).contract.notes
    assert note.startswith("calls are not joined over 'x_0'")


def test_what_is_no_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "it.pt2"
    path.write_bytes(b"no archive")
    with pytest.raises(ExportError, match="torch cannot load") as caught:
        from_pt2(path)
    assert caught.value.kind is ExportErrorKind.INVALID_SPEC


def test_without_example_inputs_an_example_must_be_given() -> None:
    traced = exported(lambda x: x * 2, torch.ones(3, 2), dynamic={"x": {0: Dim.AUTO}})
    traced.example_inputs = None
    with pytest.raises(ExportError, match="no example inputs"):
        from_exported_program(traced)
    assert from_exported_program(traced, torch.ones(4, 2))(torch.ones(6, 2)).shape == (6, 2)


@pytest.mark.parametrize(
    ("example", "message"),
    [
        (torch.ones(4, 3), "with 2 as dimension 1; the example's is 3"),
        (torch.ones(4, 2, dtype=torch.int64), "as torch.float32 of rank 2; the example's is"),
        (torch.ones(4), "of rank 2; the example's is torch.float32 of rank 1"),
        (torch.ones(70, 2), "x_0 = 70; declared is 2..64"),
        ((torch.ones(4, 2), 1), "called otherwise than the example"),
        ((3,), "takes x as a Tensor, the example has an int"),
    ],
)
def test_an_example_that_does_not_fit_is_refused(example: Any, message: str) -> None:
    traced = exported(
        lambda x: x * 2, torch.ones(3, 2), dynamic={"x": {0: Dim("n", min=2, max=64)}}
    )
    with pytest.raises(ExportError, match=message) as caught:
        from_exported_program(traced, example)
    assert caught.value.kind is ExportErrorKind.INVALID_SPEC


def test_a_number_that_varies_is_refused() -> None:
    traced = exported(
        lambda x, k: x[:k], torch.ones(9), 3, dynamic={"x": {0: Dim.AUTO}, "k": Dim.AUTO}
    )
    with pytest.raises(ExportError, match="takes k as a SymInt"):
        from_exported_program(traced)


@pytest.mark.parametrize(
    "guard",
    [
        "__import__('os').system('true') == 0",
        "L['x'].size()[0] == round(L['x'].size()[0] / 2)",
        "L['x'].stride()[0] == 2",
        "L['x'].size()[7] == 2",
        "L['z'].size()[0] == 2",
        "L['x']",
        "L['x'].size()[0] ==",
        "[n for n in L]",
        "L.__class__ == 3",
    ],
)
def test_a_guard_that_no_contract_can_say_is_refused_and_not_run(guard: str) -> None:
    traced = exported(lambda x: x * 2, torch.ones(3, 2), dynamic={"x": {0: Dim.AUTO}})
    traced._guards_code.append(guard)
    with pytest.raises(ExportError) as caught:
        from_exported_program(traced)
    assert caught.value.kind is ExportErrorKind.CONSTRAINT_VIOLATION
    assert guard in caught.value.reason


def test_a_program_without_the_method_is_refused() -> None:
    program = export(lambda x: x * 2, torch.ones(3))
    with pytest.raises(ExportError, match="has no method 'other'"):
        to_exported_program(program, "other")


def test_sets_of_sizes_and_sources_of_relations_survive() -> None:
    program = export(
        lambda x: x * 2, torch.ones(4, 2), dynamic_shapes={"x": "n, 2"}, symbols={"n": {4, 8, 16}}
    )
    back = to_exported_program(program).module()
    assert_same(back(torch.ones(16, 2)), program(torch.ones(16, 2)))
    with pytest.raises(AssertionError):
        back(torch.ones(6, 2))
    again = from_exported_program(to_exported_program(program))
    for size in range(20):
        legal = size in (4, 8, 16)
        assert again.contract.is_legal((size,)) is legal


@pytest.mark.parametrize(
    ("relation", "holds"),
    [
        ("n == 2 or m == n", lambda n, m: n == 2 or m == n),
        ("n < m and m != 5", lambda n, m: n < m and m != 5),
        ("not (n < 2 or m < 2)", lambda n, m: not (n < 2 or m < 2)),
        ("max(n, m) < 5", lambda n, m: max(n, m) < 5),
        ("min(n, m) == 2", lambda n, m: min(n, m) == 2),
        ("m // 2 == n", lambda n, m: m // 2 == n),
    ],
)
def test_torchs_program_takes_the_sizes_for_which_a_relation_holds(
    relation: str, holds: Callable[[int, int], bool]
) -> None:
    program = export(
        lambda x: x * 2,
        torch.ones(2, 4),
        dynamic_shapes=("n, m",),
        symbols={"n": (1, 6), "m": (1, 6)},
        relations=[relation],
    )
    theirs = to_exported_program(program).module()
    for shape in itertools.product(range(1, 7), repeat=2):
        if holds(*shape):
            assert theirs(torch.ones(shape)).shape == shape
        else:
            with pytest.raises((AssertionError, RuntimeError)):
                theirs(torch.ones(shape))
