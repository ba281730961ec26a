"""Merges unpacked wheels into one precompiled site-packages directory.

Usage: merge_site.py SITE ROOT...

Each ROOT holds one package's `site-packages/` (and `bin/`, where it has programs). Files
are hard-linked, so the merge costs no space. The result depends on the packages only:
no path of this machine, no time, no order of directory listings.
"""

from __future__ import annotations

import compileall
import filecmp
import os
import py_compile
import shutil
import sys
from pathlib import Path

# What installers record about one installation: paths, and lists of files.
_INSTALLATION_RECORDS = {"INSTALLER", "RECORD", "REQUESTED", "direct_url.json"}


class MergeError(Exception):
    """Raised when two packages cannot lie in one directory."""


def _is_wanted(path: Path) -> bool:
    if path.suffix == ".pyc":
        return False
    if path.parent.name == "bin":
        # A script's first line names the interpreter it was installed for, so it cannot
        # run from here. Compiled programs can.
        with path.open("rb") as program:
            return program.read(2) != b"#!"
    return not (path.parent.suffix == ".dist-info" and path.name in _INSTALLATION_RECORDS)


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except FileExistsError:
        if not filecmp.cmp(source, target, shallow=False):
            raise MergeError(
                f"two packages bring different files for {target}: the second is {source}. "
                "Lock versions that agree, or leave one of the packages out."
            ) from None
    except OSError:
        # Another file system, or one without hard links.
        shutil.copy2(source, target)


def merge(site: Path, roots: list[Path]) -> None:
    """Links every wanted file below ROOT/site-packages to the same place below `site`.

    Compiled programs in ROOT/bin go to `site`/bin, where `python -m PACKAGE` finds them.
    """
    for root in roots:
        for top, target in ((root / "site-packages", site), (root / "bin", site / "bin")):
            for folder, _, names in os.walk(top):
                for name in names:
                    source = Path(folder, name)
                    if _is_wanted(source):
                        _link(source, target / source.relative_to(top))


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
    site, *roots = (Path(argument) for argument in arguments)
    try:
        merge(site, roots)
    except MergeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    compile_site(site)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
