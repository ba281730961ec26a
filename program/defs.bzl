"""The public rules on programs and their contracts.

    load("@slipway//program:defs.bzl", "torch_contract", "torch_contract_test", "torch_program_compatibility_test", "torch_program_test")
"""

load("//program:providers.bzl", _TorchCustomOpsInfo = "TorchCustomOpsInfo", _TorchProgramInfo = "TorchProgramInfo")
load("//program/private:torch_contract.bzl", _torch_contract = "torch_contract", _torch_contract_test = "torch_contract_test")
load("//program/private:torch_program_compatibility_test.bzl", _torch_program_compatibility_test = "torch_program_compatibility_test")
load("//program/private:torch_program_test.bzl", _torch_program_test = "torch_program_test")

TorchCustomOpsInfo = _TorchCustomOpsInfo
TorchProgramInfo = _TorchProgramInfo
torch_contract = _torch_contract
torch_contract_test = _torch_contract_test
torch_program_compatibility_test = _torch_program_compatibility_test
torch_program_test = _torch_program_test
