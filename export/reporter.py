"""Writes what an export did, for people and tools: what `torch_export` has in its group `report`.

Everything is read from the program, so that a report is the same bytes wherever it is made.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from slipway.export.gate import call_text, compared_bindings, left_out_note
from slipway.program.container import Container, read_container
from slipway.program.contract import Contract
from slipway.program.contract_codec import scalar_type_from_proto
from slipway.program.contract_files import ContractFile
from slipway.program.description import as_json
from slipway.program.errors import ProgramError
from slipway.proto import program_pb2 as pb

__all__ = ["main", "report"]


def report(
    container: Container, facts: Mapping[str, str], custom_ops: Sequence[str] = ()
) -> dict[str, Any]:
    """Returns what was exported, and what it was compared with, as nested dicts and lists.

    Args:
      container: of the program.
      facts: what only the build knows, put first.
      custom_ops: the modules of operators that it was exported with.
    """
    contracts = container.contracts()
    described = as_json(ContractFile(contracts, container), review=False)
    graphs = container.graphs().methods
    sources = container.sources_index().methods
    return {
        **facts,
        "custom_ops": list(custom_ops),
        "producer": described["producer"],
        "methods": {
            name: {
                "example": _example(sources[index]) if index < len(sources) else None,
                "symbols": described["methods"][name]["symbols"],
                "relations": described["methods"][name]["relations"],
                "batch_symbol": described["methods"][name]["batch_symbol"],
                "nodes": len(graphs[index].nodes),
                **_comparisons(contract),
            }
            for index, (name, contract) in enumerate(contracts.items())
        },
        "operators": {name: int(count) for name, count in described["operators"].items()},
        "weights": _weights(container.weights_index()),
        "cases": _cases(container.cases_index()),
        "digests": described["digests"],
    }


def _example(sources: pb.MethodSources) -> dict[str, str]:
    return {
        item.name: f"{scalar_type_from_proto(item.dtype).value}{list(item.shape)}"
        for item in sources.example
    }


def _comparisons(contract: Contract) -> dict[str, Any]:
    calls = [call_text(contract, binding) for binding in compared_bindings(contract)]
    notes = set(contract.notes)
    return {
        "compared_with_model": ["the example"]
        + [call for call in calls if left_out_note(call) not in notes],
        "not_compared": [call for call in calls if left_out_note(call) in notes],
        "notes": [
            note for note in contract.notes if note not in {left_out_note(call) for call in calls}
        ],
    }


def _weights(index: pb.WeightsIndex) -> dict[str, int]:
    return {
        "tensors": len(index.weights),
        "elements": sum(math.prod(weight.shape) for weight in index.weights),
        "bytes": sum(
            math.prod(weight.shape) * scalar_type_from_proto(weight.dtype).item_size
            for weight in index.weights
        ),
        "files": len(index.shards),
    }


def _cases(index: pb.ProgramCases) -> dict[str, int]:
    kinds = [case.WhichOneof("kind") for case in index.cases]
    return {"answered": kinds.count("answered"), "refused": kinds.count("refused")}


def main(arguments: Sequence[str]) -> int:
    """Writes a report as the command line says; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--fact", action="append", default=[], metavar="KEY=VALUE", help="put first; repeatable"
    )
    parser.add_argument("--custom-ops", action="append", default=[], metavar="MODULE")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE")
    parser.add_argument("program", type=Path, help="the program's directory")
    options = parser.parse_args(arguments)
    facts = dict(fact.split("=", 1) for fact in options.fact)
    try:
        document = report(read_container(options.program), facts, options.custom_ops)
    except ProgramError as error:
        print(f"{facts.get('label', options.program)}: no report: {error}", file=sys.stderr)
        return 1
    text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
    options.output.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
