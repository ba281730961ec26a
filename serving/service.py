"""The methods of the Open Inference Protocol that this server has, except inference itself."""

from __future__ import annotations

import enum
from collections.abc import Mapping

from slipway.program import VERSION
from slipway.proto import open_inference_pb2 as protocol
from slipway.serving.control import RepositoryControl
from slipway.serving.errors import (
    NotFoundError,
    ServingError,
    UnavailableError,
    UnsupportedError,
)
from slipway.serving.logs import LogControl
from slipway.serving.repository import Repository, State
from slipway.serving.rpc import Implementation
from slipway.serving.shared_memory import SharedMemoryRegions

__all__ = ["InferenceService", "Phase"]

_EXTENSIONS = (
    "binary_tensor_data",
    "logging",
    "model_configuration",
    "model_repository",
    "statistics",
)


class Phase(enum.Enum):
    """Where in its life the server is."""

    LOADING = enum.auto()
    SERVING = enum.auto()
    DRAINING = enum.auto()


class InferenceService:
    """Answers requests about the models of a repository.

    Attributes:
      phase: whoever runs the server sets it.
    """

    def __init__(
        self,
        repository: Repository,
        control: RepositoryControl,
        shared_memory: SharedMemoryRegions | None,
        log: LogControl | None,
    ) -> None:
        """Makes a service in the phase LOADING.

        Args:
          repository: the models.
          control: changes which of them are served.
          shared_memory: where clients register regions; None if they may not.
          log: what LogSettings changes; None if this process's log is not the server's own.
        """
        self._log = log
        self.phase = Phase.LOADING
        self._repository = repository
        self._control = control
        self._shared_memory = shared_memory

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
            "ModelStatistics": self.model_statistics,
            "RepositoryIndex": self.repository_index,
            "RepositoryModelLoad": self.repository_model_load,
            "RepositoryModelUnload": self.repository_model_unload,
            "SystemSharedMemoryStatus": self.shared_memory_status,
            "SystemSharedMemoryRegister": self.register_shared_memory,
            "SystemSharedMemoryUnregister": self.unregister_shared_memory,
            "CudaSharedMemoryUnregister": self.unregister_cuda_shared_memory,
            "LogSettings": self.log_settings,
        }

    def is_ready(self) -> bool:
        """Returns whether requests to every model are welcome."""
        return self.phase is Phase.SERVING and self._repository.is_ready()

    def server_live(self, request: protocol.ServerLiveRequest) -> protocol.ServerLiveResponse:
        # While draining too: an orchestrator kills what is not live, with its requests.
        return protocol.ServerLiveResponse(live=True)

    def server_ready(self, request: protocol.ServerReadyRequest) -> protocol.ServerReadyResponse:
        return protocol.ServerReadyResponse(ready=self.is_ready())

    def model_ready(self, request: protocol.ModelReadyRequest) -> protocol.ModelReadyResponse:
        """Answers no, rather than NOT_FOUND, for models that are unknown, as Triton does."""
        try:
            self._repository.find(request.name, request.version)
            ready = True
        except ServingError:
            ready = False
        return protocol.ModelReadyResponse(ready=ready and self.phase is Phase.SERVING)

    def server_metadata(
        self, request: protocol.ServerMetadataRequest
    ) -> protocol.ServerMetadataResponse:
        extensions = [*_EXTENSIONS]
        if self._shared_memory is not None:
            extensions.append("system_shared_memory")
        return protocol.ServerMetadataResponse(
            name="slipway", version=VERSION, extensions=extensions
        )

    def model_metadata(
        self, request: protocol.ModelMetadataRequest
    ) -> protocol.ModelMetadataResponse:
        model = self._repository.find(request.name, request.version)
        return model.signature.metadata(model.name, self._repository.ready_versions(model.name))

    def model_config(self, request: protocol.ModelConfigRequest) -> protocol.ModelConfigResponse:
        model = self._repository.find(request.name, request.version)
        config = model.signature.config(
            model.name, model.device, model.digest, model.execution, model.scheduler.instances
        )
        return protocol.ModelConfigResponse(config=config)

    def model_statistics(
        self, request: protocol.ModelStatisticsRequest
    ) -> protocol.ModelStatisticsResponse:
        """Answers for one version, for all ready ones of a model, or for those of all models."""
        names = [request.name] if request.name else self._repository.names
        response = protocol.ModelStatisticsResponse()
        for name in names:
            versions = list(map(str, self._repository.ready_versions(name)))
            if request.name and (request.version or not versions):
                versions = [request.version]  # not found, perhaps, which `find` says
            for version in versions:
                try:
                    model = self._repository.find(name, version)
                except (NotFoundError, UnavailableError):
                    if request.name:
                        raise
                    continue  # it has just been unloaded
                statistics = model.statistics.to_proto(model.name, model.version)
                response.model_stats.append(statistics)
        return response

    def repository_index(
        self, request: protocol.RepositoryIndexRequest
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

    def repository_model_load(
        self, request: protocol.RepositoryModelLoadRequest
    ) -> protocol.RepositoryModelLoadResponse:
        if request.parameters:
            raise UnsupportedError(
                "RepositoryModelLoad takes no parameters here: a model is what lies in the "
                f"repository, and cannot be overridden; got {', '.join(request.parameters)}"
            )
        self._control.load(request.model_name)
        return protocol.RepositoryModelLoadResponse()

    def repository_model_unload(
        self, request: protocol.RepositoryModelUnloadRequest
    ) -> protocol.RepositoryModelUnloadResponse:
        self._control.unload(request.model_name)
        return protocol.RepositoryModelUnloadResponse()

    def shared_memory_status(
        self, request: protocol.SystemSharedMemoryStatusRequest
    ) -> protocol.SystemSharedMemoryStatusResponse:
        response = protocol.SystemSharedMemoryStatusResponse()
        for region in self._regions().find(request.name):
            status = response.regions[region.name]
            status.name, status.key = region.name, region.key
            status.offset, status.byte_size = region.offset, region.size
        return response

    def register_shared_memory(
        self, request: protocol.SystemSharedMemoryRegisterRequest
    ) -> protocol.SystemSharedMemoryRegisterResponse:
        self._regions().register(request.name, request.key, request.offset, request.byte_size)
        return protocol.SystemSharedMemoryRegisterResponse()

    def unregister_shared_memory(
        self, request: protocol.SystemSharedMemoryUnregisterRequest
    ) -> protocol.SystemSharedMemoryUnregisterResponse:
        self._regions().unregister(request.name)
        return protocol.SystemSharedMemoryUnregisterResponse()

    def unregister_cuda_shared_memory(
        self, request: protocol.CudaSharedMemoryUnregisterRequest
    ) -> protocol.CudaSharedMemoryUnregisterResponse:
        """Does nothing, as there is no such region; perf_analyzer always asks for it."""
        return protocol.CudaSharedMemoryUnregisterResponse()

    def log_settings(self, request: protocol.LogSettingsRequest) -> protocol.LogSettingsResponse:
        """Changes the settings that are named, and answers with all of them."""
        if self._log is None:
            raise UnsupportedError("the log is not this server's own, and cannot be changed here")
        self._log.update(
            {
                name: getattr(value, value.WhichOneof("parameter_choice") or "string_param")
                for name, value in request.settings.items()
            }
        )
        response = protocol.LogSettingsResponse()
        for name, value in self._log.settings.items():
            setting = response.settings[name]
            if isinstance(value, bool):
                setting.bool_param = value
            elif isinstance(value, int):
                setting.uint32_param = value
            else:
                setting.string_param = value
        return response

    def _regions(self) -> SharedMemoryRegions:
        if self._shared_memory is None:
            raise UnsupportedError(
                "Client shared memory is disabled: start the server with "
                "--allow-client-shared-memory"
            )
        return self._shared_memory
