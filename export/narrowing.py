"""Decides whether a condition that tracing relied on holds for every shape that was declared."""

from __future__ import annotations

import enum
import itertools
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import sympy
from torch.utils._sympy.numbers import int_oo
from torch.utils._sympy.value_ranges import ValueRanges, bound_sympy

from slipway.export.catalogue import page_of
from slipway.export.errors import ExportError, ExportErrorKind, SourceLine
from slipway.program.contract import Contract, Symbol
from slipway.program.expressions import (
    All,
    Comparison,
    Condition,
    Constant,
    FloorDivide,
    SymbolReference,
    compile_test,
    parts_of,
    symbols_of,
)
from slipway.program.implication import Answer, Domain

__all__ = ["Narrowing", "Verdict", "examine", "narrowing_error"]

_EXHAUSTIVE_POINTS = 1 << 16
"""Up to so many combinations of values, all are tried and the answer is a proof."""

_RANDOM_POINTS = 4096

_SHOWN = 3
"""How many conditions an error lists: the first tend to be the cause of the others."""

_ADVICE_SIZES = 512
"""How many sizes of a symbol are tried to find out what to declare instead."""

_TAKE_PLAIN_NUMBERS = {
    r"\bavg_pool\dd\(": (
        "where the window is all of a dimension, average with mean(…, keepdim=True) or "
        "adaptive_avg_pool, else give its size as a number"
    ),
    # It takes windows of any number, except under torch.vmap.
    r"\bmax_pool1d\(": (
        "where the window is all of a dimension, take the largest with amax(…, keepdim=True), "
        "else use max_pool2d with a window of (1, NUMBER)"
    ),
    r"\bmax_pool\dd\(": (
        "where the window is all of a dimension, take the largest with amax(…, keepdim=True), "
        "else give its size as a number"
    ),
    r"\bdiag(?:onal)?\(": "leave out columns instead: x[:, offset:].diagonal()",
    r"\bone_hot\(": "compare with torch.arange: (indices[..., None] == torch.arange(size)).long()",
    r"\bas_tensor\(": "use torch.tensor() or torch.full()",
    r"\bistft\(": "leave length out, and cut or pad the result",
    r"\bkron\(": "use torch.einsum and reshape",
    r"\bmulti_dot\(": "multiply with @, in the order that is best",
    r"\b(?:l(?:in|og)space|\w+_window|tri[lu]_indices|r?fftfreq|vander)\(": (
        "compute it from torch.arange(size)"
    ),
    r"\.(?:unfold|chunk)\(": "use slices, or torch.split with sizes",
    r"\b(?:jvp|jacfwd|jacrev|hessian)\(": (
        "take derivatives with torch.func.grad or vjp, or with torch.autograd.grad"
    ),
    # Of real numbers it takes none.
    r"\bmean\(": "take the mean of complex numbers as x.sum(dim) / x.shape[dim]",
    r"\blen\(": "use x.shape[0] in place of len(x)",
}
"""What to write in place of operators that take what may be a size as a plain number."""

_INSTEAD_OF_PLAIN_NUMBERS = "use slices, torch.arange and the like in place of range() and lists"
"""What to write where it is not known what takes one."""


_TAKES_FLOAT = re.compile(r"\b(?:float|math\.\w+)\(")


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a condition holds throughout the declared ranges.

    Attributes:
      kind: ALWAYS is proven; USUALLY means that no counterexample was found.
      counterexample: the value of each symbol where it fails.
    """

    class Kind(enum.Enum):
        ALWAYS = "always"
        USUALLY = "usually"
        NOT_ALWAYS = "not always"

    kind: Kind
    counterexample: tuple[int, ...] | None = None


def examine(
    condition: sympy.Basic,
    converted: Condition,
    symbols: Sequence[Symbol],
    index: Mapping[sympy.Symbol, int],
    assumptions: Sequence[Condition] = (),
) -> Verdict:
    """Returns whether a condition holds for all declared values of the symbols.

    Args:
      condition: over `index`'s symbols.
      converted: the same in the contract's language.
      symbols: with their ranges.
      index: the position of each sympy symbol in `symbols`.
      assumptions: what else is declared of the symbols.
    """
    ranges = {
        symbol: ValueRanges(symbols[position].minimum, _upper(symbols[position]))
        for symbol, position in index.items()
    }
    if bound_sympy(condition, ranges) == ValueRanges(sympy.true, sympy.true):
        return Verdict(Verdict.Kind.ALWAYS)
    if any(str(item) in _spellings(converted) for item in assumptions):
        return Verdict(Verdict.Kind.ALWAYS)
    mentioned = {item.index for item in symbols_of(converted)}
    relevant = [
        item for item in assumptions if mentioned & {symbol.index for symbol in symbols_of(item)}
    ]
    involved = sorted(mentioned.union(*({s.index for s in symbols_of(a)} for a in relevant)))
    values = [symbol.minimum for symbol in symbols]
    assumed, test = [compile_test(item) for item in relevant], compile_test(converted)
    points, exhaustive = _points([symbols[position] for position in involved])
    for point in points:
        for position, value in zip(involved, point, strict=True):
            values[position] = value
        if all(holds(values) for holds in assumed) and not test(values):
            return Verdict(Verdict.Kind.NOT_ALWAYS, tuple(values))
    if exhaustive:
        return Verdict(Verdict.Kind.ALWAYS)
    # It looks about the numbers in a condition too: `n != 500` fails for one size of many.
    finding = Domain(tuple(symbols), tuple(assumptions)).examine(converted)
    if finding.answer is Answer.ALWAYS:
        return Verdict(Verdict.Kind.ALWAYS)
    if finding.counterexample is None:
        return Verdict(Verdict.Kind.USUALLY)
    lowest = {position: symbol.minimum for position, symbol in enumerate(symbols)}
    return Verdict(Verdict.Kind.NOT_ALWAYS, tuple((lowest | {**finding.counterexample}).values()))


def _spellings(condition: Condition) -> set[str]:
    """Returns how a condition may be written with its sides exchanged."""
    spellings = {str(condition)}
    match condition:
        case Comparison("==" | "!=" as operator, left, right):
            spellings.add(str(Comparison(operator, right, left)))
    return spellings


def _upper(symbol: Symbol) -> sympy.Basic:
    return int_oo if symbol.maximum is None else sympy.Integer(symbol.maximum)


def _points(symbols: Sequence[Symbol]) -> tuple[Iterator[tuple[int, ...]], bool]:
    """Returns points of the symbols' ranges, and whether they are all there are."""
    count = 1
    for symbol in symbols:
        count *= _EXHAUSTIVE_POINTS + 1 if symbol.maximum is None else _width(symbol)
        count = min(count, _EXHAUSTIVE_POINTS + 1)
    if count <= _EXHAUSTIVE_POINTS:
        return itertools.product(*(range(s.minimum, s.minimum + _width(s)) for s in symbols)), True
    corners = [
        sorted(
            {min(s.minimum + step, s.minimum + _width(s) - 1) for step in (0, 1, 2, 3, 5, 7, 12)}
        )
        for s in symbols
    ]
    # Seeded, so that an export gives the same answer every time.
    source = random.Random(0)
    sampled = (
        tuple(s.minimum + source.randrange(_width(s)) for s in symbols)
        for _ in range(_RANDOM_POINTS)
    )
    some = itertools.islice(itertools.product(*corners), _EXHAUSTIVE_POINTS)
    return itertools.chain(some, sampled), False


def _width(symbol: Symbol) -> int:
    """Returns how many values a symbol has; of an unbounded one, as many as are worth trying."""
    return 1 << 20 if symbol.maximum is None else symbol.maximum - symbol.minimum + 1


@dataclass(frozen=True, slots=True)
class Narrowing:
    """A condition that makes the contract narrower than was declared.

    Attributes:
      condition: what the model needs.
      counterexample: declared values of the symbols for which it fails; None where none was found,
        but not all could be tried.
      source: the line that needs it, if known.
      plain: whether it is that a plain number was taken out of a size.
    """

    condition: Condition
    counterexample: tuple[int, ...] | None
    source: SourceLine | None
    plain: bool = False


def narrowing_error(narrowings: Sequence[Narrowing], contract: Contract) -> ExportError:
    """Returns the error for a model that needs more than was declared.

    Args:
      narrowings: all that have a counterexample, at least one.
      contract: with the ranges that were declared.
    """
    symbols = contract.symbols
    involved = sorted({s.index for item in narrowings for s in symbols_of(item.condition)})
    declared = ", ".join(f"{symbols[i].name} in {symbols[i].allowed}" for i in involved)
    needs = []
    for item in narrowings[:_SHOWN]:
        indices = sorted({symbol.index for symbol in symbols_of(item.condition)})
        values = item.counterexample or ()
        example = ", ".join(f"{symbols[i].name} = {values[i]}" for i in indices)
        where = f" at {item.source}" if item.source and item is not narrowings[0] else ""
        needs.append(f"{item.condition}{where}, which fails for {example or 'every value'}")
    if len(narrowings) > _SHOWN:
        needs.append(f"{len(narrowings) - _SHOWN} more such conditions")
    plain = {item.condition: _advice_on_plain_numbers(item) for item in narrowings}
    others = [condition for condition, advice in plain.items() if advice is None]
    advice = "; ".join((*filter(None, dict.fromkeys(plain.values())), *_advice(others, contract)))
    kind = ExportErrorKind.CONSTRAINT_VIOLATION
    page = page_of(kind.value, "operator-that-takes-a-plain-number")
    return ExportError(
        kind,
        f"declared is {declared or 'a contradiction'}, but the model needs {'; and '.join(needs)}",
        advice or "make the dimensions static, or change the lines that look at their sizes",
        narrowings[0].source,
        page=None if _taker_of_plain_number(narrowings[0]) is None else page,
    )


def _advice_on_plain_numbers(narrowing: Narrowing) -> str | None:
    """Returns what to write instead of `int(n / 2)` and the like; None if nothing such narrows."""
    line = "" if narrowing.source is None else narrowing.source.text
    if re.search(r"\bassociative_scan\(", line):
        return (
            "use torch._higher_order_ops.scan.scan, or torch.cumsum and the like; torch traces "
            "associative_scan for the example's sizes"
        )
    match narrowing.condition:
        case Comparison("==", FloorDivide() as quotient, Constant()) if re.search(r"\bint\(", line):
            return (
                f"compute {quotient} in whole numbers, with // and without int(), which gives a "
                "plain number: the example's"
            )
        case Comparison("==", SymbolReference(_, name), Constant(size)) if re.search(
            r"\b(?:int|float|math\.\w+)\(", line
        ):
            return (
                "compute without int(), float() and math.sqrt() and the like, which give plain "
                f"numbers: the example's ({name} ** 0.5 is a square root); or make the dimension "
                f"static ({size})"
            )
        case Comparison("==", size, Constant()) if narrowing.plain and _TAKES_FLOAT.search(line):
            return (
                "compute without float() and math.sqrt() and the like, which give plain numbers: "
                f"the example's (({size}) ** 0.5 is a square root)"
            )
        case Comparison("==", expression, Constant()) if narrowing.plain and "int(" in line:
            return f"compute {expression} without int(), which gives a plain number: the example's"
    operator = _taker_of_plain_number(narrowing)
    if operator is not None:
        name, instead = operator
        return f"{instead}; {name} takes a plain number, which is the example's"
    return None


def _taker_of_plain_number(narrowing: Narrowing) -> tuple[str, str] | None:
    """Returns the operator that took one, and what to write instead; None if none is known."""
    match narrowing.condition, narrowing.source:
        # Comparisons are made on the way, and take no number.
        case Comparison("==", size, Constant()), SourceLine(text=line) if narrowing.plain:
            for pattern, instead in _TAKE_PLAIN_NUMBERS.items():
                if found := re.search(pattern, line):
                    return found[0].strip(".("), instead
            named = "int(" in line or _TAKES_FLOAT.search(line)
            if not named and not isinstance(size, SymbolReference):
                return "the line", _INSTEAD_OF_PLAIN_NUMBERS
    return None


def _advice(conditions: Sequence[Condition], contract: Contract) -> Iterator[str]:
    """Yields what to declare instead: one piece for each symbol that stands alone, and the rest."""
    alone: dict[int, list[Condition]] = {}
    together: list[Condition] = []
    for condition in conditions:
        involved = {item.index for item in symbols_of(condition)}
        match condition:
            case Comparison("==", SymbolReference(_, first), SymbolReference(_, second)):
                yield f"use one Dim for both '{first}' and '{second}'"
            case _ if len(involved) == 1:
                alone.setdefault(involved.pop(), []).append(condition)
            case _:
                together.append(condition)
    for index, wanted in alone.items():
        yield _advice_for_one(All(tuple(wanted)), contract, index)
    if together:
        yield _stated(together)


def _stated(conditions: Sequence[Condition]) -> str:
    """Returns what to do about conditions that no range of a symbol says."""
    relations = ", ".join(f'"{condition}"' for condition in conditions[:_SHOWN])
    advice = f"state what the model needs: relations=[{relations}]; or change the line so that it "
    advice += "does the same for all sizes"
    # Multiples are few enough to be tried one by one, and what models of patches mean.
    divided = {
        part.left.name: part.right.value
        for condition in conditions
        for part in parts_of(condition)
        if isinstance(part, FloorDivide)
        and isinstance(part.left, SymbolReference)
        and isinstance(part.right, Constant)
    }
    if not divided:
        return advice
    multiples = " and ".join(f"{divisor}*k for {name}" for name, divisor in divided.items())
    return f"where only multiples occur, declare them as such ({multiples}); or {advice}"


def _advice_for_one(condition: All, contract: Contract, index: int) -> str:
    """Returns what to declare for one symbol, found by trying its sizes."""
    symbols = contract.symbols
    symbol = symbols[index]
    values = [item.minimum for item in symbols]
    tried = range(symbol.minimum, symbol.minimum + min(_width(symbol), _ADVICE_SIZES))
    legal, test = [], compile_test(condition)
    for size in tried:
        values[index] = size
        if test(values):
            legal.append(size)
    steps = {later - earlier for earlier, later in itertools.pairwise(legal)}
    name = symbol.name
    if len(legal) == 1:
        advice = f"make the dimension static ({legal[0]}), or change the line that fixes {name}"
        if left_out := _static_dimensions(contract, legal[0]):
            advice += f", or declare {name} for {left_out} too, if that is always equal"
        return advice
    if steps == {1}:
        low = f"min={legal[0]}"
        high = f"max={legal[-1]}" if legal[-1] < tried[-1] else ""
        if not high and symbol.maximum is not None:
            high = f"max={symbol.maximum}"
        return f"declare Dim('{name}', {', '.join(filter(None, (low, high)))})"
    if len(steps) == 1:
        step = steps.pop()
        offset = legal[0] % step
        form = f"{step}*k" + (f" + {offset}" if offset else "")
        return (
            f"declare the dimension as {form} with k = Dim('k', min={legal[0] // step}, …), "
            f"instead of {name}"
        )
    return _stated(condition.conditions)


def _static_dimensions(contract: Contract, size: int) -> str:
    """Returns which dimensions of inputs are always `size`, as they are if nobody declares them."""
    return " or ".join(
        f"dimension {dimension} of '{item.name}'"
        for item in contract.inputs
        if item.tensor is not None
        for dimension, found in enumerate(item.tensor.shape)
        if found == Constant(size)
    )
