"""Contracts in files: those in a program, and baselines, which are contracts without a program.

A baseline is a JSON file that is checked in beside a model's BUILD file: the contract language's
version, the release that wrote it, and the contracts in protobuf's standard JSON form. It holds
nothing of graph and weights.
"""

from __future__ import annotations

import re
import stat
from dataclasses import dataclass
from pathlib import Path

from slipway.program.container import (
    PROGRAM_FILE,
    Container,
    check_section_size,
    read_container,
)
from slipway.program.contract import Contract
from slipway.program.contract_codec import contract_from_proto
from slipway.program.errors import CorruptProgramError, UnsupportedVersionError
from slipway.proto import program_pb2 as pb

__all__ = ["ContractFile", "baseline_text", "read_contract_file"]

_FORMAT = "slipway contract"
_MAXIMUM_BYTES = 2**26
_LANGUAGE_MAJOR = 1
"""The newest major version of the contract language that is read; program.proto has the ledger."""


@dataclass(frozen=True, slots=True)
class ContractFile:
    """What a program, or a baseline, says of calls.

    Attributes:
      contracts: by method.
      container: the program; None for a baseline.
    """

    contracts: dict[str, Contract]
    container: Container | None = None


def read_contract_file(path: Path) -> ContractFile:
    """Reads a program's directory, its program.pb, or a baseline.

    Raises:
      ProgramError: there is no such file, or it is none of these.
    """
    if path.name == PROGRAM_FILE:
        path = path.parent
    if path.is_dir():
        container = read_container(path)
        return ContractFile(container.contracts(), container)
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise CorruptProgramError(f"{path} is not a file")  # and may never end
        if status.st_size > _MAXIMUM_BYTES:
            raise CorruptProgramError(f"{path} is too large to be a contract")
        data = path.read_bytes()
    except OSError as error:
        raise CorruptProgramError(
            f"cannot read {path}: {error.strerror}; name a program's directory or a baseline"
        ) from error
    try:
        return ContractFile(_contracts_of_baseline(data))
    except (CorruptProgramError, UnsupportedVersionError) as error:
        raise type(error)(f"{path}: {error}") from error


def baseline_text(container: Container) -> str:
    """Returns the contents of a baseline for a program.

    Raises:
      CorruptProgramError: the program has no contract.
    """
    import json

    from google.protobuf import json_format

    container.contracts()  # whatever is written can be read
    message = pb.ProgramContract()
    message.ParseFromString(container.contract)
    major, minor = container.versions["contract_language"]
    document = {
        "format": _FORMAT,
        "contract_language": f"{major}.{minor}",
        "slipway_version": container.slipway_version,
        **json_format.MessageToDict(message, preserving_proto_field_name=True),
    }
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def _contracts_of_baseline(data: bytes) -> dict[str, Contract]:
    # Not at the top: they take a while to import, and programs do without.
    import json

    from google.protobuf import json_format

    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict) or document.pop("format", None) != _FORMAT:
        raise CorruptProgramError(
            "it is neither a program's directory nor a baseline; make a baseline with "
            "`python -m slipway.program baseline PROGRAM`"
        )
    major = str(document.pop("contract_language", "")).partition(".")[0]
    written_by = document.pop("slipway_version", "an unknown release")
    if not re.fullmatch("[1-9][0-9]{0,8}", major):
        raise CorruptProgramError("it names no version of the contract language")
    if int(major) > _LANGUAGE_MAJOR:
        raise UnsupportedVersionError(
            f"its contract language is version {major}, written by Slipway {written_by}; this "
            f"Slipway reads {_LANGUAGE_MAJOR}. Upgrade Slipway here, or make the baseline again"
        )
    try:
        message = json_format.ParseDict(document, pb.ProgramContract(), ignore_unknown_fields=True)
    # Beside its own ParseError it raises whatever it comes across, SystemError included.
    except Exception as error:
        raise CorruptProgramError(f"its contracts are malformed: {error}") from error
    check_section_size("contract", message.ByteSize())
    contracts = {item.method: contract_from_proto(item) for item in message.methods}
    if not contracts or len(contracts) != len(message.methods):
        raise CorruptProgramError("it must have methods, each of another name")
    return contracts
