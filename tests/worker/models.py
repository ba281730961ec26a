"""Models that behave, and that do not."""

from __future__ import annotations

import os
import random
import signal
import sys

import numpy
import torch

from slipway.export import ExportSpec


def small() -> ExportSpec:
    model = torch.nn.Linear(3, 2)
    return ExportSpec(model=model.eval(), args=torch.randn(4, 3))


# Drawn when the module is imported, before any function is called.
DRAWN = torch.nn.Linear(3, 2)
FACTORS = [random.random(), float(numpy.random.rand())]


def drawn_at_import() -> ExportSpec:
    a, b = FACTORS
    return ExportSpec(model=torch.nn.Sequential(DRAWN, Scaled(a * b)).eval(), args=torch.ones(4, 3))


class Scaled(torch.nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.factor


def leaves_traces() -> ExportSpec:
    """Changes what a process shares: the random state, modules, a registered operator."""
    torch.manual_seed(99)
    torch.nn.Linear.forward = lambda self, x: x  # type: ignore[method-assign]
    sys.modules["torch.left_behind"] = sys
    torch.library.define("left_behind::op", "(Tensor x) -> Tensor")
    return ExportSpec(model=lambda x: x + 1, args=torch.ones(2))


def exits() -> ExportSpec:
    os._exit(7)


def is_killed() -> ExportSpec:
    print("about to be killed", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def prints() -> ExportSpec:
    print("a model may print")
    return small()


def branches() -> ExportSpec:
    return ExportSpec(model=lambda x: x if x.sum() > 0 else -x, args=torch.ones(2))
