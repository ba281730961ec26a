from __future__ import annotations

import threading
from pathlib import Path
from typing import cast

from slipway.serving.inference import InferenceFrontend
from slipway.serving.model import Environment
from slipway.serving.wire_call import WireCall
from slipway.tests.serving.scheduling import Answer, Bench, affine


class Call(Answer):
    """An Answer with what else the front end takes of a call."""

    deadline = float("inf")


def test_what_a_thread_received_between_batches_is_run_by_another(tmp_path: Path) -> None:
    bench = Bench(tmp_path, Environment())
    frontend = InferenceFrontend(bench.repository)
    frontend.is_open = True
    call = Call()
    frontend.on_request(cast(WireCall, call), affine())
    frontend.on_received()
    call.wait()
    assert call.outputs["y"].tolist() == [[6, 22, 38]]
    assert call.thread is not threading.current_thread()
    frontend.close()
    bench.repository.close()
