"""program.pb: reading and writing it, its versions and its digests. Imports no torch."""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from google.protobuf.message import DecodeError, Message

from slipway.program.contract import Contract
from slipway.program.contract_codec import contract_from_proto
from slipway.program.errors import (
    CorruptProgramError,
    DigestMismatchError,
    ProgramError,
    UnsupportedVersionError,
)
from slipway.proto import program_pb2 as pb

__all__ = [
    "PROGRAM_FILE",
    "Container",
    "check_section_size",
    "load_contracts",
    "read_container",
    "write_container",
]

PROGRAM_FILE = "program.pb"
SOURCES_FILE = "sources.pb"

_MAXIMUM_BYTES = 2**31 - 1
"""Protobuf's own limit on a message."""

_MAXIMUM_SECTIONS = {
    "contract": 2**20,
    "graph": 2**25,
    "weights": 2**26,
    "cases": 2**26,
    "sources": 2**26,
}
"""How many bytes a section may have.

What a section costs its reader grows with it, to ten seconds and a gigabyte at these sizes. Real
ones are far smaller: a thousand tensors in and out are 120 kB of contract, and a hundred layers of
a transformer half a megabyte of graph.
"""

# The ledger of versions is in program.proto.
_VERSIONS = {"container": (1, 0), "contract_language": (1, 1), "operator_dialect": (1, 0)}

VersionNumbers = Mapping[str, tuple[int, int]]
"""Major and minor version of each of the three things that have one."""


@dataclass(frozen=True, slots=True)
class Container:
    """The parts of a program.pb, each still serialised, so that their digests can be taken.

    Attributes:
      contract: a serialised `ProgramContract`.
      graph: a serialised `ProgramGraph`.
      weights: a serialised `WeightsIndex`.
      slipway_version, torch_version, python_version: what wrote it.
      cases: a serialised `ProgramCases`; empty where there are none.
      sources: a serialised `Sources`, outside the digests; empty where it was not kept.
      versions: the format versions that it was written in.
    """

    contract: bytes
    graph: bytes
    weights: bytes
    slipway_version: str
    torch_version: str
    python_version: str
    cases: bytes = b""
    sources: bytes = b""
    versions: VersionNumbers = field(default_factory=lambda: dict(_VERSIONS))

    @property
    def digest(self) -> str:
        """Returns the program's identity: a SHA-256 in hexadecimal digits."""
        return self._message().digests.program.hex()

    def contracts(self) -> dict[str, Contract]:
        """Returns the contract of each method, by the method's name.

        Raises:
          CorruptProgramError: the section does not describe contracts.
        """
        message = pb.ProgramContract()
        self._parse_section(message, "contract")
        relations = [list(item.relations) for item in self.sources_index().methods]
        relations += [[]] * (len(message.methods) - len(relations))
        contracts = [
            contract_from_proto(item, known)
            for item, known in zip(message.methods, relations, strict=False)
        ]
        by_name = {contract.method: contract for contract in contracts}
        if not contracts or len(by_name) != len(contracts):
            raise CorruptProgramError("a program must have methods, each of another name")
        return by_name

    def graphs(self) -> pb.ProgramGraph:
        """Returns the parsed graph section. Raises: CorruptProgramError."""
        message = pb.ProgramGraph()
        self._parse_section(message, "graph")
        return message

    def weights_index(self) -> pb.WeightsIndex:
        """Returns the parsed weights section. Raises: CorruptProgramError."""
        message = pb.WeightsIndex()
        self._parse_section(message, "weights")
        return message

    def cases_index(self) -> pb.ProgramCases:
        """Returns the parsed cases section. Raises: CorruptProgramError."""
        message = pb.ProgramCases()
        self._parse_section(message, "cases")
        return message

    def sources_index(self) -> pb.Sources:
        """Returns the parsed sources; empty where there are none. Raises: CorruptProgramError."""
        message = pb.Sources()
        check_section_size("sources", len(self.sources))
        _parse(message, self.sources, SOURCES_FILE)
        return message

    def _parse_section(self, message: Message, name: str) -> None:
        data: bytes = getattr(self, name)
        check_section_size(name, len(data))
        _parse(message, data, f"{name} section")

    def _message(self) -> pb.Program:
        message = pb.Program(
            versions=pb.Versions(
                **{
                    name: pb.Version(major=major, minor=minor)
                    for name, (major, minor) in self.versions.items()
                }
            ),
            producer=pb.Producer(
                slipway_version=self.slipway_version,
                torch_version=self.torch_version,
                python_version=self.python_version,
            ),
            contract=self.contract,
            graph=self.graph,
            weights=self.weights,
            cases=self.cases,
        )
        message.digests.CopyFrom(_digests(message))
        return message


def _read(path: Path) -> bytes:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise CorruptProgramError(f"{path} is not a file")  # and may never end
    if status.st_size > _MAXIMUM_BYTES:
        raise CorruptProgramError(f"{path} is larger than a protobuf message may be")
    return path.read_bytes()


def check_section_size(name: str, size: int) -> None:
    """Raises CorruptProgramError if a section is larger than readers take.

    Args:
      name: of the section: `contract`, `graph`, `weights`, `cases` or `sources`.
      size: in bytes.
    """
    largest = _MAXIMUM_SECTIONS[name]
    if size > largest:
        raise CorruptProgramError(
            f"the {name} section has {size} bytes; {largest} are allowed, far more than programs "
            "have: make it with `torch_export`, or split the model into several"
        )


def _parse(
    message: Message,
    data: bytes,
    what: str,
) -> None:
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise CorruptProgramError(
            f"the {what} is not a valid message: {error}; copy or build it again"
        ) from error


def _digests(message: pb.Program) -> pb.Digests:
    """Returns the digests that a program with this content must carry.

    The program's own is over a list of lines in an order fixed here, rather than over protobuf
    bytes, which are not canonical.
    """
    sections = {
        name: hashlib.sha256(data).digest()
        for name, data in (
            ("contract", message.contract),
            ("graph", message.graph),
            ("weights", message.weights),
            ("cases", message.cases),
        )
    }
    lines = ["slipway.program.v1"]
    for name in _VERSIONS:
        version = getattr(message.versions, name)
        lines.append(f"{name} {version.major}.{version.minor}")
    for name in ("slipway_version", "torch_version", "python_version"):
        lines.append(f"{name} {getattr(message.producer, name)}")
    lines += [f"{name} {digest.hex()}" for name, digest in sections.items()]
    whole = hashlib.sha256("\n".join(lines).encode()).digest()
    return pb.Digests(program=whole, **sections)


def write_container(directory: Path, container: Container) -> None:
    """Writes program.pb, and sources.pb if there are any, into a directory that exists.

    Raises:
      ProgramError: a section would be larger than readers take.
    """
    for name in _MAXIMUM_SECTIONS:
        check_section_size(name, len(getattr(container, name)))
    data = container._message().SerializeToString(deterministic=True)
    if container.sources:
        (directory / SOURCES_FILE).write_bytes(container.sources)
    # Last: a directory without it is no program yet.
    (directory / PROGRAM_FILE).write_bytes(data)


def read_container(directory: str | Path) -> Container:
    """Reads a program directory's program.pb and checks its versions and digests.

    Args:
      directory: `NAME.program`, or `MODEL/VERSION` of a repository.

    Raises:
      CorruptProgramError: the file is missing, too large or not a program.
      UnsupportedVersionError: a newer release wrote it.
      DigestMismatchError: it has been altered.
    """
    path = Path(directory) / PROGRAM_FILE
    try:
        data = _read(path)
        sources_path = path.with_name(SOURCES_FILE)
        sources = _read(sources_path) if sources_path.exists() else b""
    except OSError as error:
        raise CorruptProgramError(
            f"cannot read {path}: {error.strerror}; a program is a directory with {PROGRAM_FILE} "
            "in it, as a torch_export target writes it"
        ) from error
    message = pb.Program()
    try:
        if not data:
            raise CorruptProgramError("the file is empty; copy or build it again")
        _parse(message, data, "file")
        _check_versions(message)
        wanted = _digests(message)
        # Field by field: a newer minor version may have added digests that are unknown here.
        if any(
            getattr(message.digests, field.name) != getattr(wanted, field.name)
            for field in pb.Digests.DESCRIPTOR.fields
        ):
            raise DigestMismatchError(
                "its contents are not those that were written (SHA-256 differs); "
                "copy or build it again"
            )
    except ProgramError as error:
        raise type(error)(f"{path}: {error}") from error
    return Container(
        contract=message.contract,
        graph=message.graph,
        weights=message.weights,
        cases=message.cases,
        slipway_version=message.producer.slipway_version,
        torch_version=message.producer.torch_version,
        python_version=message.producer.python_version,
        sources=sources,
        versions={
            name: (getattr(message.versions, name).major, getattr(message.versions, name).minor)
            for name in _VERSIONS
        },
    )


def _check_versions(message: pb.Program) -> None:
    if not message.HasField("versions"):
        raise CorruptProgramError("it names no format version, so it is not a Slipway program")
    for name, (major, minor) in _VERSIONS.items():
        version = getattr(message.versions, name)
        if version.major == 0:
            raise CorruptProgramError(f"it names no version of its {name.replace('_', ' ')}")
        if version.major > major:
            raise UnsupportedVersionError(
                f"its {name.replace('_', ' ')} is version {version.major}.{version.minor}, written "
                f"by Slipway {message.producer.slipway_version}; this Slipway reads up to "
                f"{major}.{minor} (and every {major}.x). Upgrade Slipway here, or export the "
                "program with this release"
            )


def load_contracts(directory: str | Path) -> dict[str, Contract]:
    """Returns the contract of each method of a program, without loading torch or the weights.

    Args:
      directory: the program's directory.

    Raises:
      ProgramError: the program cannot be read, as `read_container` says.
    """
    return read_container(directory).contracts()
