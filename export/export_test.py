"""Exports of small models: what becomes of them, and what is refused with which line and advice."""

from __future__ import annotations

import inspect
import itertools
import math
import random
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._higher_order_ops.associative_scan import associative_scan
from torch.export import AdditionalInputs, ShapesCollection
from torch.nn import functional

from slipway.export import (
    Dim,
    ExportError,
    ExportErrorKind,
    ExportSpec,
    MethodSpec,
    data_path,
    export,
    export_spec,
)
from slipway.program import ContractViolation, Program, load, verify
from slipway.program.cases import AnsweredCase
from slipway.program.interpreter import use_interpreter
from slipway.program.scalar_types import ScalarType

AUTO = Dim.AUTO
HERE = Path(__file__).name


def shapes_of(program: Program) -> list[str]:
    return [str(spec) for spec in program.contract.tensor_inputs.values()]


def relations_of(program: Program) -> list[str]:
    return [str(relation) for relation in program.contract.relations]


def ranges_of(program: Program) -> dict[str, str]:
    return {symbol.name: symbol.allowed for symbol in program.contract.symbols}


def accepts(program: Program, *shapes: Sequence[int]) -> bool:
    try:
        program(*(torch.ones(tuple(shape)) for shape in shapes))
    except ContractViolation:
        return False
    return True


def failure(*args: Any, **kwargs: Any) -> ExportError:
    with pytest.raises(ExportError) as caught:
        export(*args, **kwargs)
    error = caught.value
    assert str(error).startswith(f"{error.kind.value}: {error.reason}")
    assert f"what to do: {error.advice}" in str(error)
    assert len(error.advice) > 10
    return error


def line_of(function: Callable[..., Any], text: str) -> str:
    """Returns where a line of a function is, as an error names it."""
    lines, first = inspect.getsourcelines(function)
    (offset,) = (offset for offset, line in enumerate(lines) if text in line)
    return f"{HERE}:{first + offset}"


def at(error: ExportError) -> str:
    assert error.source is not None, error
    assert not Path(error.source.file).is_absolute()
    return f"{Path(error.source.file).name}:{error.source.line}"


# What can be exported -----------------------------------------------------------------------------


def add_one(x: torch.Tensor) -> torch.Tensor:
    return x + 1


@pytest.mark.parametrize("args", [torch.ones(3), (torch.ones(3),)])
@pytest.mark.parametrize("strict", [False, True])
def test_a_function_of_a_bare_tensor_or_a_tuple(args: Any, strict: bool) -> None:
    program = export(add_one, args, strict=strict)
    assert torch.equal(program(torch.zeros(3)), torch.ones(3))
    assert shapes_of(program) == ["float32[3]"]


class Callable_:
    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2


@pytest.mark.parametrize("model", [nn.Linear(3, 3), nn.Linear(3, 3).forward, Callable_()])
def test_modules_methods_and_callable_objects(model: Callable[..., torch.Tensor]) -> None:
    x = torch.rand(2, 3)
    program = export(model, x)
    torch.testing.assert_close(program(x), model(x).detach())


def test_everything_is_static_unless_it_is_marked() -> None:
    program = export(add_one, torch.ones(2, 3, 4), dynamic_shapes={"x": {1: Dim("rows")}})
    assert shapes_of(program) == ["float32[2, rows, 4]"]
    assert ranges_of(program) == {"rows": "0.."}
    assert accepts(program, (2, 0, 4))
    assert accepts(program, (2, 99, 4))
    for shape in [(1, 3, 4), (2, 3, 5), (2, 3), (2, 3, 4, 1)]:
        assert not accepts(program, shape)


@pytest.mark.parametrize("size", [0, 1, 2, 5])
def test_an_example_of_any_size_stands_for_all(size: int) -> None:
    batch = Dim("batch", max=64)
    program = export(nn.Linear(4, 2), torch.ones(size, 4), dynamic_shapes=[{0: batch}])
    assert shapes_of(program) == ["float32[batch, 4]"]
    assert relations_of(program) == []
    for other in (0, 1, 2, 3, 64):
        assert program(torch.ones(other, 4)).shape == (other, 2)
    assert not accepts(program, (65, 4))


@pytest.mark.parametrize("minimum", [0, 1, 2, 3])
def test_bounds_are_exact_at_both_ends(minimum: int) -> None:
    batch = Dim("batch", min=minimum, max=7)
    program = export(add_one, torch.ones(4), dynamic_shapes=[{0: batch}])
    assert [size for size in range(12) if accepts(program, (size,))] == list(range(minimum, 8))


def test_derived_dimensions_take_multiples_alone() -> None:
    blocks = Dim("blocks", min=1, max=4)
    program = export(lambda x: x.view(-1, 8), torch.ones(16), dynamic_shapes={"x": {0: 8 * blocks}})
    assert shapes_of(program) == ["float32[8*blocks]"]
    assert [size for size in range(50) if accepts(program, (size,))] == [8, 16, 24, 32]
    with pytest.raises(ContractViolation, match="nearest legal value: 8 or 16"):
        program(torch.ones(9))


def test_a_root_that_no_dimension_shows_still_has_to_fit() -> None:
    n = Dim("n", max=8)

    def both(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x[1:] + y

    program = export(
        both, (torch.ones(7), torch.ones(6)), dynamic_shapes=({0: 2 * n + 1}, {0: 2 * n})
    )
    pairs = itertools.product(range(20), repeat=2)
    legal = [pair for pair in pairs if accepts(program, pair[:1], pair[1:])]
    assert legal == [(2 * value + 1, 2 * value) for value in range(9)]


def test_the_same_dim_on_two_inputs_must_agree() -> None:
    batch = Dim("batch", min=1, max=9)
    program = export(
        lambda x, y: x + y.sum(1),
        (torch.ones(2), torch.ones(2, 3)),
        dynamic_shapes=({0: batch}, {0: batch}),
    )
    assert accepts(program, (5,), (5, 3))
    assert not accepts(program, (5,), (4, 3))
    assert program.contract.batch_symbol == 0


def test_auto_dimensions_are_what_tracing_finds() -> None:
    def model(x: torch.Tensor, y: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        return torch.cat([x, y])[:, None] * z

    program = export(
        model,
        (torch.ones(2), torch.ones(3), torch.ones(5, 4)),
        dynamic_shapes=({0: AUTO}, {0: AUTO}, {0: AUTO, 1: Dim.STATIC}),
    )
    assert shapes_of(program) == ["float32[x_0]", "float32[y_0]", "float32[x_0 + y_0, 4]"]
    assert accepts(program, (7,), (4,), (11, 4))
    assert not accepts(program, (7,), (4,), (10, 4))


def test_auto_dimensions_may_turn_out_static_and_dynamic_ones_may_not() -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        return x + torch.ones(3)

    assert shapes_of(export(model, torch.ones(3), dynamic_shapes=[{0: AUTO}])) == ["float32[3]"]
    error = failure(model, torch.ones(3), dynamic_shapes=[{0: Dim.DYNAMIC}])
    assert error.kind is ExportErrorKind.CONSTRAINT_VIOLATION
    assert "'x' dimension 0 is declared dynamic" in error.reason
    assert at(error) == line_of(model, "torch.ones(3)")


def scaled_sums(x: torch.Tensor, *, y: torch.Tensor) -> torch.Tensor:
    return (x * 2).sum(1) + y


def test_shapes_may_be_collected_by_tensor() -> None:
    x, y = torch.ones(2, 3), torch.ones(2)
    shapes = ShapesCollection()
    shapes[x] = shapes[y] = {0: Dim("n", min=1, max=9)}
    program = export(scaled_sums, (x,), {"y": y}, dynamic_shapes=shapes)
    assert program(torch.ones(9, 3), y=torch.ones(9)).tolist() == [7.0] * 9
    with pytest.raises(ContractViolation):
        program(torch.ones(10, 3), y=torch.ones(10))


def test_sizes_that_differ_among_examples_are_dynamic() -> None:
    x, y = torch.ones(2, 3), torch.ones(2)
    examples = AdditionalInputs()
    examples.add((x,), {"y": y})
    examples.add((torch.ones(5, 3),), {"y": torch.ones(5)})
    program = export(scaled_sums, (x,), {"y": y}, dynamic_shapes=examples)
    assert program(torch.ones(40, 3), y=torch.ones(40)).tolist() == [7.0] * 40
    with pytest.raises(ContractViolation):
        program(torch.ones(2, 4), y=torch.ones(2))


def test_bounds_of_an_auto_dimension_hold_even_where_it_is_another_one() -> None:
    def model(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        # Within its bounds this cannot be, so tracing keeps no guard of it.
        factor = 3 if y.shape[0] == 50 else 1
        return (torch.cat([x, x]) + y) * factor

    program = export(
        model, (torch.ones(3), torch.ones(6)), dynamic_shapes=({0: AUTO}, {0: AUTO(min=4, max=8)})
    )
    legal = [size for size in range(60) if accepts(program, (size,), (2 * size,))]
    assert legal == [2, 3, 4]


def test_relations_that_tracing_relied_on_are_checked_and_name_their_line(tmp_path: Path) -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        if x.shape[0] % 4 == 0:
            return x * 2
        return x

    program = export(model, torch.ones(8), dynamic_shapes=[{0: AUTO}])
    program.save(tmp_path)
    with pytest.raises(ContractViolation) as caught:
        load(tmp_path)(torch.ones(6))
    assert "x_0 % 4 == 0 does not hold for x_0 = 6" in str(caught.value)
    assert line_of(model, "% 4 == 0") in str(caught.value)


def test_outputs_are_named_by_their_place_or_their_key() -> None:
    def names(model: Callable[..., Any], **kwargs: Any) -> list[str]:
        return [spec.name for spec in export(model, torch.ones(3), **kwargs).contract.outputs]

    assert names(lambda x: x + 1) == ["output"]
    assert names(lambda x: (x + 1, [x + 2, x + 3])) == ["output_0", "output_1.0", "output_1.1"]
    assert names(lambda x: {"a": x + 1, "b": {"c": x + 2}}) == ["a", "b.c"]
    assert names(lambda x: (x + 1, x + 2), output_names=["left", "right"]) == ["left", "right"]


@pytest.mark.parametrize("names", [["a"], ["a", "a"], ["a", ""], ["a", "b", "c"]])
def test_output_names_must_be_one_for_each(names: list[str]) -> None:
    error = failure(lambda x: (x + 1, x + 2), torch.ones(3), output_names=names)
    assert error.kind is ExportErrorKind.INVALID_SPEC
    assert "the model has 2 outputs" in error.reason


@pytest.mark.parametrize("name", ["a\nb", "\x1b[31m", "a\u2028b", "\ud800", "x\0"])
def test_names_have_no_control_characters(name: str) -> None:
    def second(x: torch.Tensor, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
        return tensors[name]

    ones = torch.ones(3)
    methods = {name: MethodSpec(args=ones), "forward": MethodSpec(args=ones)}
    spec = ExportSpec(model=torch.nn.ReLU(), methods=methods)
    for what, fails in (
        ("output", partial(export, lambda x: x + 1, ones, output_names=[name])),
        ("output", partial(export, lambda x: {name: x + 1}, ones)),
        ("input", partial(export, second, (ones, {name: ones}))),
        ("method", partial(export_spec, spec)),
    ):
        with pytest.raises(ExportError) as caught:
            fails()
        assert caught.value.kind is ExportErrorKind.INVALID_SPEC
        assert f"{what} has the name " in caught.value.reason
        assert repr(name)[1:-1] in caught.value.reason
        assert str(caught.value).replace("\n", "").isprintable()


def test_a_method_has_a_name() -> None:
    methods = {"": MethodSpec(args=torch.ones(3), function=lambda x: x)}
    with pytest.raises(ExportError, match="a method has the name ''"):
        export_spec(ExportSpec(model=torch.nn.ReLU(), methods=methods))


def test_names_may_be_of_any_script() -> None:
    program = export(lambda x: x + 1, torch.ones(3), output_names=["größe 尺寸"])
    assert program.contract.outputs[0].name == "größe 尺寸"


def test_nested_arguments_keywords_and_plain_values() -> None:
    def model(
        x: dict[str, torch.Tensor], scale: float, *, flag: bool, rest: list[Any], mode: str = "sum"
    ) -> dict[str, Any]:
        total = x["a"] * scale + x["b"]
        if flag and mode == "sum" and rest[1] is None:
            total = total + rest[0]
        return {"total": total, "rows": total.shape[0], "flag": flag, "mode": mode, "none": None}

    rows = Dim("rows", min=1, max=8)
    inputs = {"a": torch.rand(3), "b": torch.rand(3)}
    rest = [torch.rand(3), None]
    program = export(
        model,
        (inputs, 0.5),
        # In another order than the signature has them.
        {"rest": rest, "flag": True},
        dynamic_shapes={
            "x": {"a": {0: rows}, "b": {0: rows}},
            "scale": None,
            "rest": [{0: rows}, None],
            "flag": None,
        },
    )
    result = program(inputs, 0.5, flag=True, rest=rest)
    expected = model(inputs, 0.5, flag=True, rest=rest)
    assert result.keys() == expected.keys()
    assert torch.equal(result.pop("total"), expected.pop("total"))
    assert result == expected == {"rows": 3, "flag": True, "mode": "sum", "none": None}
    for wrong in ({"scale": 0.25}, {"flag": False}, {"rest": [rest[0], 1]}, {"rest": rest[:1]}):
        call = {"x": inputs, "scale": 0.5, "flag": True, "rest": rest, **wrong}
        with pytest.raises(ContractViolation):
            program(**call)


@pytest.mark.parametrize("value", [None, True, 3, 0.5, -math.inf, "text"])
def test_plain_values_are_passed_through_and_returned(value: Any) -> None:
    program = export(lambda x, y: (x + 1, y), (torch.ones(2), value))
    assert program(torch.ones(2), value)[1] == value
    with pytest.raises(ContractViolation, match="for which the program was exported"):
        program(torch.ones(2), "something else")


def test_variadic_arguments() -> None:
    n = Dim("n", min=1, max=8)
    program = export(
        lambda *xs, **named: sum(xs) - named["z"],
        (torch.ones(3), torch.ones(3)),
        {"z": torch.ones(3)},
        dynamic_shapes={"xs": ({0: n}, {0: n}), "named": {"z": {0: n}}},
    )
    x = torch.rand(5)
    torch.testing.assert_close(program(x, x, z=x), x)
    assert list(program.contract.tensor_inputs) == ["xs_0", "xs_1", "z"]


def test_the_shape_of_a_tensor_without_dimensions_is_empty_text() -> None:
    example = torch.ones(3), torch.tensor(2.0)
    program = export(lambda x, scale: x * scale, example, dynamic_shapes=("n", ""))
    assert program(torch.ones(2), torch.tensor(3.0)).tolist() == [3.0, 3.0]
    error = failure(lambda x: x + 1, torch.ones(3), dynamic_shapes=("",))
    assert "lists 0 dimensions for 'x', which has 1" in error.reason


def test_sizes_that_depend_on_data_are_unknown_in_the_contract() -> None:
    program = export(lambda x: x[x > 0], torch.tensor([1.0, -1.0, 2.0]))
    assert program.contract.output_shapes(()) == {"output": (None,)}
    assert program(torch.tensor([-1.0, 5.0, -1.0])).tolist() == [5.0]


@pytest.mark.parametrize("rounded", [math.ceil, math.floor])
def test_sizes_that_are_divided_and_rounded_stay_integers(rounded: Callable[[float], int]) -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        return x.new_ones(rounded(x.shape[0] / 4) + rounded((x.shape[0] - 9) / 4) + 9)

    program = export(model, torch.ones(5), dynamic_shapes=("n",), symbols={"n": (1, 40)})
    assert use_interpreter(program) == []
    for size in (1, 4, 5, 8, 9, 40):
        assert program(torch.ones(size)).shape == model(torch.ones(size)).shape


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (lambda n: math.ceil(n / 4), "(n + 3) // 4"),
        (lambda n: math.floor(n / 4), "n // 4"),
        (lambda n: math.ceil(n / 2.5), "(2*n + 4) // 5"),
        (lambda n: math.ceil(n * 0.75), "(3*n + 3) // 4"),
        (lambda n: math.floor(n * 2.0), "2*n"),
        (lambda n: math.ceil(-n / -2.5), "(2*n + 4) // 5"),
        (lambda n: math.floor(n * -0.5) + 2 * n, "2*n + (-n) // 2"),
        (lambda n: torch.arange(n - 1, -1, -1.0).shape[0], "n"),
        (lambda n: math.ceil((n - 9) / 4) + 9, "(n - 6) // 4 + 9"),
        (lambda n: math.floor(n * 0.3), "?"),
    ],
)
def test_sizes_that_were_fractions(size: Callable[[int], int], expected: str) -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        return x.new_ones(size(x.shape[0])) * x.sum()

    shapes = [{0: Dim("n", min=1, max=1 << 20)}]
    program = export(model, torch.ones(8), dynamic_shapes=shapes)
    assert str(program.contract.tensor_outputs["output"]) == f"float32[{expected}]"
    for n in (1, 2, 3, 4, 5, 9, 100, 101, 104729, 1 << 20):
        assert program(torch.zeros(n)).shape == (size(n),)


@pytest.mark.parametrize(
    "factor",
    [
        lambda n: (n - 1) ** 0.5,
        lambda n: (1 / n) ** 0.5,
        lambda n: ((n - 1) / (2 * n + 1)) ** 0.5,
        lambda n: (3 * n / 8) ** -0.5,
    ],
)
def test_roots_of_sizes(factor: Callable[[int], float]) -> None:
    shapes = [{0: Dim("n", min=1, max=1 << 20)}]
    program = export(lambda x: x * factor(x.shape[0]), torch.ones(8), dynamic_shapes=shapes)
    assert program.contract.relations == ()
    for n in (1, 2, 3, 9, 1 << 20):
        assert torch.equal(program(torch.ones(n)), torch.ones(n) * factor(n))


def test_a_root_of_what_may_be_negative_needs_that_it_is_not() -> None:
    error = failure(
        lambda x: x * (x.shape[0] - 4) ** 0.5,
        torch.ones(8),
        dynamic_shapes=[{0: Dim("n", min=1, max=64)}],
    )
    assert error.advice == "declare Dim('n', min=4, max=64)"


@pytest.mark.parametrize("mode", ["nearest", "bilinear", "bicubic"])
def test_an_image_may_be_scaled_by_a_fraction(mode: str) -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        return functional.interpolate(x, scale_factor=(0.5, 1.5), mode=mode)

    shapes = [{2: Dim("h", min=2, max=32), 3: Dim("w", min=1, max=32)}]
    program = export(model, torch.randn(1, 3, 8, 8), dynamic_shapes=shapes)
    shape = "float32[1, 3, h // 2, (3*w) // 2]"
    assert str(program.contract.tensor_outputs["output"]) == shape


def test_tied_weights_are_kept_once(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(100, 16)
            self.head = nn.Linear(16, 100, bias=False)
            self.head.weight = self.embedding.weight
            self.register_buffer("flat", self.embedding.weight.detach().view(-1))

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.head(self.embedding(tokens))
            return logits + self.get_buffer("flat")[:100]

    model = Tied().eval()
    tokens = torch.randint(100, (2, 5))
    program = export(model, tokens)
    program.save(tmp_path)
    torch.testing.assert_close(load(tmp_path)(tokens), model(tokens).detach())
    size = (tmp_path / "weights" / "weights-00001.safetensors").stat().st_size
    # The table once, and its flat view, which is another tensor.
    assert 2 * 6400 <= size < 2 * 6400 + 1000


def test_a_weight_and_its_conjugate_are_two(tmp_path: Path) -> None:
    class Conjugates(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("one", torch.tensor([1 + 2j, 3 - 1j]))
            self.register_buffer("other", self.get_buffer("one").conj())

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x * self.get_buffer("one"), x * self.get_buffer("other")

    model, x = Conjugates(), torch.ones(2)
    export(model, x).save(tmp_path)
    for found, expected in zip(load(tmp_path)(x), model(x), strict=True):
        torch.testing.assert_close(found, expected.resolve_conj())


@pytest.mark.parametrize("written", ["table", "row"])
def test_state_that_shares_memory_with_other_weights(written: str) -> None:
    class Views(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("table", torch.zeros(3, 3))
            self.register_buffer("row", self.get_buffer("table")[1])
            self.register_buffer("last", self.get_buffer("table")[2])

        def write(self, x: torch.Tensor) -> torch.Tensor:
            self.get_buffer(written).add_(x)
            return x * 1

        def read(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.get_buffer("row" if written == "table" else "table").sum()

        def read_last(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.get_buffer("last")

    def spec(*names: str) -> ExportSpec:
        methods = {name: MethodSpec(args=torch.ones(3)) for name in names}
        return ExportSpec(model=Views(), methods=methods)

    with pytest.raises(ExportError, match=f"changes '{written}', which shares memory") as caught:
        export_spec(spec("write", "read"))
    assert caught.value.kind is ExportErrorKind.INVALID_SPEC
    if written == "row":  # beside which the last has memory of its own
        export_spec(spec("write", "read_last"))


@pytest.mark.parametrize("scalar_type", ScalarType)
def test_inputs_and_outputs_of_every_dtype(scalar_type: ScalarType, tmp_path: Path) -> None:
    x = torch.arange(4).to(getattr(torch, scalar_type.value))
    export(lambda x: (x, x.clone()), x).save(tmp_path)
    for result in load(tmp_path)(x):
        assert torch.equal(result.view(torch.uint8), x.view(torch.uint8))


@pytest.mark.parametrize("scalar_type", ScalarType)
def test_sizes_of_every_dtype_may_vary(scalar_type: ScalarType) -> None:
    example = torch.ones(2).to(getattr(torch, scalar_type.value))
    program = export(lambda x: x.clone(), example, dynamic_shapes=[{0: Dim("n", max=8)}])
    assert program(torch.zeros(5, dtype=example.dtype)).shape == (5,)


@pytest.mark.parametrize(
    "dtype", [torch.float8_e8m0fnu, torch.complex128, torch.float8_e4m3fnuz], ids=str
)
def test_weights_that_no_file_can_hold_are_refused_at_export(dtype: torch.dtype) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("table", torch.zeros(16, dtype=torch.uint8).view(dtype))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (
                x + self.get_buffer("table").abs().sum().float()
                if dtype.is_complex
                else (x + self.get_buffer("table").float().sum())
            )

    error = failure(Model(), torch.ones(3))
    assert error.kind is ExportErrorKind.INVALID_SPEC
    assert "the model's 'table' is of" in error.reason
    assert str(dtype).removeprefix("torch.") in error.reason


# Narrowing ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "advice"),
    [
        (lambda x: functional.avg_pool2d(x[None], x.shape), "with mean"),
        (lambda x: functional.max_pool1d(x, x.shape[1]), "with amax"),
        (lambda x: torch.vmap(lambda y: functional.max_pool1d(y, 2))(x[None]), "max_pool2d with"),
        (lambda x: functional.max_pool2d(x[None], x.shape[1] // 2), "else give its size"),
        (lambda x: x.diagonal(x.shape[0] // 5), "x[:, offset:].diagonal()"),
        (lambda x: torch.rot90(x, x.shape[0] // 5), "use slices"),
        (lambda x: x * [1, 2, 3, 4, 5][x.shape[0] // 2], "in place of range() and lists"),
        (
            lambda x: functional.one_hot(x.argmax(0), x.shape[0]),
            "torch.arange: (indices[..., None]",
        ),
        (lambda x: x / torch.as_tensor(x.shape[0]), "torch.full()"),
        (lambda x: x * torch.hann_window(x.shape[1]), "from torch.arange"),
        (lambda x: torch.kron(x, torch.ones(2, 2)), "einsum"),
        (lambda x: torch.linalg.multi_dot((x, x.T, x)), "with @"),
        (lambda x: x * torch.fft.rfftfreq(x.shape[1])[0], "from torch.arange"),
        (lambda x: torch.cat(x.chunk(x.shape[0])), "torch.split"),
        (lambda x: x.unfold(0, x.shape[0] // 2, 1), "slices"),
        (lambda x: (x + 0j).mean(0).abs(), "complex numbers as x.sum(dim) / x.shape[dim]"),
        (lambda x: torch.vmap(torch.func.hessian(lambda y: y.pow(3).sum()))(x), "grad or vjp"),
        (
            lambda x: torch.istft((x + 0j).T[:1].expand(5, -1), 8, length=x.shape[0]),
            "leave length out",
        ),
        (lambda x: x.reshape(len(x), -1).sum(1), "use x.shape[0] in place of len(x)"),
    ],
)
def test_an_operator_that_takes_a_plain_number_is_named(model: Any, advice: str) -> None:
    shapes = [{0: Dim("n", min=1, max=64), 1: Dim("m", min=1, max=64)}]
    error = failure(model, torch.ones(8, 6), dynamic_shapes=shapes)
    assert advice in error.advice
    assert "takes a plain number, which is the example's" in error.advice
    assert error.page.endswith("constraint-violation.md#operator-that-takes-a-plain-number")


def test_a_window_that_may_be_too_long_says_from_which_size_it_fits() -> None:
    error = failure(
        lambda x: functional.max_pool1d(x, min(3, x.shape[1])),
        torch.ones(4, 8),
        dynamic_shapes=[{1: Dim("n", min=2, max=64)}],
    )
    assert error.advice == "declare Dim('n', min=3, max=64)"


def test_an_operator_that_takes_a_plain_number_is_not_blamed_for_another() -> None:
    weight = torch.randn(4, 6)
    error = failure(
        lambda x: functional.avg_pool1d(x @ weight.T, 2),
        torch.ones(8, 6),
        dynamic_shapes=[{1: Dim("m", min=1, max=64)}],
    )
    assert "needs m == 6" in error.reason
    assert "plain number" not in error.advice + error.page


@pytest.mark.parametrize(
    ("model", "needs"),
    [
        (lambda x: x[: int(x.shape[0] * 0.3)], "relies on int(0.3*n) == 2"),
        (lambda x: x * int(5 - x.shape[0] / 0.7), "relies on int(5.0 - "),
    ],
)
def test_a_fraction_that_becomes_a_plain_number_says_what_to_write(model: Any, needs: str) -> None:
    error = failure(model, torch.ones(8), dynamic_shapes=[{0: Dim("n", min=1, max=64)}])
    assert needs in error.reason
    assert error.advice.startswith("write math.trunc() in place of int()")


@pytest.mark.parametrize(
    ("model", "needs"),
    [
        (lambda x: x * math.sqrt(1 / x.shape[0]), "relies on float(IntTrueDiv(1, n)) == 0.125"),
        (lambda x: x * float(x.shape[0] / 3), "relies on float(IntTrueDiv(n, 3)) == 2.66667"),
    ],
)
def test_a_plain_number_made_of_a_fraction_says_what_to_write(model: Any, needs: str) -> None:
    error = failure(model, torch.ones(8), dynamic_shapes=[{0: Dim("n", min=1, max=64)}])
    assert needs in error.reason
    assert error.advice.startswith("compute without float() and math.sqrt()")
    assert error.page.endswith("#size-as-a-plain-number")


def test_an_associative_scan_says_what_to_use_for_dynamic_sizes() -> None:
    def recurrence(decay: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        def combine(first: Any, second: Any) -> Any:
            return first[0] * second[0], second[0] * first[1] + second[1]

        return associative_scan(combine, (decay, x), dim=1, combine_mode="generic")[1]

    example = torch.rand(3, 6), torch.rand(3, 6)
    error = failure(
        recurrence,
        example,
        dynamic_shapes=("rows, steps",) * 2,
        symbols={"rows": (1, 32), "steps": (1, 128)},
    )
    assert error.advice.startswith("use torch._higher_order_ops.scan.scan, or torch.cumsum")
    program = export(recurrence, example)
    torch.testing.assert_close(program(*example), recurrence(*example))


def test_windows_that_are_counted_by_a_plain_number_say_what_to_write() -> None:
    def windows(x: torch.Tensor) -> tuple[torch.Tensor, int, int]:
        x = functional.pad(x, (0, -x.shape[2] % 4, 0, -x.shape[1] % 4))
        batch, height, width = x.shape
        x = x.view(batch, height // 4, 4, width // 4, 4).transpose(2, 3)
        return x.flatten(0, 2), height, width

    def published(x: torch.Tensor) -> torch.Tensor:
        parts, height, width = windows(x)
        batch = int(parts.shape[0] / (height * width / 4 / 4))
        return parts.view(batch, height // 4, width // 4, 4, 4)

    def advised(x: torch.Tensor) -> torch.Tensor:
        parts, height, width = windows(x)
        batch = parts.shape[0] * 16 // (height * width)
        return parts.view(batch, height // 4, width // 4, 4, 4)

    dims = [{0: Dim("b", min=1, max=4), 1: Dim("h", min=1, max=64), 2: Dim("w", min=1, max=64)}]
    error = failure(published, torch.ones(2, 7, 9), dynamic_shapes=dims)
    assert error.reason == "the model relies on int(…) == 2, which a contract cannot say"
    assert error.advice.startswith("divide once, with // and without int()")
    program = export(advised, torch.ones(2, 7, 9), dynamic_shapes=dims)
    x = torch.randn(3, 13, 8)
    assert torch.equal(program(x), published(x))


@pytest.mark.parametrize(
    ("model", "example", "dims", "needs", "advice"),
    [
        (lambda x: x.view(-1, 8), (16,), {0: Dim("n", max=64)}, "n % 8 == 0", "8*k"),
        (
            lambda x: x[: int(x.shape[0] / 2)],
            (8,),
            {0: Dim("n", min=1, max=64)},
            "n // 2 == 4",
            "compute n // 2 in whole numbers, with // and without int()",
        ),
        (
            lambda x: x.repeat(int(x.shape[0] * 2)),
            (8,),
            {0: Dim("n", min=1, max=64)},
            "2*n == 16",
            "compute 2*n without int()",
        ),
        (
            lambda x: x / math.sqrt(x.shape[0]),
            (8,),
            {0: Dim("n", min=1, max=64)},
            "n == 8",
            "n ** 0.5 is a square root",
        ),
        (
            lambda x: x / math.sqrt(x.shape[0] - 1),
            (8,),
            {0: Dim("n", min=2, max=64)},
            "n - 1 == 7",
            "(n - 1) ** 0.5 is a square root",
        ),
        (
            lambda x: x.view(-1, 8) * int(x.shape[1] / 2),
            (16, 8),
            {0: Dim("n", max=64), 1: Dim("m", min=1, max=64)},
            "m // 2 == 4",
            "example's; state",
        ),
        (
            lambda x: x * 2 if x.shape[0] <= 10 else x,
            (3,),
            {0: Dim("n", max=64)},
            "n <= 10",
            "max=10",
        ),
        (
            lambda x: functional.conv1d(x, torch.ones(1, 1, 3)),
            (1, 1, 9),
            {2: Dim("n", min=1, max=64)},
            # Torch finds the weaker condition first.
            "n > 1",
            "min=3",
        ),
        (
            lambda x: x + torch.ones(3),
            (3,),
            {0: Dim("n", max=64)},
            "n == 3",
            "make the dimension static (3)",
        ),
        (
            lambda x: x * 2 if x.shape[0] == 1 else x,
            (3,),
            {0: Dim("n", min=1, max=64)},
            "n != 1",
            "min=2",
        ),
        (
            lambda x: x + x.t(),
            (3, 3),
            {0: Dim("n", max=9), 1: Dim("m", max=9)},
            "== ",
            "use one Dim for both",
        ),
    ],
)
def test_a_model_that_needs_more_than_was_declared_says_what_and_where(
    model: Callable[..., Any], example: tuple[int, ...], dims: Any, needs: str, advice: str
) -> None:
    error = failure(model, torch.ones(example), dynamic_shapes=[dims])
    assert error.kind is ExportErrorKind.CONSTRAINT_VIOLATION
    assert f"the model needs {needs}" in error.reason or needs in error.reason
    assert "which fails for" in error.reason
    assert advice in error.advice
    assert at(error).startswith(HERE)


def test_an_output_whose_rank_depends_on_a_size_is_refused() -> None:
    error = failure(lambda x: x.squeeze(0), torch.ones(3, 4), dynamic_shapes=[{0: Dim("n", max=8)}])
    assert error.kind is ExportErrorKind.CONSTRAINT_VIOLATION
    assert "float32[n, 4] in general, but of the shape [4] for n = 1" in error.reason


def test_two_sizes_that_only_together_take_another_path_are_noticed() -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        first, second = bool(x.shape[0] == 1), bool(x.shape[1] == 1)
        return x * 100 if first and second else x + 1

    for dims in ({0: AUTO, 1: AUTO}, {0: Dim("n", max=8), 1: Dim("m", max=8)}):
        try:
            program = export(model, torch.ones(3, 4), dynamic_shapes=[dims])
        except ExportError:
            continue
        assert not accepts(program, (1, 1))


@pytest.mark.parametrize(
    ("is_special", "reason"),
    [
        (lambda n, m: n == 500, "n != 500, which fails for n = 500"),
        (lambda n, m: n + m == 200, "m + n != 200, which fails for n = 1, m = 199"),
        (lambda n, m: n == max(m // n, 8), "which fails for n = 8"),
    ],
)
def test_a_single_size_of_many_that_takes_another_path_is_found(
    is_special: Callable[[int, int], bool], reason: str
) -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        return x * 2 if is_special(x.shape[0], x.shape[1]) else x

    dims = {0: Dim("n", min=1), 1: Dim("m", min=2)}
    error = failure(model, torch.ones(3, 4), dynamic_shapes=[dims])
    assert error.kind is ExportErrorKind.CONSTRAINT_VIOLATION
    assert reason in error.reason


# Soundness ----------------------------------------------------------------------------------------


def _shapes_of_views(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return x.reshape(-1) + y


def _heads(x: torch.Tensor) -> torch.Tensor:
    return x.view(x.shape[0], 4, -1).transpose(0, 1).reshape(4, -1)


def _halves(x: torch.Tensor) -> torch.Tensor:
    half = x.shape[0] // 2
    return x[:half] + x[half : 2 * half]


def _branches(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    if x.shape[0] > y.shape[0] or x.shape[1] % 3 == 1:
        return x.sum(0)
    return x.mean(0) + y.sum()


def _windows(x: torch.Tensor) -> torch.Tensor:
    return x.unfold(1, 3, 2).sum(2)


@pytest.mark.parametrize(
    ("model", "ranks"),
    [
        (add_one, (1,)),
        (_shapes_of_views, (2, 1)),
        (_heads, (2,)),
        (_halves, (1,)),
        (_branches, (2, 1)),
        (_windows, (2,)),
        (lambda x: x @ x.t(), (2,)),
        (lambda x, y: torch.cat([x, y], 1), (2, 2)),
        (lambda x: x.unsqueeze(0).expand(3, *x.shape).sum(0), (2,)),
        (lambda x: x[:, :5] + 1, (2,)),
    ],
)
def test_whatever_the_contract_accepts_the_program_and_the_model_agree_on(
    model: Callable[..., torch.Tensor], ranks: tuple[int, ...]
) -> None:
    example = tuple(torch.rand((4, 8)[:rank] if rank == 2 else 32) for rank in ranks)
    program = export(
        model, example, dynamic_shapes=tuple(dict.fromkeys(range(rank), AUTO) for rank in ranks)
    )
    source = random.Random(11)
    accepted = 0
    for _ in range(150):
        sizes = [[source.randint(0, 12) for _ in range(rank)] for rank in ranks]
        if len(ranks) == 2 and source.random() < 0.5:
            sizes[1] = [math.prod(sizes[0])] if ranks[1] == 1 else [sizes[0][0], 3]
        inputs = [torch.rand(*shape) for shape in sizes]
        try:
            actual = program(*inputs)
        except ContractViolation:
            continue
        accepted += 1
        torch.testing.assert_close(actual, model(*inputs), equal_nan=True)
    assert accepted > 0


# What cannot be exported --------------------------------------------------------------------------


def _branch_on_values(x: torch.Tensor) -> torch.Tensor:
    if x.sum() > 0:
        return x
    return -x


def _branch_on_a_number(x: torch.Tensor) -> torch.Tensor:
    if x.sum().item() > 3:
        return x
    return -x


def _reads_numpy(x: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(x.numpy() + 1)


@pytest.mark.parametrize(
    ("model", "example", "kind", "text"),
    [
        (
            _branch_on_values,
            torch.ones(3),
            ExportErrorKind.DATA_DEPENDENT_CONTROL_FLOW,
            "if x.sum() > 0",
        ),
        (
            _branch_on_a_number,
            torch.ones(3),
            ExportErrorKind.DATA_DEPENDENT_CONTROL_FLOW,
            "if x.sum().item()",
        ),
        (_reads_numpy, torch.ones(3), ExportErrorKind.UNSUPPORTED_PYTHON, "x.numpy()"),
    ],
)
def test_what_no_graph_can_say_names_the_line(
    model: Callable[..., Any], example: torch.Tensor, kind: ExportErrorKind, text: str
) -> None:
    error = failure(model, example)
    assert error.kind is kind
    assert at(error) == line_of(model, text)
    assert error.source is not None
    assert text in error.source.text


@pytest.mark.parametrize("strict", [False, True])
def test_a_graph_break_is_never_made(strict: bool) -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        with open(__file__) as file:
            text = file.readline()
        torch._dynamo.graph_break()
        return x + len(text) if x.sum() > 0 else x

    error = failure(model, torch.ones(3), strict=strict)
    assert error.kind in {
        ExportErrorKind.UNSUPPORTED_PYTHON,
        ExportErrorKind.DATA_DEPENDENT_CONTROL_FLOW,
    }


def test_an_operator_without_a_fake_kernel_is_unsupported() -> None:
    with torch.library._scoped_library("slipway_test", "FRAGMENT") as library:
        library.define("mystery(Tensor x) -> Tensor")
        library.impl("mystery", lambda x: x + 1, "CPU")

        def model(x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = torch.ops.slipway_test.mystery(x)
            return result

        error = failure(model, torch.ones(3))
    assert error.kind is ExportErrorKind.UNSUPPORTED_OPERATOR
    assert "slipway_test" in error.reason


def test_dropout_that_is_left_on_differs_from_run_to_run() -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.Dropout(0.5))
    error = failure(model, torch.ones(3, 16))
    assert error.kind is ExportErrorKind.DIFFERS_FROM_EAGER
    assert error.advice == "the model is in training mode: call .eval() on it"
    export(model.eval(), torch.ones(3, 16))


def test_a_model_that_is_random_differs_from_eager() -> None:
    error = failure(lambda x: x + torch.rand(4), torch.ones(4))
    assert error.kind is ExportErrorKind.DIFFERS_FROM_EAGER
    assert "random" in error.advice


@pytest.mark.parametrize("dimension", [{0: Dim("n", min=1, max=9)}, {0: Dim.AUTO}])
@pytest.mark.parametrize("invert", [torch.linalg.inv, torch.linalg.cholesky])
def test_an_example_of_special_matrices_stands_for_other_numbers_of_them(
    invert: Callable[[torch.Tensor], torch.Tensor], dimension: Any
) -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        return invert(x)

    program = export(model, torch.eye(3).repeat(2, 1, 1) * 4, dynamic_shapes=[dimension])
    assert program.contract.symbols[0].minimum <= 1
    sizes = sorted(
        len(case.inputs["x"]) for case in program.cases if isinstance(case, AnsweredCase)
    )
    assert len(sizes) == 3
    for size in (1, 2, 9):
        x = torch.eye(3).repeat(size, 1, 1) * torch.rand(size, 1, 1)
        torch.testing.assert_close(program(x), model(x))


def test_matrices_of_other_sizes_are_parts_of_the_largest() -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        return torch.linalg.cholesky(x)

    size = Dim("n", min=1, max=4)
    shapes = [{0: size, 1: size}]
    error = failure(model, torch.eye(3), dynamic_shapes=shapes)
    assert "the model itself fails for n = 4" in error.reason
    assert "give an example of the largest size" in error.advice
    assert export(model, torch.eye(4), dynamic_shapes=shapes)(torch.eye(2)).shape == (2, 2)


def test_an_example_that_is_empty_is_compared_at_other_sizes() -> None:
    table = torch.randn(32, 4)

    def model(step: torch.Tensor, past: torch.Tensor) -> torch.Tensor:
        return torch.cat([past, step]) + table.index_select(0, torch.arange(past.shape[0] + 1))

    call = torch.randn(1, 4), torch.randn(0, 4)
    shapes = [("1, 4", "past, 4"), {"past": (0, 32)}, {"past": (0, 31)}]
    error = failure(model, call, dynamic_shapes=shapes[0], symbols=shapes[1])
    assert "the model itself fails for past = 32" in error.reason
    program = export(model, call, dynamic_shapes=shapes[0], symbols=shapes[2])
    assert program.contract.notes == ()
    assert program(torch.ones(1, 4), torch.ones(31, 4)).shape == (32, 4)


def test_an_example_whose_size_of_0_torch_divides_by_is_named_as_the_cause() -> None:
    error = failure(
        lambda x: functional.scaled_dot_product_attention(x[None], x[None], x[None]),
        torch.ones(4, 0),
        dynamic_shapes=[{1: Dim("m", min=0, max=4)}],
    )
    assert error.kind is ExportErrorKind.INVALID_SPEC
    assert "with a size of 0 in the example" in error.reason


@pytest.mark.parametrize("first", [lambda size: -size, lambda size: size - 1])
def test_a_slice_that_means_something_else_where_one_size_is_0(
    first: Callable[[int], int],
) -> None:
    def model(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        chosen = x[first(y.shape[0]) :]
        return chosen.sum(0) * chosen.shape[0]

    shapes = {name: {0: Dim(size, min=0, max=60)} for name, size in (("x", "a"), ("y", "b"))}
    program = export(model, (torch.ones(23, 4), torch.ones(17, 4)), dynamic_shapes=shapes)
    for rows, others in itertools.product((0, 1, 17, 23, 60), repeat=2):
        call = torch.ones(rows, 4), torch.ones(others, 4)
        torch.testing.assert_close(program(*call), model(*call))


def test_a_branch_for_empty_tensors_that_makes_a_difference_is_not_traced() -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        return x.new_ones(4) if x.shape[0] == 0 else x.sum(0)

    shapes = [{"x": {0: Dim("n", min=minimum, max=60)}} for minimum in (0, 1)]
    error = failure(model, torch.ones(23, 4), dynamic_shapes=shapes[0])
    assert error.kind is ExportErrorKind.DIFFERS_FROM_EAGER
    assert "for n = 0" in error.reason
    assert "where a size is 0 or 1" in error.advice
    export(model, torch.ones(23, 4), dynamic_shapes=shapes[1])


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("methods", [MethodSpec()], "methods is no dict"),
        ("methods", {"encode": torch.ones(2)}, "methods is no dict"),
        ("symbols", ["b"], "symbols is ['b']"),
        ("relations", "b % 2 == 0", "relations is 'b % 2 == 0'"),
        ("output_names", "xy", "output_names is 'xy'"),
        ("output_names", [1, 2], "output_names is [1, 2]"),
        ("batching_tolerance", 1e-3, "batching_tolerance is 0.001"),
        ("padding", {"s": 0}, "padding is {'s': 0}"),
        ("dynamic_shapes", "b, 3", "dynamic_shapes is the text 'b, 3'"),
        ("custom_ops", "my_ops", "custom_ops is 'my_ops'"),
        ("cases", "three", "cases is 'three'"),
        ("cases", -1, "cases is -1"),
        ("model", nn.ReLU, "the model is the class ReLU"),
    ],
)
def test_a_field_of_a_spec_that_is_something_else(field: str, value: Any, expected: str) -> None:
    fields = {"model": nn.ReLU(), "args": torch.ones(2, 3)} | {field: value}
    with pytest.raises(ExportError) as caught:
        export_spec(ExportSpec(**fields))
    assert caught.value.kind is ExportErrorKind.INVALID_SPEC
    assert expected in caught.value.reason


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("args", torch.ones(2, 3)),
        ("args", torch.zeros(1)),
        ("kwargs", {"x": torch.ones(2)}),
        ("batching", False),
        ("batching_tolerance", (0.0, 0.0)),
        ("relations", ["b % 2 == 0"]),
        ("symbols", {"b": (1, 2)}),
        ("output_names", ["y"]),
        ("padding", {}),
        ("accept_narrowing", "why not"),
    ],
)
def test_a_spec_with_methods_has_none_of_its_own(field: str, value: Any) -> None:
    methods = {"forward": MethodSpec(args=torch.ones(2, 3))}
    with pytest.raises(ExportError, match=f"and a method of its own, with {field}") as caught:
        export_spec(ExportSpec(model=nn.ReLU(), methods=methods, **{field: value}))
    assert caught.value.advice.startswith("give each method its own")


def test_a_file_of_another_module_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    for folder in ("external/other~1.2", "external/twice~1", "external/twice~2"):
        made.append(tmp_path / folder / "configuration" / "settings.json")
        made[-1].parent.mkdir(parents=True)
        made[-1].write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert data_path("@other//configuration:settings.json") == made[0]
    for name in ("twice", "oth", "other~*"):
        with pytest.raises(ExportError, match="is not there"):
            data_path(f"@{name}//configuration:settings.json")


def test_a_model_that_counts_its_calls_in_python_differs_from_eager() -> None:
    calls = iter(range(1000))
    error = failure(lambda x: x + next(calls), torch.ones(4))
    assert error.kind is ExportErrorKind.DIFFERS_FROM_EAGER


def _multiplies_wrongly(x: torch.Tensor) -> torch.Tensor:
    return x @ torch.ones(5)


def _divides(x: torch.Tensor) -> torch.Tensor:
    return x[: 12 // x.shape[0]]


def test_a_model_that_fails_itself_is_named_as_such() -> None:
    error = failure(_multiplies_wrongly, torch.ones(4))
    assert error.kind is ExportErrorKind.INVALID_SPEC
    assert "the model itself fails on the example: RuntimeError" in error.reason
    assert at(error) == line_of(_multiplies_wrongly, "x @")


def test_a_model_that_fails_at_a_declared_size_names_the_size() -> None:
    error = failure(_divides, torch.ones(4), dynamic_shapes=[{0: Dim("n", max=8)}])
    assert "n = 0" in error.reason or "n != 0" in error.reason
    assert at(error) == line_of(_divides, "12 //")


def test_a_model_that_fails_only_where_one_size_is_lowest_and_the_other_highest_names_both() -> (
    None
):
    dims = {0: Dim("n", min=1, max=7), 1: Dim("m", min=6)}
    error = failure(lambda x: x[:, -x.shape[0]], torch.ones(3, 9), dynamic_shapes=[dims])
    assert error.kind is ExportErrorKind.INVALID_SPEC
    assert "the model itself fails for n = 7, m = 6" in error.reason


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_an_eager_model_may_round_otherwise_than_its_graph(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    model = nn.Sequential(nn.TransformerEncoder(layer, 4), nn.LayerNorm(16)).eval().to(dtype)
    nn.init.constant_(model[1].weight, 1000)
    example = torch.randn(3, 5, 16).to(dtype)
    program = export(model, example, dynamic_shapes=[{0: Dim("n", min=1, max=8)}])
    program.save(tmp_path)
    verify(load(tmp_path))
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert torch.backends.mha.get_fastpath_enabled()


def _neighbours(x: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
    source, target = edges
    return torch.zeros_like(x).index_add(0, target, x[source])


def test_indices_of_the_example_may_lie_beyond_smaller_sizes() -> None:
    edges = torch.tensor([[0, 1, 2, 3, 3], [3, 2, 1, 0, 3]])
    shapes = {"x": "nodes, 2", "edges": "2, edges"}
    program = export(
        _neighbours,
        (torch.randn(4, 2), edges),
        dynamic_shapes=shapes,
        symbols={"nodes": (1, 9), "edges": (0, 20)},
    )
    x, one = torch.randn(1, 2), torch.zeros(2, 1, dtype=torch.int64)
    torch.testing.assert_close(program(x, one), x)


def test_lengths_of_the_example_may_be_more_than_smaller_sizes() -> None:
    def last(x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        return x.gather(1, (lengths - 1)[:, None]).squeeze(1)

    program = export(
        last,
        (torch.randn(2, 5), torch.tensor([5, 3])),
        dynamic_shapes={"x": "batch, steps", "lengths": "batch"},
        symbols={"batch": (1, 8), "steps": (1, 9)},
    )
    assert program(torch.tensor([[1.0, 2.0]]), torch.tensor([2])).tolist() == [2.0]


def test_a_model_that_fails_whatever_its_indices_are_is_named_as_such() -> None:
    def places(tokens: torch.Tensor) -> torch.Tensor:
        return functional.embedding(torch.arange(tokens.shape[0]) + tokens, torch.ones(5, 2))

    tokens = torch.tensor([1, 0, 1, 0])
    error = failure(places, tokens, dynamic_shapes=[{0: Dim("n", min=1, max=8)}])
    assert "the model itself fails for n = 8" in error.reason


N = Dim("n", min=1, max=8)


@pytest.mark.parametrize(
    ("args", "dynamic_shapes", "reason"),
    [
        ((torch.ones(9), torch.ones(9)), ({0: N}, {0: N}), "'x' dimension 0 is 9, so n = 9; decl"),
        ((torch.ones(3), torch.ones(4)), ({0: N}, {0: N}), "n = 3 by 'x' dimension 0, but 4 by"),
        ((torch.ones(5), torch.ones(4)), ({0: 2 * N}, None), "5, which is not of the form 2*n"),
        (
            (torch.ones(5), torch.ones(5)),
            ({0: N}, {0: Dim("n", max=9)}),
            "two dimensions are called 'n', with the ranges 1..8",
        ),
        ((torch.ones(5), torch.ones(5)), ({0: N},), "has 1 entry for 2 arguments"),
        (
            (torch.ones(5), torch.ones(5)),
            {"z": {0: N}},
            "names 'z', but the arguments are 'x', 'y'",
        ),
        ((torch.ones(5), torch.ones(5)), {"x": {1: N}}, "names dimension 1 of 'x', which has 1"),
        ((torch.ones(5), torch.ones(5)), {"x": {-1: N}}, "names dimension -1 of 'x'"),
        ((torch.ones(5), torch.ones(5)), {"x": {0: 6}}, "dimension 0 is 6; the example has 5"),
        ((torch.ones(5), torch.ones(5)), {"x": {0: "n"}}, "dimension 0 is 'n'"),
        ((torch.ones(5), torch.ones(5)), {"x": [N, None]}, "lists 2 dimensions for 'x'"),
        ((torch.ones(5), torch.ones(5)), {"x": 3}, "gives 'x' 3"),
        ((torch.ones(5), 2), {"y": {0: N}}, "gives 'y' dimensions, but it is an int"),
        ((torch.ones(5), [torch.ones(5)]), {"y": {1: {0: N}}}, "is not put together as"),
        ((torch.ones(5),), None, "do not fit the signature"),
        (([torch.ones(5)] * 3,), None, "do not fit the signature"),
    ],
)
def test_a_spec_that_contradicts_the_example_or_itself(
    args: tuple[Any, ...], dynamic_shapes: Any, reason: str
) -> None:
    def model(x: torch.Tensor, y: Any) -> torch.Tensor:
        return x + 1

    error = failure(model, args, dynamic_shapes=dynamic_shapes)
    assert error.kind is ExportErrorKind.INVALID_SPEC
    assert reason in error.reason


@pytest.mark.parametrize(("size", "legal"), [(1, 6), (7, 6), (98, 12)])
def test_an_example_of_another_form_is_told_a_size_that_is_legal(size: int, legal: int) -> None:
    rows = Dim("rows", min=2, max=4)
    error = failure(nn.Identity(), torch.ones(size), dynamic_shapes=({0: 3 * rows},))
    assert error.advice == f"make it {legal}, say"


def test_a_tensor_that_a_branch_makes_of_python_values_is_refused_with_what_to_do() -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        return torch.cond(x.sum() > 0, lambda x: x + torch.tensor([1.0, 2.0]), lambda x: x * 1, [x])

    error = failure(model, torch.ones(2))
    assert error.kind is ExportErrorKind.UNSUPPORTED_OPERATOR
    assert "a branch or a loop holds a Tensor" in error.reason
    assert "torch.full" in error.advice
    assert error.source is not None and "torch.tensor([1.0, 2.0])" in error.source.text


@pytest.mark.parametrize(
    ("model", "args", "reason"),
    [
        (3, torch.ones(3), "the model is an int"),
        (torch.relu, torch.ones(3), "the model is a built-in function"),
        (
            lambda x: x["a.b"] + x["a"]["b"],
            ({"a.b": torch.ones(3), "a": {"b": torch.ones(3)}},),
            "two of the inputs have one name",
        ),
        (lambda x: x[1] + x["1"], ({1: torch.ones(3), "1": 2},), "two of the inputs have one name"),
        (lambda x: {"a": {"b": x + 1}, "a.b": x + 2}, torch.ones(3), "the output names are"),
    ],
)
def test_what_makes_no_sense_is_an_invalid_spec(model: Any, args: Any, reason: str) -> None:
    error = failure(model, args)
    assert error.kind is ExportErrorKind.INVALID_SPEC
    assert reason in error.reason


def test_who_gives_a_spec_for_the_model_is_told_what_takes_one() -> None:
    assert "export_spec(spec)" in failure(ExportSpec(model=nn.ReLU()), torch.ones(3)).advice


def test_export_leaves_the_model_the_example_and_the_random_numbers_alone() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    x = torch.rand(3, 4)
    kept = x.clone()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    export_spec(ExportSpec(model=model, args=x, dynamic_shapes=[{0: Dim("n", min=1, max=9)}]))
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(x, kept)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_indices_that_torch_does_not_look_at_do_not_crash_the_comparison() -> None:
    def rows(offsets: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        return torch._convert_indices_from_csr_to_coo(offsets, columns)

    offsets, columns = torch.tensor([0, 1, 3]), torch.tensor([0, 1, 1])
    program = export(rows, (offsets, columns))
    assert program(offsets, columns).tolist() == [[0, 1, 1], [0, 1, 1]]
