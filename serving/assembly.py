"""From the settings to a server."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

from slipway.program.custom_ops import CustomOpsError, load_custom_ops
from slipway.serving.arrivals import Arrivals
from slipway.serving.authorization import Authorizer
from slipway.serving.configuration import Configuration, ModelSettings, SchedulingSettings
from slipway.serving.control import ControlMode
from slipway.serving.devices import Device, make_device, resolve_device
from slipway.serving.errors import StartupError
from slipway.serving.loader import CompiledUse, Loader
from slipway.serving.logs import LogControl
from slipway.serving.memory_budget import MemoryBudget
from slipway.serving.memory_return import MemoryReturn
from slipway.serving.model import Environment
from slipway.serving.observation import RequestObserver
from slipway.serving.processors import Processors
from slipway.serving.repository import Repository
from slipway.serving.scheduler import SchedulingOptions
from slipway.serving.server import InferenceServer
from slipway.serving.shared_memory import SharedMemoryRegions
from slipway.serving.versions import VersionPolicy

__all__ = ["make_server"]

_MOST_INSTANCES = 8
"""Of a model on the host, unless the configuration says so: more of them use more processors each
instead, and many models do not take many threads each."""

_COMPILED: dict[str, CompiledUse] = {"never": "never", "auto": "auto", "require": "require"}


def make_server(
    configuration: Configuration,
    authorizer: Authorizer,
    on_device_failure: Callable[[], None],
    log: LogControl | None = None,
    *,
    shares_port: bool = False,
) -> InferenceServer:
    """Returns a server that does not listen yet.

    Args:
      configuration: what it serves, and how.
      authorizer: who may call which method.
      on_device_failure: called when a device fails for good.
      log: of this process, which LogSettings changes; None to leave it alone.
      shares_port: whether other processes may listen on the same port.

    Raises:
      StartupError: the device, a library of operators or the repository is not there.
    """
    settings, files = configuration.server, configuration.repository
    count = max(1, _processors() // settings.processes)
    device, model_devices = _devices(configuration, Processors(count, settings.threads or None))
    try:
        custom_ops = load_custom_ops(settings.custom_ops)
    except CustomOpsError as error:
        raise StartupError(str(error), exit_code=2) from error
    mode = ControlMode(files.model_control)
    repository = Repository(
        Path(files.path or ""),
        policies={
            name: VersionPolicy.parse(model.version_policy)
            for name, model in configuration.models.items()
            if model.version_policy is not None
        },
        default_policy=VersionPolicy.parse(files.version_policy),
        routes={name: model.route for name, model in configuration.models.items() if model.labels},
        only=files.load_model if mode is ControlMode.EXPLICIT else None,
    )
    loader = Loader(
        device,
        Environment(
            _options(configuration.scheduling, ModelSettings(), _instances(device, count)),
            MemoryBudget(settings.max_request_bytes, MemoryReturn().note),
            on_device_failure,
            {
                name: _options(
                    configuration.scheduling,
                    model,
                    _instances(model_devices.get(name, device), count),
                )
                for name, model in configuration.models.items()
            },
            Arrivals(count),
        ),
        custom_ops=custom_ops,
        verification="sizes" if files.verify == "sizes" else "full",
        snapshot=mode is not ControlMode.FIXED,
        swaps=files.when_memory_is_short == "swap",
        compiled=_COMPILED[files.compiled],
        graph_engine="python" if files.graph_engine == "python" else "interpreter",
        model_devices=model_devices,
    )
    return InferenceServer(
        repository,
        loader,
        mode,
        files.poll_seconds,
        SharedMemoryRegions() if settings.allow_client_shared_memory else None,
        authorizer,
        configuration.limits,
        _observer(configuration),
        log,
        shares_port=shares_port,
    )


def _devices(
    configuration: Configuration, processors: Processors
) -> tuple[Device, dict[str, Device]]:
    """Returns where models run, and where those do that have a device of their own."""
    usual = resolve_device(configuration.server.device)
    own = {
        name: resolve_device(model.device, f"device of [models.{name}]")
        for name, model in configuration.models.items()
        if model.device is not None
    }
    graph_bytes = configuration.server.cuda_graph_bytes
    devices = {
        place: make_device(place, processors, graph_bytes) for place in {usual, *own.values()}
    }
    return devices[usual], {name: devices[place] for name, place in own.items()}


def _instances(device: Device, processors: int) -> int:
    """Returns how many batches of a model run at a time unless the configuration says so."""
    return min(processors, _MOST_INSTANCES) if device.takes_processors else 1


def _observer(configuration: Configuration) -> RequestObserver | None:
    """Returns what traces and logs single requests, or None where that is not wanted."""
    endpoint = configuration.monitoring.trace_endpoint
    share = configuration.logging.access_log_sample
    tracer = None
    # OpenTelemetry takes a while to import, and most servers do without.
    if endpoint or any(name.startswith("OTEL_") for name in os.environ):
        from slipway.serving.tracing import RequestTracer, is_configured

        if is_configured(endpoint):
            tracer = RequestTracer(endpoint)
    if tracer is None and not share:
        return None
    return RequestObserver(share, tracer)


def _options(
    general: SchedulingSettings, model: ModelSettings, instances: int
) -> SchedulingOptions:
    own = {
        item.name: value
        for item in dataclasses.fields(general)
        if (value := getattr(model, item.name)) is not None
    }
    settings = dataclasses.replace(general, **own)
    return SchedulingOptions(
        instances=settings.instances or instances,
        max_batch_size=settings.max_batch_size,
        batch_delay=settings.batch_delay_ms / 1000,
        max_queue_requests=settings.max_queue_requests,
        max_queue_bytes=settings.max_queue_bytes,
    )


def _processors() -> int:
    # Those that this process may use, which a container may have bounded.
    return len(os.sched_getaffinity(0))
