"""Shapes and relations as text: what they let in, and what is no such text."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch

from slipway.export import ExportError, ExportErrorKind, export
from slipway.program import ContractViolation, Program

LARGEST = 6


def exported(**options: Any) -> Program:
    declared = {"n": (1, LARGEST), "m": (1, LARGEST)} | options.pop("symbols", {})
    return export(
        lambda x: x * 2,
        torch.ones(2, 4),
        dynamic_shapes=("n, m",),
        symbols=declared,
        batching=False,
        **options,
    )


def is_legal(program: Program, *shape: int) -> bool:
    try:
        program(torch.ones(shape))
    except ContractViolation:
        return False
    return True


@pytest.mark.parametrize(
    ("relation", "holds"),
    [
        ("n < m and m != 5", lambda n, m: n < m and m != 5),
        ("n == 2 or m == n", lambda n, m: n == 2 or m == n),
        ("not n >= m", lambda n, m: not n >= m),
        ("1 < n <= m", lambda n, m: 1 < n <= m),
        ("m - n > 1", lambda n, m: m - n > 1),
        ("-n > -4", lambda n, m: -n > -4),
        ("n - 1 < m - 2", lambda n, m: n - 1 < m - 2),
        ("m // 2 == n", lambda n, m: m // 2 == n),
        ("2 * n % 3 == m % 3", lambda n, m: 2 * n % 3 == m % 3),
        ("min(n, m, 3) == 2", lambda n, m: min(n, m, 3) == 2),
        ("max(n, m) < 5", lambda n, m: max(n, m) < 5),
    ],
)
def test_a_relation_lets_in_the_sizes_that_it_says(
    relation: str, holds: Callable[[int, int], bool]
) -> None:
    program = exported(relations=[relation])
    for n, m in itertools.product(range(1, LARGEST + 1), repeat=2):
        assert is_legal(program, n, m) == holds(n, m), (n, m)


@pytest.mark.parametrize(
    ("relation", "reason"),
    [
        ("n <", "is not well formed"),
        ("n + m", "is not a comparison"),
        ("n in m", "compares with something other than ==, !=, <, <=, >, >="),
        ("n > k", "there is no symbol 'k'; there are n, m"),
        ("n > 1.5", "has a part that is no size: 1.5"),
        ("n ** 2 > m", "has a part that is no size: n ** 2"),
        ("n > True", "has a part that is no size: True"),
        ("n > min(m)", "has a part that is no size: min(m)"),
        ("n > abs(m)", "has a part that is no size: abs(m)"),
    ],
)
def test_what_is_no_relation_is_refused_with_the_text(relation: str, reason: str) -> None:
    with pytest.raises(ExportError) as caught:
        exported(relations=[relation])
    assert caught.value.kind is ExportErrorKind.INVALID_SPEC
    assert f'"{relation}": {reason}' in caught.value.reason


@pytest.mark.parametrize(
    ("given", "legal"),
    [
        (2, [2, 3, 4, 100]),
        ((2, None), [2, 3, 4, 100]),
        ({2, 4}, [2, 4]),
        (frozenset((2, 3)), [2, 3]),
    ],
)
def test_a_symbol_may_be_what_is_declared(given: Any, legal: list[int]) -> None:
    program = exported(symbols={"n": given})
    assert [size for size in (1, 2, 3, 4, 100) if is_legal(program, size, 4)] == legal


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (set(), "the symbol 'n' is declared as set()"),
        ("2..4", "the symbol 'n' is declared as '2..4'"),
        ((4, 2), "the symbol 'n' is declared as (4, 2), which allows no size"),
        ((-1, 2), "the symbol 'n' is declared as (-1, 2), which allows no size"),
    ],
)
def test_a_declaration_of_no_size_is_refused(given: Any, reason: str) -> None:
    with pytest.raises(ExportError) as caught:
        exported(symbols={"n": given})
    assert caught.value.kind is ExportErrorKind.INVALID_SPEC
    assert caught.value.reason == reason
