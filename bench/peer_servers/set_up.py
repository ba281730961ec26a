"""Installs the servers that //bench:serve compares with, each in a virtual environment of its own.

    python3.11 bench/peer_servers/set_up.py DIR [NAME...]

DIR gets a folder for each NAME (default: all); `bench:serve --peers DIR` then measures those that
are there. Packages come from wherever pip is configured to look; set it so that torch is the CPU
build. pytriton's Triton loads the system's libpython3.11: run this with the system's own Python for
it. One that does not install is reported, and the others are not affected.
"""

import subprocess
import sys
import venv
from pathlib import Path

PEERS = {
    "kserve": ["kserve==0.21.0", "torch==2.13.0"],
    "pytriton": ["nvidia-pytriton==0.7.0", "torch==2.13.0"],
    "torchserve": [
        "torchserve==0.12.0",
        "torch-model-archiver==0.12.0",
        "torch==2.13.0",
        "numpy",
        "setuptools<81",
        "pyyaml",
    ],
    "mlserver": ["mlserver==1.7.1", "torch==2.13.0"],
}


def install(directory, packages):
    if not directory.exists():
        venv.create(directory, with_pip=True, symlinks=True)
    pip = [directory / "bin" / "python", "-m", "pip", "install", "--quiet"]
    return subprocess.run([*pip, *packages]).returncode


def main():
    if len(sys.argv) < 2 or not set(sys.argv[2:]) <= set(PEERS):
        sys.exit(f"usage: set_up.py DIR [{'|'.join(PEERS)}]...")
    failed = [
        name
        for name in sys.argv[2:] or PEERS
        if install(Path(sys.argv[1]).absolute() / name, PEERS[name]) != 0
    ]
    sys.exit(f"not installed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
