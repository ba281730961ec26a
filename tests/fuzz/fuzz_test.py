"""No mutant of a program does harm: it is refused, or it loads and runs."""

from __future__ import annotations

import os

from tests.fuzz.campaign import run_campaign

_MUTANTS = 20_400


def test_every_mutant_is_refused_or_runs() -> None:
    shards = int(os.environ.get("TEST_TOTAL_SHARDS", "1"))
    tally = run_campaign(_MUTANTS // shards, seed=0)
    print(
        f"fuzz: {tally.refused + tally.loaded + len(tally.escaped)} mutants, "
        f"{tally.refused} refused, {tally.loaded} loaded, {len(tally.escaped)} escaped"
    )
    assert not tally.escaped, "\n".join(tally.escaped[:20])
    # Most damage is noticed; some fields may have another legal value.
    assert tally.refused > tally.loaded > 0
