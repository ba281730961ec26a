"""Where docs/catalogue explains an error."""

from __future__ import annotations

import re

__all__ = ["find_page", "page_of"]

# For each kind, what the reason and the line of the user's code have in them, and the entry that
# explains it; the first that fits counts.
_ENTRIES: dict[str, list[tuple[str, str, str]]] = {
    "constraint violation": [
        (r"in general, but of the shape", "", "squeeze-of-a-dynamic-dimension"),
        (r"relies on (?:int|float)\(", "", "size-as-a-plain-number"),
        (r"a contract cannot say", "", "relation-that-a-contract-cannot-say"),
        (r"needs \w+ == \w*[a-zA-Z_]\w*,", "", "two-sizes-that-must-be-equal"),
        (r"\bmin\(|\bmax\(", "", "table-that-is-too-small"),
        (r"", r"\b(?:if|elif|while)\b", "branch-on-a-size"),
        (r" needs \w+ <= \w+, ", r"\[[^\]]*:", "table-that-is-too-small"),
        (r"// \w+ == \d", r"\bint\(", "size-as-a-plain-number"),
        (r"%|//", "", "multiple-of-a-number"),
        (r" == |only for the size", r"\bint\(|\bfloat\(|\bmath\.", "size-as-a-plain-number"),
        (r" == |only for the size", r"\b(?:reshape|view)\(", "reshape-to-fixed-sizes"),
        (r" == |only for the size", r"\]\[|[A-Z_]\[", "look-up-by-a-size"),
        (
            r" == |only for the size",
            r"\bfor\b|\brange\(|\bunbind\(|^\w+(?:, *\*?\w+)+ *=",
            "loop-over-a-dynamic-dimension",
        ),
        (r" == |only for the size", "", "dimension-that-another-tensor-fixes"),
        (r"[<>]| != ", "", "range-that-an-operator-needs"),
    ],
    "custom operator not declared": [("", "", "custom-operator-that-is-not-declared")],
    "differs from eager": [
        (r"drops out at random", "", "dropout-left-on"),
        (r"draws random numbers", "", "random-numbers"),
        (r"changes its attribute", "", "state-in-an-attribute"),
        (r"when it is called again", "", "results-that-change-from-call-to-call"),
        (r"fast path for attention", "", "fast-path-for-attention"),
        (r"something else while it is traced", "", "something-else-while-it-is-traced"),
        (r"the program fails", "", "errors-caught-while-tracing"),
    ],
    "invalid spec": [
        (r"^the checkpoint .* does not fit", "", "checkpoint-that-does-not-fit"),
        (r"^the checkpoint .* is for a module", "", "checkpoint-for-a-function"),
        (r"^the (?:checkpoint|index) ", "", "checkpoint-that-cannot-be-read"),
        (r"^(?:tensors are in two|among the weights)", "", "checkpoint-that-cannot-be-read"),
        (r"on the device meta:", "", "weights-without-values"),
        (r"^dynamic_shapes names '", "", "unknown-input-name"),
        (r"which is not of the form", "", "example-of-another-form"),
        (r"^the example's .* declared is", "", "example-outside-its-range"),
        (r"^two dimensions are called", "", "one-name-with-two-ranges"),
        (r"^the example has .* but ", "", "example-that-contradicts-itself"),
        (r"breaks the relation", "", "example-that-breaks-a-relation"),
        (r"which allows no size", "", "bounds-the-wrong-way-round"),
        (r"^symbols declares", "", "symbol-that-nothing-uses"),
        (r"^the example's .* is (?:quantized|on the|of the)", "", "sparse-or-quantized-argument"),
        (r"^dynamic_shapes ", "", "shapes-that-do-not-fit-the-arguments"),
        (r'^"', "", "text-that-is-no-shape"),
        (r"do not fit the signature", "", "arguments-that-do-not-fit-the-model"),
        (r"which is declared legal", "", "model-that-fails-for-a-declared-size"),
        (r"does not require grad", "", "derivative-without-gradients"),
        (r"fails on the example", "", "example-that-the-model-cannot-take"),
        (r"^the (?:argument|example arguments)", "", "argument-that-is-no-tensor"),
        (r"^output .* is a number", "", "output-that-is-a-number"),
        (r"^the output names are", "", "names-that-do-not-fit-the-outputs"),
        (r"^output '|^the output ", "", "output-that-is-no-tensor"),
        (r"^the model holds", "", "object-in-the-model-that-is-no-tensor"),
    ],
    "unsupported operator": [(r"torch\.q\w+ is not supported", "", "quantized-tensor")],
    "unsupported Python feature": [
        (r"keeps a tensor in the attribute", "", "tensor-kept-in-an-attribute"),
        (r"gives its buffer", "", "buffer-that-grows"),
        (r"where tracing does not see it", "", "value-computed-behind-tracings-back"),
    ],
}


def page_of(kind: str, entry: str = "") -> str:
    """Returns where an entry of the catalogue is, or the page of all of its kind.

    Args:
      kind: the value of an `ExportErrorKind`.
      entry: the anchor of the entry's title.
    """
    page = f"docs/catalogue/{kind.lower().replace(' ', '-')}.md"
    return f"{page}#{entry}" if entry else page


def find_page(kind: str, reason: str, line: str = "") -> str:
    """Returns where the entry is for an error, or the page of all of its kind.

    Args:
      kind: the value of its `ExportErrorKind`.
      reason: as the error gives it.
      line: of the user's code, if one is to blame.
    """
    for reason_pattern, line_pattern, entry in _ENTRIES.get(kind, []):
        if re.search(reason_pattern, reason) and re.search(line_pattern, line):
            return page_of(kind, entry)
    return page_of(kind)
