"""The quickstart, as a newcomer runs it."""

from __future__ import annotations

import re
import subprocess

from runfiles import Runfiles


def test_every_legal_request_is_answered_and_every_other_refused() -> None:
    runfiles = Runfiles.Create()
    assert runfiles is not None
    quickstart = runfiles.Rlocation("slipway/examples/quickstart")
    result = subprocess.run(
        [quickstart], env=runfiles.EnvVars(), capture_output=True, text=True, timeout=240
    )
    assert result.returncode == 0, result.stdout + result.stderr
    last = result.stdout.splitlines()[-1]
    found = re.fullmatch(
        r"quickstart: 3 programs, (\d+) answered, (\d+) refused, max difference (\S+)", last
    )
    assert found, last
    answered, refused, difference = int(found[1]), int(found[2]), float(found[3])
    assert answered >= 9
    assert refused >= 9
    assert difference <= 1e-4
