"""The cases of ExportDB, each exported in four ways, saved, and run in another process."""

from __future__ import annotations

import copy
import enum
import itertools
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from runfiles import Runfiles
from torch._export.db.case import ExportCase, SupportLevel
from torch._export.db.examples import all_examples
from torch.utils import _pytree as pytree

from slipway.export import Dim, ExportError, export
from slipway.export.dimensions import bind_example
from slipway.export.resizing import binding_of, resized_leaves
from slipway.program import Contract

__all__ = ["VARIANTS", "Outcome", "Status", "Variant", "is_supported", "names", "outcomes"]


@dataclass(frozen=True, slots=True)
class Variant:
    """How a case is exported.

    Attributes:
      automatic: with every dimension of every tensor Dim.AUTO, instead of as the case has it.
      strict: with torch interpreting the bytecode.
    """

    automatic: bool
    strict: bool

    def __str__(self) -> str:
        shapes = "auto" if self.automatic else "given"
        return f"{shapes}, {'strict' if self.strict else 'non-strict'}"


VARIANTS = tuple(itertools.starmap(Variant, itertools.product((False, True), repeat=2)))


class Status(enum.Enum):
    """What came of one variant of a case."""

    EQUAL = "equal"
    REFUSED = "refused"
    WRONG = "WRONG"
    UNCAUGHT = "UNCAUGHT"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one variant of a case, and why if it is not EQUAL."""

    status: Status
    reason: str = ""


def _examples() -> dict[str, ExportCase]:
    examples: dict[str, ExportCase] = all_examples()  # type: ignore[no-untyped-call]
    return examples


def names() -> list[str]:
    """Returns the names of all cases, sorted."""
    return sorted(_examples())


def is_supported(name: str) -> bool:
    """Returns whether torch says that it can export a case."""
    return bool(_examples()[name].support_level == SupportLevel.SUPPORTED)


def outcomes() -> dict[tuple[str, Variant], Outcome]:
    """Exports every case in every way, and compares what is loaded elsewhere with the model."""
    found: dict[tuple[str, Variant], Outcome] = {}
    pending: dict[tuple[str, Variant], tuple[Path, list[Any]]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name, case in sorted(_examples().items()):
            for variant in VARIANTS:
                directory = Path(scratch) / f"{name}-{VARIANTS.index(variant)}"
                result = _export(case, variant, directory)
                if isinstance(result, Outcome):
                    found[name, variant] = result
                else:
                    pending[name, variant] = (directory, result)
        _run_elsewhere(Path(scratch))
        for key, (directory, expected) in pending.items():
            found[key] = _judge(torch.load(directory / "outcomes.pt"), expected)
    return found


def _export(case: ExportCase, variant: Variant, directory: Path) -> Outcome | list[Any]:
    """Writes a program and calls of it; returns what the model makes of these calls, or why not."""
    torch._dynamo.reset()
    # Some of the models change themselves.
    model = copy.deepcopy(case.model)
    args, kwargs = _fresh((case.example_args, case.example_kwargs))
    call = bind_example(model.forward, args, kwargs)
    shapes = case.dynamic_shapes
    if variant.automatic:
        shapes = {name: _automatic(value) for name, value in call.arguments.items()}
    try:
        program = export(model, args, kwargs, dynamic_shapes=shapes, strict=variant.strict)
        program.save(directory / "program")
    except ExportError as error:
        return Outcome(Status.REFUSED if error.advice else Status.WRONG, str(error))
    except Exception as error:
        return Outcome(Status.UNCAUGHT, f"{type(error).__name__}: {error}")
    example = [leaf for _, leaf in call.leaves]
    resized: Any = program.contract.input_tree.unflatten(iter(_resized(program.contract, example)))
    calls = [(args, kwargs), resized]
    torch.save(_fresh(calls), directory / "calls.pt")
    expected = []
    model = copy.deepcopy(case.model)
    try:
        for args, kwargs in _fresh(calls):
            with torch.no_grad():
                result = model(*args, **kwargs)
            buffers = dict(model.named_buffers(remove_duplicate=False))
            expected.append(_fresh((result, args, kwargs, {n: buffers[n] for n in program.state})))
    except Exception as error:
        return Outcome(Status.WRONG, f"the model fails on a legal call: {error}")
    return expected


def _automatic(argument: Any) -> Any:
    return pytree.tree_map(
        lambda leaf: (
            dict.fromkeys(range(leaf.dim()), Dim.AUTO) if isinstance(leaf, torch.Tensor) else None
        ),
        argument,
    )


def _resized(contract: Contract, example: list[Any]) -> list[Any]:
    """Returns a call of other sizes, where the contract allows one; otherwise the example again."""
    usual = binding_of(contract, example)
    for binding in _others(usual):
        if contract.is_legal(binding) and (leaves := resized_leaves(contract, binding, example)):
            return leaves
    return example


def _others(binding: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    for step in (1, 2, 3, 5):
        yield tuple(value + step for value in binding)
    for step in (2, 3):
        yield tuple(value * step for value in binding)


def _run_elsewhere(root: Path) -> None:
    runfiles = Runfiles.Create()
    assert runfiles is not None
    binary = runfiles.Rlocation("slipway/tests/exportdb/run_programs")
    assert binary is not None
    subprocess.run([binary, str(root)], env=runfiles.EnvVars(), check=True)


def _judge(actual: Any, expected: list[Any]) -> Outcome:
    if isinstance(actual, str):
        return Outcome(Status.WRONG, f"it fails in another process: {actual}")
    ours, our_structure = pytree.tree_flatten(actual)
    theirs, their_structure = pytree.tree_flatten(expected)
    if our_structure != their_structure:
        return Outcome(Status.WRONG, f"results are {our_structure} instead of {their_structure}")
    for one, other in zip(ours, theirs, strict=True):
        try:
            assert type(one) is type(other), f"{one!r} is not {other!r}"
            if isinstance(other, torch.Tensor):
                torch.testing.assert_close(one, other, equal_nan=True)
            else:
                assert one == other, f"{one!r} is not {other!r}"
        except AssertionError as error:
            return Outcome(Status.WRONG, str(error))
    return Outcome(Status.EQUAL)


def _fresh(values: Any) -> Any:
    return pytree.tree_map_only(torch.Tensor, lambda tensor: tensor.detach().clone(), values)
