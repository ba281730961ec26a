"""What a change of a contract means for those who call the old one.

A client of OLD may make every call that OLD allows, and counts on results of the names, dtypes and
shapes that OLD promises. A change is compatible if all of that still holds under NEW. What cannot
be shown to hold counts as broken, and the clause says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from slipway.program.batching import Batching
from slipway.program.clauses import Clause, Differences, Verdict
from slipway.program.contract import (
    Contract,
    InputSpec,
    OutputSpec,
    TensorSpec,
    find_binders,
)
from slipway.program.expressions import (
    All,
    Comparison,
    Condition,
    Constant,
    Expression,
    SymbolReference,
    Unknown,
    linear_form,
)
from slipway.program.implication import (
    TOO_MUCH,
    Answer,
    Domain,
    Finding,
    is_small,
    normal_form,
)
from slipway.program.polynomials import polynomial
from slipway.program.python_interface import python_clauses
from slipway.program.substitution import (
    Place,
    UntranslatableError,
    places,
    substituted,
    substituted_condition,
    translation,
)
from slipway.program.work import Work

__all__ = ["compare"]


def compare(old: Mapping[str, Contract], new: Mapping[str, Contract]) -> Differences:
    """Compares the contracts of two programs, by method, from the view of a client of `old`."""
    methods: dict[str, tuple[Clause, ...]] = {}
    work = Work()
    for name, contract in old.items():
        if name not in new:
            methods[name] = (
                Clause(Verdict.INCOMPATIBLE, f"method '{name}'", "there", "", "clients call it"),
            )
        else:
            methods[name] = tuple(_MethodComparison(contract, new[name], work).clauses())
    for name in new:
        if name not in old:
            methods[name] = (Clause(Verdict.WIDENED, f"method '{name}'", "", "there"),)
    return Differences(methods)


_SHOWN_SYMBOLS = 16
"""How many symbols of a call are shown."""

_NOWHERE = Finding(Answer.UNDECIDED)
"""The finding on a condition that cannot even be stated in the other contract's symbols."""


class _View:
    """What `provider` requires of the calls that `client` allows, in the client's symbols."""

    def __init__(self, client: Contract, provider: Contract, work: Work) -> None:
        self.client = client
        self.domain = Domain(client.symbols, tuple(_assumptions(client)), work)
        self.meaning, self._binding = translation(provider, client.tensor_inputs)
        self._sizes = dict(places(provider))

    def dimension(self, place: Place) -> Finding:
        """Returns whether the sizes that the client sends are among those that are taken."""
        size = self.client.tensor_inputs[place[0]].shape[place[1]]
        required = list(self._binding.get(place, ()))
        if not required:
            try:
                wanted = substituted(self._sizes[place], self.meaning)
            except UntranslatableError:
                return _NOWHERE
            if wanted != size:
                required.append(Comparison("==", wanted, size))
        return self._require(required)

    def relation(self, condition: Condition) -> Finding:
        """Returns whether a relation holds for all calls."""
        try:
            return self._require([substituted_condition(condition, self.meaning)])
        except UntranslatableError:
            return _NOWHERE

    def restated(self, condition: Condition) -> Condition | None:
        """Returns a condition in the client's symbols, if it can be said in them with few words."""
        try:
            restated = substituted_condition(condition, self.meaning)
        except UntranslatableError:
            return None
        return restated if is_small(restated) else None

    def promises(self, promised: Expression, given: Expression) -> Finding:
        """Returns whether a size that the client counts on is the one that it gets."""
        try:
            actual = substituted(given, self.meaning)
        except UntranslatableError:
            return _NOWHERE
        if actual == promised:
            return Finding(Answer.ALWAYS)
        return self.domain.examine(Comparison("==", actual, promised))

    def example(self, finding: Finding) -> str:
        """Returns the client's call that a finding shows, by its symbols."""
        values = list((finding.counterexample or {}).items())
        shown = ", ".join(
            f"{self.client.symbols[index].name} = {value}"
            for index, value in values[:_SHOWN_SYMBOLS]
        )
        return f"{shown}, …" if len(values) > _SHOWN_SYMBOLS else shown

    def _require(self, conditions: Sequence[Condition]) -> Finding:
        if not conditions:
            return Finding(Answer.ALWAYS)
        condition = conditions[0] if len(conditions) == 1 else All(tuple(conditions))
        finding = self.domain.examine(condition)
        if finding.answer in (Answer.SOMETIMES, Answer.UNDECIDED) and finding is not TOO_MUCH:
            # What follows is about the calls that are still allowed.
            self.domain = self.domain.given(condition)
        return finding


def _assumptions(contract: Contract) -> Iterator[Condition]:
    """Yields what holds of the symbols in every legal call, beside their ranges."""
    for relation in contract.relations:
        yield relation.condition
    ranges = Domain(contract.symbols).ranges
    for _, size in places(contract):
        is_size = Comparison(">=", size, Constant(0))
        if not (
            is_small(is_size)
            and ranges.divides_safely(size)
            and ranges.bounds(polynomial(size))[0] >= 0
        ):
            yield is_size


class _MethodComparison:
    def __init__(self, old: Contract, new: Contract, work: Work) -> None:
        self._old, self._new = old, new
        self._forward = _View(old, new, work)
        self._backward = _View(new, old, work)
        self._old_sizes, self._new_sizes = _sizes(old), _sizes(new)

    def clauses(self) -> Iterator[Clause]:
        yield from self._inputs()
        yield from self._relations()
        yield from self._outputs()
        yield from self._batch_symbol()
        yield from self._batching()
        yield from python_clauses(self._old, self._new)

    # Inputs -----------------------------------------------------------------------------------

    def _inputs(self) -> Iterator[Clause]:
        before = {spec.name: spec for spec in self._old.inputs}
        after = {spec.name: spec for spec in self._new.inputs}
        for name, spec in before.items():
            if name in after:
                yield from self._input(spec, after[name])
            else:
                yield _gone(spec)
        for name, spec in after.items():
            if name not in before:
                yield _come(spec)

    def _input(self, old: InputSpec, new: InputSpec) -> Iterator[Clause]:
        said = _what(old.tensor, old.constant), _what(new.tensor, new.constant)
        subject = f"input '{old.name}'"
        if old.tensor is None or new.tensor is None:
            same = old.tensor is new.tensor and _same_constant(old.constant, new.constant)
            verdict = Verdict.UNCHANGED if same else Verdict.INCOMPATIBLE
            reason = "" if same else "the program computes something else"
            yield Clause(verdict, subject, *said, reason)
            return
        alike = (old.tensor.dtype, old.tensor.rank) == (new.tensor.dtype, new.tensor.rank)
        yield Clause(Verdict.UNCHANGED if alike else Verdict.INCOMPATIBLE, subject, *said)
        if old.tensor.rank == new.tensor.rank:
            for dimension in range(old.tensor.rank):
                yield self._dimension((old.name, dimension))

    def _dimension(self, place: Place) -> Clause:
        forward = self._forward.dimension(place)
        backward = self._backward.dimension(place)
        return Clause(
            _verdict(forward, backward),
            f"input '{place[0]}' dimension {place[1]}",
            self._old_sizes[place],
            self._new_sizes[place],
            self._reason(forward, backward),
        )

    def _reason(self, forward: Finding, backward: Finding) -> str:
        if forward.answer is Answer.UNDECIDED:
            return _undecided(forward, "that all calls are still allowed")
        if forward.answer is not Answer.ALWAYS:
            example = self._forward.example(forward)
            return f"was allowed: {example}" if example else ""
        if backward.answer is Answer.UNDECIDED:
            return _undecided(backward, "that nothing more is allowed")
        if backward.answer is not Answer.ALWAYS:
            example = self._backward.example(backward)
            return f"now allowed: {example}" if example else ""
        return ""

    # Relations --------------------------------------------------------------------------------

    def _relations(self) -> Iterator[Clause]:
        left = _Conditions([item.condition for item in self._old.relations])
        for relation in self._new.relations:
            restated = self._forward.restated(relation.condition)
            known = None if restated is None else left.take(restated)
            forward = self._forward.relation(relation.condition)
            backward = Finding(Answer.ALWAYS)
            if known is not None:
                backward = self._backward.relation(known)
            reason = self._reason(forward, backward)
            if known is None and forward.answer is Answer.ALWAYS:
                reason = "it held before for all allowed calls"
            yield Clause(
                _verdict(forward, backward),
                "relation",
                "" if known is None else str(known),
                str(relation),
                reason,
            )
        for condition in left.rest():
            backward = self._backward.relation(condition)
            always = backward.answer is Answer.ALWAYS
            yield Clause(
                Verdict.UNCHANGED if always else Verdict.WIDENED,
                "relation",
                str(condition),
                "",
                "it still holds for all allowed calls"
                if always
                else self._reason(Finding(Answer.ALWAYS), backward),
            )

    # Outputs ----------------------------------------------------------------------------------

    def _outputs(self) -> Iterator[Clause]:
        after = {spec.name: spec for spec in self._new.outputs}
        for spec in self._old.outputs:
            subject = f"output '{spec.name}'"
            if spec.name in after:
                new = after[spec.name]
                verdict, reason = self._output(spec, new)
                yield Clause(verdict, subject, _result(spec), _result(new), reason)
            else:
                yield Clause(
                    Verdict.INCOMPATIBLE, subject, _result(spec), "", "clients count on it"
                )
        before = {spec.name for spec in self._old.outputs}
        for spec in self._new.outputs:
            if spec.name not in before:
                yield Clause(
                    Verdict.WIDENED,
                    f"output '{spec.name}'",
                    "",
                    _result(spec),
                    "clients may ignore it",
                )

    def _output(self, old: OutputSpec, new: OutputSpec) -> tuple[Verdict, str]:
        if old.tensor is not None and new.tensor is not None:
            if old.tensor.dtype is not new.tensor.dtype or old.tensor.rank != new.tensor.rank:
                return Verdict.INCOMPATIBLE, ""
            stronger = False
            for promised, given in zip(old.tensor.shape, new.tensor.shape, strict=True):
                if isinstance(promised, Unknown):
                    stronger |= not isinstance(given, Unknown)
                elif isinstance(given, Unknown):
                    return Verdict.INCOMPATIBLE, "a size now depends on the inputs' values"
                elif reason := self._broken_promise(promised, given):
                    return Verdict.INCOMPATIBLE, reason
            if stronger:
                return Verdict.WIDENED, "a size no longer depends on the inputs' values"
            return Verdict.UNCHANGED, ""
        if old.integer is not None and new.integer is not None:
            reason = self._broken_promise(old.integer, new.integer)
            return (Verdict.INCOMPATIBLE if reason else Verdict.UNCHANGED), reason
        if old.tensor is None and new.tensor is None and old.integer is new.integer is None:
            same = _same_constant(old.constant, new.constant)
            return (Verdict.UNCHANGED if same else Verdict.INCOMPATIBLE), ""
        return Verdict.INCOMPATIBLE, ""

    def _broken_promise(self, promised: Expression, given: Expression) -> str:
        """Returns why a size is not the one that was promised, or "" if it is."""
        if isinstance(promised, Unknown) or isinstance(given, Unknown):
            return "" if promised == given else "it depends on the inputs' values"
        finding = self._forward.promises(promised, given)
        if finding.answer is Answer.ALWAYS:
            return ""
        if finding.answer is Answer.UNDECIDED:
            return _undecided(finding, f"that {given} is what {promised} was")
        example = self._forward.example(finding)
        return f"{promised} became {given}" + (f", for example where {example}" if example else "")

    # The batch symbol -------------------------------------------------------------------------

    def _batch_symbol(self) -> Iterator[Clause]:
        before, after = self._old.batch_symbol, self._new.batch_symbol
        if before is None and after is None:
            return
        said = _symbol_name(self._old, before), _symbol_name(self._new, after)
        if before is None:
            verdict, reason = Verdict.WIDENED, "several requests can be sent as one"
        elif after is None:
            verdict, reason = Verdict.NARROWED, "several requests can no longer be sent as one"
        elif self._is_multiple(after, before):
            verdict, reason = Verdict.UNCHANGED, ""
        else:
            verdict, reason = Verdict.INCOMPATIBLE, "requests are joined along another dimension"
        yield Clause(verdict, "batch symbol", *said, reason)

    def _batching(self) -> Iterator[Clause]:
        before, after = self._old.batching, self._new.batching
        if before is None and after is None:
            return
        verdict, reason = Verdict.UNCHANGED, ""
        if before is None:
            verdict, reason = Verdict.WIDENED, "a server may join calls of several clients"
        elif after is None:
            verdict, reason = Verdict.NOTED, "a server runs each call alone, so fewer in a second"
        elif _joined(before) != _joined(after):
            verdict, reason = Verdict.NOTED, "a server joins other calls, or to another tolerance"
        old, new = ("" if item is None else str(item) for item in (before, after))
        yield Clause(verdict, "batching", old, new, reason)

    def _is_multiple(self, new: int, old: int) -> bool:
        size = self._forward.meaning.get(new)
        form = None if size is None else linear_form(size)
        return form is not None and form[1].index == old and form[2] == 0


def _joined(batching: Batching) -> tuple[object, ...]:
    """Returns what a batching says, whatever its symbols are called."""
    paddings = [padding.values for padding in batching.paddings]
    return batching.inputs, batching.outputs, batching.atol, batching.rtol, paddings


def _symbol_name(contract: Contract, index: int | None) -> str:
    return "" if index is None else contract.symbols[index].name


def _verdict(forward: Finding, backward: Finding) -> Verdict:
    if forward.answer is Answer.ALWAYS:
        return Verdict.UNCHANGED if backward.answer is Answer.ALWAYS else Verdict.WIDENED
    return Verdict.INCOMPATIBLE if forward.answer is Answer.NEVER else Verdict.NARROWED


def _undecided(finding: Finding, what: str) -> str:
    if finding is TOO_MUCH:
        return f"it cannot be shown {what}: the contracts are too complicated"
    if finding is _NOWHERE:
        return f"it cannot be shown {what}: it depends on a size of which nothing is known there"
    return f"it cannot be shown {what}: there are too many sizes ({finding.tried} tried, all fine)"


def _gone(spec: InputSpec) -> Clause:
    said = _what(spec.tensor, spec.constant)
    return Clause(
        Verdict.INCOMPATIBLE,
        f"input '{spec.name}'",
        said,
        "",
        "clients that send it are refused" if spec.tensor is not None else "",
        python_only=spec.tensor is None,
    )


def _come(spec: InputSpec) -> Clause:
    said = _what(spec.tensor, spec.constant)
    return Clause(
        Verdict.INCOMPATIBLE,
        f"input '{spec.name}'",
        "",
        said,
        "clients do not send it",
        python_only=spec.tensor is None,
    )


def _what(tensor: TensorSpec | None, constant: object) -> str:
    if tensor is None:
        return f"exactly {constant!r}"
    return f"{tensor.dtype.value} of rank {tensor.rank}"


def _result(spec: OutputSpec) -> str:
    if spec.tensor is not None:
        return str(spec.tensor)
    return f"integer {spec.integer}" if spec.integer is not None else f"exactly {spec.constant!r}"


class _Conditions:
    """Conditions, each of which can be taken once, by itself or by one that says the same."""

    def __init__(self, conditions: Sequence[Condition]) -> None:
        self._left = dict(enumerate(conditions))
        self._same: dict[object, list[int]] = {}
        for number, condition in enumerate(conditions):
            if is_small(condition):
                for said in (condition, normal_form(condition)):
                    self._same.setdefault(said, []).append(number)

    def take(self, condition: Condition) -> Condition | None:
        """Takes the one that is a condition, or says the same, and returns it, if there is one."""
        for said in (condition, normal_form(condition)):
            numbers = self._same.get(said, [])
            while numbers:
                if (found := self._left.pop(numbers.pop(0), None)) is not None:
                    return found
        return None

    def rest(self) -> list[Condition]:
        """Returns those that were not taken, in order."""
        return list(self._left.values())


def _sizes(contract: Contract) -> dict[Place, str]:
    """Returns what each dimension may be: `32*rows with rows in 1..8`.

    The range of a symbol is told once, at the dimension that determines it.
    """
    texts = {place: str(size) for place, size in places(contract)}
    for binder in find_binders(contract):
        place = binder.input, binder.dimension
        symbol = contract.symbols[binder.symbol]
        allowed = f"{symbol.name} in {symbol.allowed}"
        is_symbol = isinstance(contract.tensor_inputs[place[0]].shape[place[1]], SymbolReference)
        texts[place] = allowed if is_symbol else f"{texts[place]} with {allowed}"
    return texts


def _same_constant(one: object, other: object) -> bool:
    # NaN is the one value that is not equal to itself.
    return type(one) is type(other) and (one == other or (one != one and other != other))
