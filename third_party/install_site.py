"""Installs a lock file's packages into one precompiled site-packages directory.

Usage: install_site.py SITE LOCK [OTHER_LOCK...]

Packages that an OTHER_LOCK names are left out. The Python that runs this needs pip, or the
standard library's venv, which brings one. The result depends on the lock only: no path of
this machine, no time, no order of directory listings.
"""

from __future__ import annotations

import compileall
import csv
import os
import py_compile
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

# What installers record about one installation: paths, and lists of files.
_INSTALLATION_RECORDS = {"INSTALLER", "RECORD", "REQUESTED", "direct_url.json"}

_REQUIREMENT = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)==")


class InstallError(Exception):
    """Raised when the packages of a lock cannot lie in one directory, or pip has failed."""


def _normalized(name: str) -> str:
    """Returns a package's name in the one form that all its spellings have."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _entries(lock: Path) -> Iterator[tuple[str, str]]:
    """Yields the name and the text, hashes included, of each package of a lock file."""
    name, lines = "", list[str]()
    for line in lock.read_text(encoding="utf-8").splitlines(keepends=True):
        if match := _REQUIREMENT.match(line):
            if name:
                yield name, "".join(lines)
            name, lines = _normalized(match[1]), []
        lines.append(line)
    if name:
        yield name, "".join(lines)


def selected(lock: Path, others: Iterable[Path]) -> str:
    """Returns the text of `lock` without the packages of the other locks."""
    left_out = {name for other in others for name, _ in _entries(other)}
    return "".join(text for name, text in _entries(lock) if name not in left_out)


def _pip(scratch: Path) -> list[str]:
    """Returns the command of this Python's pip, or of one that venv brings."""
    pip = [sys.executable, "-m", "pip"]
    if subprocess.run([*pip, "--version"], capture_output=True).returncode == 0:
        return pip
    made = subprocess.run([sys.executable, "-m", "venv", scratch / "venv"], capture_output=True)
    if made.returncode:
        raise InstallError(
            f"{sys.executable} has no pip. On Debian: apt-get install python3-pip; elsewhere name "
            "a Python 3.11 that has it: export SLIPWAY_PYTHON=/path/to/python3.11"
        )
    return [str(scratch / "venv/bin/python"), "-m", "pip"]


def install(site: Path, requirements: str) -> None:
    """Lets pip install wheels with these hashes, by its own configuration of this machine."""
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        lock = scratch / "requirements.txt"
        lock.write_text(requirements, encoding="utf-8")
        done = subprocess.run(
            [
                *_pip(scratch),
                *("--quiet", "--disable-pip-version-check", "install", f"--target={site}"),
                *("--no-deps", "--no-compile", "--only-binary=:all:", "--require-hashes"),
                f"--requirement={lock}",
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    if done.returncode:
        raise InstallError(f"pip has failed:\n{done.stdout.strip()}")


def check_files(site: Path) -> None:
    """Checks that no package has replaced another's file, which pip would not mention.

    Raises:
      InstallError: two packages bring different files for one place.
    """
    owners: dict[str, tuple[str, str]] = {}
    for record in sorted(site.glob("*.dist-info/RECORD")):
        package = record.parent.name.removesuffix(".dist-info")
        with record.open(encoding="utf-8", newline="") as file:
            for path, digest, *_ in csv.reader(file):
                other, known = owners.setdefault(path, (package, digest))
                if digest != known:
                    raise InstallError(
                        f"{other} and {package} bring different files for {path}. Lock versions "
                        "that agree, or leave one of the packages out."
                    )


def clean(site: Path) -> None:
    """Removes what depends on this machine: records of the installation, and scripts."""
    for path in site.glob("*.dist-info/*"):
        if path.name in _INSTALLATION_RECORDS:
            path.unlink()
    # A script's first line names the interpreter it was installed for, so it cannot run from
    # here. Compiled programs can, and `python -m PACKAGE` finds them.
    for path in (site / "bin").glob("*"):
        with path.open("rb") as program:
            is_script = program.read(2) == b"#!"
        if is_script:
            path.unlink()


def compile_site(site: Path) -> None:
    """Writes bytecode that is valid whatever the time stamps, with paths relative to `site`.

    Some packages carry sources that no Python 3.11 accepts (templates, tests for newer
    versions). They stay uncompiled, as pip leaves them.
    """
    compileall.compile_dir(
        site,
        maxlevels=100,
        quiet=2,
        workers=os.cpu_count() or 1,
        stripdir=str(site),
        invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
    )


def main(arguments: list[str]) -> int:
    site, lock, *others = (Path(argument) for argument in arguments)
    try:
        install(site, selected(lock, others))
        check_files(site)
    except InstallError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    clean(site)
    compile_site(site)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
