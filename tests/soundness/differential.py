"""Compares what contracts say of random calls with what models, graphs and torch make of them."""

from __future__ import annotations

import functools
import random
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx.experimental import _config as shape_config
from torch.utils import _pytree as pytree

from slipway.export import Dim, ExportSpec, export_spec
from slipway.program import Contract, ContractViolation, Program
from slipway.program.contract import find_binders
from slipway.program.torch_types import from_torch
from slipway.tests.soundness.subjects import AUTO, Subject

__all__ = ["CALLS", "Tally", "examine"]

CALLS = 300


@dataclass
class Tally:
    """What came of the calls of one or more models.

    Attributes:
      decisions: how many there were.
      accepted: how many of them the contract accepts.
      retraced: how many of these torch's guards refuse, though tracing at that size gives the same.
      unsound: for each call that the contract should have refused, what is wrong.
      tied: for each that it refuses since it gives one symbol several sizes, though model and
        graph would agree (where an operator broadcasts 1, mostly), what it says.
      coincidences: for each other that it refuses, where tracing gives another graph that happens
        to agree (on a tensor without elements all do, mostly) or outputs of other shapes than the
        contract promises, what it says.
      over_strict: for each that it refuses needlessly, since tracing gives the graph of the
        program, what it says.
    """

    decisions: int = 0
    accepted: int = 0
    retraced: int = 0
    unsound: list[str] = field(default_factory=list)
    tied: list[str] = field(default_factory=list)
    coincidences: list[str] = field(default_factory=list)
    over_strict: list[str] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        self.decisions += other.decisions
        self.accepted += other.accepted
        self.retraced += other.retraced
        self.unsound += other.unsound
        self.tied += other.tied
        self.coincidences += other.coincidences
        self.over_strict += other.over_strict


@dataclass(frozen=True, slots=True)
class _Call:
    """The tensors of a call."""

    tensors: tuple[torch.Tensor, ...]

    def __str__(self) -> str:
        return ", ".join(
            f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"
            for tensor in self.tensors
        )


def examine(subject: Subject, calls: int = CALLS) -> Tally:
    """Exports a model and decides on random calls of it."""
    program = _export(subject)
    torch_module = _export_with_torch(subject)
    # Not hash(), which differs from process to process.
    source = random.Random(zlib.crc32(subject.name.encode()))
    tally = Tally()
    for _ in range(calls):
        _decide(subject, program, torch_module, _draw(subject, program.contract, source), tally)
    return tally


def _export(subject: Subject) -> Program:
    tensors = _tensors([item.example for item in subject.inputs], subject, random.Random(0))
    as_text = bool(subject.relations) or any(
        isinstance(item, frozenset) for item in subject.ranges.values()
    )
    symbols = {
        name: set(item) if isinstance(item, frozenset) else item
        for name, item in subject.ranges.items()
    }
    return export_spec(
        ExportSpec(
            model=subject.model,
            args=subject.arrange(tensors),
            dynamic_shapes=subject.arrange(_as_text(subject) if as_text else _as_dims(subject)),
            symbols=symbols if as_text else None,
            relations=tuple(subject.relations),
        )
    )


def _as_text(subject: Subject) -> list[str]:
    return [", ".join(map(str, item.sizes)) for item in subject.inputs]


def _as_dims(subject: Subject) -> list[dict[int, Any]]:
    symbols = {
        name: Dim(name, min=limits[0], max=limits[1])
        for name, limits in subject.ranges.items()
        if isinstance(limits, tuple)
    }

    def dimension(size: Any, form: Any) -> Any:
        if form is None:
            return None if isinstance(size, int) else Dim.AUTO
        symbol = symbols[form.symbol]
        scaled = form.factor * symbol if form.factor != 1 else symbol
        return scaled + form.offset if form.offset else scaled

    return [
        {place: dimension(size, item.form(place)) for place, size in enumerate(item.sizes)}
        for item in subject.inputs
    ]


def _export_with_torch(subject: Subject) -> Callable[..., Any]:
    """Returns torch's own export, whose guards are those of tracing and no declaration."""
    module = torch.nn.Module()
    module.forward = lambda *tensors: subject.model(*subject.arrange(tensors))
    tensors = _tensors([item.example for item in subject.inputs], subject, random.Random(0))
    shapes = tuple(
        {
            place: Dim.STATIC if isinstance(size, int) else Dim.AUTO
            for place, size in enumerate(item.sizes)
        }
        for item in subject.inputs
    )
    # As Slipway traces: otherwise the guards refuse legal sizes of 0 and 1.
    with torch.no_grad(), shape_config.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]
        exported = torch.export.export(module, tensors, dynamic_shapes={"tensors": shapes})
    return exported.module()


def _tensors(
    shapes: Sequence[Sequence[int]], subject: Subject, source: random.Random
) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(source.getrandbits(32))
    return tuple(
        torch.randn(tuple(shape), generator=generator).to(item.dtype)
        if item.dtype.is_floating_point
        else torch.randint(0, 5, tuple(shape), generator=generator, dtype=item.dtype)
        for shape, item in zip(shapes, subject.inputs, strict=True)
    )


def _draw(subject: Subject, contract: Contract, source: random.Random) -> _Call:
    """Returns a call: a legal one, one that is nearly legal, or any."""
    shapes = _near_contract(subject, contract, source)
    kind = source.random()
    if kind < 0.35:
        # One dimension somewhat off, or of a size that is often treated apart.
        places = [(i, j) for i, shape in enumerate(shapes) for j in range(len(shape))]
        which, dimension = source.choice(places)
        size = shapes[which][dimension]
        shapes[which][dimension] = max(0, source.choice((size + 1, size - 1, 2 * size, 0, 1, 2)))
    elif kind < 0.5:
        shapes = [
            [
                size if isinstance(size, int) else source.randint(0, subject.largest)
                for size in item.sizes
            ]
            for item in subject.inputs
        ]
    elif kind < 0.54:
        shape = source.choice(shapes)
        shape.insert(source.randint(0, len(shape)), source.choice((1, 2)))
    elif kind < 0.58:
        shape = source.choice(shapes)
        shape.pop(source.randrange(len(shape)))
    tensors = _tensors(shapes, subject, source)
    if 0.58 <= kind < 0.62:
        other = source.randrange(len(tensors))
        tensors = tuple(
            tensor.to(source.choice((torch.float64, torch.int32, torch.float16)))
            if place == other
            else tensor
            for place, tensor in enumerate(tensors)
        )
    return _Call(tensors)


def _near_contract(subject: Subject, contract: Contract, source: random.Random) -> list[list[int]]:
    """Returns shapes for values of the symbols within their ranges, and a little outside."""
    shapes: list[list[int]] = []
    for _ in range(20):
        values = []
        for symbol in contract.symbols:
            high = subject.largest if symbol.maximum is None else symbol.maximum + 1
            values.append(source.randint(max(0, symbol.minimum - 1), max(high, symbol.minimum)))
        shapes = [
            [max(0, size.evaluate(values)) for size in spec.shape]
            for spec in contract.tensor_inputs.values()
        ]
        # Where relations are rarely satisfied by chance, not all calls should be illegal.
        if contract.is_legal(values) or source.random() < 0.1:
            break
    return shapes


def _decide(
    subject: Subject,
    program: Program,
    torch_module: Callable[..., Any],
    call: _Call,
    tally: Tally,
) -> None:
    tally.decisions += 1
    contract = program.contract
    refusal: ContractViolation | None = None
    binding: tuple[int, ...] = ()
    try:
        binding = contract.check(
            {
                name: (from_torch(tensor.dtype), tensor.shape)
                for name, tensor in zip(contract.tensor_inputs, call.tensors, strict=True)
            }
        )
    except ContractViolation as error:
        assert error.violations
        refusal = error
    with torch.no_grad():
        expected = _outcome(lambda: subject.model(*subject.arrange(call.tensors)))
        actual = _outcome(lambda: program.methods["forward"].run(call.tensors))
    agree = expected is not None and actual is not None and _equal(actual, expected)
    wrong = functools.partial(_record, tally.unsound, subject, call)
    declared = _is_declared(subject, call)
    defined = not subject.undefined(*call.tensors)
    if refusal is not None:
        if declared and defined and agree:
            _record(_kind_of(subject, program, call, refusal, tally), subject, call, str(refusal))
        return
    tally.accepted += 1
    if not defined:
        wrong("it is accepted, though an operator reads beyond its inputs")
    if not declared:
        wrong("it is accepted, though it was not declared legal")
    if not agree:
        wrong("it is accepted, but model and program differ")
        return
    assert actual is not None
    for broken in _broken_promises(program, binding, actual):
        wrong(broken)
    with torch.no_grad():
        theirs = _outcome(lambda: torch_module(*call.tensors))
    if theirs is None:
        tally.retraced += 1
        if not _same_when_traced_there(subject, program, call):
            wrong("it is accepted, but torch's guards refuse it, and tracing there gives another")


def _kind_of(
    subject: Subject, program: Program, call: _Call, refusal: ContractViolation, tally: Tally
) -> list[str]:
    """Returns the list that a refusal belongs to, where model and graph would agree."""
    if any(violation.code == "size" for violation in refusal.violations):
        return tally.tied
    if not _keeps_promise(program, call) or not _same_when_traced_there(subject, program, call):
        return tally.coincidences
    return tally.over_strict


def _keeps_promise(program: Program, call: _Call) -> bool:
    """Returns whether outputs have the shapes that a contract that accepts a call would promise."""
    contract = program.contract
    tensors = dict(zip(contract.tensor_inputs, call.tensors, strict=True))
    binding = [
        (tensors[item.input].shape[item.dimension] - item.offset) // item.factor
        for item in find_binders(contract)
    ]
    outputs = program.methods["forward"].run(call.tensors)
    return not any(_broken_promises(program, binding, outputs))


def _broken_promises(
    program: Program, binding: Sequence[int], outputs: Sequence[torch.Tensor]
) -> Iterator[str]:
    promised = program.contract.output_shapes(binding)
    for (name, shape), tensor in zip(promised.items(), outputs, strict=True):
        if len(shape) != tensor.dim() or any(
            size not in (None, length) for size, length in zip(shape, tensor.shape, strict=True)
        ):
            yield f"output {name} is promised as {shape}, but is {tuple(tensor.shape)}"


def _record(where: list[str], subject: Subject, call: _Call, text: str) -> None:
    where.append(f"{subject.name} ({call}): {text}")


def _outcome(run: Callable[[], Any]) -> list[Any] | None:
    """Returns the leaves of a result, or None if there is an exception instead."""
    try:
        return pytree.tree_leaves(run())
    except Exception:
        return None


def _equal(actual: Sequence[Any], expected: Sequence[Any]) -> bool:
    try:
        torch.testing.assert_close(actual, expected, equal_nan=True)
    except AssertionError:
        return False
    return True


def _is_declared(subject: Subject, call: _Call) -> bool:
    """Returns whether a call is one that the user declared legal, whatever the model needs."""
    values: dict[str, int] = {}
    for item, tensor in zip(subject.inputs, call.tensors, strict=True):
        if tensor.dtype is not item.dtype or tensor.dim() != len(item.sizes):
            return False
        for place, (size, actual) in enumerate(zip(item.sizes, tensor.shape, strict=True)):
            form = item.form(place)
            if form is None:
                if size not in (AUTO, actual):
                    return False
                continue
            value, remainder = divmod(actual - form.offset, form.factor)
            if remainder or values.setdefault(form.symbol, value) != value:
                return False
    for name, limits in subject.ranges.items():
        legal = limits if isinstance(limits, frozenset) else range(limits[0], limits[1] + 1)
        if values[name] not in legal:
            return False
    return all(holds(**values) for holds in subject.relations.values())


def _same_when_traced_there(subject: Subject, program: Program, call: _Call) -> bool:
    """Returns whether tracing at a call's very sizes gives the graph that the program has."""
    module = torch.nn.Module()
    module.forward = lambda *tensors: subject.model(*subject.arrange(tensors))
    with torch.no_grad():
        exported = torch.export.export(module, call.tensors)
    return any(
        len(ours) == len(theirs) and all(map(_same_operation, ours, theirs))
        for ours in _paths(program.methods["forward"].graph_module)
        for theirs in _paths(exported.graph_module)
    )


_NOT_ON_TENSORS = ("aten._assert", "aten.sym_", "aten.slice.Tensor")
"""Assertions, sizes, and slices, some of which take everything and are left out of programs."""


def _paths(module: torch.fx.GraphModule) -> list[list[torch.fx.Node]]:
    """Returns the operators on tensors, for each choice of branches.

    Where a condition is of sizes alone, tracing at given sizes takes one branch in its place. That
    it is the right one is seen from the results.
    """
    paths: list[list[torch.fx.Node]] = [[]]
    for node in module.graph.nodes:
        steps: list[list[torch.fx.Node]] = [[]]
        if node.target is torch.ops.higher_order.cond:
            branches = (getattr(module, branch.target) for branch in node.args[1:3])
            steps = [path for branch in branches for path in _paths(branch)]
        elif isinstance(node.target, torch._ops.OpOverload) and not str(node.target).startswith(
            _NOT_ON_TENSORS
        ):
            steps = [[node]]
        paths = [path + step for path in paths for step in steps]
    return paths


def _same_operation(ours: torch.fx.Node, theirs: torch.fx.Node) -> bool:
    """Returns whether two nodes call one operator with the same constants."""
    return ours.target == theirs.target and all(
        one == other
        for one, other in zip(
            pytree.tree_leaves(ours.args), pytree.tree_leaves(theirs.args), strict=False
        )
        if isinstance(one, int | float) and isinstance(other, int | float)
    )
