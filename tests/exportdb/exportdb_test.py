from __future__ import annotations

import pytest

from slipway.tests.exportdb import cases
from slipway.tests.exportdb.cases import VARIANTS, Outcome, Status, Variant

Outcomes = dict[tuple[str, Variant], Outcome]


@pytest.fixture(scope="module")
def outcomes() -> Outcomes:
    return cases.outcomes()


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("name", cases.names())
def test_a_case_gives_the_same_in_another_process(
    outcomes: Outcomes, name: str, variant: Variant
) -> None:
    outcome = outcomes[name, variant]
    accepted = {Status.EQUAL} if cases.is_supported(name) else {Status.EQUAL, Status.REFUSED}
    assert outcome.status in accepted, outcome.reason


def test_the_wheel_has_the_cases_that_we_know_of() -> None:
    assert len(cases.names()) == 36
    assert sum(map(cases.is_supported, cases.names())) == 35
