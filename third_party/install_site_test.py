from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from slipway.third_party import install_site

LOCK = """\
# Written by pip-compile.
numpy==2.0 \\
    --hash=sha256:aa \\
    --hash=sha256:bb
    # via -r requirements.in
Typing_Extensions==4.0 \\
    --hash=sha256:cc
"""


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    path = tmp_path / "requirements.txt"
    path.write_text(LOCK)
    return path


def distribution(site: Path, name: str, **files: str) -> None:
    """Makes a package as pip leaves it: its files as NAME=DIGEST, and the record of them."""
    folder = site / f"{name}-1.0.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").touch()
    (folder / "RECORD").write_text(
        "".join(f"shared/{path}.py,{digest},1\n" for path, digest in files.items())
    )


def test_packages_of_other_locks_are_left_out_however_they_are_spelt(
    tmp_path: Path, lock: Path
) -> None:
    assert install_site.selected(lock, []) == LOCK.split("\n", 1)[1]
    other = tmp_path / "other.txt"
    other.write_text("typing-extensions==5.0 --hash=sha256:dd\n")
    kept = install_site.selected(lock, [other])
    assert kept.startswith("numpy==2.0")
    assert "sha256:bb" in kept
    assert "sha256:cc" not in kept


def test_two_packages_may_share_a_file_but_not_a_place(tmp_path: Path) -> None:
    distribution(tmp_path, "first", common="sha256=aa", own="sha256=bb")
    distribution(tmp_path, "second", common="sha256=aa")
    install_site.check_files(tmp_path)
    distribution(tmp_path, "third", own="sha256=cc")
    with pytest.raises(
        install_site.InstallError,
        match=r"first-1\.0 and third-1\.0 bring different files for shared/own\.py",
    ):
        install_site.check_files(tmp_path)


def test_nothing_of_the_installation_stays(tmp_path: Path) -> None:
    distribution(tmp_path, "first")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/script").write_bytes(b"#!/some/python\n")
    (tmp_path / "bin/program").write_bytes(b"\x7fELF")
    install_site.clean(tmp_path)
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {"bin/program", "first-1.0.dist-info/METADATA"}


def test_bytecode_names_no_folder_of_this_machine(tmp_path: Path) -> None:
    site = tmp_path / "site-packages"
    site.mkdir()
    (site / "module.py").write_text("def f():\n    return 1\n")
    install_site.compile_site(site)
    (compiled,) = site.rglob("*.pyc")
    assert str(tmp_path).encode() not in compiled.read_bytes()


def test_what_pip_says_reaches_the_caller(tmp_path: Path, lock: Path) -> None:
    failed = subprocess.run(
        [sys.executable, install_site.__file__, tmp_path / "site-packages", lock],
        env={**os.environ, "PIP_NO_INDEX": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert failed.returncode == 1
    assert "numpy==2.0" in failed.stderr
