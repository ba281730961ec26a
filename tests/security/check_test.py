"""`--check` and start-up errors, as the operator sees them."""

from __future__ import annotations

import subprocess
import tomllib
from pathlib import Path

import pytest

from slipway.tests.security.authority import Authority
from slipway.tests.serving.server_process import server_command, server_environment


def run(*flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        server_command(*flags),
        env=server_environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_configuration_that_is_right_is_printed(repository: Path, tmp_path: Path) -> None:
    Authority().write_server_files(tmp_path)
    (tmp_path / "tokens").write_text("a-token-of-operators\n")
    path = tmp_path / "server.toml"
    path.write_text(
        f"""\
[repository]
path = "{repository}"
[models.affine]
labels = {{ stable = 1, canary = 3 }}
shares = {{ canary = 10 }}
[models.missing]
instances = 2
[security]
tls_certificate = "server.pem"
tls_key = "server.key"
control_tokens = "tokens"
"""
    )
    result = run(f"--config={path}", "--check", "--port=1234")
    assert result.returncode == 0, result.stderr
    printed = tomllib.loads(result.stdout)
    assert printed["server"]["port"] == 1234
    assert printed["repository"]["path"] == str(repository)
    assert printed["models"]["affine"]["labels"] == {"stable": 1, "canary": 3}
    assert printed["security"]["tls_key"] == str(tmp_path / "server.key")
    assert "a-token-of-operators" not in result.stdout + result.stderr
    warnings = result.stderr.replace(str(path), "FILE")
    assert (
        "FILE:4: the label 'canary' of model 'affine' is version 3, which is not served; "
        "the versions that are: 1, 2\n"
    ) in warnings
    assert "FILE:6: the repository has no model 'missing'\n" in warnings
    again = tmp_path / "printed.toml"
    again.write_text(result.stdout)
    assert run(f"--config={again}", "--check").stdout == result.stdout


def test_everything_that_is_wrong_with_the_surroundings_is_said(tmp_path: Path) -> None:
    path = tmp_path / "server.toml"
    path.write_text(
        """\
[server]
device = "tpu"
custom_ops = ["no_such_module"]
host = "no-such-host.invalid"
[repository]
path = "nothing"
[security]
tls_certificate = "server.pem"
tls_key = "server.key"
inference_tokens = "tokens"
[models.ranker]
device = "cuda:01"
[monitoring]
trace_endpoint = "collector"
"""
    )
    result = run(f"--config={path}", "--check")
    assert result.returncode == 2
    assert result.stdout == ""
    lines = result.stderr.removeprefix("slipway: error: ").replace(str(tmp_path), "DIR")
    found = dict(line.split(": ", 1) for line in lines.splitlines())
    assert found["DIR/server.toml:2"].startswith("device is 'tpu'")
    assert "no_such_module" in found["DIR/server.toml:3"]
    assert "no-such-host.invalid" in found["DIR/server.toml:4"]
    assert "DIR/nothing: No such file or directory" in found["DIR/server.toml:6"]
    assert found["DIR/server.toml:8"] == "cannot read DIR/server.pem: No such file or directory"
    assert found["DIR/server.toml:10"] == "cannot read DIR/tokens: No such file or directory"
    assert found["DIR/server.toml:11"].startswith("device is 'cuda:01'; it must be cpu, cuda:N")
    assert found["DIR/server.toml:14"].startswith("--trace-endpoint is 'collector': expected http")
    assert len(found) == 8


def test_a_version_policy_that_takes_nothing_is_a_warning(repository: Path, tmp_path: Path) -> None:
    path = tmp_path / "server.toml"
    path.write_text('[models.affine]\nversion_policy = "8,9"\n')
    result = run(f"--repository={repository}", f"--config={path}", "--check")
    assert result.returncode == 0
    text = "model 'affine': the version policy 8,9 takes none of its versions: 1, 2\n"
    assert f"warning: {path}:1: {text}" in result.stderr
    result = run(f"--repository={repository}", "--version-policy=7", "--check")
    assert "model 'affine': the version policy 7 takes none of its versions: 1, 2" in result.stderr


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--tls-key=k"], "tls_key needs tls_certificate beside it"),
        (["--inference-tokens=none"], "none: No such file or directory"),
        (["--config=none.toml"], "none.toml: No such file or directory"),
    ],
)
def test_a_server_that_cannot_be_guarded_does_not_start(
    repository: Path, flags: list[str], expected: str
) -> None:
    result = run(f"--repository={repository}", "--port=0", *flags)
    assert result.returncode == 2
    assert result.stdout == ""
    assert expected in result.stderr
    assert "Traceback" not in result.stderr
