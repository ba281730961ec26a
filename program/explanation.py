"""Says in what way a call breaks a contract: every way, and the nearest call that would not.

This runs only for calls that are refused, so it favours clear messages over speed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from slipway.program.contract import Binder, Contract, TensorInputs, find_binders
from slipway.program.errors import Violation
from slipway.program.expressions import (
    Constant,
    Expression,
    Values,
    compile_condition,
    symbols_of,
    weight_of,
)

__all__ = ["explain"]

_SHOWN = 100
"""How many characters of a caller's word are shown."""

_SHOWN_SIZES = 16
"""How many dimensions of a caller's shape are shown."""

_SEARCH_DISTANCE = 4096
"""How far from the value given to look for the nearest legal one."""

_STEPS = 1 << 21
"""How many parts of relations may be evaluated to find nearest legal values, some 0.2 s of them.

The relations of programs have a dozen parts each; those that someone has crafted may have so many
that nobody would wait. Then some violations name no nearest value.
"""


def explain(contract: Contract, inputs: TensorInputs) -> list[Violation]:
    """Returns every violation of `contract` by `inputs`; none if the call is legal."""
    return _Explanation(contract, inputs).run()


@dataclass
class _Explanation:
    contract: Contract
    inputs: TensorInputs
    violations: list[Violation] = field(default_factory=list)
    values: dict[int, int] = field(default_factory=dict)  # symbols bound so far, even illegally
    refused: set[int] = field(default_factory=set)  # symbols whose value is already complained of
    steps: int = _STEPS

    def __post_init__(self) -> None:
        # For each symbol the relations that mention it: all their symbols, the test, and its cost.
        self._relations: dict[int, list[tuple[set[int], Callable[[Values], bool], int]]] = {}
        for relation in self.contract.relations:
            mentioned = {item.index for item in symbols_of(relation.condition)}
            entry = mentioned, compile_condition(relation.condition), weight_of(relation.condition)
            for index in mentioned:
                self._relations.setdefault(index, []).append(entry)

    def run(self) -> list[Violation]:
        self._check_names()
        measured = self._check_tensors()
        binders = find_binders(self.contract)
        known = [binder for binder in binders if binder.input in measured]
        # All are bound before any is complained of: the nearest legal value depends on the others.
        for binder in known:
            self._bind(binder)
        for binder in known:
            if binder.symbol in self.refused:
                self._refuse(binder)
        for name in measured:
            self._check_sizes(name, binders)
        self._check_relations(binders)
        return self.violations

    def _add(
        self,
        code: str,
        subject: str,
        actual: str,
        allowed: str,
        *,
        input: str | None = None,
        dimension: int | None = None,
        symbol: str | None = None,
        nearest: str | None = None,
    ) -> None:
        description = f"{subject} is {actual}; allowed: {allowed}"
        if nearest is not None:
            description += f"; nearest legal value: {nearest}"
        self.violations.append(
            Violation(code, description, input, dimension, symbol, actual, allowed, nearest)
        )

    def _check_names(self) -> None:
        expected = self.contract.tensor_inputs
        listed = ", ".join(f"'{name}'" for name in expected) or "(none)"
        for name, spec in expected.items():
            if name not in self.inputs:
                self.violations.append(
                    Violation(
                        code="missing_input",
                        description=f"input '{name}' is missing; it must be {spec}",
                        input=name,
                        allowed=str(spec),
                    )
                )
        for name in self.inputs:
            if name not in expected:
                self.violations.append(
                    Violation(
                        code="unknown_input",
                        description=f"input {_shown(name)} is unknown; the inputs are {listed}",
                        input=name,
                        allowed=listed,
                    )
                )

    def _check_tensors(self) -> list[str]:
        """Checks dtypes, ranks and static sizes; returns the inputs whose sizes can be compared."""
        measured = []
        for name, spec in self.contract.tensor_inputs.items():
            if name not in self.inputs:
                continue
            dtype, shape = self.inputs[name]
            if dtype is not spec.dtype:
                self._add(
                    "dtype",
                    f"input '{name}': the dtype",
                    dtype.value,
                    spec.dtype.value,
                    input=name,
                )
            if len(shape) != spec.rank:
                self._add(
                    "rank",
                    f"input '{name}': the rank of {_shape_text(shape)}",
                    str(len(shape)),
                    f"{spec.rank}, as {spec}",
                    input=name,
                )
                continue
            measured.append(name)
            for dimension, size in enumerate(spec.shape):
                if isinstance(size, Constant) and shape[dimension] != size.value:
                    self._add(
                        "static_size",
                        f"input '{name}' dimension {dimension}",
                        str(shape[dimension]),
                        f"exactly {size}",
                        input=name,
                        dimension=dimension,
                        nearest=str(size),
                    )
        return measured

    def _bind(self, binder: Binder) -> None:
        symbol = self.contract.symbols[binder.symbol]
        size = self.inputs[binder.input][1][binder.dimension]
        value, remainder = divmod(size - binder.offset, binder.factor)
        if not remainder:
            self.values[binder.symbol] = value
        if (
            remainder
            or value < symbol.minimum
            or (symbol.maximum is not None and value > symbol.maximum)
        ):
            self.refused.add(binder.symbol)

    def _refuse(self, binder: Binder) -> None:
        symbol = self.contract.symbols[binder.symbol]
        expression = self.contract.tensor_inputs[binder.input].shape[binder.dimension]
        size = self.inputs[binder.input][1][binder.dimension]
        value, remainder = divmod(size - binder.offset, binder.factor)
        nearest = [
            binder.factor * candidate + binder.offset
            for candidate in self._nearest(binder.symbol, value, bool(remainder))
        ]
        derived = str(expression) != symbol.name
        # Both ends of the legal sizes, in the caller's terms rather than the symbol's.
        ends = sorted(
            binder.factor * end + binder.offset
            for end in (symbol.minimum, symbol.maximum)
            if end is not None
        )
        sizes = f"{ends[0]}..{ends[1] if len(ends) == 2 else ''}"
        self._add(
            "size" if remainder else "range",
            f"input '{binder.input}' dimension {binder.dimension} ({expression})",
            str(size),
            f"{sizes}, of the form {expression} with {symbol.name} in {symbol.allowed}"
            if derived
            else sizes,
            input=binder.input,
            dimension=binder.dimension,
            symbol=symbol.name,
            nearest=" or ".join(map(str, sorted(nearest))) or None,
        )

    def _check_sizes(self, name: str, binders: Sequence[Binder]) -> None:
        shape = self.inputs[name][1]
        for dimension, size in enumerate(self.contract.tensor_inputs[name].shape):
            references = sorted({(item.index, item.name) for item in symbols_of(size)})
            indices = [index for index, _ in references]
            if isinstance(size, Constant) or any(index not in self.values for index in indices):
                continue
            expected = self._evaluate(size)
            if shape[dimension] == expected:
                continue
            allowed = "none, for it divides by zero" if expected is None else str(expected)
            if not self.refused.isdisjoint(indices):
                # What a size that is not legal itself leads to is not allowed either.
                allowed = str(size)
            if references:
                allowed += ", since " + ", ".join(
                    f"{symbol} = {self.values[index]} by input '{binders[index].input}' "
                    f"dimension {binders[index].dimension}"
                    + (", which is not legal itself" if index in self.refused else "")
                    for index, symbol in references
                )
            self._add(
                "size",
                f"input '{name}' dimension {dimension} ({size})",
                str(shape[dimension]),
                allowed,
                input=name,
                dimension=dimension,
                symbol=references[0][1] if references else None,
                nearest=None if expected is None or not self._legal(indices) else str(expected),
            )

    def _check_relations(self, binders: Sequence[Binder]) -> None:
        for relation in self.contract.relations:
            indices = sorted({item.index for item in symbols_of(relation.condition)})
            if any(index not in self.values or index in self.refused for index in indices):
                continue
            try:
                if compile_condition(relation.condition)(self.values):
                    continue
            except ZeroDivisionError:
                pass  # then it does not hold
            names = {index: self.contract.symbols[index].name for index in indices}
            actual = ", ".join(
                f"{names[index]} = {self.values[index]} (input '{binders[index].input}' "
                f"dimension {binders[index].dimension})"
                for index in indices
            )
            source = f", on which the model relies at {relation.source}" if relation.source else ""
            nearest = self._nearest_by_one_symbol(indices)
            description = f"relation {relation} does not hold for {actual}{source}"
            if nearest:
                description += f"; nearest legal value: {nearest}"
            only = binders[indices[0]] if len(indices) == 1 else None
            self.violations.append(
                Violation(
                    code="relation",
                    description=description,
                    input=only.input if only else None,
                    dimension=only.dimension if only else None,
                    symbol=names[indices[0]] if only else None,
                    actual=actual,
                    allowed=str(relation),
                    nearest=nearest,
                )
            )

    def _nearest_by_one_symbol(self, indices: Sequence[int]) -> str | None:
        """Returns the smallest change of one symbol that makes all relations hold, if any."""
        best: tuple[int, str] | None = None
        for index in indices:
            value = self.values[index]
            for candidate in self._nearest(index, value, False):
                distance = abs(candidate - value)
                if best is None or distance < best[0]:
                    best = distance, f"{self.contract.symbols[index].name} = {candidate}"
        return best[1] if best else None

    def _nearest(self, index: int, value: int, between: bool) -> list[int]:
        """Returns the legal values of a symbol nearest to `value`, the others staying as they are.

        That is one value, or one on each side where what was given lies between `value` and the
        next; none where nothing legal is within reach.
        """
        if self.steps <= 0:
            return []
        symbol = self.contract.symbols[index]
        lowest = symbol.minimum
        highest = symbol.maximum if symbol.maximum is not None else max(value, lowest) * 2 + 1
        below = min(max(value, lowest), highest)
        above = min(max(value + between, lowest), highest)
        legal = self._legality(index)
        candidates = []
        for side in (
            range(below, max(lowest, below - _SEARCH_DISTANCE) - 1, -1),
            range(above, min(highest, above + _SEARCH_DISTANCE) + 1),
        ):
            candidates += [next((candidate for candidate in side if legal(candidate)), None)]
        found = sorted({candidate for candidate in candidates if candidate is not None})
        return found if between else sorted(found, key=lambda item: abs(item - value))[:1]

    def _legality(self, index: int) -> Callable[[int], bool]:
        """Returns whether a value of one symbol satisfies the relations, given the others.

        Where there are no steps left to find out, it does not.
        """
        relevant = [
            item
            for item in self._relations.get(index, [])
            if all(other == index or other in self.values for other in item[0])
        ]
        tests = [test for _, test, _ in relevant]
        weight = sum(weight for _, _, weight in relevant)
        self.steps -= weight  # of looking for them
        others = set[int]().union(*(mentioned for mentioned, _, _ in relevant)) - {index}
        values = {other: self.values[other] for other in others}

        def legal(candidate: int) -> bool:
            if not tests:
                return True
            self.steps -= weight
            if self.steps <= 0:
                return False
            values[index] = candidate
            try:
                return all(holds(values) for holds in tests)
            except ZeroDivisionError:
                return False

        return legal

    def _legal(self, indices: Sequence[int]) -> bool:
        """Returns whether nothing is wrong with the values that the call gives these symbols."""
        return self.steps > 0 and all(
            index not in self.refused and self._legality(index)(self.values[index])
            for index in indices
        )

    def _evaluate(self, size: Expression) -> int | None:
        try:
            return size.evaluate(self.values)
        except ZeroDivisionError:
            return None


def _shown(name: str) -> str:
    """Returns a caller's word, quoted, so that it cannot break a line or fill a log."""
    return repr(name if len(name) <= _SHOWN else name[:_SHOWN] + "…")


def _shape_text(shape: Sequence[int]) -> str:
    if len(shape) > _SHOWN_SIZES:
        sizes = ", ".join(map(str, shape[:_SHOWN_SIZES]))
        return f"[{sizes}, … {len(shape)} dimensions]"
    return f"[{', '.join(map(str, shape))}]"
