"""Every kind of mutant of a program's files, and what became of them."""

from __future__ import annotations

import itertools
import random
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from slipway.export import Dim, export
from slipway.program.container import (
    PROGRAM_FILE,
    Container,
    read_container,
    write_container,
)
from slipway.program.errors import ProgramError
from slipway.proto import program_pb2 as pb
from tests.fuzz.mutants import byte_mutants, field_mutants
from tests.fuzz.trial import Tally, run_trials

__all__ = ["run_campaign"]

_SECTIONS = {
    "contract": pb.ProgramContract,
    "graph": pb.ProgramGraph,
    "weights": pb.WeightsIndex,
    "cases": pb.ProgramCases,
}


class _Model(torch.nn.Module):
    """Small, with most of what a program may have: state, control flow, a tied weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(4, 4)
        self.second = torch.nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(
        self, x: torch.Tensor, extra: dict[str, torch.Tensor], scale: float = 2.0
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor], int, None]:
        self.calls += 1
        hidden = self.second(torch.relu(self.first(x))) * scale
        chosen = torch.cond(hidden.sum() > 0, lambda h: h.clone(), lambda h: -h, (hidden,))
        joined = torch.cat([chosen, extra["y"].to(torch.float32)])
        return joined.reshape(-1, 2), {"sum": joined.sum()}, x.shape[0], None


def _write_program(directory: Path) -> None:
    rows = Dim("rows", min=2, max=6)
    export(
        _Model().eval(),
        (torch.randn(3, 4), {"y": torch.ones(2, 4, dtype=torch.int32)}, 2.0),
        dynamic_shapes={"x": {0: rows}, "extra": {"y": {0: Dim.AUTO}}, "scale": None},
    ).save(directory)


def _with_sections(
    container: Container, name: str, sections: Iterable[bytes], directory: Path
) -> Iterator[bytes]:
    """Yields program.pb with other sections, and digests that fit them."""
    for section in sections:
        changed: dict[str, Any] = {name: section}
        for file in directory.iterdir():
            file.unlink()  # to write over it has the file system wait for the disk
        try:
            write_container(directory, replace(container, **changed))
        except ProgramError:
            continue  # too large to be written
        yield (directory / PROGRAM_FILE).read_bytes()


def _campaigns(
    directory: Path, scratch: Path, count: int, seed: int
) -> Iterator[tuple[str, list[bytes]]]:
    """Yields the files to damage, each with its mutants, about `count` in all."""
    source = random.Random(seed)
    container = read_container(directory)
    sections = {name: getattr(container, name) for name in _SECTIONS}
    shares = {"contract": 0.3, "graph": 0.3, "weights": 0.1, "cases": 0.05}
    for name, message_type in _SECTIONS.items():
        message = message_type.FromString(sections[name])
        mutants = itertools.islice(field_mutants(message, source), int(count * shares[name]))
        yield PROGRAM_FILE, list(_with_sections(container, name, mutants, scratch))
        cut = itertools.islice(byte_mutants(sections[name], source), int(count * 0.04))
        yield PROGRAM_FILE, list(_with_sections(container, name, cut, scratch))
    whole = pb.Program.FromString((directory / PROGRAM_FILE).read_bytes())
    yield PROGRAM_FILE, list(itertools.islice(field_mutants(whole, source), int(count * 0.05)))
    for file in (PROGRAM_FILE, "sources.pb", "weights/weights-00001.safetensors"):
        data = (directory / file).read_bytes()
        yield file, list(itertools.islice(byte_mutants(data, source), int(count * 0.03)))


def run_campaign(count: int, seed: int) -> Tally:
    """Makes a program, damages it in about `count` ways, and returns what became of it."""
    tally = Tally()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        directory, scratch = Path(folder, "program"), Path(folder, "scratch")
        scratch.mkdir()
        _write_program(directory)
        for file, mutants in _campaigns(directory, scratch, count, seed):
            for outcome in run_trials(directory, file, mutants):
                tally.add(outcome)
    return tally
