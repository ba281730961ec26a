"""Models that behave, and that do not."""

from __future__ import annotations

import faulthandler
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy
import torch

from slipway.export import Dim, ExportSpec

# Drawn when the module is imported.
_SHIFT = random.random() + float(numpy.random.rand())


def small() -> ExportSpec:
    model = torch.nn.Linear(3, 2)
    with torch.no_grad():
        model.bias += _SHIFT + random.random() + float(numpy.random.rand())
    return ExportSpec(
        model=model.eval(),
        args=torch.randn(4, 3),
        dynamic_shapes={"input": {0: Dim("rows", min=1, max=9)}},
    )


def quick() -> ExportSpec:
    return ExportSpec(model=lambda x: x + 1, args=torch.ones(2), cases=0)


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
    """Changes what a process shares: random states, modules, operators, environment, folder."""
    torch.manual_seed(99)
    random.seed(99)
    numpy.random.seed(99)
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(2)
    torch.nn.Linear.forward = lambda self, x: x  # type: ignore[method-assign]
    sys.modules["torch.left_behind"] = sys
    torch.library.define("left_behind::op", "(Tensor x) -> Tensor")
    os.environ["OMP_NUM_THREADS"] = "2"
    os.environ["LEFT_BEHIND"] = "1"
    Path(tempfile.gettempdir(), "left_behind").write_text("1")
    os.umask(0o077)
    os.chdir("/")
    return quick()


def looks_for_traces() -> ExportSpec:
    traces = [
        "LEFT_BEHIND" in os.environ,
        Path(tempfile.gettempdir(), "left_behind").exists(),
        "torch.left_behind" in sys.modules,
        Path.cwd() == Path("/"),
    ]
    assert not any(traces), traces
    return small()


def exits() -> ExportSpec:
    os._exit(7)


def exits_as_if_all_were_well() -> ExportSpec:
    os._exit(0)


def exits_when_it_is_called() -> ExportSpec:
    return ExportSpec(model=lambda x: sys.exit(0), args=torch.ones(2))


def is_killed() -> ExportSpec:
    print("about to be killed", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def crashes() -> ExportSpec:
    faulthandler._sigsegv()
    raise AssertionError


def recurses() -> ExportSpec:
    return recurses()


def recurses_when_it_is_called() -> ExportSpec:
    def model(x: torch.Tensor) -> torch.Tensor:
        return model(x)

    return ExportSpec(model=model, args=torch.ones(2))


def prints() -> ExportSpec:
    print("a model may print")
    os.system("echo its programs too")
    return quick()


def prints_very_much() -> ExportSpec:
    for number in range(100_000):
        print(f"line {number} of very many that nobody will ever read")
    return quick()


def reads_standard_input() -> ExportSpec:
    assert sys.stdin.read() == ""
    return quick()


def starts_a_thread() -> ExportSpec:
    threading.Thread(target=time.sleep, args=[3600]).start()
    return quick()


def starts_a_process() -> ExportSpec:
    with subprocess.Popen(["sleep", "3600"]) as process:
        print(f"started {process.pid}")
        process.returncode = 0  # Not waited for.
    return quick()


def takes_long() -> ExportSpec:
    Path(os.environ["STARTED"]).write_text(str(os.getpid()))
    time.sleep(3600)
    raise AssertionError


def branches() -> ExportSpec:
    return ExportSpec(model=lambda x: x if x.sum() > 0 else -x, args=torch.ones(2))
