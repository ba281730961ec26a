"""Builds programs in two checkouts with one remote cache, and counts what the second takes of it.

    bazel run //tests/remote_cache:report

The cache is nginx on the loopback: the machine's, or that of Debian's package, unpacked in a
folder of its own. The second checkout lies at another path and has an empty output base. Ends with
status 0 when the cache answers every action that makes or describes a program, and both execution
logs agree on the keys and on the digests of all outputs.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from slipway.tests.nested_bazel.nested_bazel import Bazel, copy_checkout, scratch_folder
from slipway.tests.remote_cache.execution_log import Action, read_actions
from slipway.tests.remote_cache.nginx import cache_server

_TARGETS = (
    "kind('(torch_export|torch_program_from_pt2|torch_contract) rule', "
    "//examples/... + //tests/interchange/... + //tests/reproducibility/...)"
)
# Of the rules above: TorchExport, TorchProgramFromPt2, TorchContract.
_MNEMONICS = "Torch"
_EXPECTED = ("TorchExport ", "TorchProgramFromPt2 ", "TorchContract ")


def _build(checkout: Path, cache: str) -> dict[str, Action]:
    """Builds in a checkout, in an empty output base beside it; returns its actions."""
    folder = checkout.parent
    log = folder / "log.json"
    with Bazel(checkout, folder / "output_base") as bazel:
        bazel.run(
            "build",
            f"--remote_cache={cache}",
            f"--execution_log_json_file={log}",
            "--noexecution_log_sort",
            *bazel.run("query", _TARGETS).split(),
        )
    actions = read_actions(log, _MNEMONICS)
    missing = [kind for kind in _EXPECTED if not any(name.startswith(kind) for name in actions)]
    if missing:
        raise SystemExit(f"the build had no action of the kinds {missing}: see _TARGETS")
    return actions


def _disagreements(first: Mapping[str, Action], second: Mapping[str, Action]) -> list[str]:
    found = [f"{name}: in one build only" for name in first.keys() ^ second.keys()]
    for name in first.keys() & second.keys():
        if first[name].key != second[name].key:
            found.append(f"{name}: its key is {first[name].key}, then {second[name].key}")
        if first[name].outputs != second[name].outputs:
            found.append(
                f"{name}: its outputs are {first[name].outputs}, then {second[name].outputs}"
            )
    return sorted(found)


def main() -> int:
    with scratch_folder() as scratch, cache_server(scratch / "cache") as cache:
        # Both before either is built: somebody may be editing.
        checkouts = [
            copy_checkout(scratch / name / "checkout") for name in ("first", "a/second/place")
        ]
        first = _build(checkouts[0], cache)
        early = [name for name, action in first.items() if action.from_remote_cache]
        print(f"first checkout: {len(first)} actions, {len(early)} hits", flush=True)
        second = _build(checkouts[1], cache)

    disagreements = _disagreements(first, second)
    misses = sorted(name for name, action in second.items() if not action.from_remote_cache)
    for line in [*disagreements, *(f"{name}: not from the cache" for name in misses)]:
        print(line)
    print(f"execution logs agree: {'no' if disagreements else 'yes'}")
    print(f"remote cache: {len(second)} actions, {len(second) - len(misses)} hits")
    return 1 if disagreements or misses or early or not second else 0


if __name__ == "__main__":
    sys.exit(main())
