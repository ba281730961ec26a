"""Programs and requests for tests of what a server shows of itself."""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tritonclient.grpc import InferenceServerClient
from tritonclient.utils import InferenceServerException

from slipway.tests.serving import programs
from slipway.tests.serving.requests import tensor


def write_repository(root: Path) -> Path:
    """Writes affine, versions 1 and 2 of which the second is broken, and returns `root`."""
    programs.write_affine(root / "affine" / "1")
    programs.write_affine(root / "affine" / "2")
    (root / "affine" / "2" / "program.pb").write_bytes(b"\xff" * 100)
    return root


def infer(client: InferenceServerClient, rows: int = 2, width: int = 4, **options: Any) -> Any:
    """Asks `affine` for an answer; legal are 1 to 8 rows of width 4."""
    x = np.ones((rows, width), np.float32)
    return client.infer(options.pop("model", "affine"), [tensor("x", x, "FP32")], **options)


def refuse(client: InferenceServerClient, **options: Any) -> str:
    """Sends what will be refused, as `infer` does, and returns the status."""
    try:
        infer(client, **options)
    except InferenceServerException as error:
        return str(error.status())
    raise AssertionError("it was not refused")


def get(url: str, headers: Mapping[str, str] | None = None) -> tuple[str, Mapping[str, str]]:
    """Returns a page and its headers."""
    request = urllib.request.Request(url, headers=dict(headers or {}))
    with urllib.request.urlopen(request, timeout=60) as response:
        return response.read().decode(), response.headers


def eventually(condition: Callable[[], bool]) -> None:
    """Waits until something is true: a request is answered a moment before it is counted."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it never became true"
        time.sleep(0.02)
