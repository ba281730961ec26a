"""Runs torch.export and keeps what the contract is derived from: the graph, and every guard that
tracing put on a dimension, with the user's line that needed it.

Every dynamic dimension is given to torch as a free one, within the bounds that the user declared;
those that are declared alike are found equal before the model runs (see `flat_call`). What else the
user declared of relations between dimensions is compared with what tracing needed
afterwards, in `derivation`, rather than by torch: torch's own check rejects legal declarations,
enforces no lower bound below 3, and names no line of the model.
"""

from __future__ import annotations

import contextlib
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, cast
from unittest import mock

import sympy
import torch
from torch._functorch import eager_transforms
from torch._subclasses.fake_tensor import FakeTensor
from torch.export import ExportedProgram
from torch.export._trace import _export
from torch.export.dynamic_shapes import Dim
from torch.fx.experimental import _config as shape_config
from torch.fx.experimental.sym_node import SymNode
from torch.fx.experimental.symbolic_shapes import DimConstraints, ShapeEnv
from torch.fx.proxy import TracerBase
from torch.utils._sympy.functions import ToFloat
from torch.utils._sympy.symbol import SymT, make_symbol, symbol_is_type

from slipway.export.composites import composites_of_any_length
from slipway.export.dimensions import (
    Declaration,
    Declared,
    ExampleCall,
    Inferred,
)
from slipway.export.errors import ExportError, SourceLine
from slipway.export.flat_call import flatten_model
from slipway.export.isolation import apart_from_other_traces
from slipway.export.layout import leave_layouts_to_operators, record_layout_reads
from slipway.export.maxima import decide_maxima
from slipway.export.recurrent import recurrent_layers_of_any_length
from slipway.export.sources import innermost_user_line, model_frames
from slipway.export.spacing import linspace_of_any_length
from slipway.export.translation import quiet_torch, translate

__all__ = ["Capture", "Guard", "capture"]


@dataclass(frozen=True, slots=True)
class Guard:
    """A condition on the symbols of the shape environment that the graph relies on.

    Attributes:
      condition: what must hold.
      source: the line of the model that needs it, if known.
      plain: whether it is that Python or an operator took a plain number out of a size.
    """

    condition: sympy.Basic
    source: SourceLine | None
    plain: bool = False


@dataclass(frozen=True, slots=True)
class Capture:
    """What tracing gave.

    Attributes:
      exported: torch's exported program.
      guards: in the order in which tracing met them.
      shape_env: the shape environment; None where no dimension is dynamic.
      layout_source: a line of the model that asks how a tensor lies in memory, if there is one.
      divisor_lines: for each size that something is divided by, as text, the line that does it.
    """

    exported: ExportedProgram
    guards: tuple[Guard, ...]
    shape_env: ShapeEnv | None
    layout_source: SourceLine | None
    divisor_lines: Mapping[str, SourceLine | None]


def capture(
    model: torch.nn.Module,
    call: ExampleCall,
    declared: Mapping[str, Sequence[Declaration]],
    *,
    strict: bool,
) -> Capture:
    """Traces a model into one graph, whose inputs are the model's weights and the call's tensors.

    Raises:
      ExportError: the model cannot be traced.
    """
    tensors = [(name, leaf) for name, leaf in call.leaves if isinstance(leaf, torch.Tensor)]
    shapes = tuple(
        {dimension: _torch_dimension(item) for dimension, item in enumerate(declared[name])}
        for name, _ in tensors
    )
    lines: dict[str, SourceLine | None] = {}
    plain: set[str] = set()
    divisor_lines: dict[str, SourceLine | None] = {}
    layout_reads: list[SourceLine] = []
    try:
        with (
            torch.no_grad(),
            shape_config.patch(backed_size_oblivious=True),  # type: ignore[attr-defined]
            quiet_torch(),
            _record_guard_lines(lines, plain),
            _record_divisor_lines(divisor_lines),
            _round_quotients_as_integers(),
            record_layout_reads(layout_reads),
            leave_layouts_to_operators(),
            _sizes_are_not_negative(shapes),
            decide_maxima(),
            recurrent_layers_of_any_length(),
            linspace_of_any_length(),
            mock.patch.object(TracerBase, "_filter_traceback_frames", model_frames),
            composites_of_any_length(),
            # It makes advice of torch's out of guards, for as long as that takes, or fails. The
            # contract says what they mean.
            mock.patch.object(DimConstraints, "solve", lambda constraints: None),
            mock.patch.object(torch, "_debug_has_internal_overlap", _overlap),
            mock.patch.object(FakeTensor, "contiguous", _contiguous),
        ):
            exported = _exported(
                flatten_model(model, call, declared, strict=strict),
                _distinct([tensor for _, tensor in tensors]),
                shapes,
                strict=strict,
            )
    except ExportError:
        raise
    except Exception as error:
        raise translate(error) from error
    _simplify(exported.graph)
    shape_env = _shape_env_of(exported)
    guards = [] if shape_env is None else shape_env.guards
    return Capture(
        exported,
        tuple(
            Guard(guard.expr, lines.get(str(guard.expr)), str(guard.expr) in plain)
            for guard in guards
        ),
        shape_env,
        next(iter(layout_reads), None),
        divisor_lines,
    )


_GIVEN_UP = "derivatives by torch.func"
_CONSTANT = "fake tensor in the exported program constant's list"


def _give_up() -> NoReturn:
    """Stands for the first step of every function of torch.func that takes a derivative.

    torch.export.export does not see what these compute, and fails later and elsewhere, if it
    does. The error is one that torch can pass on in strict mode.
    """
    raise NotImplementedError(_GIVEN_UP)


def _exported(
    model: torch.nn.Module,
    tensors: tuple[torch.Tensor, ...],
    shapes: Any,
    *,
    strict: bool,
) -> ExportedProgram:
    """Returns the graph of the operators that a model calls.

    torch.export.export records operators before autograd sees them, and so not what autograd keeps
    for a derivative, such as the result of `exp`, which would be a constant of the graph. Of a
    model that takes one, the graph has what is left for the device after autograd.
    """
    try:
        with (
            apart_from_other_traces(),
            mock.patch.object(eager_transforms, "grad_increment_nesting", _give_up),
            mock.patch.object(eager_transforms, "jvp_increment_nesting", _give_up),
        ):
            return torch.export.export(model, tensors, dynamic_shapes=shapes, strict=strict)
    except Exception as error:
        if not re.search(f"{_GIVEN_UP}|{_CONSTANT}", str(error)):
            raise
        first = error
    try:
        with apart_from_other_traces():
            exported = _export(
                model,
                tensors,
                dynamic_shapes=shapes,
                strict=strict,
                preserve_module_call_signature=(),
                pre_dispatch=False,
            )
    except Exception:
        # Where the first attempt came to its end, it knows best what it had to leave out.
        if re.search(_CONSTANT, str(first)):
            raise first from None
        raise
    return cast(ExportedProgram, exported)


def _overlap(tensor: torch.Tensor) -> int:
    """Returns 1 if elements of a tensor are in one place of memory because they were expanded.

    Otherwise it returns 2, torch's number for not knowing. Torch itself looks further when a tensor
    is written to, to refuse what the operator refuses again when the graph runs, and for that it
    sorts the strides, which excludes sizes of 0 and 1.
    """
    expanded = any(
        isinstance(stride, int) and stride == 0 and size > 1
        for stride, size in zip(tensor.stride(), tensor.shape, strict=True)
    )
    return 1 if expanded else 2


_CONTIGUOUS = torch.ops.aten.alias_copy.default
"""Stands for `contiguous` in a trace: like that, but never the tensor itself."""

_CHANNELS_LAST = torch.ops.aten._to_copy.default
"""The same for the other formats in memory, which no method of a tensor calls by itself."""


def _contiguous(
    tensor: FakeTensor, memory_format: torch.memory_format = torch.contiguous_format
) -> torch.Tensor:
    """Returns what `tensor.contiguous()` does, as an operator of the graph.

    Torch leaves the operator out where a tensor is contiguous already, and then the graph is valid
    for no sizes but those for which it is, or is not: with the operator it is valid for all.
    """
    symbolic = any(isinstance(size, torch.SymInt) for size in tensor.shape)
    if symbolic and memory_format is torch.contiguous_format:
        step: Any = 1
        for size, stride in reversed([*zip(tensor.shape, tensor.stride(), strict=True)]):
            if str(stride) != str(step):
                return cast(torch.Tensor, _CONTIGUOUS(tensor))
            step = step * size
    elif symbolic and memory_format is not torch.preserve_format:
        return cast(torch.Tensor, _CHANNELS_LAST(tensor, memory_format=memory_format))
    return torch.Tensor.contiguous(tensor, memory_format=memory_format)


def _distinct(tensors: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Returns tensors no two of which are one object, which torch would take for one input."""
    return tuple(
        tensor.clone() if any(tensor is other for other in tensors[:place]) else tensor
        for place, tensor in enumerate(tensors)
    )


def _simplify(graph: torch.fx.Graph) -> None:
    """Removes nodes that do nothing, so that graphs which do the same look the same.

    These are assertions of what the contract guarantees, which also name the device of the capture,
    and slices that take everything, which indexing with `:` leaves where a size is symbolic.
    """
    for node in list(graph.nodes):
        if node.target is torch.ops.aten._assert_tensor_metadata.default:
            graph.erase_node(node)
        elif node.target is _CONTIGUOUS or (
            node.target is _CHANNELS_LAST and list(node.kwargs) == ["memory_format"]
        ):
            node.target = torch.ops.aten.contiguous.default
        elif node.target is torch.ops.aten.slice.Tensor:
            # `[:n]` starts at None or at 0, depending on whether n is symbolic.
            node.args = (*node.args[:2], *(item or 0 for item in node.args[2:3]), *node.args[3:])
            if _takes_everything(*node.args[2:]):
                node.replace_all_uses_with(node.args[0])
                graph.erase_node(node)


def _takes_everything(start: Any = None, end: Any = None, step: Any = 1) -> bool:
    return start in (None, 0) and end in (None, sys.maxsize) and step == 1


def _torch_dimension(declaration: Declaration) -> Any:
    match declaration:
        case Declared(symbol, factor, offset):
            maximum = None if symbol.maximum is None else factor * symbol.maximum + offset
            return Dim.AUTO(min=factor * symbol.minimum + offset, max=maximum)
        case Inferred(minimum, maximum, _):
            return Dim.AUTO(min=minimum, max=maximum)
        case _:
            return Dim.STATIC


@contextlib.contextmanager
def _record_guard_lines(lines: dict[str, SourceLine | None], plain: set[str]) -> Iterator[None]:
    """Notes for each guard the line of the user's code that is running when tracing adds it.

    It also notes which guards take a plain number out of a size.
    Torch keeps a location with each guard, but outside strict mode only that of its own frames.
    """
    original: Callable[..., None] = ShapeEnv._log_guard

    def log_guard(self: ShapeEnv, prefix: str, guard: sympy.Basic, forcing_spec: bool) -> None:
        if "suppressed" not in prefix:
            lines.setdefault(str(guard), innermost_user_line(sys._getframe(1)))
            if any(
                frame.f_code is SymNode.guard_int.__code__
                for frame, _ in traceback.walk_stack(sys._getframe(1))
            ):
                plain.add(str(guard))
        original(self, prefix, guard, forcing_spec)

    ShapeEnv._log_guard = log_guard  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        ShapeEnv._log_guard = original  # type: ignore[method-assign]


@contextlib.contextmanager
def _record_divisor_lines(lines: dict[str, SourceLine | None]) -> Iterator[None]:
    """Notes for each size that something is divided by the line of the user's code that does it.

    Of a plain function, torch keeps no lines with the nodes of the graph.
    """

    def noting(divide: Callable[[SymNode, SymNode], SymNode]) -> Callable[..., SymNode]:
        def run(dividend: SymNode, divisor: SymNode) -> SymNode:
            value = divisor._expr
            if isinstance(value, ToFloat):
                value = value.args[0]
            if not isinstance(value, sympy.Number):
                lines.setdefault(str(value), innermost_user_line(sys._getframe(1)))
            return divide(dividend, divisor)

        return run

    with contextlib.ExitStack() as stack:
        for name in ("float_truediv", "int_floordiv", "int_truediv", "mod"):
            patch = mock.patch.object(SymNode, name, noting(getattr(SymNode, name)))
            stack.enter_context(patch)
        yield


@contextlib.contextmanager
def _round_quotients_as_integers() -> Iterator[None]:
    """Has `math.ceil(n / 4)` and `math.floor(n / 4)` divide integers, for sizes the same.

    Torch's interpreter and its compiler know no other arithmetic on sizes.
    """
    # With each quotient its operands; itself too, so that no other gets its id.
    quotients: dict[int, tuple[SymNode, SymNode, SymNode]] = {}
    divide, ceil, floor = SymNode.int_truediv, SymNode.ceil, SymNode.floor

    def noting(dividend: SymNode, divisor: SymNode) -> SymNode:
        quotient = divide(dividend, divisor)
        if isinstance(divisor._expr, sympy.Integer) and divisor._expr.is_positive:
            quotients[id(quotient)] = quotient, dividend, divisor
        return quotient

    def round_up(number: SymNode) -> SymNode:
        if id(number) not in quotients:
            return ceil(number)
        _, dividend, divisor = quotients[id(number)]
        return dividend.add(divisor.sub(divisor.wrap_int(1))).int_floordiv(divisor)

    def round_down(number: SymNode) -> SymNode:
        if id(number) not in quotients:
            return floor(number)
        _, dividend, divisor = quotients[id(number)]
        return dividend.int_floordiv(divisor)

    with (
        mock.patch.object(SymNode, "int_truediv", noting),
        mock.patch.object(SymNode, "ceil", round_up),
        mock.patch.object(SymNode, "floor", round_down),
    ):
        yield


@contextlib.contextmanager
def _sizes_are_not_negative(shapes: Sequence[Mapping[int, Any]]) -> Iterator[None]:
    """Has torch keep a model's `max(n, 1)`, and not take it for `n`: it takes sizes to be positive.

    It still does so where it decides conditions, for a branch for empty tensors is not traced, and
    where it computes strides, which mean nothing there. Whether the graph does what the model does
    for such sizes is found out by comparing them.

    Conditions on sizes and on how many elements were selected together are decided so too: torch
    knows that the latter are not negative as a range only, and does not see that no sum of both
    is 0.
    """
    evaluate, maximum = ShapeEnv.evaluate_expr, SymNode.sym_max
    maximum_of_model: Callable[..., Any] = torch.SymInt.__sym_max__
    positive: dict[sympy.Basic, sympy.Symbol] = {}
    in_model: list[bool] = []

    def make(prefix: SymT, index: int, **assumptions: Any) -> sympy.Symbol:
        symbol = make_symbol(prefix, index, **assumptions)
        if prefix is not SymT.SIZE or not symbol.is_positive:
            return symbol
        weaker = make_symbol(prefix, index, integer=True, nonnegative=True)
        positive[weaker] = symbol
        return weaker

    def decide(env: ShapeEnv, condition: sympy.Basic, *args: Any, **options: Any) -> sympy.Basic:
        counts = {
            symbol: sympy.Dummy(integer=True, nonnegative=True)
            for symbol in condition.free_symbols
            if symbol_is_type(symbol, SymT.UNBACKED_INT) and env.var_to_range[symbol].lower >= 0
        }
        decided = condition.xreplace({**positive, **counts})
        if decided in (sympy.true, sympy.false):
            return decided
        return evaluate(env, condition, *args, **options)

    def is_positive(size: Any) -> bool:
        return bool(size._expr.xreplace(positive).is_positive)

    def note_maximum(size: torch.SymInt, other: Any) -> Any:
        in_model.append(True)
        try:
            return maximum_of_model(size, other)
        finally:
            in_model.pop()

    def simplify_maximum(one: SymNode, other: SymNode) -> SymNode:
        for number, size in ((one, other), (other, one)) if not in_model else ():
            if number._expr == 1 and is_positive(size):
                return size
        return maximum(one, other)

    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(ShapeEnv, "evaluate_expr", decide))
        if any(getattr(size, "min", None) == 0 for shape in shapes for size in shape.values()):
            for patch in (
                mock.patch("torch.fx.experimental.symbolic_shapes.make_symbol", make),
                mock.patch.object(torch.SymInt, "__sym_max__", note_maximum),
                mock.patch.object(SymNode, "sym_max", simplify_maximum),
            ):
                stack.enter_context(patch)
        yield


def _shape_env_of(exported: ExportedProgram) -> ShapeEnv | None:
    for node in exported.graph.nodes:
        value = node.meta.get("val")
        if isinstance(value, FakeTensor):
            return value.fake_mode.shape_env
    return None
