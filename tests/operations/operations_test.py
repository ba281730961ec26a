"""The programs of this folder, each for as short as it can be."""

from __future__ import annotations

from pathlib import Path

import pytest

from slipway.tests.operations import own_faults, shared_faults
from slipway.tests.operations.faults import try_faults
from slipway.tests.operations.reload_under_load import reload_under_load
from slipway.tests.operations.soak import Soak, soak

_FAULTS = [fault.__name__ for fault in (*shared_faults.FAULTS, *own_faults.FAULTS)]


@pytest.mark.parametrize("mode", ["poll", "explicit"])
def test_no_request_fails_while_versions_change(mode: str) -> None:
    outcome = reload_under_load(mode, seconds=0, least_changes=8)
    assert outcome.changes == 8
    assert outcome.requests > 0
    assert not outcome.failed, outcome.summary


def test_faults_that_one_server_lives_through() -> None:
    report = try_faults([fault.__name__ for fault in shared_faults.FAULTS])
    assert not report.problems
    assert report.lost == 0
    assert len(report.tried) == len(shared_faults.FAULTS)


@pytest.mark.parametrize("fault", own_faults.FAULTS, ids=lambda fault: fault.__name__)
def test_a_fault_that_needs_a_server_of_its_own(fault: own_faults.Fault, tmp_path: Path) -> None:
    try:
        lost = fault(tmp_path)
    except own_faults.NotPossible as reason:
        pytest.skip(str(reason))
    assert lost == 0


def test_every_fault_has_a_name_of_its_own_and_says_what_it_is() -> None:
    assert len(set(_FAULTS)) == len(_FAULTS)
    assert all(fault.__doc__ for fault in (*shared_faults.FAULTS, *own_faults.FAULTS))


def test_a_mixed_load_fails_nothing_and_leaks_no_descriptors_or_threads(tmp_path: Path) -> None:
    result = soak(tmp_path, seconds=6)
    assert result.requests > 0
    assert result.refusals > 0
    # So short a time says nothing of memory.
    assert set(result.problems) <= {"memory grows"}, result.line


def test_growth_is_told_apart_from_noise() -> None:
    level = [100_000_000 + 300_000 * (moment % 3) for moment in range(100)]
    growing = [value + 100_000 * moment for moment, value in enumerate(level)]
    for memory, problems in ((level, []), (growing, ["memory grows"])):
        result = Soak(1, 1, 0, 1, memory, 60.0, (10, 10), (5, 5))
        assert result.problems == problems
