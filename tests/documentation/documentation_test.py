"""What README and docs show is run as it stands there."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runfiles import Runfiles
from tritonclient.utils import InferenceServerException

from slipway.program import ContractViolation

# This file is RUNFILES/slipway/tests/documentation/documentation_test.py.
REPOSITORY = Path(__file__).absolute().parents[2]


def blocks(document: str, language: str) -> list[str]:
    """Returns the code blocks of a document that are marked with a language."""
    text = (REPOSITORY / document).read_text(encoding="utf-8")
    found = re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert found, f"{document} has no {language} block"
    return found


@pytest.fixture(scope="module")
def runfiles() -> Runfiles:
    found = Runfiles.Create()
    assert found is not None
    return found


@pytest.fixture(scope="module")
def server(runfiles: Runfiles) -> Iterator[str]:
    binary = runfiles.Rlocation("slipway/examples/server")
    with subprocess.Popen(
        [binary, "--port=0"], env=runfiles.EnvVars(), stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        yield process.stdout.readline().split()[-1]
        process.terminate()


def test_readme_commands_are_what_continuous_integration_runs() -> None:
    commands = re.findall(r"^\./bazelw .*$", (REPOSITORY / "README.md").read_text(), re.MULTILINE)
    assert commands == ["./bazelw run //examples:quickstart", "./bazelw test //..."]
    assert "./bazelw test //..." in (REPOSITORY / ".ci/run").read_text()


def test_readme_model_is_served_as_its_client_shows(server: str) -> None:
    model, _, client, without_server = blocks("README.md", "python")
    names: dict[str, Any] = {}
    client = client.split("\nscores(")[0].replace("127.0.0.1:8001", server)
    exec(compile(client, "client", "exec"), names)
    assert names["scores"](np.zeros((17, 256), np.float32)).shape == (17, 10)
    with pytest.raises(InferenceServerException) as refused:
        names["scores"](np.zeros((65, 256), np.float32))
    shown = re.search(r"… (input .*)$", (REPOSITORY / "README.md").read_text(), re.MULTILINE)
    assert shown is not None
    assert shown[1] in str(refused.value)

    exec(compile(model, "model", "exec"), names)
    exec(compile(without_server.split("\nexported(")[0], "export", "exec"), names)
    assert names["exported"](torch.zeros(17, 256)).shape == (17, 10)
    with pytest.raises(ContractViolation) as violation:
        names["exported"](torch.zeros(65, 256))
    assert shown[1] == str(violation.value)


def test_export_guide_snippets_do_what_their_comments_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in blocks("docs/export.md", "python"):
        if "load(" in block and "@slipway" in block:
            continue  # a BUILD file
        lines = block.splitlines()
        for statement in ast.parse(block).body:
            assert statement.end_lineno is not None
            text = "\n".join(lines[statement.lineno - 1 : statement.end_lineno])
            code = compile(text, "guide", "exec")
            if "  # ContractViolation" in text:
                with pytest.raises(ContractViolation):
                    exec(code, names)
            else:
                exec(code, names)
