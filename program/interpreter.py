"""Runs a graph in torch's own interpreter, the one that TorchScript is made of.

Python runs a graph's operators one by one, holding the interpreter lock between them: on small
tensors that takes as long as the operators do, and threads gain nothing from a second processor.
Torch's interpreter has no lock. A graph is built here node by node, never from text, and takes what
the interpreter knows: tensors, integers and lists of them. Other graphs stay with Python.
"""

from __future__ import annotations

import functools
import logging
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from slipway.program import index_bounds, linears, packed_products, traps
from slipway.program.assertions import ASSERTIONS
from slipway.program.cases import AnsweredCase, case_inputs
from slipway.program.convolutions import prepare_convolutions
from slipway.program.engine import EngineFailure
from slipway.program.errors import NotInterpretableError
from slipway.program.masks import clamp_by_masks, masked_fill
from slipway.program.program import Program
from slipway.program.scaled_matmuls import matmul_div, matmul_mul, scale_matmuls
from slipway.program.words import with_article

__all__ = ["InterpretedGraph", "use_interpreter"]

# What tracing leaves as Python: the name of torch's own operator on integers, and what it gives.
_INTEGERS: dict[object, tuple[str, type]] = {
    operator.add: ("aten::add", int),
    operator.sub: ("aten::sub", int),
    operator.mul: ("aten::mul", int),
    operator.floordiv: ("aten::floordiv", int),
    operator.mod: ("aten::remainder", int),
    operator.neg: ("aten::neg", int),
    operator.eq: ("aten::eq", bool),
    operator.ne: ("aten::ne", bool),
    operator.lt: ("aten::lt", bool),
    operator.le: ("aten::le", bool),
    operator.gt: ("aten::gt", bool),
    operator.ge: ("aten::ge", bool),
    torch.sym_max: ("prim::max", int),
    torch.sym_min: ("prim::min", int),
}
_SIZES: dict[object, str] = {
    torch.ops.aten.sym_size.int: "aten::size",
    torch.ops.aten.sym_stride.int: "aten::stride",
    torch.ops.aten.sym_numel.default: "aten::numel",
    torch.ops.aten.sym_storage_offset.default: "aten::storage_offset",
}

# The overloads of operators whose second operand is a tensor, and those where it is a number.
_FOR_NUMBERS = {"": "Scalar", "Tensor": "Scalar", "Tensor_mode": "Scalar_mode"}

# Where these know the output's size, the overloads "vec" and "" are one, and the interpreter takes
# the other than the graph has.
_OF_ONE_DIMENSION = {
    "aten::upsample_linear1d",
    "aten::upsample_nearest1d",
    "aten::_upsample_nearest_exact1d",
}

# Functions of ours that graphs may call, written in TorchScript.
_SCRIPTED = {
    masked_fill,
    matmul_div,
    matmul_mul,
    *ASSERTIONS.values(),
    *index_bounds.SCRIPTED,
    *packed_products.SCRIPTED,
    *traps.SCRIPTED,
}

_Types = torch._C

_LOGGER = logging.getLogger(__name__)


def use_interpreter(program: Program) -> list[str]:
    """Has a program's methods run in torch's interpreter, where it can run them.

    Returns the names of the methods that Python still runs. That is all of them where calls change
    the program's state: a call that fails is run again by Python, which says more about why.
    """
    if program.state:
        return list(program.methods)
    left = []
    for name, method in program.methods.items():
        try:
            graph, weights = method.graph_module.graph, method.weights
            if program.device.type == "cpu":
                graph, weights = prepare_convolutions(graph, weights)
                graph = scale_matmuls(clamp_by_masks(graph))
                if linears.onednn_is_faster():
                    graph = linears.join_linears(graph, weights)
            engine = InterpretedGraph(graph, weights)
            for case in program.cases:
                if isinstance(case, AnsweredCase) and case.method == name:
                    engine.run(case_inputs(case, method))
            method.use(engine)
        except (NotInterpretableError, EngineFailure) as error:
            _LOGGER.info("method '%s' is run by Python: %s", name, error)
            left.append(name)
    return left


class InterpretedGraph:
    """One graph, ready to run. Several threads may run it at the same time."""

    def __init__(self, graph: fx.Graph, constants: Mapping[int, torch.Tensor]) -> None:
        """Builds it.

        Args:
          graph: what to run: operators of torch, and arithmetic on integers.
          constants: for those of its inputs that are always the same, by their positions. Running
            the graph does not change them.

        Raises:
          NotInterpretableError: the graph has something else, such as control flow.
        """
        # The interpreter knows no constants in an order of oneDNN's own. They are the last inputs.
        self._packed = [weight for _, weight in sorted(constants.items()) if weight.is_mkldnn]
        builder = _Builder({k: weight for k, weight in constants.items() if not weight.is_mkldnn})
        self._function = torch._C._create_function_from_graph("forward", builder.build(graph))

    def run(self, tensors: Sequence[torch.Tensor]) -> list[Any]:
        """Returns what the graph gives. Other threads run meanwhile.

        Args:
          tensors: for the inputs that are not constant, in order.

        Raises:
          EngineFailure: an operator failed.
        """
        before = torch._C._get_graph_executor_optimize()
        # What it would do to make the graph faster depends on the first sizes that it sees.
        torch._C._set_graph_executor_optimize(False)
        try:
            result = self._function(*tensors, *self._packed)
        # Whatever an operator raises comes out as a RuntimeError, and what functions of ours in
        # TorchScript raise as the other.
        except (RuntimeError, torch.jit.Error) as error:
            raise EngineFailure(str(error)) from error
        finally:
            torch._C._set_graph_executor_optimize(before)
        return list(result)


class _Builder:
    def __init__(self, constants: Mapping[int, torch.Tensor]) -> None:
        self._constants = constants
        self._graph: Any = torch._C.Graph()
        # A node of several results has a list of values.
        self._values: dict[fx.Node, Any] = {}

    def build(self, graph: fx.Graph) -> Any:
        place = 0
        for node in graph.nodes:
            if node.op == "placeholder":
                constant = self._constants.get(place)
                if constant is None:
                    value = self._graph.addInput(f"input_{place}")
                    value.setType(_Types.TensorType.get())
                    self._values[node] = value
                else:
                    self._values[node] = self._graph.insertConstant(constant)
                place += 1
            elif node.op == "call_function":
                self._values[node] = self._call(node)
            elif node.op == "output":
                for result in node.args[0]:
                    self._graph.registerOutput(self._value(result))
                self._graph.makeMultiOutputIntoTuple()
            else:
                raise NotInterpretableError(f"the graph has {with_article(node.op)} node")
        return self._graph

    def _call(self, node: fx.Node) -> Any:
        target: Any = node.target
        if target is operator.getitem:
            return self._item(node)
        if target in _INTEGERS:
            return self._integer(node)
        if target in _SIZES:
            inputs = [self._value(item) for item in node.args]
            return self._emit(_SIZES[target], inputs, [_Types.IntType.get()])[0]
        if target is linears.linear_chain:
            return self._linear_chain(node)
        if target in _SCRIPTED:
            inputs = [
                self._argument(given, parameter.type)
                for parameter, given in _given(node, _script(target).schema)
            ]
            return self._scripted(target, *inputs)
        if not isinstance(target, torch._ops.OpOverload) or node.kwargs.keys() - {
            argument.name for argument in target._schema.arguments
        }:
            raise NotInterpretableError(f"it has no operator for {target}")
        return self._operator(node, target)

    def _linear_chain(self, node: fx.Node) -> Any:
        arguments: Any = node.args
        given, weights, biases, activations, fewest = arguments
        x = self._value(given)
        layers = [
            (activation, self._value(weight), self._value(bias))
            for activation, weight, bias in zip(activations, weights, biases, strict=True)
        ]

        def with_onednn() -> Any:
            result = self._scripted(linears.pad_rows, x)
            for activation, weight, bias in layers:
                result = self._scripted(linears.ONEDNN_LAYERS[activation], result, weight, bias)
            return self._scripted(linears.restore_rows, result, x)

        def with_torch() -> Any:
            result = x
            for activation, weight, bias in layers:
                result = self._scripted(linears.TORCH_LAYERS[activation], result, weight, bias)
            return result

        is_large = self._scripted(linears.is_large, x, self._value(fewest))
        return self._either(is_large, with_onednn, with_torch)

    def _scripted(self, function: Callable[..., Any], *inputs: Any) -> Any:
        """Returns what a function in TorchScript gives for values."""
        return self._graph.insertGraph(_script(function).graph, list(inputs))[0]

    def _either(self, condition: Any, first: Callable[[], Any], second: Callable[[], Any]) -> Any:
        """Returns a tensor that one or the other computes, as a condition says."""
        call = self._graph.insertNode(self._graph.create("prim::If", [condition], 1))
        for build in (first, second):
            block = call.addBlock()
            with self._graph.insert_point_guard(block):
                block.registerOutput(build())
        call.output().setType(_Types.TensorType.get())
        return call.output()

    def _operator(self, node: fx.Node, target: torch._ops.OpOverload) -> Any:
        schema = target._schema
        wanted = target._overloadname.replace("default", "")
        inputs = []
        for parameter, given in _given(node, schema):
            if _is_tensor(parameter.type) and self._is_number(given):
                # Python makes such a number a tensor that has no say in the result's dtype, which
                # is what the overload for numbers does.
                if wanted not in _FOR_NUMBERS or parameter.name != "other":
                    raise NotInterpretableError(f"{target} has a number as {parameter.name}")
                wanted = _FOR_NUMBERS[wanted]
                inputs.append(self._value(given))
            else:
                inputs.append(self._argument(given, parameter.type))
        types = [item.type for item in schema.returns]
        results = self._emit(schema.name, inputs, types, wanted)
        return results[0] if len(results) == 1 else results

    def _emit(
        self, name: str, inputs: Sequence[Any], types: Sequence[Any], overload: str | None = None
    ) -> list[Any]:
        call = self._graph.create(name, list(inputs), len(types))
        results = list(call.outputs())
        for result, kind in zip(results, types, strict=True):
            result.setType(kind)
        self._graph.insertNode(call)
        found = call.schema()
        if found == "(no schema)":
            raise NotInterpretableError(f"it has no {name} for these arguments")
        if overload is not None:
            # It goes by the arguments' types, and may have chosen another.
            chosen = found.partition("(")[0].partition(".")[2]
            is_same = name in _OF_ONE_DIMENSION and (overload, chosen) == ("vec", "")
            if chosen != overload and not is_same:
                raise NotInterpretableError(f"it has {found} instead of {name}.{overload}")
        return results

    def _item(self, node: fx.Node) -> Any:
        source, index = node.args
        assert isinstance(source, fx.Node)
        value = self._values[source]
        if isinstance(value, list):
            return value[index]  # type: ignore[index]
        element = value.type()
        if element.kind() != "ListType" or not isinstance(index, int):
            raise NotInterpretableError("it can only take items of lists")
        inputs = [value, self._graph.insertConstant(index)]
        return self._emit("aten::__getitem__", inputs, [element.getElementType()])[0]

    def _integer(self, node: fx.Node) -> Any:
        name, kind = _INTEGERS[node.target]
        inputs = [self._value(item) for item in node.args]
        if any(value.type().kind() != "IntType" for value in inputs):
            raise NotInterpretableError(f"{name} is not of integers alone")
        if node.target is operator.mod:
            return self._scripted(_remainder, *inputs)
        result = _Types.IntType.get() if kind is int else _Types.BoolType.get()
        return self._emit(name, inputs, [result])[0]

    def _is_number(self, given: Any) -> bool:
        if isinstance(given, fx.Node):
            value = self._values[given]
            return not isinstance(value, list) and value.type().kind() in {"IntType", "FloatType"}
        return isinstance(given, int | float | complex)

    def _argument(self, given: Any, kind: Any) -> Any:
        """Returns a value for a parameter of a type."""
        if kind.kind() == "OptionalType":
            if given is None:
                return self._graph.insertConstant(None)
            kind = kind.getElementType()
        if kind.kind() == "ListType":
            element = kind.getElementType()
            if isinstance(given, fx.Node):
                return self._value(given)
            if not isinstance(given, list | tuple):
                raise NotInterpretableError(f"{given!r} is given for a list")
            return self._list(given, element)
        if isinstance(given, fx.Node):
            return self._value(given)
        return self._graph.insertConstant(_converted(given, kind.kind()))

    def _list(self, given: Sequence[Any], element: Any) -> Any:
        has_values = any(isinstance(item, fx.Node) for item in given)
        if given and not has_values and element.kind() in {"IntType", "FloatType", "BoolType"}:
            return self._graph.insertConstant([_converted(item, element.kind()) for item in given])
        items = [self._argument(item, element) for item in given]
        call = self._graph.create("prim::ListConstruct", items, 1)
        result = call.output()
        result.setType(_Types.ListType(element))
        self._graph.insertNode(call)
        return result

    def _value(self, given: Any) -> Any:
        if isinstance(given, fx.Node):
            value = self._values[given]
            if isinstance(value, list):
                raise NotInterpretableError("several results are used as one")
            return value
        return self._graph.insertConstant(given)


def _given(node: fx.Node, schema: Any) -> Iterator[tuple[Any, Any]]:
    """Yields the parameters of what a node calls, each with its argument or default."""
    for place, parameter in enumerate(schema.arguments):
        if place < len(node.args) and not parameter.kwarg_only:
            yield parameter, node.args[place]
        else:
            yield parameter, node.kwargs.get(parameter.name, parameter.default_value)


def _remainder(number: int, divisor: int) -> int:
    """Returns what torch's own remainder does, which ends the process where the divisor is 0."""
    return number - number // divisor * divisor


@functools.cache
def _script(function: Callable[..., Any]) -> Any:
    return torch.jit.script(function)


_CONVERSIONS: dict[str, Callable[[Any], Any]] = {"FloatType": float, "BoolType": bool}

# The numbers that c10::MemoryFormat has for them.
_MEMORY_FORMATS = {
    torch.contiguous_format: 0,
    torch.preserve_format: 1,
    torch.channels_last: 2,
    torch.channels_last_3d: 3,
}


def _converted(given: Any, kind: str) -> Any:
    """Returns a constant as a parameter's type wants it: it takes no integer for a float."""
    if isinstance(given, torch.memory_format):
        return _MEMORY_FORMATS[given]
    if isinstance(given, int | float) and kind in _CONVERSIONS:
        return _CONVERSIONS[kind](given)
    return given


def _is_tensor(kind: Any) -> bool:
    return bool(kind.kind() == "TensorType")
