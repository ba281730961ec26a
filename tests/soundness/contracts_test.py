from __future__ import annotations

from collections.abc import Iterator

import pytest

from slipway.tests.soundness.differential import CALLS, Tally, examine
from slipway.tests.soundness.subjects import SUBJECTS, Subject


@pytest.fixture(scope="module")
def total() -> Iterator[Tally]:
    """What came of all models together, for the limit that holds for them together."""
    tally = Tally()
    yield tally
    assert len(tally.over_strict) * 100 <= tally.decisions, tally.over_strict


@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda subject: subject.name)
def test_a_contract_accepts_what_its_graph_is_valid_for(subject: Subject, total: Tally) -> None:
    tally = examine(subject)
    total.add(tally)
    assert not tally.unsound
    # Otherwise most of the calls say nothing of what is accepted, or of what is refused.
    assert 10 <= tally.accepted <= CALLS - 10


def test_there_are_enough_models() -> None:
    assert len(SUBJECTS) >= 20
    assert len({subject.name for subject in SUBJECTS}) == len(SUBJECTS)
