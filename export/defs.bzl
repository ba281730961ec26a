"""The public rules of Slipway's export side.

    load("@slipway//export:defs.bzl", "torch_export", "torch_program_from_pt2")
"""

load("//export:providers.bzl", _TorchProgramInfo = "TorchProgramInfo")
load("//export/private:torch_export.bzl", _torch_export = "torch_export")
load("//export/private:torch_program_from_pt2.bzl", _torch_program_from_pt2 = "torch_program_from_pt2")

TorchProgramInfo = _TorchProgramInfo
torch_export = _torch_export
torch_program_from_pt2 = _torch_program_from_pt2
