"""The package that pip installs from a checkout, without Bazel."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

# This file is RUNFILES/slipway/tests/packaging/package_test.py.
REPOSITORY = Path(__file__).absolute().parents[2]

USE = """
import site, sys
installed, repository = sys.argv[1:]
site.addsitedir(installed)
import torch
from slipway.export import Dim, export
from slipway.program.command_line import main as describe
from slipway.serving.main import main as serve
from slipway.serving.status import _ASSETS

batch = Dim("batch", min=1, max=64)
exported = export(torch.nn.Linear(4, 2), torch.randn(2, 4), dynamic_shapes={"input": {0: batch}})
print("shape", tuple(exported(torch.zeros(17, 4)).shape))
exported.save(repository + "/linear/1")
assert not describe(["describe", repository + "/linear/1"])
assert (_ASSETS / "status.js").is_file(), _ASSETS
sys.exit(serve(["--check", "--repository=" + repository]))
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the sources in which nothing has been generated."""
    copy = tmp_path / "checkout"
    for name in ("export", "program", "proto", "python", "serving"):
        shutil.copytree(REPOSITORY / name, copy / name, ignore=shutil.ignore_patterns("*_pb2.py*"))
    for name in ("LICENSE", "pyproject.toml", "setup.py"):
        shutil.copy(REPOSITORY / name, copy / name)
    return copy


def run(code: str, *arguments: str | Path, folder: Path) -> str:
    """Runs Python with the locked packages, and nothing of this repository."""
    locked = [path for path in sys.path if not Path(path, "slipway").exists()]
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=folder,
        env=dict(os.environ) | {"PYTHONPATH": ":".join(locked)},
        capture_output=True,
        text=True,
    )
    assert not result.returncode, result.stdout + result.stderr
    return result.stdout


@pytest.mark.parametrize("kind", ["wheel", "editable"])
def test_what_pip_installs_exports_describes_and_serves(
    checkout: Path, tmp_path: Path, kind: str
) -> None:
    # What pip has setuptools do, as the interpreter of tests has no pip.
    build = (
        f"import sys; from setuptools.build_meta import build_{kind} as build; build(sys.argv[1])"
    )
    run(build, tmp_path, folder=checkout)
    (wheel,) = tmp_path.glob("*.whl")
    installed = tmp_path / "site-packages"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
    assert not list(installed.rglob("*_test.py"))
    output = run(USE, installed, tmp_path / "repository", folder=tmp_path)
    assert "shape (17, 2)" in output
    assert "float32[batch, 4]" in output


def test_protobuf_modules_are_generated_by_the_locked_version() -> None:
    required = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["build-system"][
        "requires"
    ]
    lock = (REPOSITORY / "third_party/requirements.txt").read_text()
    assert re.findall(r"^grpcio-tools==\S+", lock, re.MULTILINE) == [
        item for item in required if item.startswith("grpcio-tools")
    ]
