"""The methods of the Open Inference Protocol that this server has."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping

import grpc

from slipway.program import VERSION
from slipway.proto import open_inference_pb2 as protocol
from slipway.serving.errors import DeviceError, UnavailableError
from slipway.serving.inference import infer
from slipway.serving.repository import Repository, State
from slipway.serving.rpc import Implementation

__all__ = ["InferenceService", "Phase"]

_EXTENSIONS = ("binary_tensor_data", "model_configuration")


class Phase(enum.Enum):
    """Where in its life the server is."""

    LOADING = enum.auto()
    SERVING = enum.auto()
    DRAINING = enum.auto()


class InferenceService:
    """Answers requests about the models of a repository, and to them.

    Attributes:
      phase: whoever runs the server sets it.
    """

    def __init__(self, repository: Repository, on_device_failure: Callable[[], None]) -> None:
        """Makes a service in the phase LOADING.

        Args:
          repository: the models.
          on_device_failure: called when a device fails for good.
        """
        self.phase = Phase.LOADING
        self._repository = repository
        self._on_device_failure = on_device_failure

    @property
    def implementations(self) -> Mapping[str, Implementation]:
        """Returns the implementation of each method, by the method's name."""
        return {
            "ServerLive": self.server_live,
            "ServerReady": self.server_ready,
            "ModelReady": self.model_ready,
            "ServerMetadata": self.server_metadata,
            "ModelMetadata": self.model_metadata,
            "ModelConfig": self.model_config,
            "ModelInfer": self.model_infer,
            "RepositoryIndex": self.repository_index,
        }

    def is_ready(self) -> bool:
        """Returns whether requests to every model are welcome."""
        return self.phase is Phase.SERVING and self._repository.is_ready()

    def server_live(
        self, request: protocol.ServerLiveRequest, context: grpc.ServicerContext
    ) -> protocol.ServerLiveResponse:
        # While draining too: an orchestrator kills what is not live, with its requests.
        return protocol.ServerLiveResponse(live=True)

    def server_ready(
        self, request: protocol.ServerReadyRequest, context: grpc.ServicerContext
    ) -> protocol.ServerReadyResponse:
        return protocol.ServerReadyResponse(ready=self.is_ready())

    def model_ready(
        self, request: protocol.ModelReadyRequest, context: grpc.ServicerContext
    ) -> protocol.ModelReadyResponse:
        """Answers no, rather than NOT_FOUND, for models that are unknown, as Triton does."""
        versions = map(str, self._repository.ready_versions(request.name))
        ready = request.version in versions if request.version else any(versions)
        return protocol.ModelReadyResponse(ready=ready and self.phase is Phase.SERVING)

    def server_metadata(
        self, request: protocol.ServerMetadataRequest, context: grpc.ServicerContext
    ) -> protocol.ServerMetadataResponse:
        return protocol.ServerMetadataResponse(
            name="slipway", version=VERSION, extensions=_EXTENSIONS
        )

    def model_metadata(
        self, request: protocol.ModelMetadataRequest, context: grpc.ServicerContext
    ) -> protocol.ModelMetadataResponse:
        model = self._repository.find(request.name, request.version)
        return model.signature.metadata(model.name, self._repository.ready_versions(model.name))

    def model_config(
        self, request: protocol.ModelConfigRequest, context: grpc.ServicerContext
    ) -> protocol.ModelConfigResponse:
        model = self._repository.find(request.name, request.version)
        config = model.signature.config(model.name, model.instance.device, model.digest)
        return protocol.ModelConfigResponse(config=config)

    def model_infer(
        self, request: protocol.ModelInferRequest, context: grpc.ServicerContext
    ) -> protocol.ModelInferResponse:
        # While draining, the transport refuses what is new; what comes here arrived before.
        if self.phase is Phase.LOADING:
            raise UnavailableError("the server is loading its models: try again")
        model = self._repository.find(request.model_name, request.model_version)
        try:
            return infer(model, request, context.is_active)
        except DeviceError:
            self._on_device_failure()
            raise

    def repository_index(
        self, request: protocol.RepositoryIndexRequest, context: grpc.ServicerContext
    ) -> protocol.RepositoryIndexResponse:
        response = protocol.RepositoryIndexResponse()
        for status in self._repository.index():
            if request.ready and status.state is not State.READY:
                continue
            response.models.add(
                name=status.name,
                version=str(status.version) if status.version else "",
                state=status.state.value,
                reason=status.reason,
            )
        return response
