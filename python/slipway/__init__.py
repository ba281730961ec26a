"""Gives this repository's packages their import names: `slipway.export` is //export.

A workspace that depends on Slipway mounts the repository under a name of Bazel's choice
(`slipway`, `slipway~`, `_main`), and the packages stay where they are.
"""

from pathlib import Path

__path__ = [str(Path(__file__).absolute().parents[2])]
