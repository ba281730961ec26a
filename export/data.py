"""Finds the files that a model reads beside its code: configuration, vocabularies, tables."""

from __future__ import annotations

import glob
import re
import sys
from pathlib import Path, PurePosixPath

from slipway.export.errors import ExportError, ExportErrorKind

__all__ = ["data_path"]

_LABEL = re.compile(r"(?:@@?(?P<repository>[^/@]*))?//(?P<package>[^:]*):(?P<name>[^:]+)")


def data_path(label: str) -> Path:
    """Returns where a file is that a target depends on.

    It is found alike in a `torch_export` action, one-shot or in a worker, in the runfiles of a test
    or program, and, without Bazel, below a folder that Python imports from; whether it is checked
    in or made by the build, and in whichever repository.

    Example:

        settings = json.loads(data_path("//models/ranker:settings.json").read_text())

    Args:
      label: the file's: `//PACKAGE:FILE`, or `@REPOSITORY//PACKAGE:FILE` for one of another
        repository than the model's. Where there is a MODULE.bazel, the main module's own name is
        none of a repository.

    Raises:
      ExportError: of the kind `INVALID_SPEC`; the text is no such label, or there is no such file.
    """
    match = _LABEL.fullmatch(label)
    path = PurePosixPath(match["package"], match["name"]) if match else PurePosixPath("..")
    if match is None or path.is_absolute() or ".." in path.parts:
        raise ExportError(
            ExportErrorKind.INVALID_SPEC,
            f"{label!r} is not the label of a file",
            'write it whole: "//models/ranker:settings.json"',
        )
    places = [path]
    if repository := match["repository"]:
        # As runfiles have them, and as actions have them.
        places = [PurePosixPath(repository, path), PurePosixPath("external", repository, path)]
    roots = [Path(root).absolute() for root in dict.fromkeys(["", *sys.path])]
    for root in roots:
        for place in places:
            if (root / place).exists():
                return root / place
        in_module = repository and _in_module(root, repository, path)
        if in_module:
            return in_module
    advice = "list it in `data` of the torch_export or of the model's py_library"
    if repository and any((root / path).exists() for root in roots):
        # It may as well be a file of the other repository that is missing: this is not to be taken.
        own = f"//{match['package']}:{match['name']}"
        advice = (
            f"write {own} if it is a file of the model's own repository, which has no name here; "
            f"otherwise {advice}"
        )
    raise ExportError(ExportErrorKind.INVALID_SPEC, f"the file {label} is not there", advice)


def _in_module(root: Path, module: str, path: PurePosixPath) -> Path | None:
    """Returns a file of a module, whose folder's name has the version or an override behind it."""
    folders = [
        *root.glob(f"{glob.escape(module)}~*"),
        *root.glob(f"external/{glob.escape(module)}~*"),
    ]
    found = [folder / path for folder in folders if (folder / path).exists()]
    return found[0] if len(found) == 1 else None
