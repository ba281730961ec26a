"""What export targets tell others."""

load("//program:providers.bzl", _TorchProgramInfo = "TorchProgramInfo")

TorchProgramInfo = _TorchProgramInfo
