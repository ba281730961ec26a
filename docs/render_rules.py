"""Renders docs/rules.md from what Bazel says of the public .bzl files.

`bazel run //docs:write_rules` writes the file anew. What has no documentation is an error.
"""

from __future__ import annotations

import argparse
import re
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

from slipway.docs import starlark_module_pb2 as pb

__all__ = ["UndocumentedError", "render"]

_HEAD = """\
# Rules

Every public rule, macro and provider, with every attribute. This page is made from the `.bzl`
files: `./bazelw run //docs:write_rules` writes it anew.

What every rule takes is not repeated here: `tags`, `visibility`, `testonly`,
`exec_compatible_with`, and the rest of
[Bazel's common attributes](https://bazel.build/reference/be/common-definitions#common-attributes).
"""

_TYPES = {
    pb.Attribute.NAME: "name",
    pb.Attribute.INT: "integer",
    pb.Attribute.LABEL: "label",
    pb.Attribute.STRING: "string",
    pb.Attribute.STRING_LIST: "list of strings",
    pb.Attribute.INT_LIST: "list of integers",
    pb.Attribute.LABEL_LIST: "list of labels",
    pb.Attribute.BOOLEAN: "boolean",
    pb.Attribute.LABEL_STRING_DICT: "dict from label to string",
    pb.Attribute.STRING_DICT: "dict from string to string",
    pb.Attribute.STRING_LIST_DICT: "dict from string to list of strings",
    pb.Attribute.OUTPUT: "output file",
    pb.Attribute.OUTPUT_LIST: "list of output files",
}


class UndocumentedError(Exception):
    """A public name, or a part of one, says nothing of itself."""


def render(modules: Sequence[tuple[str, pb.Module]]) -> str:
    """Returns the page.

    Args:
      modules: the label of each public .bzl file, with what Bazel says of it.

    Raises:
      UndocumentedError: with every name that lacks documentation.
    """
    missing = [name for label, module in modules for name in _undocumented(label, module)]
    if missing:
        raise UndocumentedError(f"without documentation: {', '.join(missing)}")
    parts = [_HEAD]
    shown: set[str] = set()
    for label, module in modules:
        names = sorted(
            [*module.rules, *module.functions, *module.providers],
            key=lambda item: (isinstance(item, pb.Provider), item.name),
        )
        parts.append(f"## {label}\n")
        for item in names:
            # The same provider may be offered by several files.
            if item.name in shown:
                parts.append(f"`{item.name}` is also here.\n")
                continue
            shown.add(item.name)
            parts.append(_section(item))
    return "\n".join(parts)


def _undocumented(label: str, module: pb.Module) -> Iterator[str]:
    if not module.doc:
        yield label
    for item in (*module.rules, *module.functions, *module.providers):
        if not item.doc:
            yield item.name
        for part in _parts(item):
            if not part.doc:
                yield f"{item.name}.{part.name}"


def _parts(
    item: pb.Rule | pb.Function | pb.Provider,
) -> Sequence[pb.Attribute | pb.Parameter | pb.Field]:
    if isinstance(item, pb.Rule):
        return item.attributes
    return item.parameters if isinstance(item, pb.Function) else item.fields


def _section(item: pb.Rule | pb.Function | pb.Provider) -> str:
    title = f"### {item.name}\n\n{_prose(item.doc)}\n"
    if isinstance(item, pb.Provider):
        rows = [(field.name, field.doc) for field in sorted(item.fields, key=lambda it: it.name)]
        return title + "\n" + _table(("field", "what it is"), rows)
    if isinstance(item, pb.Rule):
        attributes = sorted(item.attributes, key=lambda it: (it.name != "name", it.name))
        rows = [
            (it.name, f"{_text(it)}{_sentence(_attribute_kind(it))}", _default(it))
            for it in attributes
        ]
    else:
        rows = [(_parameter(it), _text(it), _default(it)) for it in item.parameters]
    return title + "\n" + _table(("attribute", "what it is", "default"), rows)


def _text(item: pb.Attribute | pb.Parameter) -> str:
    first = re.match("[a-z]+(?= )", item.doc)
    # A name, such as py_library, stays as it is.
    return item.doc[:1].upper() + item.doc[1:] if first else item.doc


def _attribute_kind(attribute: pb.Attribute) -> str:
    if attribute.type == pb.Attribute.NAME:
        return ""
    kind = _TYPES.get(attribute.type, "value")
    groups = [" and ".join(group.names) for group in attribute.providers]
    return kind + (f", of targets with {' or '.join(groups)}" if groups else "")


def _sentence(text: str) -> str:
    return f" ({text})" if text else ""


def _parameter(parameter: pb.Parameter) -> str:
    # What takes any further arguments is the only kind that is neither needed nor has a default.
    rest = not parameter.mandatory and not parameter.default_value
    return "**" + parameter.name if rest else parameter.name


def _default(item: pb.Attribute | pb.Parameter) -> str:
    if item.mandatory:
        return "required"
    return f"`{item.default_value}`" if item.default_value else ""


def _prose(doc: str) -> str:
    """Returns documentation as Markdown: an indented example becomes a block of Starlark."""
    blocks = re.split(r"(?m)^(?=    )((?:(?:    .*)?\n)*    .*\n?)", doc.strip() + "\n")
    return "".join(
        f"```python\n{textwrap.dedent(block).strip()}\n```\n" if index % 2 else block
        for index, block in enumerate(blocks)
    ).strip()


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for name, *cells in rows:
        escaped = [" ".join(cell.split()).replace("|", "\\|") for cell in cells]
        lines.append(f"| `{name}` | {' | '.join(escaped)} |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str]) -> int:
    """Renders as the command line says; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, metavar="FILE")
    parser.add_argument(
        "modules", nargs="+", metavar="LABEL=FILE", help="a .bzl file, and what Bazel says of it"
    )
    options = parser.parse_args(arguments)
    modules = []
    for argument in options.modules:
        label, _, path = argument.rpartition("=")
        modules.append((label, pb.Module.FromString(Path(path).read_bytes())))
    try:
        options.output.write_text(render(modules), encoding="utf-8")
    except UndocumentedError as error:
        print(f"docs/rules.md: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
