"""What torch's errors mean to the author of a model that cannot be traced."""

from __future__ import annotations

from dataclasses import dataclass

from slipway.export.errors import ExportErrorKind

__all__ = ["RULES", "Rule"]


@dataclass(frozen=True, slots=True)
class Rule:
    """What a text of torch means.

    Attributes:
      kind: of the error.
      entry: in the catalogue, on the kind's page.
      reason, advice: for the user; in the reason, `{}` is the group of `torch_says` that matches.
      torch_says: searched for in the types and texts of torch's error and its causes.
      line: searched for in the line of the user's code.
      called: the function, by name, that the line of the user's code had called.
    """

    kind: ExportErrorKind
    entry: str
    reason: str
    advice: str
    torch_says: str
    line: str = ""
    called: str = ""


_PYTHON = ExportErrorKind.UNSUPPORTED_PYTHON
_FLOW = ExportErrorKind.DATA_DEPENDENT_CONTROL_FLOW
_SHAPE = ExportErrorKind.DATA_DEPENDENT_SHAPE
_OPERATOR = ExportErrorKind.UNSUPPORTED_OPERATOR
_CONSTRAINT = ExportErrorKind.CONSTRAINT_VIOLATION
_SPEC = ExportErrorKind.INVALID_SPEC

# A question about a symbolic truth value, about a size that depends on data, or about a number.
_GUARD = r"Could not guard on data-dependent expression "
_TRUTH = _GUARD + r"(?:Eq|Ne)\(u\d+, 1\)|Data-dependent branching|Data-dependent assertion"
_SELECTED = r"[^\n]*\(Size-like symbols: u\d+"
_INTEGER = r"Could not extract specialized integer from data-dependent expression"
_NUMBER = _GUARD + r"-?zuf\d+ "

_CHOOSE = (
    "compute both results and choose with torch.where, or give both branches to torch.cond; a "
    "decision that depends on shapes or on the model's settings may stay as it is"
)
_REPEAT = (
    "loop a fixed number of times and keep the old value with torch.where, or use torch.while_loop"
)
_NO_SELECTION = (
    "keep every element and mask: multiply by the mask, or torch.where(mask, x, neutral), so that "
    "the size is known from the inputs"
)

# The first that fits counts.
RULES = (
    # Branches inside torch.cond and its kin come with the text of the outer operator as well.
    Rule(
        _FLOW,
        "branches-that-disagree",
        "the branches of torch.cond return different things",
        "return the same number of tensors from every branch, of the same dtypes and ranks",
        r"When merging two branches' output in torch.cond|Unmatched output spec from torch.cond",
    ),
    Rule(
        _FLOW,
        "loop-that-starts-from-a-view",
        "a loop operator starts from a tensor that lies in memory otherwise than what the body "
        "returns: {}",
        "start from a copy, and return copies, such as of what torch.linalg gives: "
        "x.clone(memory_format=torch.contiguous_format)",
        r"Expected (?:body_fn_output|carry|init)[^\n]* to have same metadata but found:"
        r"\s*pair\[\d+\] differ in '(stride: [^']*)'",
    ),
    Rule(
        _FLOW,
        "tensor-that-a-loop-has-twice",
        "the body of a loop operator uses a tensor from outside, and a view of it such as x.T",
        "make a copy of the view outside, as x.T.clone(), and use that",
        r"Encountered aliasing during higher order op tracing[\s\S]*Input-to-input aliasing",
    ),
    Rule(
        _FLOW,
        "tensor-that-a-loop-has-twice",
        "the body of a loop operator returns a tensor that it was given, or one tensor twice, or "
        "a view of one",
        "return a copy: x.clone()",
        r"Encountered aliasing during higher order op tracing",
    ),
    Rule(
        _FLOW,
        "loop-that-changes-its-carry",
        "the body of a loop operator returns other shapes or dtypes than it takes: {}",
        "return from the body what it takes: as many tensors, of the same shapes and dtypes",
        r"Expected (?:body_fn_output|carry|init)[^\n]* to have same metadata but found:"
        r"\s*pair\[\d+\] differ in '([^']*)'",
    ),
    Rule(
        _FLOW,
        "side-effect-in-a-branch",
        "a branch of a control flow operator changes something outside of it",
        "return what the branch computes, and use the operator's result",
        r"HOP: Unsafe side effect|Mutating a variable from outside the scope of this HOP",
    ),
    Rule(
        _FLOW,
        "branch-that-returns-a-number",
        "a branch of a control flow operator returns something that is no tensor",
        "return a tensor: torch.full((), 1.5) in place of 1.5",
        r"HOP body output unsupported|HigherOrderOperator body's output must consist of tensors",
    ),
    Rule(
        _FLOW,
        "while-on-a-tensors-value",
        "a while loop runs until a tensor has a certain value",
        _REPEAT,
        f"{_TRUTH}|{_GUARD}",
        line=r"^while\b",
    ),
    Rule(
        _FLOW,
        "assert-on-a-tensors-value",
        "an assert statement asks for the value of a tensor",
        "leave it out, or make it a check that the program keeps: torch._check(number, lambda: "
        "text), with number = tensor.item()",
        f"{_TRUTH}|{_GUARD}",
        line=r"^assert\b",
    ),
    Rule(
        _FLOW,
        "branch-on-how-many-were-selected",
        "the model branches on how many elements were selected, which depends on values",
        "write one path that is right for any number of elements, none included",
        _GUARD + _SELECTED,
        called="__bool__",
    ),
    Rule(
        _FLOW,
        "branch-on-how-many-were-selected",
        "the model branches on how many elements were selected, which depends on values",
        "write one path that is right for any number of elements, none included",
        _GUARD + _SELECTED + r"(?s:.*)\bin evaluate_expr\b",
        line=r"\b(?:if|elif|and|or|not)\b",
    ),
    Rule(
        _FLOW,
        "distribution-that-checks-its-arguments",
        "a distribution of torch.distributions checks the values that it is given",
        "pass validate_args=False to it",
        _TRUTH,
        line=r"\bdistributions\.\w+\(|\.log_prob\(|\b(?:\w*Normal|\w*Categorical|\w*Bernoulli|"
        r"Beta|Dirichlet|Exponential|Gamma|Independent|Laplace|Poisson|StudentT|Uniform)\(",
        called="__init__|log_prob",
    ),
    Rule(
        _FLOW,
        "branch-on-a-tensors-value",
        "the model branches on the value of a tensor",
        _CHOOSE,
        _TRUTH,
    ),
    Rule(
        _FLOW,
        "branch-on-a-tensors-value",
        "the model branches on the value of a tensor",
        _CHOOSE,
        _GUARD,
        called="__bool__",
    ),
    Rule(
        _FLOW,
        "branch-on-a-tensors-value",
        "the model branches on the value of a tensor",
        _CHOOSE,
        f"{_GUARD}(?s:.*)in (?:evaluate_expr|item)\\b",
        line=r"\b(?:if|elif|and|or|not)\b",
    ),
    Rule(
        _FLOW,
        "comparison-of-whole-tensors",
        "torch.{} gives a Python truth value that depends on the values of tensors",
        "compare elementwise, and choose by the result with torch.where or torch.cond: "
        "(a == b).all() is a tensor",
        r"aten\.(equal|allclose|is_nonzero)\.default",
    ),
    Rule(
        _FLOW,
        "loop-over-a-tensors-value",
        "a loop runs as often as the value of a tensor says",
        _REPEAT,
        _INTEGER,
        line=r"\brange\(",
    ),
    Rule(
        _SHAPE,
        "size-by-len",
        "len() of a tensor asks for a size that depends on values as a plain integer",
        "use tensor.shape[0], which can stay symbolic",
        _INTEGER,
        line=r"\blen\(",
    ),
    Rule(
        _SHAPE,
        "int-of-a-tensor",
        "int() takes a plain integer out of a tensor",
        "use tensor.item(), which can stay symbolic, on a tensor of an integer dtype",
        f"{_INTEGER}|{_NUMBER}",
        line=r"\bint\(",
    ),
    Rule(
        _PYTHON,
        "float-of-a-tensor",
        "float() takes a plain number out of a tensor",
        "compute with the tensor itself, or with tensor.item(), which can stay symbolic",
        _NUMBER,
        line=r"\bfloat\(",
    ),
    Rule(
        _FLOW,
        "write-to-a-place-that-a-tensor-chooses",
        "the model writes to a place that the value of a tensor chooses",
        "index with a tensor of one dimension, and write rows: x[place.view(1)] = row[None]",
        _INTEGER,
        # A name in the brackets, which are assigned to.
        line=r"\[(?![\"'])[^\]]*[A-Za-z_][^\]]*\]\s*(?:[-+*/|&]|//|\*\*)?=(?!=)",
        called=r"(?!__index__).*",
    ),
    Rule(
        _FLOW,
        "look-up-by-a-tensors-value",
        "the model picks something from a Python container by the value of a tensor",
        "stack the choices into one tensor, and index that with the tensor",
        f"{_INTEGER}|{_NUMBER}",
        line=r"\[|\.(?:get|index|pop)\(",
    ),
    Rule(
        _PYTHON,
        "float-of-a-tensor",
        "a plain number is taken out of a tensor",
        "compute with the tensor itself, or with tensor.item(), which can stay symbolic",
        f"{_INTEGER}|{_NUMBER}",
    ),
    Rule(
        _SHAPE,
        "loop-over-selected-elements",
        "the model takes a tensor apart whose size depends on values",
        _NO_SELECTION,
        _GUARD + _SELECTED,
        line=r"^for\b|\bfor\b.*\bin\b|\bsum\(|\bunbind\(|^\(?\w+(?:, *\*?\w+)+\)? *=",
    ),
    Rule(
        _SHAPE,
        "selected-elements-in-an-operator",
        "an operator has to know a size that depends on the values of a tensor",
        _NO_SELECTION
        + "; or state what the operator asks for with torch._check, where it always holds",
        _GUARD,
    ),
    Rule(
        _SHAPE,
        "operator-with-a-data-dependent-result",
        "the size of what '{}' returns depends on the values of tensors",
        "use an operator whose result has a size known from its inputs",
        r"(?:DynamicOutputShapeException: |Operator `)(aten\.\w+)",
    ),
    Rule(
        _SHAPE,
        "operator-with-a-data-dependent-result",
        "the size of an intermediate result of this operator depends on the values of tensors",
        "use an operator whose result has a size known from its inputs",
        r"PendingUnbackedSymbolNotFound: |Dynamic shape operator",
    ),
    Rule(
        _FLOW,
        "comparison-of-whole-tensors",
        "'{}' gives a Python value that depends on the values of tensors",
        "use an operator that returns a tensor",
        r"(?:DataDependentOutputException: |Operator `)(\w+\.\w+)",
    ),
    Rule(
        _OPERATOR,
        "custom-operator-without-a-fake-kernel",
        "the operator '{}' has no fake kernel, which says the shape and dtype of its result",
        "register one with torch.library.register_fake",
        r"There was no fake impl registered for <CustomOpDef\(([\w:]+)\)>"
        r"|UnsupportedOperatorException: (?!aten\.)([\w.]+)\.\w+",
    ),
    Rule(
        _OPERATOR,
        "operator-without-a-meta-kernel",
        "torch has no meta kernel for '{}', which would say the shape of its result",
        "use other operators of torch",
        r"UnsupportedOperatorException: (aten\.\w+)"
        r"|Could not run '([^']*)' with arguments from the 'Meta' backend",
    ),
    Rule(
        _OPERATOR,
        "quantized-tensor",
        "the model takes a quantized tensor, which tracing cannot represent",
        "pass integers, scale and zero point as plain tensors, and compute with those",
        r"quantized nyi in meta tensors",
    ),
    Rule(
        _OPERATOR,
        "weights-in-an-object",
        "the model keeps weights in an object of TorchScript, as the quantized modules of torch.ao "
        "do, which a program cannot hold",
        "keep them as tensors: integers and their scales in buffers, multiplied in the forward "
        "function",
        r"__torch__\.torch\.classes\.\S+ .*'__obj_flatten__'",
    ),
    Rule(
        _SPEC,
        "output-that-is-no-tensor",
        "the model returns an object of type {}, which is neither a tensor nor a container of "
        "tensors",
        "return tensors in tuples, lists or dicts; register a dataclass with "
        "torch.export.register_dataclass",
        r"Found <class '(?:[\w.<>]*\.)?(\w+)'> in output, which is not a known type"
        r"|Encountered unrecognized type (?:\w+\((\w+)\)|(\w+)Variable\(\)) at output",
    ),
    Rule(
        _SPEC,
        "argument-that-is-no-tensor",
        "an argument is a set or an iterator, which cannot be taken apart in a fixed order",
        "pass a tuple, list or dict",
        r"Attempted to wrap a set with tensors|not implemented for generator",
    ),
    Rule(
        _SPEC,
        "example-with-a-size-of-0",
        "torch cannot trace this line with a size of 0 in the example",
        "give an example whose dynamic dimensions are 2 or more; sizes of 0 that are declared stay "
        "legal",
        # The model's own division by 0 shows before, when it is run on the example.
        r"ZeroDivisionError: ",
    ),
    Rule(
        _PYTHON,
        "numpy-on-a-size",
        "NumPy computes with a dynamic size",
        "compute with sizes in plain Python, and with torch.arange and the like in tensors",
        r"np\.ndarray of type numpy\.object_|loop of ufunc does not support",
    ),
    Rule(
        _PYTHON,
        "numpy-on-a-tensor",
        "NumPy takes the values out of a tensor",
        "use the operator of torch that does the same",
        r"\.numpy\(\) is not supported for tensor subclasses",
    ),
    Rule(
        _PYTHON,
        "format-a-tensors-value",
        "a text is made of the value of a tensor",
        "leave it out: a program computes tensors, and prints and logs nothing",
        r"unsupported format string passed to Sym|object of type 'str' has no len"
        r"|builtin operator `(?:str|repr|format)`",
    ),
    Rule(
        _PYTHON,
        "size-as-a-dictionary-key",
        "a dynamic size is a key of a dict or an element of a set",
        "compute what depends on the size, or make the dimension static",
        r"unhashable type: (?:non-nested )?SymInt|KeyError: [\"']?s\d+",
    ),
    Rule(
        _PYTHON,
        "tensor-made-of-tensors",
        "torch.tensor() takes the values out of other tensors",
        "use torch.stack or torch.cat",
        r"data is not allocated yet",
        line=r"\btensor\(",
    ),
    Rule(
        _FLOW,
        "scan-with-a-tensor-that-is-no-buffer",
        "the body of a scan uses a tensor that is no parameter or buffer of the module",
        "register it: self.register_buffer(name, tensor)",
        r"Cannot access data pointer of Tensor",
        line=r"\bscan\(",
    ),
    Rule(
        _PYTHON,
        "address-of-a-tensor",
        "the model asks where a tensor lies in memory",
        "leave out what depends on addresses",
        r"Cannot access data pointer of Tensor|data is not allocated yet|DataPtrVariable",
    ),
    Rule(
        _PYTHON,
        "value-computed-behind-tracings-back",
        "the model computes a tensor where tracing does not see it, as in another thread",
        "compute in the thread that calls the model",
        r"fake tensor in the exported program constant's list",
    ),
    Rule(
        _PYTHON,
        "scripted-module",
        "the model calls a module made by torch.jit.script",
        "use the module that it was made from",
        r"torch\.jit\.script/freeze modules unsupported"
        r"|\.forward\(\) takes \d+ positional arguments? but \d+ were given",
    ),
    Rule(
        _PYTHON,
        "scripted-module",
        "the model calls a module made by torch.jit.trace",
        "use the module that it was made from",
        r"_CachedForward\.__get__",
    ),
    Rule(
        _PYTHON,
        "packed-sequences",
        "the model packs sequences whose lengths are the values of a tensor",
        "run the layer on the padded sequences, and mask what it gives for the padding",
        r"zeros\(\): argument 'size' failed to unpack the object",
    ),
    Rule(
        _PYTHON,
        "errors-of-tensors-caught",
        "the model catches an error of a tensor operator",
        "decide by shapes and dtypes before the operator is called",
        r"TorchRuntimeError: RuntimeError when making fake tensor call",
    ),
    Rule(
        _PYTHON,
        "strict-mode",
        "in strict mode, torch cannot interpret the call of '{}'",
        "use strict=False, which runs the Python code as it is, or leave out the call",
        r"Dynamo does not know how to trace (?:the )?builtin (?:operator )?"
        r"`(?:<unknown module>\.)?([\w.]*\w)\.?`",
    ),
    Rule(
        _PYTHON,
        "strict-mode",
        "in strict mode, torch cannot interpret this line",
        "use strict=False, which runs the Python code as it is, or change the line",
        r"Unsupported: ",
    ),
    Rule(
        _CONSTRAINT,
        "",
        "the model needs other sizes than were declared",
        "declare the dimension as the model needs it, or change the line",
        r"ConstraintViolationError|Constraints violated",
    ),
    Rule(
        _CONSTRAINT,
        "size-that-is-1-in-the-example",
        "sizes must be equal, and one of them, which is 1 in the example, may be another",
        "leave a dimension that is always 1 out of dynamic_shapes; where the sizes are always "
        "equal, use one Dim for both, and give an example in which they are",
        # A size that depends on data has no value in the example.
        r"The size of tensor a \((?:(?!\bu\d).)+\) must match the size of tensor b "
        r"\((?:(?!\bu\d).)+\) at",
    ),
    Rule(
        _PYTHON,
        "",
        "torch cannot trace this line",
        "compute with operators of torch on tensors, and move everything else out of the model or "
        "into its constructor",
        r"",
    ),
)
