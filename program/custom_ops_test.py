"""Libraries of operators: what each registers, and which are refused."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from slipway.program.custom_ops import CustomOpsError, load_custom_ops

LIBRARY = """
import torch

torch.library.define("{namespace}::twice", "(Tensor x) -> Tensor")
"""


@pytest.fixture
def libraries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[str]:
    """A package of libraries; its name, and their namespaces, are each test's own."""
    package = f"libraries_of_{request.node.name}"
    folder = tmp_path / package
    folder.mkdir()
    (folder / "inner.py").write_text(LIBRARY.format(namespace=package + "_inner"))
    (folder / "outer.py").write_text(
        f"import {package}.inner\n" + LIBRARY.format(namespace=package + "_outer")
    )
    (folder / "nothing.py").write_text("")
    (folder / "broken.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield package
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        del sys.modules[name]


def test_namespaces_are_those_that_the_modules_register(libraries: str) -> None:
    assert load_custom_ops([f"{libraries}.inner"]) == {f"{libraries}_inner"}


def test_one_may_import_another_whatever_comes_first(libraries: str) -> None:
    both = {f"{libraries}_inner", f"{libraries}_outer"}
    assert load_custom_ops([f"{libraries}.outer", f"{libraries}.inner"]) == both


def test_a_module_without_operators_is_refused(libraries: str) -> None:
    with pytest.raises(CustomOpsError, match="registers no operators"):
        load_custom_ops([f"{libraries}.nothing"])


def test_a_module_that_was_imported_before_is_refused(libraries: str) -> None:
    load_custom_ops([f"{libraries}.inner"])
    with pytest.raises(CustomOpsError, match="or was imported before"):
        load_custom_ops([f"{libraries}.inner"])


def test_a_module_that_fails_is_refused(libraries: str) -> None:
    with pytest.raises(CustomOpsError, match=r"broken' cannot be imported: ZeroDivisionError"):
        load_custom_ops([f"{libraries}.broken"])
