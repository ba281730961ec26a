"""What the contract says of sizes that tracing excluded for its own bookkeeping."""

from __future__ import annotations

import collections
import itertools
import operator
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._higher_order_ops.scan import scan
from torch.nn import functional

from slipway.export import (
    Dim,
    ExportError,
    ExportErrorKind,
    ExportSpec,
    MethodSpec,
    export,
    export_spec,
)
from slipway.program import ContractViolation, Program, Symbol, load

SYMBOLS = {"n": (1, 9), "m": (1, 9)}


def exported(model: Any, *args: Any, **options: Any) -> Program:
    shapes = dict(zip(("x", "y"), ("n, m", "n, m"), strict=True))
    given = {name: shapes[name] for name, _ in zip(shapes, args, strict=False)}
    return export(model, args, dynamic_shapes=given, **{"symbols": SYMBOLS, **options})


def relations(program: Program) -> list[str]:
    return [str(relation.condition) for relation in program.contract.relations]


def test_a_branch_that_makes_no_difference_excludes_nothing() -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        wide = x.shape[0] > 1 and x.dtype is torch.int64
        return x * 2 if wide else x * 3

    program = exported(model, torch.ones(3, 4))
    assert relations(program) == []
    assert program(torch.ones(1, 1)).tolist() == [[3.0]]


def test_no_size_is_let_in_because_another_is_out() -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        # Where either is 1, the graph is the same as long as the other is not.
        if x.shape[0] == 1 and x.shape[1] == 1:
            return x * 3
        return x * 2

    program = export(model, (torch.ones(3, 4),), dynamic_shapes=({0: Dim.AUTO, 1: Dim.AUTO},))
    assert relations(program) == ["x_0 != 1"]
    assert program(torch.ones(2, 1)).tolist() == [[2.0], [2.0]]


def test_a_size_that_one_line_fixes_is_all_that_is_said_of_it() -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        x = x * 3 if x.shape[0] > 2 else x
        return x + 1 if x.shape[0] == 5 else x

    with pytest.raises(ExportError, match=r"needs n == 5, which fails for n = 1\n.*== 5 else x"):
        exported(model, torch.ones(5, 4))


def test_a_dimension_that_was_left_out_is_named() -> None:
    def model(tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return tokens * mask

    batch, length = Dim("batch", max=8), Dim("length", max=16)
    shapes = {"tokens": {0: batch, 1: length}, "mask": {0: batch}}
    with pytest.raises(ExportError) as caught:
        export(model, (torch.ones(3, 7), torch.ones(3, 7)), dynamic_shapes=shapes)
    assert caught.value.advice == (
        "make the dimension static (7), or change the line that fixes length, or declare length "
        "for dimension 1 of 'mask' too, if that is always equal"
    )


def test_a_step_that_gives_its_operand_is_no_difference() -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        row = torch.ones(1, 5)
        if x.shape[0] != 1:
            row = row.expand(x.shape[0], 5)
        return x.sum(1, keepdim=True) + row

    program = exported(model, torch.ones(3, 4))
    assert relations(program) == []
    assert program(torch.ones(1, 2)).tolist() == [[3.0] * 5]


def test_a_write_to_every_other_column_excludes_nothing() -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        x = x.clone()
        x[:, ::2] = x[:, ::2].clamp(max=0.5)
        return x

    program = exported(model, torch.randn(3, 4), symbols={"n": (0, 9), "m": (0, 9)})
    assert relations(program) == []
    for shape in ((1, 1), (1, 3), (2, 2), (0, 4), (5, 0)):
        x = torch.randn(shape)
        torch.testing.assert_close(program(x), model(x), rtol=0, atol=0)


def written_to_the_first_rows(x: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
    cache = torch.zeros(9, 16)
    cache[: x.shape[0], place] = x
    return cache


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("strict", [False, True])
def test_a_write_to_the_first_rows_at_places_that_a_tensor_has_excludes_nothing(
    rows: int, strict: bool
) -> None:
    program = export(
        written_to_the_first_rows,
        (torch.randn(rows, 4), torch.arange(4)),
        dynamic_shapes={"x": "n, m", "place": "m"},
        symbols=SYMBOLS,
        strict=strict,
    )
    assert relations(program) == []
    for shape in ((1, 1), (1, 5), (9, 1), (4, 3)):
        x, place = torch.randn(shape), torch.arange(shape[1]) + 3
        torch.testing.assert_close(
            program(x, place), written_to_the_first_rows(x, place), rtol=0, atol=0
        )


@pytest.mark.parametrize("strict", [False, True])
def test_channels_last_excludes_no_size(strict: bool) -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        return x.permute(0, 2, 3, 1).view(-1, 3)

    program = export(
        model,
        torch.randn(2, 3, 4, 5),
        dynamic_shapes={"x": "2, 3, n, m"},
        symbols=SYMBOLS,
        strict=strict,
    )
    assert relations(program) == []
    for height, width in ((1, 1), (1, 7), (9, 1), (4, 3)):
        x = torch.randn(2, 3, height, width)
        torch.testing.assert_close(program(x), model(x), rtol=0, atol=0)


def test_a_write_to_what_a_mask_finds_excludes_no_size() -> None:
    convolution = nn.Conv2d(3, 4, 1)

    def model(x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        # No more than 120 elements can be found in a row, which tracing asserts of one row only.
        x = x[:, :8].clone()
        x[x > 0] = other[:, :8][x > 0]
        return convolution(x.permute(0, 3, 1, 2))

    shape = "n, m, 5, 3"
    program = export(
        model,
        (torch.randn(2, 4, 5, 3), torch.randn(2, 4, 5, 3)),
        dynamic_shapes={"x": shape, "other": shape},
        symbols=SYMBOLS,
    )
    assert relations(program) == []
    for rows, length in itertools.product((1, 2, 9), repeat=2):
        call = torch.randn(rows, length, 5, 3), torch.randn(rows, length, 5, 3)
        torch.testing.assert_close(program(*call), model(*call))


def test_a_condition_on_what_a_mask_finds_that_is_for_one_size_excludes_it() -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        found = x[x > 0]
        if x.shape[0] == 1:
            torch._check(found.shape[0] <= 3)
        return found.sum()

    with pytest.raises(ExportError, match="n"):
        export(model, torch.ones(2, 4), dynamic_shapes={"x": "n, 4"}, symbols={"n": (1, 9)})


@pytest.mark.parametrize("columns", [7, 8])
def test_what_is_contiguous_for_some_sizes_excludes_none(columns: int) -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        padded = torch.nn.functional.pad(x, (0, -x.shape[1] % 4))
        return padded[:, : x.shape[1]].contiguous().view(-1)

    program = exported(model, torch.randn(3, columns))
    assert relations(program) == []
    for shape in ((1, 1), (3, 4), (2, 7), (9, 8)):
        x = torch.randn(shape)
        torch.testing.assert_close(program(x), model(x), rtol=0, atol=0)


@pytest.mark.parametrize("columns", [4, 6])
def test_what_is_contiguous_already_is_the_tensor_itself(columns: int) -> None:
    def model(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        part = x[:, : y.shape[1]].contiguous()
        part.add_(1)
        return x.sum(1)

    shapes = {"x": "n, 6", "y": "n, m"}
    example = torch.zeros(3, 6), torch.zeros(3, columns)
    program = export(model, example, dynamic_shapes=shapes, symbols={"n": (2, 9), "m": (2, 6)})
    for size in (2, 5, 6):
        given, other = torch.zeros(2, 6), torch.zeros(2, 6)
        y = torch.zeros(2, size)
        assert program(given, y).tolist() == model(other, y).tolist() == [6.0 * (size == 6)] * 2
        assert torch.equal(given, other)


CELLS = {
    "reshape": lambda x: x.unflatten(1, (2, 2)).permute(0, 3, 4, 1, 2).reshape(2, -1, 2),
    "flatten": lambda x: x.permute(0, 2, 3, 1).flatten(0, 2),
    "linear": lambda x: torch.nn.functional.linear(x.flatten(2).transpose(1, 2), WEIGHT),
    "matmul": lambda x: x.flatten(2).transpose(1, 2) @ WEIGHT.T,
    "conv1d": lambda x: torch.nn.functional.conv1d(x.mean(3).mT.contiguous().mT, WEIGHT[..., None]),
    "attention": lambda x: torch.nn.functional.scaled_dot_product_attention(
        *(x.mean(3).mT[:, None],) * 3, attn_mask=x.mean((1, 3))[:, None, None] > 0
    ),
    "einsum": lambda x: torch.einsum("bchw,dc->bhwd", x, WEIGHT),
}
WEIGHT = torch.arange(12.0).reshape(3, 4)


@pytest.mark.parametrize("name", CELLS)
def test_an_operator_that_may_copy_excludes_no_size(name: str) -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        image = torch.nn.functional.avg_pool2d(x[None, None], 2, ceil_mode=True)
        return CELLS[name](torch.cat([image, -image, image * 2, image**2], 1).repeat(2, 1, 1, 1))

    program = exported(model, torch.randn(6, 4))
    assert relations(program) == []
    for shape in ((1, 1), (2, 5), (8, 1), (9, 9)):
        x = torch.randn(shape)
        torch.testing.assert_close(program(x), model(x))


@pytest.mark.parametrize("points", [9, 40])
def test_distances_between_few_points_or_many_are_one_operator(points: int) -> None:
    def model(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.cdist(x, y)

    shapes = {"x": "n, 3", "y": "m, 3"}
    symbols = {"n": (1, 64), "m": (1, 64)}
    example = torch.randn(points, 3), torch.randn(5, 3)
    program = export(model, example, dynamic_shapes=shapes, symbols=symbols)
    assert relations(program) == []
    for rows, columns in ((1, 1), (25, 25), (26, 3), (3, 26), (64, 64)):
        call = torch.randn(rows, 3), torch.randn(columns, 3)
        torch.testing.assert_close(program(*call), model(*call))


@pytest.mark.parametrize("example", [(1, 4), (3, 1), (1, 1)])
def test_an_example_of_size_1_stands_for_all_sizes(example: tuple[int, int]) -> None:
    attention = torch.nn.MultiheadAttention(4, 2, batch_first=True).eval()

    def model(x: torch.Tensor) -> torch.Tensor:
        tokens = x[..., None] * torch.ones(4)
        return attention(tokens, tokens, tokens)[0]

    program = exported(model, torch.randn(example))
    assert relations(program) == []
    for shape in ((1, 1), (1, 5), (9, 1), (4, 3)):
        x = torch.randn(shape)
        torch.testing.assert_close(program(x), model(x))


def test_a_branch_is_for_the_sizes_of_a_larger_example() -> None:
    with pytest.raises(ExportError, match=r"(?s)needs n > 1, .* declare Dim\('n', min=2, max=9\)"):
        exported(lambda x: x * 2 if x.shape[0] > 1 else x * 3, torch.randn(1, 4))


def test_a_guard_that_excludes_0_and_1_is_tried_at_each() -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        kernel = torch.ones(1, 1, 3)
        return torch.nn.functional.conv1d(x[:, None], kernel, padding=1)[:, 0]

    automatic = {0: Dim.AUTO, 1: Dim.AUTO}
    contract = export(model, torch.randn(3, 4), dynamic_shapes={"x": automatic}).contract
    assert [symbol.minimum for symbol in contract.symbols] == [0, 1]
    assert contract.relations == ()
    with pytest.raises(ExportError, match="min=1") as caught:
        exported(model, torch.randn(3, 4), symbols={"n": (0, 9), "m": (0, 9)})
    assert "m = 1" not in str(caught.value)


def test_a_write_to_one_place_under_many_names_is_still_refused() -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        place = torch.zeros(1, 1).expand(x.shape[0], x.shape[1])
        return place.copy_(x) * 2

    with pytest.raises(ExportError, match="the model needs n <= 1, which fails for n = 2"):
        exported(model, torch.randn(1, 1))


def test_causal_attention_over_one_position_needs_no_mask() -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        x = x[:, None, :, None]
        attention = torch.nn.functional.scaled_dot_product_attention
        return attention(x, x, x, is_causal=bool(x.shape[2] > 1))

    program = exported(model, torch.randn(3, 4))
    assert relations(program) == []
    x = torch.randn(2, 1)
    torch.testing.assert_close(program(x), model(x))


def test_sizes_whose_product_is_1_are_tried_together() -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        positions = x.flatten(2).transpose(1, 2)
        causal = positions.shape[1] > 1 and x.dtype is torch.int64
        return functional.scaled_dot_product_attention(
            positions, positions, positions, is_causal=causal
        )

    example = torch.randn(2, 4, 3, 5)
    symbols = {"batch": (1, 4), "n": (1, 9), "m": (1, 9)}
    program = export(model, example, dynamic_shapes=("batch, 4, n, m",), symbols=symbols)
    assert relations(program) == []
    single = torch.randn(1, 4, 1, 1)
    torch.testing.assert_close(program(single), model(single))


def test_sizes_whose_product_is_another_number_are_tried_together() -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        causal = x.shape[0] * x.shape[1] != 64 and x.dtype is torch.int64
        return x * 2 if causal else x * 3

    symbols = {"n": (1, 64), "m": (1, 64)}
    program = exported(model, torch.ones(3, 4), symbols=symbols)
    assert relations(program) == []
    for shape in ((1, 64), (8, 8), (16, 4), (5, 13)):
        assert torch.equal(program(torch.ones(shape)), torch.ones(shape) * 3)


def test_a_size_that_both_sides_of_a_comparison_have_is_not_part_of_it() -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        batch, height, width, channels = x.permute(0, 2, 3, 1).shape
        windows = x.permute(0, 2, 3, 1).view(batch, height // 4, 4, width // 4, 4, channels)
        return windows.sum((2, 4))

    symbols = {"batch": (1, 4), "h": (1, 40), "w": (1, 40)}
    shapes = ("batch, 3, 4*h, 4*w",)
    program = export(model, torch.randn(2, 3, 12, 20), dynamic_shapes=shapes, symbols=symbols)
    assert relations(program) == []
    for shape in ((1, 3, 4, 4), (2, 3, 4, 160), (2, 3, 160, 4)):
        x = torch.randn(shape)
        torch.testing.assert_close(program(x), model(x))


def test_a_number_of_frames_that_both_sides_of_a_comparison_have_is_not_part_of_it() -> None:
    layer = nn.Conv1d(3, 5, 3, padding=1)

    def model(x: torch.Tensor) -> torch.Tensor:
        frames = x.unfold(1, 8, 4)
        return layer(torch.einsum("mf,bft->bmt", torch.ones(3, 8), frames.transpose(1, 2)))

    symbols = {"batch": (1, 4), "samples": (8, 400)}
    program = export(model, torch.randn(2, 81), dynamic_shapes=("batch, samples",), symbols=symbols)
    assert relations(program) == []
    for shape in ((1, 8), (1, 400), (4, 8), (3, 77)):
        x = torch.randn(shape)
        torch.testing.assert_close(program(x), model(x))


def test_a_condition_on_one_size_excludes_no_other() -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = torch.cond(x.shape[0] > 4, torch.sin, torch.cos, (x,))
        return result

    program = exported(model, torch.ones(5, 2))
    assert relations(program) == []
    for shape in ((1, 1), (4, 1), (5, 1), (9, 9)):
        x = torch.randn(shape)
        torch.testing.assert_close(program(x), model(x))


def test_a_product_stays_excluded_where_one_of_its_graphs_is_another() -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        if x.shape[0] * x.shape[1] == 64 and x.shape[0] == x.shape[1]:
            return x * 2
        return x * 3

    with pytest.raises(
        ExportError, match=r"needs m\*n != 64, which fails for n = 8, m = 8"
    ) as caught:
        exported(model, torch.ones(3, 4), symbols={"n": (1, 64), "m": (1, 64)})
    assert caught.value.advice.startswith('state what the model needs: relations=["m*n != 64"')


@pytest.mark.parametrize("example", [(2, 2), (4, 2), (4, 4)])
@pytest.mark.parametrize("combine", [operator.and_, operator.or_])
def test_a_branch_on_two_conditions_lets_in_the_sizes_that_take_it(
    combine: Callable[[Any, Any], Any], example: tuple[int, int]
) -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        return x * 2 if combine(x.shape[0] > 2, x.shape[1] > 2) else x * 3

    program = exported(model, torch.ones(example), accept_narrowing="as in use", batching=False)
    taken = model(torch.ones(example))[0, 0]
    for shape in itertools.product(range(1, 6), repeat=2):
        x = torch.ones(shape)
        if model(x)[0, 0] == taken:
            assert torch.equal(program(x), model(x))
        else:
            with pytest.raises(ContractViolation):
                program(x)


def test_the_range_of_an_inferred_size_ends_where_the_graph_does() -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        return x * 2 if 3 < x.shape[0] < 20 else x

    program = export(model, torch.ones(5), dynamic_shapes={"x": {0: Dim.AUTO}})
    assert program.contract.symbols == (Symbol("x_0", 4, 19),)
    assert relations(program) == []


def test_an_inferred_size_has_a_name_that_no_other_has() -> None:
    program = export(
        lambda x, y: (x * 2, y * 3),
        (torch.ones(2), torch.ones(4)),
        dynamic_shapes={"x": {0: Dim("y_0", min=1, max=9)}, "y": {0: Dim.AUTO}},
    )
    assert [symbol.name for symbol in program.contract.symbols] == ["y_0", "y_0_"]
    assert program(torch.ones(9), torch.ones(3))[1].tolist() == [3.0] * 3


def test_where_only_multiples_can_occur_the_advice_declares_them() -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        whole = x[: x.shape[0] // 2 * 2, : x.shape[1] // 4 * 4]
        return x.reshape(-1) + whole.reshape(-1)

    with pytest.raises(ExportError) as caught:
        exported(model, torch.ones(4, 8), symbols={"n": (1, 16), "m": (1, 16)})
    assert "declare them as such (4*k for m and 2*k for n); or state" in caught.value.advice
    program = export(model, torch.ones(4, 8), dynamic_shapes=("2*n, 4*m",), symbols=SYMBOLS)
    assert relations(program) == []
    assert torch.equal(program(torch.ones(2, 4)), torch.full((8,), 2.0))


class Positions(nn.Module):
    """Adds to patches (batch, 3, height, width) a table that is resized for all but 4 by 4."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(1, 16, 3))
        self.factor = factor

    def resized(self, height: int, width: int) -> torch.Tensor:
        if height * width == self.table.shape[1] and height == width:
            return self.table * self.factor
        square = self.table.reshape(1, 4, 4, 3).permute(0, 3, 1, 2)
        resized = functional.interpolate(square, size=(height, width), mode="bicubic")
        return resized.permute(0, 2, 3, 1).reshape(1, -1, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        height, width = x.shape[-2:]
        return x.flatten(2).transpose(1, 2) + self.resized(height, width)


@pytest.mark.parametrize("largest", [16, None])
@pytest.mark.parametrize("example", [(2, 3), (4, 4), (2, 8), (3, 3), (1, 1)])
def test_a_table_that_is_resized_to_its_own_size_is_the_same_table(
    example: tuple[int, int], largest: int | None
) -> None:
    model = Positions()
    symbols = {"batch": (1, 4), "h": (1, largest), "w": (1, largest)}
    options = {"dynamic_shapes": ("batch, 3, h, w",), "symbols": symbols}
    program = export(model, torch.randn(1, 3, *example), **options)
    assert relations(program) == []
    for shape in ((1, 1), (4, 4), (2, 8), (16, 1), (5, 5), (16, 16)):
        x = torch.randn(2, 3, *shape)
        torch.testing.assert_close(program(x), model(x))


@pytest.mark.parametrize("example", [(2, 3), (4, 4)])
def test_a_table_that_is_another_for_its_own_size_is_not(example: tuple[int, int]) -> None:
    symbols = {"batch": (1, 4), "h": (1, 16), "w": (1, 16)}
    with pytest.raises(ExportError, match=r"h\*w [!=]= 16"):
        export(
            Positions(factor=2.0),
            torch.randn(1, 3, *example),
            dynamic_shapes=("batch, 3, h, w",),
            symbols=symbols,
        )


@pytest.mark.parametrize("factor", [1.0, 2.0])
@pytest.mark.parametrize("example", [(2, 3), (2, 4), (4, 2), (4, 4)])
def test_an_example_with_one_side_of_a_tables_own_size_stands_for_others(
    example: tuple[int, int], factor: float
) -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        if x.shape[0] == 4 and x.shape[1] == 4:
            return x + table[0, 0] * factor
        return x + functional.interpolate(table, size=x.shape[:2], mode="bicubic")[0, 0]

    table = torch.randn(1, 1, 4, 4)
    if factor != 1:
        with pytest.raises(ExportError, match=r"n [!=]= 4"):
            exported(model, torch.randn(example), symbols={"n": (1, 16), "m": (1, 16)})
        return
    program = exported(model, torch.randn(example), symbols={"n": (1, 16), "m": (1, 16)})
    assert relations(program) == []
    for shape in itertools.product((1, 2, 4, 5), repeat=2):
        x = torch.randn(shape)
        torch.testing.assert_close(program(x), model(x))


def test_a_table_that_another_method_may_change_is_not_compared_by_value() -> None:
    class Model(Positions):
        def train_a_little(self, x: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                self.table.add_(x)
            return x

    methods = {
        "forward": MethodSpec(
            args=torch.randn(1, 3, 2, 3),
            dynamic_shapes=("batch, 3, h, w",),
            symbols={"batch": (1, 4), "h": (1, 16), "w": (1, 16)},
        ),
        "train_a_little": MethodSpec(args=torch.ones(1, 16, 3)),
    }
    with pytest.raises(ExportError, match=r"needs h\*w != 16, which fails for h = 4, w = 4"):
        export_spec(ExportSpec(model=Model(), methods=methods))


def test_sizes_whose_product_is_1_stay_excluded_where_the_graph_is_another() -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        return x * 2 if x.shape[0] * x.shape[1] > 1 else x * 3

    with pytest.raises(ExportError, match=r"needs m\*n > 1, which fails for n = 1, m = 1"):
        exported(model, torch.ones(3, 4))
    program = exported(
        model, torch.ones(3, 4), accept_narrowing="a single element is not asked for"
    )
    assert relations(program) == ["m*n > 1"]


def test_a_size_that_rounds_to_1_for_one_value_only_is_tried_there() -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        blocks = (x.shape[0] - 1) // 4 + 1
        return x * 2 if blocks > 1 or x.dtype is torch.float32 else x * 3

    program = exported(model, torch.ones(9, 4), symbols={"n": (4, 9), "m": (1, 9)})
    assert relations(program) == []
    assert program(torch.ones(4, 1)).tolist() == [[2.0]] * 4


def test_only_the_size_that_is_to_blame_is_named() -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        wide = x.shape[1] > 1 and x.dtype is torch.int64
        return x * 2 if x.shape[0] > 4 or wide else x * 3

    with pytest.raises(ExportError) as caught:
        exported(model, torch.ones(6, 5))
    assert "needs n > 4" in caught.value.reason
    assert "needs m" not in caught.value.reason and "m >" not in caught.value.reason


@pytest.mark.parametrize(
    ("model", "rows", "needed"),
    [
        (lambda x: x + torch.ones(16, 4)[: x.shape[0]], 6, "needs n <= 16,"),
        (lambda x: x + torch.ones(max(x.shape[0], 5), 4), 6, "needs n >= 5,"),
        (lambda x: x * 2 if min(x.shape[0], 5) != x.shape[0] else x * 3, 6, "needs n > 5,"),
        (lambda x: x * 2 if max(x.shape[0], 9) != x.shape[0] else x * 3, 6, "needs n < 9,"),
    ],
)
def test_a_size_that_is_the_least_or_the_greatest_is_told_as_a_bound(
    model: Any, rows: int, needed: str
) -> None:
    with pytest.raises(ExportError) as caught:
        exported(model, torch.ones(rows, 4), symbols={"n": (1, 32), "m": (4, 4)})
    assert needed in caught.value.reason


def test_a_branch_that_makes_a_difference_is_refused() -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        return x * 2 if x.shape[0] > 1 else x * 3

    with pytest.raises(ExportError, match="needs n > 1, which fails for n = 1") as caught:
        exported(model, torch.ones(3, 4))
    assert caught.value.kind is ExportErrorKind.CONSTRAINT_VIOLATION


@pytest.mark.parametrize("operation", [operator.floordiv, operator.mod, operator.truediv])
def test_a_size_for_which_the_graph_would_divide_by_0_is_excluded(operation: Any) -> None:
    def model(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x * operation(x.shape[0], y.shape[0] - 500) + y.sum()

    example = torch.ones(6), torch.ones(2)
    automatic = {"x": {0: Dim.AUTO}, "y": {0: Dim.AUTO}}
    program = export(model, example, dynamic_shapes=automatic)
    assert relations(program) == ["y_0 - 500 != 0"]
    with pytest.raises(ContractViolation):
        program(torch.ones(6), torch.ones(500))
    x, y = torch.ones(0), torch.ones(501)
    assert torch.equal(program(x, y), model(x, y))
    with pytest.raises(ExportError, match="needs m - 500 != 0, which fails for m = 500"):
        export(
            model,
            example,
            dynamic_shapes={"x": "n", "y": "m"},
            symbols={"n": (0, 9), "m": (0, 10_000)},
        )


@pytest.mark.parametrize("operation", [operator.floordiv, operator.mod, operator.truediv])
@pytest.mark.parametrize("strict", [False, True])
def test_a_size_that_divides_a_number_with_a_fraction_is_not_0(
    operation: Any, strict: bool
) -> None:
    def model(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x * operation(1.5, y.shape[0] - 2) + y.sum()

    automatic = {"x": {0: Dim.AUTO}, "y": {0: Dim.AUTO}}
    example = torch.ones(6), torch.ones(4)
    program = export(model, example, dynamic_shapes=automatic, strict=strict)
    assert relations(program) == ["y_0 - 2 != 0"]
    with pytest.raises(ContractViolation, match=r"tracing_test\.py"):
        program(torch.ones(6), torch.ones(2))
    for size in (0, 1, 3):
        x, y = torch.ones(6), torch.ones(size)
        assert torch.equal(program(x, y), model(x, y))


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(
    "model",
    [
        lambda x: x.sum(0) / max(x.shape[0], 1),
        lambda x: x.sum() / torch.sym_max(1, x.shape[0] * x.shape[1]),
        lambda x: x * (x.shape[0] // max(x.shape[1], 1)),
        lambda x: x.new_ones(max(x.shape[0], 1), max(x.shape[1], 1)),
    ],
)
def test_a_size_that_is_at_least_1_by_the_model_may_be_0(model: Any, strict: bool) -> None:
    program = exported(model, torch.ones(6, 2), symbols={"n": (0, 9), "m": (0, 9)}, strict=strict)
    assert relations(program) == []
    for shape in ((0, 0), (0, 3), (4, 0), (1, 1), (9, 2)):
        x = torch.randn(shape)
        torch.testing.assert_close(program(x), model(x))


def test_a_branch_on_data_takes_tensors_whose_sizes_may_be_0() -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        chosen: torch.Tensor = torch.cond(x.sum() > 0, torch.sin, torch.cos, (x,))
        return chosen

    program = exported(model, torch.ones(6, 2), symbols={"n": (0, 9), "m": (0, 9)})
    assert relations(program) == []
    for x in (torch.ones(0, 3), torch.ones(4, 0), torch.ones(9, 2), -torch.ones(1, 1)):
        assert torch.equal(program(x), model(x))


def test_a_size_that_is_at_least_1_anyway_is_itself() -> None:
    program = exported(lambda x: x.new_ones(max(x.shape[0], 1)), torch.ones(6, 2))
    assert str(program.contract.tensor_outputs["output"]) == "float32[n]"


def test_a_branch_for_nothing_that_makes_no_difference_excludes_nothing() -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        return x.new_zeros(1) if x.numel() == 0 else x.sum()[None]

    program = exported(model, torch.ones(6, 2), symbols={"n": (0, 9), "m": (0, 9)})
    assert relations(program) == []
    assert program(torch.ones(0, 3)).tolist() == [0.0]


@pytest.mark.parametrize("minimum", [0, 1])
def test_what_was_selected_and_rows_besides_are_not_nothing(minimum: int) -> None:
    def model(x: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
        loops = torch.arange(x.shape[0]).expand(2, -1)
        edges = torch.cat([edges[:, edges[0] != edges[1]], loops], 1)
        if edges.numel() == 0:
            return x
        return x.index_add(0, edges[1], x[edges[0]])

    shapes = {"x": "nodes, 2", "edges": "2, count"}
    symbols = {"nodes": (1, 9), "count": (minimum, 20)}
    example = torch.randn(3, 2), torch.randint(3, (2, 5))
    program = export(model, example, dynamic_shapes=shapes, symbols=symbols)
    assert relations(program) == []
    for nodes, count in ((1, minimum), (1, 3), (9, 20), (5, 4)):
        x, edges = torch.randn(nodes, 2), torch.randint(nodes, (2, count))
        torch.testing.assert_close(program(x, edges), model(x, edges))


def test_a_size_of_1_is_tried_where_what_is_stated_ties_it_to_others() -> None:
    def model(x: torch.Tensor, past: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        whole = torch.cat([past, x] if x.shape[0] == 1 else (past, x))
        return whole * mask[:, None]

    program = export(
        model,
        (torch.randn(3, 2), torch.randn(4, 2), torch.ones(7)),
        dynamic_shapes={"x": "new, 2", "past": "old, 2", "mask": "total"},
        symbols={"new": (1, 9), "old": (1, 9)},
        relations=["total == new + old"],
    )
    assert relations(program) == ["total == new + old"]
    for new, old in ((1, 1), (1, 9), (9, 1), (4, 5)):
        call = torch.randn(new, 2), torch.randn(old, 2), torch.randn(new + old)
        assert torch.equal(program(*call), model(*call))


def test_sizes_that_are_only_together_too_small_are_excluded() -> None:
    def model(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.cat([x, y]).reshape(-1, 1).max(0).values

    automatic = {"x": {0: Dim.AUTO}, "y": {0: Dim.AUTO}}
    program = export(model, (torch.ones(3), torch.ones(4)), dynamic_shapes=automatic)
    assert [symbol.minimum for symbol in program.contract.symbols] == [1, 1]
    assert relations(program) == []


def test_two_sizes_that_are_each_legal_only_without_the_other() -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        if x.shape[0] != 1:
            return x * 2
        return x * 2 if x.shape[1] != 1 else x * 3

    with pytest.raises(ExportError, match="n != 1"):
        exported(model, torch.ones(3, 4))
    program = exported(model, torch.ones(3, 4), accept_narrowing="as the model has it")
    # And the range is what was declared.
    assert relations(program) == ["n != 1"]
    with pytest.raises(ContractViolation):
        program(torch.ones(1, 1))


def test_no_narrowing_is_accepted_that_only_the_example_needs() -> None:
    program = export(
        written_to_the_first_rows,
        (torch.randn(1, 4), torch.arange(4)),
        dynamic_shapes={"x": "n, 4", "place": "4"},
        symbols={"n": (1, 9)},
        accept_narrowing="whatever it is",
    )
    assert relations(program) == []
    assert program.contract.notes == ()


def test_a_narrowing_that_the_model_needs_lets_in_none_that_only_the_example_needs() -> None:
    def model(x: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
        cache = torch.zeros(9, 16)
        cache[: x.shape[0], place] = x
        return cache if x.shape[1] > 2 else cache * 2

    program = export(
        model,
        (torch.randn(1, 4), torch.arange(4)),
        dynamic_shapes={"x": "n, m", "place": "m"},
        symbols=SYMBOLS,
        accept_narrowing="few columns are rare",
    )
    assert relations(program) == ["m > 2"]
    assert program.contract.notes == (
        "narrower than declared: m > 2; accepted: few columns are rare",
    )
    x, place = torch.randn(5, 3), torch.arange(3)
    torch.testing.assert_close(
        program(x, place), written_to_the_first_rows(x, place), rtol=0, atol=0
    )


def test_a_narrowing_that_excludes_the_example_is_not_taken_from_a_larger_one() -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        return x * 2 if x.shape[0] == 1 else x * 3

    program = exported(model, torch.ones(1, 4), accept_narrowing="one row is usual")
    assert relations(program) == ["n == 1"]
    assert program(torch.ones(1, 4)).tolist() == [[2.0] * 4]


@pytest.mark.parametrize("relation", ["n != 3", "n > 1", "n >= 2", "n < 9"])
def test_what_the_user_states_is_kept_though_no_graph_needs_it(relation: str) -> None:
    program = exported(lambda x: x * 2, torch.ones(4, 4), relations=[relation])
    assert relations(program) == [relation]


def test_a_loop_that_is_an_operator_runs_for_any_length() -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        def step(total: torch.Tensor, row: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            total = total / 2 + row
            return total, total * 1

        _, totals = scan(step, torch.zeros_like(x[0]), x, dim=0)
        assert isinstance(totals, torch.Tensor)
        return totals

    program = exported(model, torch.randn(3, 4))
    assert relations(program) == []
    for shape in ((1, 1), (1, 9), (9, 1), (7, 2)):
        x = torch.randn(shape)
        torch.testing.assert_close(program(x), model(x))


def test_conditions_that_sympy_cannot_solve_are_left_to_the_contract() -> None:
    weight = torch.ones(1, 1, 3)

    def model(x: torch.Tensor) -> torch.Tensor:
        half = functional.conv1d(x[:, None], weight, stride=2)
        return functional.conv1d(half, weight, stride=2)[:, 0] * x[:, :-2:2][:, :-2:2]

    program = export(model, torch.randn(2, 50), dynamic_shapes=("2, n",), symbols={"n": (7, 400)})
    assert relations(program) == []
    for length in range(7, 60):
        x = torch.randn(2, length)
        torch.testing.assert_close(program(x), model(x))


def test_a_loop_that_cannot_run_for_one_size_says_why() -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        def step(total: torch.Tensor, row: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            total = total / 2 + row
            return total, total * 1

        # One row of it has the strides of the whole.
        _, totals = scan(step, torch.zeros_like(x[:, 0]), x, dim=1)
        assert isinstance(totals, torch.Tensor)
        return totals

    with pytest.raises(
        ExportError, match=r"what the body returns: stride: .*, for n = 1\n"
    ) as caught:
        export(model, torch.randn(2, 5, 4), dynamic_shapes=("n, 5, 4",), symbols={"n": (1, 9)})
    assert "start from a copy" in caught.value.advice
    assert caught.value.source is not None
    assert "scan(step" in caught.value.source.text


class Result(collections.OrderedDict[str, torch.Tensor]):
    """A library's own kind of dict, which also takes a position."""

    def __getitem__(self, key: Any) -> torch.Tensor:
        return list(self.values())[key] if isinstance(key, int) else super().__getitem__(key)


torch.utils._pytree.register_pytree_node(
    Result,
    lambda result: (list(result.values()), list(result)),
    lambda values, keys: Result(zip(keys, values, strict=True)),
    serialized_type_name="slipway.tracing_test.Result",
)


def test_a_dict_of_a_type_of_its_own_is_a_dict_to_callers_and_itself_to_the_model() -> None:
    def model(x: Result) -> Result:
        return Result(sum=x[0] + x["b"], first=x[0] * 1)

    example = Result(a=torch.ones(3), b=torch.ones(3))
    program = export(
        model,
        (example,),
        dynamic_shapes={"x": {"a": "n", "b": "n"}},
        symbols={"n": (1, 9)},
    )
    result = program({"a": torch.ones(1), "b": torch.ones(1)})
    assert type(result) is dict
    assert result["sum"].tolist() == [2.0]
    assert program(example)["first"].tolist() == [1.0] * 3


def test_what_operators_return_is_a_named_tuple_and_a_size_a_tuple(tmp_path: Path) -> None:
    def model(top: Any, size: torch.Size) -> Any:
        return (top.values * size[1]).sort(-1), top.values.shape

    program = export(
        model,
        (torch.randn(4, 3).max(1), torch.Size([2, 3])),
        dynamic_shapes={"top": ("n", "n"), "size": None},
        symbols={"n": (1, 9)},
    )
    assert list(program.contract.tensor_inputs) == ["top.values", "top.indices"]
    assert list(program.contract.tensor_outputs) == ["output_0.values", "output_0.indices"]
    program.save(tmp_path / "saved.program")
    for callee in (program, load(tmp_path / "saved.program")):
        result, size = callee(torch.tensor([[1.0, 3.0], [2.0, 1.0]]).max(1), (2, 3))
        assert result.values.tolist() == [6.0, 9.0]
        assert result.indices.tolist() == [1, 0]
        assert size == (2,)


def test_sizes_that_are_declared_alike_are_one_size_for_torch() -> None:
    """A view's -1 is a quotient of two such sizes here, which is 1 only if they are equal."""

    def attend(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        of_heads = mask[:, None].repeat_interleave(2, dim=0)
        return x[:, None] + of_heads.view(x.shape[0], 2, -1, mask.shape[-1])

    program = export(
        attend,
        (torch.randn(2, 5, 1), torch.randn(2, 6)),
        dynamic_shapes=("batch, rows, 1", "batch, tokens"),
        symbols={"batch": (1, 4), "rows": (1, 8), "tokens": (1, 8)},
    )
    x, mask = torch.randn(1, 8, 1), torch.randn(1, 1)
    assert torch.equal(program(x, mask), attend(x, mask))
    with pytest.raises(ContractViolation):
        program(x, torch.randn(2, 1))
