"""Writes the goldens of this release into the source tree.

bazel run //tests/compatibility:write_goldens

They lie in tests/compatibility/goldens/VERSION/KIND: the program, and in verdicts.json what its
contract says of some calls. Those that are there already are left as they are: what a release wrote
must load in every later one.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch

from slipway.export import export_spec
from slipway.program import VERSION, Program
from tests.compatibility.kinds import KINDS
from tests.compatibility.schema import schema_lines
from tests.compatibility.verdicts import make_table

__all__ = ["verdicts_of"]


def verdicts_of(program: Program) -> str:
    """Returns the table of each method, as the text of verdicts.json."""
    tables = {name: make_table(method.contract) for name, method in program.methods.items()}
    rows = {name: [json.dumps(row) for row in table] for name, table in tables.items()}
    body = ",\n".join(
        f"{json.dumps(name)}: [\n" + ",\n".join(f"  {row}" for row in table) + "\n]"
        for name, table in rows.items()
    )
    return "{\n" + body + "\n}\n"


def main() -> None:
    root = Path(os.environ["BUILD_WORKSPACE_DIRECTORY"], "tests/compatibility")
    folder = root / "goldens" / VERSION
    torch.set_num_threads(1)
    for kind, spec in KINDS.items():
        if (folder / kind).exists():
            print(f"kept {VERSION}/{kind}")
            continue
        torch.manual_seed(0)
        program = export_spec(spec())
        program.save(folder / kind / "program")
        (folder / kind / "verdicts.json").write_text(verdicts_of(program))
        print(f"wrote {VERSION}/{kind}")
    schema = root / "schemas" / f"{VERSION}.txt"
    schema.parent.mkdir(exist_ok=True)
    if not schema.exists():
        schema.write_text("\n".join(schema_lines()) + "\n")
        print(f"wrote schemas/{VERSION}.txt")


if __name__ == "__main__":
    main()
