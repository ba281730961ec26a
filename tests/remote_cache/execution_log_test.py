"""The log of two actions, as Bazel writes it."""

from __future__ import annotations

from pathlib import Path

from slipway.tests.remote_cache.execution_log import Action, read_actions

LOG = """\
{
  "commandArgs": ["exporter"],
  "inputs": [{
    "path": "site-packages/torch/__init__.py",
    "digest": {
      "hash": "aa"
    }
  }, {
    "path": "model.py",
    "digest": {
      "hash": "bb"
    }
  }],
  "listedOutputs": ["bin/mlp.program"],
  "mnemonic": "TorchExport",
  "actualOutputs": [{
    "path": "bin/mlp.program/program.pb",
    "digest": {
      "hash": "cc"
    }
  }],
  "runner": "remote cache hit",
  "cacheHit": true,
  "digest": {
    "hash": "dd"
  }
}{
  "commandArgs": ["protoc"],
  "inputs": [],
  "listedOutputs": ["bin/program_pb2.py"],
  "mnemonic": "Genrule",
  "actualOutputs": [],
  "runner": "linux-sandbox",
  "cacheHit": false,
  "digest": {
    "hash": "ee"
  }
}{
  "commandArgs": ["exporter"],
  "inputs": [],
  "listedOutputs": ["bin/encoder.program"],
  "mnemonic": "TorchExport",
  "actualOutputs": [],
  "runner": "worker",
  "cacheHit": false,
  "digest": {
    "hash": "ff"
  }
}"""


def test_actions_of_the_mnemonics_are_read(tmp_path: Path) -> None:
    log = tmp_path / "log.json"
    log.write_text(LOG, encoding="utf-8")
    assert read_actions(log, "Torch") == {
        "TorchExport bin/mlp.program": Action("dd", {"bin/mlp.program/program.pb": "cc"}, True),
        "TorchExport bin/encoder.program": Action("ff", {}, False),
    }
