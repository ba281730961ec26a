"""What a change of a contract means for those who call the program as a Python object.

They pass arguments by position and nested in containers, pass values that are no tensors, and take
results apart. Clients that name tensors in requests do none of that.
"""

from __future__ import annotations

from collections.abc import Iterator

from slipway.program.clauses import Clause, Verdict
from slipway.program.contract import Contract
from slipway.program.trees import Key, Kind, Tree

__all__ = ["python_clauses"]


def python_clauses(old: Contract, new: Contract) -> Iterator[Clause]:
    """Yields the clauses on arguments, results and the layout of tensors in memory."""
    yield _arguments(old, new)
    yield _results(old, new)
    if old.contiguous or new.contiguous:
        verdict = Verdict.UNCHANGED
        if old.contiguous != new.contiguous:
            verdict = Verdict.NARROWED if new.contiguous else Verdict.WIDENED
        before, after = ("contiguous" if item.contiguous else "any" for item in (old, new))
        yield Clause(verdict, "layout of tensors in memory", before, after, python_only=True)


def _arguments(old: Contract, new: Contract) -> Clause:
    before, after = _by_argument(old), _by_argument(new)
    verdict, reason = Verdict.INCOMPATIBLE, ""
    if before.keys() != after.keys():
        reason = "all arguments must be given, and no others"
    elif not all(_accepts(after[name], before[name]) for name in before):
        reason = "an argument is nested in another way"
    elif _argument_leaves(old) != _argument_leaves(new):
        reason = "an argument's parts have other names"
    elif new.parameters[: len(old.parameters)] != old.parameters:
        reason = "arguments by position are others"
    elif new.parameters != old.parameters:
        verdict, reason = Verdict.WIDENED, "more can be given by position"
    else:
        verdict = Verdict.UNCHANGED
    said = _signature(old), _signature(new)
    return Clause(verdict, "arguments in Python", *said, reason, python_only=True)


def _by_argument(contract: Contract) -> dict[Key, Tree]:
    positional, keyword = contract.input_tree.children
    arguments: dict[Key, Tree] = dict(zip(contract.parameters, positional.children, strict=True))
    arguments.update(zip(keyword.keys, keyword.children, strict=True))
    return arguments


def _argument_leaves(contract: Contract) -> dict[tuple[Key, ...], str]:
    """Returns the name of each leaf, by its argument and its path below that."""
    leaves = {}
    paths = contract.input_tree.leaf_paths()
    for (side, argument, *below), spec in zip(paths, contract.inputs, strict=True):
        name = contract.parameters[int(argument)] if side == 0 else argument
        leaves[name, *below] = spec.name
    return leaves


def _signature(contract: Contract) -> str:
    keywords = [str(key) for key in contract.input_tree.children[1].keys]
    return f"({', '.join([*contract.parameters, *(['*'] if keywords else []), *keywords])})"


def _results(old: Contract, new: Contract) -> Clause:
    names = [
        dict(zip(item.output_tree.leaf_paths(), (spec.name for spec in item.outputs), strict=True))
        for item in (old, new)
    ]
    verdict, reason = Verdict.INCOMPATIBLE, ""
    if not _extends(new.output_tree, old.output_tree):
        reason = "results are nested in another way"
    elif any(names[1][path] != name for path, name in names[0].items()):
        reason = "a result is in the place of another"
    elif len(names[0]) != len(names[1]):
        verdict, reason = Verdict.WIDENED, "dicts have further keys"
    else:
        verdict = Verdict.UNCHANGED
    said = _described(old.output_tree), _described(new.output_tree)
    return Clause(verdict, "results in Python", *said, reason, python_only=True)


def _accepts(new: Tree, old: Tree) -> bool:
    """Returns whether arguments of the structure `old` are taken where it is `new`."""
    if old.kind is Kind.DICT and new.kind is Kind.DICT:
        after = dict(zip(new.keys, new.children, strict=True))
        return set(old.keys) == set(new.keys) and all(
            _accepts(after[key], child) for key, child in zip(old.keys, old.children, strict=True)
        )
    return (old.kind, old.keys, len(old.children)) == (
        new.kind,
        new.keys,
        len(new.children),
    ) and all(map(_accepts, new.children, old.children))


def _extends(new: Tree, old: Tree) -> bool:
    """Returns whether code that takes apart `old` can do so with `new`: dicts may grow."""
    if old.kind is not new.kind:
        return False
    if old.kind is Kind.DICT:
        after = dict(zip(new.keys, new.children, strict=True))
        pairs = zip(old.keys, old.children, strict=True)
        return all(key in after and _extends(after[key], child) for key, child in pairs)
    return (
        old.keys == new.keys
        and len(old.children) == len(new.children)
        and all(map(_extends, new.children, old.children))
    )


def _described(tree: Tree) -> str:
    parts = [_described(child) for child in tree.children]
    match tree.kind:
        case Kind.LEAF:
            return "value"
        case Kind.TUPLE:
            return f"({', '.join(parts)}{',' if len(parts) == 1 else ''})"
        case Kind.LIST:
            return f"[{', '.join(parts)}]"
        case Kind.DICT:
            pairs = zip(tree.keys, parts, strict=True)
            return f"{{{', '.join(f'{key!r}: {part}' for key, part in pairs)}}}"
        case _:
            pairs = zip(tree.keys, parts, strict=True)
            return f"{tree.type_name}({', '.join(f'{key}={part}' for key, part in pairs)})"
