"""What any release wrote, this one loads, runs and judges alike."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from slipway.export import export_spec
from slipway.program import VERSION, load, verify
from tests.compatibility.kinds import KINDS
from tests.compatibility.schema import schema_lines
from tests.compatibility.verdicts import ask
from tests.compatibility.write_goldens import verdicts_of

HERE = Path(__file__).parent
GOLDENS = sorted(path.parent for path in HERE.glob("goldens/*/*/verdicts.json"))
HOW = "run: ./bazelw run //tests/compatibility:write_goldens"


def name_of(path: Path) -> str:
    return "/".join(path.parts[-2:])


def test_this_release_has_a_golden_of_every_kind() -> None:
    assert len(KINDS) >= 8
    present = {name_of(path) for path in GOLDENS}
    missing = {f"{VERSION}/{kind}" for kind in KINDS} - present
    assert not missing, f"no goldens for {sorted(missing)}; {HOW}"
    assert (HERE / "schemas" / f"{VERSION}.txt").exists(), HOW


@pytest.mark.parametrize("golden", GOLDENS, ids=name_of)
def test_golden_programs_load_and_give_what_they_gave(golden: Path) -> None:
    program = load(golden / "program")
    assert verify(program), "a golden without answered cases shows nothing"


@pytest.mark.parametrize("golden", GOLDENS, ids=name_of)
def test_golden_contracts_judge_as_they_did(golden: Path) -> None:
    tables = json.loads((golden / "verdicts.json").read_text())
    program = load(golden / "program")
    differing = [
        (method, row["inputs"], row["verdict"], now)
        for method, table in tables.items()
        for row in table
        if (now := ask(program.methods[method].contract, row["inputs"])) != row["verdict"]
    ]
    if differing:
        offer(golden, verdicts_of(program))
    assert not differing, differing[:5]


def offer(golden: Path, verdicts: str) -> None:
    """Leaves what this release would write where `bazel test` keeps it."""
    outputs = os.environ.get("TEST_UNDECLARED_OUTPUTS_DIR")
    print(f"the new verdicts.json of {name_of(golden)}:\n{verdicts}")
    if outputs:
        Path(outputs, f"{golden.name}.verdicts.json").write_text(verdicts)


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_are_exported_as_they_were(kind: str) -> None:
    """The same model gives the same contract, whatever else may change in its graph."""
    torch.manual_seed(0)
    program = export_spec(KINDS[kind]())
    tables = json.loads((HERE / "goldens" / VERSION / kind / "verdicts.json").read_text())
    assert json.loads(verdicts_of(program)) == tables


@pytest.mark.parametrize("baseline", sorted(HERE.glob("schemas/*.txt")), ids=lambda path: path.stem)
def test_nothing_that_a_release_promised_of_our_protos_is_gone(baseline: Path) -> None:
    promised = set(baseline.read_text().splitlines())
    broken = sorted(promised - set(schema_lines()))
    assert not broken, f"changed or removed since {baseline.stem}: {broken}"
