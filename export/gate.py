"""The differential gate: a program is kept only if it does what the model does.

Cases are the example, the corners of the contract and points between them. On each, the model runs
eagerly and the program, as read back from its protobuf form, runs on the same inputs; results are
compared with torch.testing's tolerances for their dtype (1.3e-6 relative and 1e-5 absolute for
float32). Where the model computes otherwise than it was traced, and that is only rounding, it is
made to compute as it was traced. Outputs must also have the shapes that the contract promises.
"""

from __future__ import annotations

import contextlib
import itertools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch.utils import _pytree as pytree

from slipway.export.containers import tree_of
from slipway.export.diagnosis import diagnose
from slipway.export.errors import ExportError, ExportErrorKind
from slipway.export.resizing import binding_of, resized_leaves
from slipway.export.rounding import computing_as_traced, differ_by_rounding
from slipway.export.sources import user_line_of_exception
from slipway.export.translation import is_from_tracing, translate
from slipway.program.contract import Contract, Symbol
from slipway.program.errors import ContractViolation, DataViolation
from slipway.program.program import Program
from slipway.program.trees import Tree

__all__ = [
    "assert_same",
    "bindings",
    "call_text",
    "check_against_eager",
    "compare",
    "compared_bindings",
    "left_out_note",
    "preserved_buffers",
    "run_model",
]

_MAXIMUM_ELEMENTS = 1 << 20
"""A case with more input elements than this is left out, so that a build does not wait for it."""

_MAXIMUM_CASES = 8

_FEW = 16
"""How much larger than its least a size is where it is another that matters."""

_UNBOUNDED = 97
"""What stands for the upper end of a symbol without one."""


def check_against_eager(
    model: torch.nn.Module, program: Program, name: str, example: Sequence[object]
) -> list[str]:
    """Compares a method of a program with the model that it was made from.

    Returns:
      What was left out, for people to read.

    Args:
      model: the module; its buffers are left as they were.
      program: made from its protobuf form; its state is left as it was.
      name: the method's.
      example: the leaves of the example call, in the order of `contract.inputs`.

    Raises:
      ExportError: they differ, or the program refuses a legal call.
    """
    contract = program.methods[name].contract
    compare(model, program, name, list(example), "on the example")
    left_out = []
    for binding in compared_bindings(contract):
        where = call_text(contract, binding)
        leaves = resized_leaves(contract, binding, example, _MAXIMUM_ELEMENTS)
        if leaves is None:
            left_out.append(left_out_note(where))
        else:
            spare = partial(resized_leaves, contract, binding, example, whole=True)
            compare(model, program, name, leaves, f"for {where}", spare)
    _require_refusals(contract, example)
    return left_out


def compared_bindings(contract: Contract) -> list[tuple[int, ...]]:
    """Returns the values of the symbols for which a program is compared with its model."""
    usual = itertools.islice(bindings(contract), _MAXIMUM_CASES)
    small = itertools.islice(_small_sizes(contract), 2 * _MAXIMUM_CASES)
    ends = itertools.islice(_opposite_ends(contract), _MAXIMUM_CASES)
    return list(dict.fromkeys([*usual, *small, *ends]))


def call_text(contract: Contract, binding: Sequence[int]) -> str:
    """Returns values of the symbols as people write them: `batch = 1, length = 8`."""
    return ", ".join(
        f"{symbol.name} = {value}" for symbol, value in zip(contract.symbols, binding, strict=True)
    )


def left_out_note(where: str) -> str:
    """Returns what a contract notes of a call that was too large to be compared."""
    return f"not compared with the model for {where}: too large"


def _require_refusals(contract: Contract, example: Sequence[object]) -> None:
    """Checks that the contract refuses what lies just outside the range of a symbol."""
    usual = binding_of(contract, example)
    for index, symbol in enumerate(contract.symbols):
        outside = {symbol.minimum - 1} | ({symbol.maximum + 1} if symbol.maximum else set())
        for value in sorted(item for item in outside if item >= 0):
            binding = (*usual[:index], value, *usual[index + 1 :])
            shapes = {
                name: (spec.dtype, [size.evaluate(binding) for size in spec.shape])
                for name, spec in contract.tensor_inputs.items()
            }
            try:
                contract.check(shapes)
            except ContractViolation:
                continue
            raise ExportError(
                ExportErrorKind.DIFFERS_FROM_EAGER,
                f"the contract accepts {symbol.name} = {value}, outside {symbol.allowed}",
                "this is a defect of Slipway; please report it with the model",
            )


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What a call left behind: its result, its arguments, and the state that it changed."""

    result: Any
    arguments: Any
    state: Mapping[str, torch.Tensor]


def compare(
    model: torch.nn.Module,
    program: Program,
    name: str,
    leaves: list[object],
    where: str,
    spare: Callable[[], list[object] | None] | None = None,
) -> None:
    """Compares a method of a program with its model on one call.

    Where the model fails for the values, others are tried: what `spare` gives, and then integers
    are 0, or 1 as lengths mostly are.

    Raises:
      ExportError: the model fails, the program refuses the call, they differ, or an output has
        another shape than the contract says. The text has `where` in it.
    """
    tree = program.methods[name].contract.input_tree
    if program.methods[name].checks_indices and _refuses(program, name, _call(tree, leaves)):
        # Torch does not look at such values, and may end the process.
        for values in _other_values(leaves, spare):
            if not _refuses(program, name, _call(tree, values)):
                return compare(model, program, name, values, where)
        return
    try:
        expected = _run_model(model, _call(tree, leaves), program.state)
    except Exception as error:
        if _refuses(program, name, _call(tree, leaves)):
            return  # so does the model, by failing
        for values in _other_values(leaves, spare):
            if run_model(model, program.methods[name].contract, values) is not None:
                return compare(model, program, name, values, where)
        if is_from_tracing(error):
            meaning = translate(error)
            raise ExportError(
                meaning.kind,
                f"{meaning.reason}, {where}",
                meaning.advice,
                meaning.source,
                cause=meaning.cause,
                page=meaning.page,
            ) from error
        raise ExportError(
            ExportErrorKind.INVALID_SPEC,
            f"the model itself fails {where}, which is declared legal: "
            f"{type(error).__name__}: {error}",
            "declare only shapes that the model can take, or mend the model; if it is only the "
            "values that it cannot take, which are the example's, repeated or cut off, give an "
            "example of the largest size",
            user_line_of_exception(error),
        ) from error
    try:
        actual = _run_program(program, name, _call(tree, leaves))
    except Exception as error:
        verb = "refuses" if isinstance(error, ContractViolation | DataViolation) else "fails"
        raise ExportError(
            ExportErrorKind.DIFFERS_FROM_EAGER,
            f"the program {verb} {where}, which the model can take: {error}",
            "declare a range without that size; if the model treats it like any other, this is a "
            "defect of Slipway: please report it",
        ) from error
    _require_promised_shapes(program.methods[name].contract, actual.result, leaves, where)
    try:
        assert_same(actual.result, expected.result)
    except AssertionError:
        as_traced = run_model(model, program.methods[name].contract, leaves)
        if differ_by_rounding(expected.result, as_traced):
            expected = replace(expected, result=as_traced)
    for what, one, other in (
        ("give different results", actual.result, expected.result),
        ("change their arguments differently", actual.arguments, expected.arguments),
        ("change their buffers differently", actual.state, expected.state),
    ):
        try:
            assert_same(one, other)
        except AssertionError as error:
            why = diagnose(model, lambda: _run_again(model, _call(tree, leaves)))
            raise ExportError(
                ExportErrorKind.DIFFERS_FROM_EAGER,
                f"{why.reason}: the program and the model {what} {where}",
                why.advice,
                cause=" ".join(str(error).split()),
            ) from error


def _other_values(
    leaves: Sequence[object], spare: Callable[[], list[object] | None] | None
) -> Iterator[list[object]]:
    """Yields calls of the same sizes, for a model that fails for the values of one."""
    others = spare() if spare is not None else None
    if others is not None:
        yield others
    for value in (0, 1):
        yield [_fill_integers(leaf, value) for leaf in leaves]


def _fill_integers(leaf: object, value: int) -> object:
    """Returns small indices or lengths; a smaller tensor may lack the example's."""
    if not isinstance(leaf, torch.Tensor) or leaf.is_floating_point() or leaf.is_complex():
        return leaf
    return leaf if leaf.dtype is torch.bool else torch.full_like(leaf, value)


def _refuses(program: Program, name: str, call: tuple[tuple[Any, ...], dict[str, Any]]) -> bool:
    """Returns whether a program does not take a call for the values in it."""
    try:
        _run_program(program, name, call)
    except DataViolation:
        return True
    except Exception:
        return False  # it fails in some other way, and so does the model
    return False


def _require_promised_shapes(
    contract: Contract, result: Any, leaves: Sequence[object], where: str
) -> None:
    """Checks that the outputs have the shapes that the contract says they have."""
    given = {
        spec.name: (spec.tensor.dtype, leaf.shape)
        for spec, leaf in zip(contract.inputs, leaves, strict=True)
        if spec.tensor is not None and isinstance(leaf, torch.Tensor)
    }
    promised = contract.output_shapes(contract.check(given))
    outputs = contract.output_tree.flatten(result, "output")
    for spec, output in zip(contract.outputs, outputs, strict=True):
        if spec.tensor is None or not isinstance(output, torch.Tensor):
            continue
        shape = promised[spec.name]
        if len(shape) != output.dim() or any(
            size not in (None, length) for size, length in zip(shape, output.shape, strict=True)
        ):
            raise ExportError(
                ExportErrorKind.CONSTRAINT_VIOLATION,
                f"output '{spec.name}' is {spec.tensor} in general, but of the shape "
                f"{list(output.shape)} {where}",
                "declare a range without that size, or change the line that treats it apart, such "
                "as a squeeze() of a dynamic dimension",
            )


def assert_same(actual: Any, expected: Any) -> None:
    """Raises AssertionError unless two results have the same structure and values.

    Tensors must agree in dtype and shape, and within torch.testing's tolerances for the dtype.
    """
    ours, our_tree = pytree.tree_flatten(actual)
    theirs, their_tree = pytree.tree_flatten(expected)
    assert len(ours) == len(theirs), f"there are {len(ours)} values instead of {len(theirs)}"
    # As a program sees them: what a model returns as its own kind of dict is a dict.
    assert tree_of(our_tree, "a result") == tree_of(their_tree, "a result"), (
        f"results are nested as {our_tree} instead of {their_tree}"
    )
    for one, other in zip(ours, theirs, strict=True):
        tensors = isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor)
        assert tensors or type(one) is type(other), f"{one!r} is not {other!r}"
        if isinstance(other, torch.Tensor):
            torch.testing.assert_close(one, other.detach(), equal_nan=True)
        else:
            assert one == other or (one != one and other != other), f"{one!r} is not {other!r}"


def run_model(model: torch.nn.Module, contract: Contract, leaves: Sequence[object]) -> Any:
    """Returns what a model gives for a call, as a graph computes it; None if it fails for that.

    Args:
      model: its buffers are left as they were.
      contract: of the call.
      leaves: of the call; they are left as they are.
    """
    try:
        with computing_as_traced(model):
            return _run_model(model, _call(contract.input_tree, leaves), {}).result
    except Exception:
        # Whatever a model raises: the gate has already decided whether it may.
        return None


def _run_model(
    model: torch.nn.Module,
    call: tuple[tuple[Any, ...], dict[str, Any]],
    state: Mapping[str, torch.Tensor],
) -> _Outcome:
    args, kwargs = call
    with torch.no_grad(), torch.random.fork_rng(devices=[]), preserved_buffers(model):
        torch.manual_seed(0)
        result = pytree.tree_map_only(torch.Tensor, torch.clone, model(*args, **kwargs))
        now = dict(model.named_buffers(remove_duplicate=False))
        now |= dict(model.named_parameters(remove_duplicate=False))
        changed = {name: now[name].detach().clone() for name in state if name in now}
    return _Outcome(result, call, changed)


def _run_again(model: torch.nn.Module, call: tuple[tuple[Any, ...], dict[str, Any]]) -> Any:
    args, kwargs = call
    with preserved_buffers(model):
        return pytree.tree_map_only(torch.Tensor, torch.clone, model(*args, **kwargs))


def _run_program(
    program: Program, name: str, call: tuple[tuple[Any, ...], dict[str, Any]]
) -> _Outcome:
    args, kwargs = call
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        # Another seed than the model's, so that whatever is random shows.
        torch.manual_seed(1)
        try:
            result = program.methods[name](*args, **kwargs)
            result = pytree.tree_map_only(torch.Tensor, torch.clone, result)
            changed = {key: tensor.clone() for key, tensor in program.state.items()}
        finally:
            program.reset()
    return _Outcome(result, call, changed)


@contextlib.contextmanager
def preserved_buffers(model: torch.nn.Module) -> Iterator[None]:
    """Puts a model's buffers back to what they were, in value and identity."""
    kept = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    try:
        yield
    finally:
        for module, name, buffer, value in kept:
            buffer.copy_(value)
            module._buffers[name] = buffer


def _call(tree: Tree, leaves: Sequence[object]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    # A model may change its inputs, and then the other side must not see that.
    fresh = (leaf.clone() if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves)
    call: Any = tree.unflatten(fresh)
    args, kwargs = call
    return args, kwargs


def bindings(contract: Contract) -> Iterator[tuple[int, ...]]:
    """Yields legal values of the symbols: the lowest, 1, the highest, and some between."""
    if not contract.symbols:
        return
    source = random.Random(0)
    candidates = itertools.chain(
        [tuple(symbol.minimum for symbol in contract.symbols)],
        # 1 is the size that models and torch itself treat apart.
        [tuple(max(symbol.minimum, 1) for symbol in contract.symbols)],
        [tuple(_highest(symbol) for symbol in contract.symbols)],
        (
            tuple(source.randint(item.minimum, _highest(item)) for item in contract.symbols)
            for _ in range(64)
        ),
    )
    seen = set()
    for binding in candidates:
        if binding not in seen and contract.is_legal(binding):
            seen.add(binding)
            yield binding


def _small_sizes(contract: Contract) -> Iterator[tuple[int, ...]]:
    """Yields legal values of which one is 0 or 1 and, where that is possible, no other is.

    Torch takes it for granted that sizes are more when it finds out how sizes depend on others.
    """
    if len(contract.symbols) < 2:
        return  # these are among the others
    source = random.Random(0)
    for index, symbol in enumerate(contract.symbols):
        for value in range(symbol.minimum, min(2, _highest(symbol) + 1)):
            for _ in range(64):
                others = [_more_than_one(item, source) for item in contract.symbols]
                binding = (*others[:index], value, *others[index + 1 :])
                if contract.is_legal(binding):
                    yield binding
                    break


def _opposite_ends(contract: Contract) -> Iterator[tuple[int, ...]]:
    """Yields legal values of which one is the lowest and the others are the highest, or reversed.

    A size that is an index, or is taken from another, is first too large where that one is lowest.
    """
    ends = [(symbol.minimum, _highest(symbol)) for symbol in contract.symbols]
    for index, one_end in itertools.product(range(len(ends)), (0, 1)):
        binding = [symbol_ends[1 - one_end] for symbol_ends in ends]
        binding[index] = ends[index][one_end]
        if contract.is_legal(binding):
            yield tuple(binding)


def _more_than_one(symbol: Symbol, source: random.Random) -> int:
    highest = _highest(symbol)
    low = min(max(symbol.minimum, 2), highest)
    return source.randint(low, min(low + _FEW, highest))


def _highest(symbol: Symbol) -> int:
    return max(symbol.minimum, _UNBOUNDED) if symbol.maximum is None else symbol.maximum
