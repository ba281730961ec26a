"""protoc, as the PyPI package grpcio-tools carries it: takes protoc's own arguments.

It saves building a C++ protoc, which for Bazel 7 means fetching and compiling protobuf.
"""

import sys
from importlib import resources

from grpc_tools import protoc


def main(arguments: list[str]) -> int:
    # The well-known types come with the package.
    well_known_types = str(resources.files("grpc_tools").joinpath("_proto"))
    status: int = protoc.main(["protoc", *arguments, f"--proto_path={well_known_types}"])
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
