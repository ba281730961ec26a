"""Who reads from a server's connections."""

import os

__all__ = ["read_while_polling"]

_LISTENER = "event_engine_listener"
"""gRPC's name for the threads that read."""


def read_while_polling() -> None:
    """Has whoever polls the queue of a gRPC server read from its connections, in this process.

    gRPC has threads for it, and wakes one for each message: on processors that run batches, and for
    requests that have to wait for the end of one. Without them an encoder at 8 connections answers
    a tenth more, and a small model at one connection a quarter. gRPC had none once, and can still
    do without.

    To be called before grpc is imported, which looks at it then. GRPC_EXPERIMENTS has precedence.
    """
    experiments = os.environ.get("GRPC_EXPERIMENTS", "")
    if _LISTENER not in experiments:
        os.environ["GRPC_EXPERIMENTS"] = ",".join(filter(None, (experiments, f"-{_LISTENER}")))
