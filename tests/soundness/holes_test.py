from __future__ import annotations

import pytest

from slipway.tests.soundness.holes import HOLES, Hole, NotShownError

each_hole = pytest.mark.parametrize("hole", HOLES, ids=lambda hole: f"{hole.number}")


@each_hole
def test_torch_still_has_it(hole: Hole) -> None:
    try:
        hole.torch()
    except NotShownError as error:
        pytest.skip(str(error))


@each_hole
def test_slipway_has_closed_it(hole: Hole) -> None:
    hole.slipway()


def test_there_are_fourteen() -> None:
    assert [hole.number for hole in HOLES] == list(range(1, 15))
