"""Generates the modules of slipway.proto for pip; pyproject.toml has the rest of the package."""

import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).absolute().parent

# The generator is a part of the package, which is not installed yet.
sys.path.insert(0, str(ROOT / "python"))


class BuildPython(build_py):
    """Writes the modules beside the .proto files, where git ignores them, and goes on as usual."""

    def run(self) -> None:
        from slipway.proto.generate_python import main

        for name, flags in (("program", []), ("open_inference", ["--private-pool"])):
            arguments = {
                "source": ROOT / f"proto/{name}.proto",
                "import-name": f"slipway/proto/{name}.proto",
                "module": ROOT / f"proto/{name}_pb2.py",
                "stub": ROOT / f"proto/{name}_pb2.pyi",
            }
            status = main([*(f"--{key}={value}" for key, value in arguments.items()), *flags])
            if status:
                raise SystemExit(status)
        super().run()

    def find_package_modules(self, package: str, directory: str) -> list[tuple[str, str, str]]:
        """Returns the modules of a package without its tests, which lie beside them."""
        found = super().find_package_modules(package, directory)
        return [item for item in found if not item[1].endswith("_test")]


setup(cmdclass={"build_py": BuildPython})
