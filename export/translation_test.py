"""Errors of tracing: the line that they name, and what torch prints beside them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from slipway.export import Dim, ExportError, ExportErrorKind, export


def _blamed(f: Any, *args: Any, **options: Any) -> str:
    """Returns the line that the error of an export names, after checking that it is there."""
    with pytest.raises(ExportError) as caught:
        export(f, args or (torch.ones(3),), **options)
    source = caught.value.source
    assert source is not None
    with open(__file__) as file:
        assert file.readlines()[source.line - 1].strip() == source.text
    assert source.file.endswith("translation_test.py")
    return source.text


def _helper(x: torch.Tensor) -> torch.Tensor:
    if x.sum() > 1:  # in a helper
        return x
    return -x


class _Model(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.step(x + 1)

    def step(self, x: torch.Tensor) -> torch.Tensor:
        while x.sum() > 1:  # in a method
            x = x / 2
        return x


def _decorated(f: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(f)
    def wrapper(*args: Any) -> Any:
        return f(*args) + 1

    return wrapper


@_decorated
def _with_decorator(x: torch.Tensor) -> torch.Tensor:
    return x if x.sum() > 1 else -x  # under a decorator


def _with_branch(x: torch.Tensor) -> Any:
    def positive(x: torch.Tensor) -> torch.Tensor:
        if x.max() > 2:  # in a branch
            return x * 2
        return x * 3

    return torch.cond(x.sum() > 0, positive, lambda x: -x, (x,))


def _in_torch(x: torch.Tensor) -> torch.Tensor:
    layer = nn.Sequential(nn.Identity(), _Model())
    return layer(x) * 2  # type: ignore[no-any-return]


def _with_index(x: torch.Tensor) -> torch.Tensor:
    which = (x.sum() > 1).to(torch.int64)
    return [x, 2 * x][which.item()]  # type: ignore[index]  # a look-up


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(
    ("model", "mark"),
    [
        (_helper, "# in a helper"),
        (lambda x: _helper(x) + 1, "# in a helper"),
        (lambda x: x if x.sum() > 1 else -x, "lambda x: x if x.sum() > 1 else -x"),
        (_Model(), "# in a method"),
        (_with_decorator, "# under a decorator"),
        (_with_branch, "# in a branch"),
        (_in_torch, "# in a method"),
        (_with_index, "# a look-up"),
    ],
)
def test_an_error_names_the_innermost_line_of_the_model(
    model: Callable[..., Any], mark: str, strict: bool
) -> None:
    assert mark in _blamed(model, strict=strict)


@pytest.mark.parametrize("strict", [False, True])
def test_a_constraint_names_the_line_that_needs_it(strict: bool) -> None:
    def halves(x: torch.Tensor) -> torch.Tensor:
        return x.reshape(2, -1).sum(0)  # the reshape

    line = _blamed(
        halves, torch.ones(6), dynamic_shapes={"x": {0: Dim("n", max=64)}}, strict=strict
    )
    assert "# the reshape" in line


@pytest.mark.parametrize("strict", [False, True])
def test_torch_prints_nothing(strict: bool, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ExportError):
        export(_helper, torch.ones(3), strict=strict)
    export(lambda x, y: x + y, (torch.ones(3), torch.ones(3)), dynamic_shapes={"x": {0: Dim.AUTO}})
    assert capfd.readouterr() == ("", "")


def test_an_error_keeps_what_torch_raised() -> None:
    with pytest.raises(ExportError) as caught:
        export(_helper, torch.ones(3))
    error = caught.value
    assert error.kind is ExportErrorKind.DATA_DEPENDENT_CONTROL_FLOW
    assert error.cause.startswith("Could not guard on data-dependent expression")
    assert error.cause in str(error.__cause__)
    assert str(error).endswith(f"\n  torch says: {error.cause}")


def test_what_nobody_foresaw_is_an_error_with_its_line() -> None:
    def unforeseen(x: torch.Tensor) -> torch.Tensor:
        if type(x) is not torch.Tensor:
            raise ZeroDivisionError("unforeseen")  # no error when it is called
        return x

    line = _blamed(unforeseen)
    assert line in inspect.getsource(unforeseen)


def test_one_tensor_for_two_arguments_stays_two_inputs() -> None:
    x = torch.tensor([1.0, 2.0])
    program = export(lambda x, y: x - 2 * y, (x, x))
    torch.testing.assert_close(program(x, torch.zeros(2)), x)
