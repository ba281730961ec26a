from __future__ import annotations

import subprocess
import tomllib

import pytest
from runfiles import Runfiles

from slipway.tests.serving.clients import open_client


@pytest.fixture
def runfiles() -> Runfiles:
    created = Runfiles.Create()
    assert created is not None
    return created


@pytest.mark.parametrize("flags", [(), ("--processes=2",)])
def test_a_bundle_serves_its_programs_and_the_command_line_wins(
    runfiles: Runfiles, flags: tuple[str, ...]
) -> None:
    bundle = runfiles.Rlocation("slipway/tests/serving/bundle")
    assert bundle is not None
    process = subprocess.Popen(
        [bundle, "--port=0", *flags], env=runfiles.EnvVars(), stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("slipway: serving 1 programs at 127.0.0.1:")
        with open_client(line.split()[-1]) as client:
            assert client.is_server_ready()
            assert list(client.get_model_metadata("ranker").versions) == ["7"]
        process.terminate()
        assert process.wait(timeout=60) == 0


def test_its_flags_are_those_of_the_target(runfiles: Runfiles) -> None:
    bundle = runfiles.Rlocation("slipway/tests/serving/bundle")
    assert bundle is not None
    result = subprocess.run(
        [bundle, "--host=192.0.2.1"],
        env=runfiles.EnvVars(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 1
    # The flags of the target have port 1, and the address is nobody's.
    assert "cannot listen on 192.0.2.1:1: Cannot assign requested address; --host" in result.stderr


def test_its_file_is_under_its_flags(runfiles: Runfiles) -> None:
    bundle = runfiles.Rlocation("slipway/tests/serving/bundle")
    assert bundle is not None
    result = subprocess.run(
        [bundle, "--check"],
        env=runfiles.EnvVars(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    configuration = tomllib.loads(result.stdout)
    assert configuration["server"]["port"] == 1
    assert configuration["server"]["grace_seconds"] == 7
    assert configuration["models"]["ranker"]["labels"] == {"stable": 7}
    # The label's version is among the programs.
    assert "ranker" not in result.stderr
