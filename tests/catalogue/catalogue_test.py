"""Runs every example of docs/catalogue.

What is said to fail fails with the kind of its page, with the error that is quoted, and with a link
to its entry. What is said to work is exported and gives what the model gives.
"""

from __future__ import annotations

import contextlib
import copy
import re
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from slipway.export import ExportError, ExportErrorKind, ExportSpec, export_spec
from slipway.export.catalogue import page_of
from slipway.export.gate import assert_same

CATALOGUE = Path(__file__).parents[2] / "docs" / "catalogue"

# An introduction that says what comes, code, and for what fails the first lines of the error.
_EXAMPLE = re.compile(
    r"^(?P<introduction>Fails|Works)[^\n]*:\n\n"
    r"```python\n(?P<code>.*?)^```\n"
    r"(?:\n```text\n(?P<error>.*?)^```\n)?",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Example:
    """A block of code of the catalogue.

    Attributes:
      page, entry: where it is; the entry by its anchor.
      number: among those of the entry.
      code: the code.
      error: the first lines of its error; None if it works.
    """

    page: str
    entry: str
    number: int
    code: str
    error: str | None

    def __str__(self) -> str:
        return f"{self.page.removesuffix('.md')}-{self.entry}-{self.number}"


def _anchor(title: str) -> str:
    """Returns the anchor that a title has on the web."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def _sections() -> Iterator[tuple[str, str, str]]:
    """Yields the page, the anchor and the text of every entry."""
    for path in sorted(CATALOGUE.glob("*.md")):
        for section in re.split(r"^## ", path.read_text(), flags=re.MULTILINE)[1:]:
            title, _, text = section.partition("\n")
            yield path.name, _anchor(title), text


def _examples() -> list[Example]:
    return [
        Example(page, entry, number, match["code"], match["error"])
        for page, entry, text in _sections()
        for number, match in enumerate(_EXAMPLE.finditer(text))
    ]


EXAMPLES = _examples()


def _preamble() -> str:
    """Returns the lines that the examples run after."""
    (code,) = re.findall(
        r"^```python\n(.*?)^```$", (CATALOGUE / "README.md").read_text(), re.M | re.S
    )
    return str(code)


def _run(example: Example, folder: Path, export: Callable[..., Any]) -> None:
    """Runs an example as a module of its own, with an `export` in place of Slipway's."""
    # A file, because errors quote the line that they are about; a module, because torch looks there
    # for what a function refers to.
    file = folder / "model.py"
    file.write_text(example.code)
    module = types.ModuleType("model")
    exec(_preamble(), module.__dict__)
    module.__dict__["export"] = export
    sys.modules["model"] = module
    try:
        # Examples may write files.
        with contextlib.chdir(folder):
            exec(compile(example.code, str(file), "exec"), module.__dict__)
    finally:
        del sys.modules["model"]


def _as_spec(model: Any, args: Any = (), kwargs: Any = None, **options: Any) -> ExportSpec:
    return ExportSpec(model=model, args=args, kwargs=kwargs, **options)


@pytest.mark.parametrize("example", [item for item in EXAMPLES if item.error is not None], ids=str)
def test_what_is_said_to_fail_fails_as_quoted(
    example: Example, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ExportError) as caught:
        _run(example, tmp_path, lambda *args, **options: export_spec(_as_spec(*args, **options)))
    error = caught.value
    assert example.error is not None
    quoted = example.error.splitlines()
    shown = re.sub(r"\S*/model\.py:", "model.py:", str(error))
    assert shown.splitlines()[: len(quoted)] == quoted
    assert error.source is None or len(quoted) == 2, f"quote the line: {error.source}"
    assert page_of(error.kind.value) == f"docs/catalogue/{example.page}"
    assert error.page == f"docs/catalogue/{example.page}#{example.entry}"
    assert error.advice
    assert "torch" not in capfd.readouterr().err


@pytest.mark.parametrize("example", [item for item in EXAMPLES if item.error is None], ids=str)
def test_what_is_said_to_work_gives_what_the_model_gives(example: Example, tmp_path: Path) -> None:
    exported = []

    def export(*args: Any, **options: Any) -> None:
        spec = _as_spec(*args, **options)
        exported.append((spec, export_spec(spec)))

    _run(example, tmp_path, export)
    ((spec, program),) = exported
    arguments = spec.args if isinstance(spec.args, tuple) else (spec.args,)
    with torch.no_grad():
        expected = spec.model(*copy.deepcopy(arguments), **dict(spec.kwargs or {}))
    assert_same(program(*copy.deepcopy(arguments), **dict(spec.kwargs or {})), expected)


def test_there_are_entries_for_every_kind() -> None:
    assert {example.page for example in EXAMPLES} == {
        Path(page_of(kind.value)).name for kind in ExportErrorKind
    }


def test_there_are_many_entries_each_with_what_fails_and_what_works() -> None:
    entries = {(page, entry) for page, entry, _ in _sections()}
    assert len(entries) >= 25
    for outcome in (
        [item for item in EXAMPLES if item.error is not None],
        [item for item in EXAMPLES if item.error is None],
    ):
        assert {(item.page, item.entry) for item in outcome} == entries


def test_no_code_escapes() -> None:
    for page, entry, text in _sections():
        run = [item for item in EXAMPLES if (item.page, item.entry) == (page, entry)]
        assert text.count("```python") == len(run), (page, entry)


def test_links_between_pages_lead_to_entries() -> None:
    anchors = {f"{page}#{entry}" for page, entry, _ in _sections()}
    pages = {path.name for path in CATALOGUE.glob("*.md")}
    for path in CATALOGUE.glob("*.md"):
        for target in re.findall(r"\]\(([^)]*)\)", path.read_text()):
            assert target in anchors | pages, (path.name, target)
