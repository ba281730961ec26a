"""Generates the Python module and type stub of one .proto file.

Messages usually register in the process-wide descriptor pool, and a process that imports
two definitions of one name, such as ours and tritonclient's `inference.*`, does not
start. `--private-pool` gives the module a pool of its own, exported as `POOL`.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from pathlib import Path, PurePosixPath

from slipway.proto import protoc

_DEFAULT_POOL = "_descriptor_pool.Default()"
_FIRST_USE = "\nDESCRIPTOR = "


class GenerateError(Exception):
    """Raised when the generated code is not of the form that we know how to rewrite."""


def use_private_pool(module: str) -> str:
    """Returns the source of a generated module with its messages in a pool of their own."""
    imports = re.findall(r"^(?:from|import) .*_pb2(?: as .*)?$", module, re.MULTILINE)
    if imports:
        raise GenerateError(
            "a private pool holds one self-contained file, and this one imports others: "
            f"{'; '.join(imports)}. Move those messages into it, or drop private_pool."
        )
    if module.count(_DEFAULT_POOL) != 1 or module.count(_FIRST_USE) != 1:
        raise GenerateError(
            f"expected one '{_DEFAULT_POOL}' and one assignment of DESCRIPTOR in the generated "
            "module: protoc's output has changed, adapt proto/generate_python.py"
        )
    return module.replace(
        _FIRST_USE, f"\nPOOL = _descriptor_pool.DescriptorPool(){_FIRST_USE}"
    ).replace(_DEFAULT_POOL, "POOL")


def declare_private_pool(stub: str) -> str:
    """Returns the source of a generated type stub with `POOL` declared."""
    return (
        "from google.protobuf import descriptor_pool as _descriptor_pool\n"
        f"{stub}\n"
        "POOL: _descriptor_pool.DescriptorPool\n"
    )


def generate(source: Path, import_name: PurePosixPath) -> tuple[str, str]:
    """Returns the sources of the module and of the stub.

    The file is compiled under `import_name`, which is how other files import it and how
    descriptor pools know it: `slipway/proto/program.proto`.
    """
    with tempfile.TemporaryDirectory() as folder:
        status = protoc.main(
            [
                f"--proto_path={import_name.parent}={source.parent}",
                f"--python_out={folder}",
                f"--pyi_out={folder}",
                str(import_name),
            ]
        )
        if status:
            raise GenerateError(f"protoc ended with status {status} on {source}")
        stem = str(import_name.with_suffix("")).replace("-", "_")
        return (
            Path(folder, f"{stem}_pb2.py").read_text(encoding="utf-8"),
            Path(folder, f"{stem}_pb2.pyi").read_text(encoding="utf-8"),
        )


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--import-name", type=PurePosixPath, required=True)
    parser.add_argument("--module", type=Path, required=True, help="output, *_pb2.py")
    parser.add_argument("--stub", type=Path, required=True, help="output, *_pb2.pyi")
    parser.add_argument("--private-pool", action="store_true")
    options = parser.parse_args(arguments)
    try:
        module, stub = generate(options.source, options.import_name)
        if options.private_pool:
            module, stub = use_private_pool(module), declare_private_pool(stub)
    except GenerateError as error:
        print(f"{options.source}: error: {error}", file=sys.stderr)
        return 1
    options.module.write_text(module, encoding="utf-8")
    options.stub.write_text(stub, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
