"""The server: a port, the services on it, and their life from loading to draining."""

from __future__ import annotations

import dataclasses
import gc
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import grpc

from slipway.proto import open_inference_pb2 as protocol
from slipway.serving.authorization import Authorizer
from slipway.serving.configuration import LimitSettings
from slipway.serving.control import ControlMode, RepositoryControl
from slipway.serving.credentials import TlsFiles
from slipway.serving.errors import StartupError, UnavailableError
from slipway.serving.health import Health
from slipway.serving.inference import InferenceFrontend
from slipway.serving.limits import channel_options
from slipway.serving.loader import Loader
from slipway.serving.logs import LogControl
from slipway.serving.metrics import Sources
from slipway.serving.observation import RequestObserver
from slipway.serving.reflection import Reflection
from slipway.serving.repository import Repository
from slipway.serving.rpc import stream_handler, unary_methods
from slipway.serving.service import InferenceService, Phase
from slipway.serving.shared_memory import SharedMemoryRegions
from slipway.serving.status import Monitoring
from slipway.serving.streaming import MAX_STREAMS, InferenceStreams
from slipway.serving.transport import InferenceTransport

__all__ = ["InferenceServer"]

_CONTROL_THREADS = 4
"""Threads for what is neither inference nor health. None waits for a client."""

_UNRESPONSIVE_SECONDS = 2.0
"""How long clients have, when the server stops, to send the rest of a message, and to read that
their watch ends."""

_SERVICE = protocol.DESCRIPTOR.services_by_name["GRPCInferenceService"]


class InferenceServer:
    """Serves a repository over gRPC.

    In order: `start` takes the port, and requests are answered UNAVAILABLE; `load` loads the models
    and makes it ready; `drain` stops it.
    """

    def __init__(
        self,
        repository: Repository,
        loader: Loader,
        mode: ControlMode = ControlMode.FIXED,
        poll_seconds: float = 5.0,
        shared_memory: SharedMemoryRegions | None = None,
        authorizer: Authorizer | None = None,
        limits: LimitSettings = LimitSettings(),  # noqa: B008  (it is immutable)
        observer: RequestObserver | None = None,
        log: LogControl | None = None,
        *,
        shares_port: bool = False,
    ) -> None:
        """Makes a server that does not listen yet.

        Args:
          repository: the models to serve.
          loader: loads them.
          mode: whether and how what is served follows the repository.
          poll_seconds: between two looks at it.
          shared_memory: where clients register regions; None if they may not.
          authorizer: who may call which method; None for everyone, and to control those on this
            host.
          limits: what one client may take.
          observer: of single requests; None for none.
          log: of this process, which LogSettings changes; None to leave it alone.
          shares_port: whether other processes may listen on the same port.
        """
        self._repository = repository
        self._health = Health()
        self._report_lock = threading.Lock()
        self._reported = set(repository.names)
        for name in repository.names:
            self._health.report(name, False)
        self._control = RepositoryControl(repository, loader, mode, self._report, poll_seconds)
        self._service = InferenceService(repository, self._control, shared_memory, log)
        self._observer = observer
        self._frontend = InferenceFrontend(
            repository, shared_memory, observer, limits.max_message_bytes
        )
        self._control_pool = ThreadPoolExecutor(_CONTROL_THREADS, thread_name_prefix="control")
        # Loading takes long, and whoever asks for it must not keep others from what is quick.
        self._loading_pool = ThreadPoolExecutor(1, thread_name_prefix="repository control")
        # One more than there may be, for the stream that is refused.
        self._stream_pool = ThreadPoolExecutor(MAX_STREAMS + 1, thread_name_prefix="stream")
        self._streams = InferenceStreams(self._frontend, loader.environment.memory)
        self._sources = Sources(
            repository,
            self._service,
            self._frontend,
            self._streams,
            loader.environment.memory,
            loader.devices,
        )
        self._monitoring: Monitoring | None = None
        self._server = grpc.server(
            self._control_pool, options=channel_options(limits, shares_port=shares_port)
        )
        streams = stream_handler(
            _SERVICE, "ModelStreamInfer", self._streams.serve, self._stream_pool
        )
        self._server.add_generic_rpc_handlers([streams])
        self._reflection = Reflection()
        self._reflection.add_to(self._server)
        inference = f"/{_SERVICE.full_name}/ModelInfer"
        self._transport = InferenceTransport(
            self._server,
            {
                **unary_methods(
                    _SERVICE,
                    self._service.implementations,
                    self._control_pool,
                    self._loading_pool,
                ),
                **self._health.methods,
                inference: self._frontend.on_request,
            },
            inference,
            self._frontend.on_idle,
            self._frontend.on_received,
            self._frontend.refuse_unread,
            authorizer or Authorizer(),
            loader.environment.arrivals,
            loader.environment.memory,
        )

    def start(self, host: str, port: int, credentials: grpc.ServerCredentials | None = None) -> str:
        """Listens, and returns the address as HOST:PORT.

        Args:
          host: a name or address of this machine.
          port: 0 for any that is free.
          credentials: for TLS; None to go without.

        Raises:
          StartupError: the address cannot be had.
        """
        bracketed = f"[{host}]" if ":" in host else host
        try:
            if credentials is None:
                bound = self._server.add_insecure_port(f"{bracketed}:{port}")
            else:
                bound = self._server.add_secure_port(f"{bracketed}:{port}", credentials)
        except RuntimeError as error:
            raise _why_not(host, port) from error
        self._transport.start()
        return f"{bracketed}:{bound}"

    def start_monitoring(self, host: str, port: int, tls: TlsFiles | None = None) -> str:
        """Serves metrics and the status page over HTTP, and returns their address as HOST:PORT.

        They are there while models load, and until the end of `drain`.

        Args:
          host: a name or address of this machine.
          port: 0 for any that is free.
          tls: the certificates whose end the metrics tell of; None if there are none.

        Raises:
          StartupError: the address cannot be had.
        """
        sources = dataclasses.replace(self._sources, tls=tls)
        self._monitoring = Monitoring(host, port, sources)
        return self._monitoring.address

    def load(self, is_stopping: Callable[[], bool]) -> int:
        """Loads the models, opens for requests, and returns how many versions take them.

        Args:
          is_stopping: asked before each version; the rest is not loaded when it says yes.
        """
        self._control.update(is_stopping)
        # What is there now stays. To look through all of it, as the collector does now and then,
        # takes a tenth of a second, in which nobody is answered.
        gc.collect()
        gc.freeze()
        self._service.phase = Phase.SERVING
        self._frontend.is_open = True
        self._report()
        self._control.follow()
        return self._repository.ready_count

    @property
    def is_busy(self) -> bool:
        """Returns whether a thread still loads a version, after the server was drained."""
        return self._control.is_busy

    def _report(self) -> None:
        """Tells health what has changed."""
        with self._report_lock:
            names = self._repository.names
            for name in self._reported.difference(names):
                self._health.report(name, False)
            self._reported.update(names)
            is_open = self._service.phase is Phase.SERVING
            for name in names:
                is_serving = is_open and bool(self._repository.ready_versions(name))
                self._health.report(name, is_serving)
            self._health.report("", self._service.is_ready())

    def drain(self, grace: float) -> bool:
        """Stops, and returns whether every request that had arrived was answered.

        New requests are refused at once, and those that run or wait have `grace` seconds.
        """
        self._service.phase = Phase.DRAINING
        self._health.close()
        self._reflection.close()
        self._streams.close()
        self._control.close()
        deadline = time.monotonic() + grace
        stopped = self._transport.stop(grace)
        is_late = False
        if not stopped.wait(min(grace, _UNRESPONSIVE_SECONDS)):
            is_late = self._outlasts(deadline)
            self._transport.refuse_incomplete(
                UnavailableError("the server stops, and the message has not come")
            )
            self._health.cancel_watches()
            # Clients that are there have closed their connections when their last call ended.
            while not stopped.wait(min(_UNRESPONSIVE_SECONDS, _remaining(deadline))):
                is_late = is_late or self._outlasts(deadline)
                if not self._transport.has_calls:
                    self._transport.stop(0)
        # A request that was cut off may still compute, and its thread would keep the process alive.
        idle = threading.Thread(target=self._close, daemon=True)
        idle.start()
        idle.join(_remaining(deadline))
        if self._observer is not None:
            self._observer.close()
        if self._monitoring is not None:
            self._monitoring.close()
        return not is_late and not idle.is_alive()

    def _outlasts(self, deadline: float) -> bool:
        """Returns whether requests wait or run, and the deadline is over."""
        return time.monotonic() >= deadline and any(
            model.scheduler.running or model.scheduler.queued[0]
            for model in self._repository.models
        )

    def _close(self) -> None:
        self._frontend.close()
        self._stream_pool.shutdown()
        self._control_pool.shutdown()
        self._loading_pool.shutdown()
        self._repository.close()


def _remaining(deadline: float) -> float:
    """Returns the seconds until then, and a little more once it is over."""
    return max(deadline - time.monotonic(), 0.1)


def _why_not(host: str, port: int) -> StartupError:
    """Returns why the address cannot be had, which gRPC does not say."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.bind(address)
            probe.listen()
    except OSError as error:
        return StartupError.of_address(host, port, error)
    return StartupError(f"cannot listen on {host}:{port}: gRPC could not bind to it", exit_code=1)
