"""Slipway as a dependency of a WORKSPACE file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from slipway.tests.external_workspace.nested_bazel import NestedBazel, repository


@pytest.fixture(scope="module")
def bazel() -> Iterator[NestedBazel]:
    with NestedBazel(
        Path(os.environ["TEST_TMPDIR"]),
        "warehouse",
        "python_site",
        f"--override_repository=bazel_skylib={repository('bazel_skylib/lib.bzl', 0)}",
        f"--override_repository=rules_python={repository('rules_python/python/defs.bzl', 1)}",
    ) as started:
        yield started


def test_it_exports_tests_and_serves(bazel: NestedBazel) -> None:
    bazel.test_everything()


def test_servers_find_what_their_configurations_name(bazel: NestedBazel) -> None:
    bazel.check_configurations()


def test_the_command_for_a_baseline_can_be_run(bazel: NestedBazel) -> None:
    bazel.check_baseline_command("@slipway//program:cli")


def test_its_own_packages_can_stand_in_for_ours(bazel: NestedBazel) -> None:
    own = "//third_party:packages"
    for user in ("//models:server", "@slipway//export:exporter"):
        path = f"somepath({user}, {own})"
        assert not bazel.run("cquery", path)
        assert own in bazel.run("cquery", f"--@slipway//third_party:python_site={own}", path)
