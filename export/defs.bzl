"""The public rules of Slipway's export side.

    load("@slipway//export:defs.bzl", "torch_export")
"""

load("//export:providers.bzl", _TorchProgramInfo = "TorchProgramInfo")
load("//export/private:torch_export.bzl", _torch_export = "torch_export")

TorchProgramInfo = _TorchProgramInfo
torch_export = _torch_export
