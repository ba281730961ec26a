"""The page on rules: how it is made of what Bazel says, and that it misses nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from slipway.docs import starlark_module_pb2 as pb
from slipway.docs.render_rules import UndocumentedError, main, render

# This file is RUNFILES/slipway/docs/render_rules_test.py.
DOCS = Path(__file__).absolute().parent
PACKAGES = ("export", "program", "serving")


def rule(**fields: str) -> pb.Module:
    attributes = [
        pb.Attribute(name="name", doc="A unique name.", type=pb.Attribute.NAME, mandatory=True),
        pb.Attribute(
            name="program",
            doc="a program | or two",
            type=pb.Attribute.LABEL,
            providers=[pb.ProviderGroup(names=["TorchProgramInfo"])],
            default_value='"//a:b"',
        ),
    ]
    described = {"name": "a_rule", "doc": "Does it.\n\nExample:\n\n    a_rule()\n\n      b()\n"}
    return pb.Module(doc="Rules.", rules=[pb.Rule(attributes=attributes, **(described | fields))])


def test_a_rule_is_a_section_with_its_attributes() -> None:
    page = render([("//x:defs.bzl", rule())])
    assert page.endswith(
        "## //x:defs.bzl\n\n### a_rule\n\nDoes it.\n\nExample:\n\n"
        "```python\na_rule()\n\n  b()\n```\n\n"
        "| attribute | what it is | default |\n|---|---|---|\n"
        "| `name` | A unique name. | required |\n"
        "| `program` | A program \\| or two (label, of targets with TorchProgramInfo) | "
        '`"//a:b"` |\n'
    )


def test_a_macro_and_a_provider_are_sections_too() -> None:
    module = pb.Module(
        doc="Macros.",
        functions=[
            pb.Function(
                name="a_macro",
                doc="Does it.",
                parameters=[
                    pb.Parameter(name="name", doc="of the target.", mandatory=True),
                    pb.Parameter(name="kwargs", doc="whatever else."),
                ],
            )
        ],
        providers=[
            pb.Provider(name="AnInfo", doc="Tells.", fields=[pb.Field(name="it", doc="File: it.")])
        ],
    )
    page = render([("//x:defs.bzl", module), ("//y:defs.bzl", module)])
    assert "| `name` | Of the target. | required |\n| `**kwargs` | Whatever else. |  |\n" in page
    assert (
        "### AnInfo\n\nTells.\n\n| field | what it is |\n|---|---|\n| `it` | File: it. |\n" in page
    )
    # What several files offer is explained once.
    assert page.count("### AnInfo") == 1
    assert page.endswith("## //y:defs.bzl\n\n`a_macro` is also here.\n\n`AnInfo` is also here.\n")


def test_what_says_nothing_of_itself_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = rule(doc="")
    module.rules[0].attributes[1].doc = ""
    with pytest.raises(
        UndocumentedError, match=r"^without documentation: a_rule, a_rule\.program$"
    ):
        render([("//x:defs.bzl", module)])
    described = tmp_path / "x.binaryproto"
    described.write_bytes(module.SerializeToString())
    assert main([f"--output={tmp_path / 'page'}", f"//x:defs.bzl={described}"]) == 1
    assert capsys.readouterr().err == (
        "docs/rules.md: without documentation: a_rule, a_rule.program\n"
    )


@pytest.mark.parametrize("package", PACKAGES)
def test_bazel_is_understood(package: str) -> None:
    module = pb.Module.FromString((DOCS / f"{package}_module.binaryproto").read_bytes())
    assert f"@slipway//{package}:defs.bzl" in module.doc
    rules = [rule for rule in module.rules if rule.attributes]
    for item in rules:
        by_name = {attribute.name: attribute for attribute in item.attributes}
        assert by_name["name"].type == pb.Attribute.NAME
        assert by_name["name"].mandatory
    if package == "export":
        (export,) = [item for item in rules if item.name == "torch_export"]
        by_name = {attribute.name: attribute for attribute in export.attributes}
        assert by_name["entry_point"].type == pb.Attribute.STRING
        assert by_name["entry_point"].mandatory
        assert by_name["custom_ops"].type == pb.Attribute.LABEL_LIST
        assert by_name["custom_ops"].default_value == "[]"
