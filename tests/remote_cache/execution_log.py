"""Reads what Bazel's execution log says of the actions that make programs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Action", "read_actions"]


@dataclass(frozen=True)
class Action:
    """One action of a build, as far as it does not depend on where it ran.

    Attributes:
      key: the digest by which caches know the action: its command, environment and inputs.
      outputs: the digest of each file that it made, by path.
      from_remote_cache: whether its outputs were taken from the remote cache.
    """

    key: str
    outputs: dict[str, str]
    from_remote_cache: bool


def read_actions(log: Path, mnemonics: str) -> dict[str, Action]:
    """Returns actions by mnemonic and outputs.

    Args:
      log: of `--execution_log_json_file`.
      mnemonics: what the mnemonics of the actions begin with.
    """
    actions = {}
    for spawn in _spawns(log):
        if spawn["mnemonic"].startswith(mnemonics):
            name = f"{spawn['mnemonic']} {' '.join(spawn['listedOutputs'])}"
            actions[name] = Action(
                key=spawn["digest"]["hash"],
                outputs={file["path"]: file["digest"]["hash"] for file in spawn["actualOutputs"]},
                from_remote_cache=spawn["cacheHit"] and spawn["runner"] == "remote cache hit",
            )
    return actions


def _spawns(log: Path) -> Iterator[dict[str, Any]]:
    """Yields the objects of a log, without the inputs: torch has 20,000 for every action."""
    lines: list[str] = []
    in_inputs = False
    with log.open(encoding="utf-8") as opened:
        for line in opened:
            # Objects follow one another; their own fields are indented by two spaces.
            if line.startswith('  "inputs": ['):
                in_inputs = not line.rstrip().endswith("],")
            elif in_inputs:
                in_inputs = not line.startswith(("  }]", "  ]"))
            elif line.startswith("}"):
                yield json.loads("".join([*lines, "}"]))
                lines = [line[1:]]
            else:
                lines.append(line)
