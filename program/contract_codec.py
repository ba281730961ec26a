"""Contracts to and from their protobuf messages. Nothing in a message is trusted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from slipway.program.batching import Batching, BatchingEvidence, Padding, PaddingNumber
from slipway.program.contract import (
    Contract,
    InputSpec,
    OutputSpec,
    PythonValue,
    Relation,
    Symbol,
    TensorSpec,
)
from slipway.program.errors import CorruptProgramError
from slipway.program.expressions import (
    Add,
    All,
    AnyOf,
    Comparison,
    Condition,
    Constant,
    Expression,
    FloorDivide,
    Maximum,
    Minimum,
    Modulo,
    Multiply,
    Negation,
    SymbolReference,
    Unknown,
)
from slipway.program.scalar_types import ScalarType
from slipway.program.trees import Key, Kind, Tree, container_type
from slipway.program.words import counted
from slipway.proto import program_pb2 as pb

__all__ = [
    "contract_from_proto",
    "contract_to_proto",
    "scalar_type_from_proto",
]

_OPERATORS = {
    "==": pb.Comparison.EQUAL,
    "!=": pb.Comparison.NOT_EQUAL,
    "<": pb.Comparison.LESS,
    "<=": pb.Comparison.LESS_OR_EQUAL,
    ">": pb.Comparison.GREATER,
    ">=": pb.Comparison.GREATER_OR_EQUAL,
}
_OPERATOR_NAMES = {value: name for name, value in _OPERATORS.items()}

_KINDS = {
    Kind.LEAF: pb.Tree.LEAF,
    Kind.TUPLE: pb.Tree.TUPLE,
    Kind.LIST: pb.Tree.LIST,
    Kind.DICT: pb.Tree.DICT,
    Kind.NAMED_TUPLE: pb.Tree.NAMED_TUPLE,
    Kind.RECORD: pb.Tree.RECORD,
}
_KIND_NAMES = {value: kind for kind, value in _KINDS.items()}

_NARY = {"add": Add, "multiply": Multiply, "minimum": Minimum, "maximum": Maximum}
_BINARY = {"floor_divide": FloorDivide, "modulo": Modulo}


def scalar_type_from_proto(value: int) -> ScalarType:
    """Returns the scalar type of the same name.

    Raises:
      CorruptProgramError: there is none.
    """
    try:
        return ScalarType[pb.ScalarType.Name(value)]
    except (ValueError, KeyError):
        raise CorruptProgramError(f"the program names an unknown scalar type ({value})") from None


def contract_to_proto(contract: Contract) -> pb.Contract:
    """Returns the message for a contract."""
    return pb.Contract(
        method=contract.method,
        symbols=[
            pb.Symbol(name=symbol.name, minimum=symbol.minimum, maximum=symbol.maximum)
            for symbol in contract.symbols
        ],
        inputs=[_input_to_proto(spec) for spec in contract.inputs],
        input_tree=_tree_to_proto(contract.input_tree),
        parameters=contract.parameters,
        outputs=[_output_to_proto(spec) for spec in contract.outputs],
        output_tree=_tree_to_proto(contract.output_tree),
        relations=[
            pb.Relation(condition=_condition_to_proto(item.condition))
            for item in contract.relations
        ],
        batch_symbol=contract.batch_symbol,
        contiguous=contract.contiguous,
        notes=contract.notes,
        batching=_batching_to_proto(contract),
    )


def contract_from_proto(message: pb.Contract, sources: Sequence[str] = ()) -> Contract:
    """Returns the contract of a message.

    Args:
      message: the contract.
      sources: for each relation where the model relies on it, if known.

    Raises:
      CorruptProgramError: the message does not describe a contract that can be checked.
    """
    symbols = tuple(_symbol_from_proto(item) for item in message.symbols)
    inputs = tuple(_input_from_proto(item, symbols) for item in message.inputs)
    outputs = tuple(_output_from_proto(item, symbols) for item in message.outputs)
    _require_unique("symbol", [item.name for item in symbols])
    _require_unique("input", [item.name for item in inputs])
    _require_unique("output", [item.name for item in outputs])
    if len(sources) != len(message.relations):
        sources = [""] * len(message.relations)  # of another program, or none at all
    input_tree = _tree_from_proto(message.input_tree)
    output_tree = _tree_from_proto(message.output_tree)
    if input_tree.leaf_count != len(inputs) or output_tree.leaf_count != len(outputs):
        raise CorruptProgramError("a contract's trees do not have as many leaves as it has specs")
    parameters = tuple(message.parameters)
    if [child.kind for child in input_tree.children] != [Kind.TUPLE, Kind.DICT] or len(
        input_tree.children[0].children
    ) != len(parameters):
        raise CorruptProgramError("a contract's input tree is not positional and keyword arguments")
    batch_symbol = message.batch_symbol if message.HasField("batch_symbol") else None
    if batch_symbol is not None and batch_symbol >= len(symbols):
        raise CorruptProgramError("a contract's batch symbol is not one of its symbols")
    try:
        return Contract(
            method=message.method,
            symbols=symbols,
            inputs=inputs,
            input_tree=input_tree,
            parameters=parameters,
            outputs=outputs,
            output_tree=output_tree,
            relations=tuple(
                Relation(_condition_from_proto(item.condition, symbols), source)
                for item, source in zip(message.relations, sources, strict=True)
            ),
            batch_symbol=batch_symbol,
            contiguous=message.contiguous,
            notes=tuple(message.notes),
            batching=_batching_from_proto(message, symbols, inputs),
        )
    except ValueError as error:
        raise CorruptProgramError(f"a contract cannot be checked: {error}") from error


def _batching_to_proto(contract: Contract) -> pb.Batching | None:
    batching = contract.batching
    if batching is None:
        return None
    index = {symbol.name: place for place, symbol in enumerate(contract.symbols)}
    evidence = batching.evidence
    return pb.Batching(
        symbol=index[batching.symbol],
        input_dimensions=batching.inputs.values(),
        output_dimensions=batching.outputs,
        absolute_tolerance=batching.atol,
        relative_tolerance=batching.rtol,
        evidence=pb.BatchingEvidence(
            batch_sizes=evidence.batch_sizes,
            settings=evidence.settings,
            comparisons=evidence.comparisons,
            perturbations=evidence.perturbations,
            seed=evidence.seed,
        ),
        paddings=[
            pb.Padding(
                symbol=index[padding.symbol],
                values=[
                    pb.PaddingValue(input=name, value=_constant_to_proto(value))
                    for name, value in padding.values.items()
                ],
            )
            for padding in batching.paddings
        ],
    )


def _batching_from_proto(
    message: pb.Contract, symbols: Sequence[Symbol], inputs: Sequence[InputSpec]
) -> Batching | None:
    if not message.HasField("batching"):
        return None
    batching = message.batching
    tensors = [spec.name for spec in inputs if spec.tensor is not None]
    if len(batching.input_dimensions) != len(tensors):
        raise CorruptProgramError(
            "the batching names dimensions of "
            f"{counted(len(batching.input_dimensions), 'tensor')}, the "
            f"method takes {len(tensors)}"
        )

    def name_of(symbol: int) -> str:
        if symbol >= len(symbols):
            raise CorruptProgramError(f"the batching refers to symbol {symbol} of {len(symbols)}")
        return symbols[symbol].name

    evidence = batching.evidence
    return Batching(
        symbol=name_of(batching.symbol),
        inputs=dict(zip(tensors, batching.input_dimensions, strict=True)),
        outputs=tuple(batching.output_dimensions),
        atol=batching.absolute_tolerance,
        rtol=batching.relative_tolerance,
        evidence=BatchingEvidence(
            batch_sizes=tuple(evidence.batch_sizes),
            settings=evidence.settings,
            comparisons=evidence.comparisons,
            perturbations=evidence.perturbations,
            seed=evidence.seed,
        ),
        paddings=tuple(
            Padding(name_of(item.symbol), _padding_values(item)) for item in batching.paddings
        ),
    )


def _padding_values(message: pb.Padding) -> dict[str, PaddingNumber]:
    values: dict[str, PaddingNumber] = {}
    for item in message.values:
        value = _constant_from_proto(item.value)
        if value is None or isinstance(value, str) or item.input in values:
            raise CorruptProgramError(
                f"the padding of input '{item.input}' is given twice or is not a number"
            )
        values[item.input] = value
    return values


def _require_unique(what: str, names: Sequence[str]) -> None:
    if len(set(names)) != len(names) or not all(names):
        raise CorruptProgramError(f"a contract has two {what}s of one name, or one without a name")


def _symbol_from_proto(message: pb.Symbol) -> Symbol:
    maximum = message.maximum if message.HasField("maximum") else None
    if message.minimum < 0 or (maximum is not None and maximum < message.minimum):
        raise CorruptProgramError(f"the symbol '{message.name}' has no legal value")
    return Symbol(message.name, message.minimum, maximum)


def _tensor_to_proto(spec: TensorSpec) -> pb.TensorSpec:
    return pb.TensorSpec(
        dtype=spec.dtype.name,
        shape=[_expression_to_proto(size) for size in spec.shape],
    )


def _tensor_from_proto(message: pb.TensorSpec, symbols: Sequence[Symbol]) -> TensorSpec:
    return TensorSpec(
        scalar_type_from_proto(message.dtype),
        tuple(_expression_from_proto(size, symbols) for size in message.shape),
    )


def _input_to_proto(spec: InputSpec) -> pb.Input:
    if spec.tensor is not None:
        return pb.Input(name=spec.name, tensor=_tensor_to_proto(spec.tensor))
    return pb.Input(name=spec.name, constant=_constant_to_proto(spec.constant))


def _input_from_proto(message: pb.Input, symbols: Sequence[Symbol]) -> InputSpec:
    match message.WhichOneof("kind"):
        case "tensor":
            spec = InputSpec(message.name, tensor=_tensor_from_proto(message.tensor, symbols))
            assert spec.tensor is not None
            if any(isinstance(size, Unknown) for size in spec.tensor.shape):
                raise CorruptProgramError(f"input '{message.name}' has a size without a value")
            return spec
        case "constant":
            return InputSpec(message.name, constant=_constant_from_proto(message.constant))
        case _:
            raise CorruptProgramError(f"input '{message.name}' is of an unknown kind")


def _output_to_proto(spec: OutputSpec) -> pb.Output:
    if spec.tensor is not None:
        return pb.Output(name=spec.name, tensor=_tensor_to_proto(spec.tensor))
    if spec.integer is not None:
        return pb.Output(name=spec.name, integer=_expression_to_proto(spec.integer))
    return pb.Output(name=spec.name, constant=_constant_to_proto(spec.constant))


def _output_from_proto(message: pb.Output, symbols: Sequence[Symbol]) -> OutputSpec:
    match message.WhichOneof("kind"):
        case "tensor":
            return OutputSpec(message.name, tensor=_tensor_from_proto(message.tensor, symbols))
        case "integer":
            return OutputSpec(
                message.name, integer=_expression_from_proto(message.integer, symbols)
            )
        case "constant":
            return OutputSpec(message.name, constant=_constant_from_proto(message.constant))
        case _:
            raise CorruptProgramError(f"output '{message.name}' is of an unknown kind")


def _constant_to_proto(value: PythonValue) -> pb.Constant:
    match value:
        case None:
            return pb.Constant(none=pb.Nothing())
        case bool():
            return pb.Constant(boolean=value)
        case int():
            return pb.Constant(integer=value)
        case float():
            return pb.Constant(floating=value)
        case str():
            return pb.Constant(string=value)


def _constant_from_proto(message: pb.Constant) -> PythonValue:
    match message.WhichOneof("kind"):
        case "none":
            return None
        case "boolean":
            return message.boolean
        case "integer":
            return message.integer
        case "floating":
            return message.floating
        case "string":
            return message.string
        case _:
            raise CorruptProgramError("a constant is of an unknown kind")


def _expression_to_proto(expression: Expression) -> pb.Expression:
    def operands(items: Iterable[Expression]) -> pb.Expression.Operands:
        return pb.Expression.Operands(operands=[_expression_to_proto(item) for item in items])

    def pair(left: Expression, right: Expression) -> pb.Expression.Pair:
        return pb.Expression.Pair(
            left=_expression_to_proto(left), right=_expression_to_proto(right)
        )

    match expression:
        case Constant(value):
            return pb.Expression(constant=value)
        case SymbolReference(index, _):
            return pb.Expression(symbol=index)
        case Add(items):
            return pb.Expression(add=operands(items))
        case Multiply(items):
            return pb.Expression(multiply=operands(items))
        case Minimum(items):
            return pb.Expression(minimum=operands(items))
        case Maximum(items):
            return pb.Expression(maximum=operands(items))
        case FloorDivide(left, right):
            return pb.Expression(floor_divide=pair(left, right))
        case Modulo(left, right):
            return pb.Expression(modulo=pair(left, right))
        case _:
            return pb.Expression(unknown=pb.Nothing())


def _expression_from_proto(message: pb.Expression, symbols: Sequence[Symbol]) -> Expression:
    kind = message.WhichOneof("kind")
    match kind:
        case "constant":
            return Constant(message.constant)
        case "symbol":
            if message.symbol >= len(symbols):
                raise CorruptProgramError(
                    f"an expression refers to symbol {message.symbol} of {len(symbols)}"
                )
            return SymbolReference(message.symbol, symbols[message.symbol].name)
        case "add" | "multiply" | "minimum" | "maximum":
            items = getattr(message, kind).operands
            if len(items) < 2:
                raise CorruptProgramError(f"an expression's {kind} has fewer than two operands")
            return _NARY[kind](tuple(_operand_from_proto(item, symbols) for item in items))
        case "floor_divide" | "modulo":
            pair = getattr(message, kind)
            return _BINARY[kind](
                _operand_from_proto(pair.left, symbols),
                _operand_from_proto(pair.right, symbols),
            )
        case "unknown":
            return Unknown()
        case _:
            raise CorruptProgramError("an expression is of an unknown kind")


def _operand_from_proto(message: pb.Expression, symbols: Sequence[Symbol]) -> Expression:
    expression = _expression_from_proto(message, symbols)
    if isinstance(expression, Unknown):
        raise CorruptProgramError("an expression computes with a size without a value")
    return expression


def _condition_to_proto(condition: Condition) -> pb.Condition:
    def several(items: Iterable[Condition]) -> pb.Condition.Conditions:
        return pb.Condition.Conditions(conditions=[_condition_to_proto(item) for item in items])

    match condition:
        case Comparison(operator, left, right):
            return pb.Condition(
                comparison=pb.Comparison(
                    operator=_OPERATORS[operator],
                    left=_expression_to_proto(left),
                    right=_expression_to_proto(right),
                )
            )
        case All(items):
            return pb.Condition(all=several(items))
        case AnyOf(items):
            return pb.Condition(any=several(items))
        case Negation(inner):
            return pb.Condition(negation=_condition_to_proto(inner))
        case _:
            raise TypeError(f"not a condition: {condition!r}")


def _condition_from_proto(message: pb.Condition, symbols: Sequence[Symbol]) -> Condition:
    several: dict[str, Callable[[tuple[Condition, ...]], Condition]] = {"all": All, "any": AnyOf}
    kind = message.WhichOneof("kind")
    match kind:
        case "comparison":
            comparison = message.comparison
            if comparison.operator not in _OPERATOR_NAMES:
                raise CorruptProgramError("a relation compares with an unknown operator")
            return Comparison(
                _OPERATOR_NAMES[comparison.operator],
                _operand_from_proto(comparison.left, symbols),
                _operand_from_proto(comparison.right, symbols),
            )
        case "all" | "any":
            items = getattr(message, kind).conditions
            if not items:
                raise CorruptProgramError("a relation combines no conditions")
            return several[kind](tuple(_condition_from_proto(item, symbols) for item in items))
        case "negation":
            return Negation(_condition_from_proto(message.negation, symbols))
        case _:
            raise CorruptProgramError("a relation is of an unknown kind")


def _tree_to_proto(tree: Tree) -> pb.Tree:
    return pb.Tree(
        kind=_KINDS[tree.kind],
        children=[_tree_to_proto(child) for child in tree.children],
        keys=[_constant_to_proto(key) for key in tree.keys],
        type_name=tree.type_name,
    )


def _tree_from_proto(message: pb.Tree) -> Tree:
    kind = _KIND_NAMES.get(message.kind)
    if kind is None:
        raise CorruptProgramError("a tree has a node of an unknown kind")
    keys: list[Key] = []
    for item in message.keys:
        key = _constant_from_proto(item)
        if not isinstance(key, str | int) or isinstance(key, bool):
            raise CorruptProgramError("a tree has a key that is neither a string nor an integer")
        keys.append(key)
    children = tuple(_tree_from_proto(child) for child in message.children)
    keyed = kind in (Kind.DICT, Kind.NAMED_TUPLE, Kind.RECORD)
    wanted = len(children) if keyed else 0
    if len(keys) != wanted or len(set(keys)) != len(keys) or (kind is Kind.LEAF and children):
        raise CorruptProgramError("a tree's keys and children do not go together")
    if kind in (Kind.NAMED_TUPLE, Kind.RECORD):
        try:
            container_type(kind, message.type_name, tuple(keys))
        except ValueError as error:
            raise CorruptProgramError(
                f"a tree has a {kind.value} with bad names: {error}"
            ) from None
    return Tree(kind, children, tuple(keys), message.type_name)
