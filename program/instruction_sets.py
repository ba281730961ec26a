"""Instruction sets that compiled code can be made for."""

from __future__ import annotations

import platform
from dataclasses import dataclass

import torch

__all__ = ["INSTRUCTION_SETS", "InstructionSet", "missing_features"]


@dataclass(frozen=True, slots=True)
class InstructionSet:
    """What code may use of a processor.

    Attributes:
      march: what a C++ compiler calls it.
      bits: of a vector.
      features: what the processor must have, as `torch.cpu.get_capabilities` calls it.
      capabilities: the values of `torch.backends.cpu.get_cpu_capability` that allow it.
    """

    march: str
    bits: int
    features: frozenset[str]
    capabilities: frozenset[str]


_AVX2 = frozenset({"avx", "avx2", "bmi", "bmi2", "f16c", "fma3", "lzcnt"})

INSTRUCTION_SETS = {
    "avx512": InstructionSet(
        "x86-64-v4",
        512,
        _AVX2 | {"avx512_f", "avx512_bw", "avx512_cd", "avx512_dq", "avx512_vl"},
        frozenset({"AVX512"}),
    ),
    "avx2": InstructionSet("x86-64-v3", 256, _AVX2, frozenset({"AVX2", "AVX512"})),
}
"""By name, the best first."""


def missing_features(name: str) -> str | None:
    """Returns what of an instruction set this process may not use, or None if it may use it.

    What it may use is what the processor has, unless the environment variable ATEN_CPU_CAPABILITY
    restricts torch to less.
    """
    wanted = INSTRUCTION_SETS.get(name)
    if wanted is None:
        return f"'{name}' is unknown to this Slipway"
    if platform.machine() != "x86_64":
        return f"this processor is {platform.machine()}"
    found = torch.cpu.get_capabilities()
    if missing := sorted(item for item in wanted.features if not found.get(item)):
        return f"this processor lacks {', '.join(missing)}"
    capability = torch.backends.cpu.get_cpu_capability()
    if capability not in wanted.capabilities:
        return f"torch is restricted to {capability} here"
    return None
