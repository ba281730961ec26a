"""The same bytes from another user, another folder, and outside Bazel's sandbox."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from runfiles import Runfiles

from slipway.tests.compiled.program_path import program_path


def test_compiled_code_has_the_same_bytes_everywhere(tmp_path: Path) -> None:
    runfiles = Runfiles.Create()
    assert runfiles is not None
    compiler = runfiles.Rlocation("slipway/export/compiler")
    assert compiler is not None
    graphs, output = tmp_path / "graphs", tmp_path / "a-longer-folder" / "output"
    shutil.copytree(program_path(), graphs, ignore=shutil.ignore_patterns("compiled"))
    scratch = tmp_path / "another-place"
    scratch.mkdir()
    subprocess.run(
        [compiler, f"--compiler={shutil.which('g++')}", graphs, output],
        env={
            **runfiles.EnvVars(),
            "HOME": str(tmp_path),
            "LOGNAME": "somebody",
            "PATH": "/usr/bin:/bin",
            "PYTHONHASHSEED": "7",
            "TMPDIR": str(scratch),
            "USER": "somebody",
        },
        check=True,
    )
    names = {path.relative_to(output) for path in output.rglob("*") if path.is_file()}
    theirs = program_path()
    assert names == {path.relative_to(theirs) for path in theirs.rglob("*") if path.is_file()}
    for name in sorted(names):
        assert (output / name).read_bytes() == (theirs / name).read_bytes(), name
