"""Slipway as a dependency of a MODULE.bazel file.

No registry is reached. The modules that are used are overridden by what bazelw assembled; those
that Bazel's own files name, and nothing here uses, come from a registry that the test writes.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from slipway.tests.external_workspace.nested_bazel import NestedBazel

# Bazel resolves the version of every module that is named, and fetches those that a target
# needs. A fetch of these fails: their folders do not exist.
_NEVER_FETCHED = [
    ("apple_support", "1.23.1"),
    ("buildozer", "7.1.2"),
    ("protobuf", "3.19.6"),
    ("protobuf", "21.7"),
    ("zlib", "1.3.1.bcr.3"),
]

_OVERRIDE = re.compile(r"common --override_repository=(\w+)=(/\S+)")


def _assembled_repositories() -> dict[str, str]:
    """Returns the folders of the rule sets that bazelw assembled, by name."""
    caches = os.environ.get("XDG_CACHE_HOME") or f"{os.environ.get('HOME', '')}/.cache"
    prefix = os.environ.get("SLIPWAY_BAZEL_CACHE") or f"{caches}/slipway/bazel-7.7.1"
    rc = Path(prefix, "bazelrc")
    if not rc.is_file() or shutil.which("bazelisk"):
        pytest.skip(f"this machine's Bazel is not bazelw's ({rc}), and needs the central registry")
    return dict(_OVERRIDE.findall(rc.read_text(encoding="utf-8")))


def _write_registry(registry: Path) -> Path:
    for name, version in _NEVER_FETCHED:
        entry = registry / "modules" / name / version
        entry.mkdir(parents=True)
        (entry / "MODULE.bazel").write_text(f'module(name = "{name}", version = "{version}")\n')
        source = {"type": "local_path", "path": str(registry / "never_fetched" / name)}
        (entry / "source.json").write_text(json.dumps(source))
    return registry


@pytest.fixture(scope="module")
def bazel() -> Iterator[NestedBazel]:
    repositories = _assembled_repositories()
    scratch = Path(os.environ["TEST_TMPDIR"])
    with NestedBazel(
        scratch,
        "_main",
        "slipway~~python~python_site",
        "--enable_bzlmod",
        "--noenable_workspace",
        "--lockfile_mode=off",
        # Bazel keeps there what it reads from a registry, and the usual one is read-only here.
        f"--repository_cache={scratch / 'repository_cache'}",
        f"--registry=file://{_write_registry(scratch / 'registry')}",
        *(f"--override_module={name}={path}" for name, path in repositories.items()),
    ) as started:
        yield started


def test_it_exports_tests_and_serves(bazel: NestedBazel) -> None:
    bazel.test_everything()


def test_servers_find_what_their_configurations_name(bazel: NestedBazel) -> None:
    bazel.check_configurations()


def test_the_command_for_a_baseline_can_be_run(bazel: NestedBazel) -> None:
    # What modules call a repository is a name for `bazel run` with two @ only.
    bazel.check_baseline_command("@@slipway~//program:cli")
