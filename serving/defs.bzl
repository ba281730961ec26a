"""The public rules of Slipway's serving side.

    load("@slipway//serving:defs.bzl", "torch_model_repository", "torch_model_repository_test", "torch_server")
"""

load("//serving:providers.bzl", _TorchModelRepositoryInfo = "TorchModelRepositoryInfo")
load("//serving/private:torch_model_repository.bzl", _torch_model_repository = "torch_model_repository", _torch_model_repository_test = "torch_model_repository_test")
load("//serving/private:torch_server.bzl", _torch_server = "torch_server")

TorchModelRepositoryInfo = _TorchModelRepositoryInfo
torch_model_repository = _torch_model_repository
torch_model_repository_test = _torch_model_repository_test
torch_server = _torch_server
