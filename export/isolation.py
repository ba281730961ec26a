"""Traces that neither see nor drop what Dynamo has compiled in this process.

Dynamo traces the bodies of loops and branches. It keeps what it made of them with the code of the
function of torch's that runs them, which is the same in each trace, and so a trace would be decided
by those before. `torch._dynamo.reset()` would help, and would drop what a user compiled as well.
"""

from __future__ import annotations

import contextlib
import types
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

from torch._dynamo import pgo
from torch._higher_order_ops import utils

__all__ = ["apart_from_other_traces"]


@contextlib.contextmanager
def apart_from_other_traces() -> Iterator[None]:
    """Has Dynamo trace loops and branches as it would in a new process."""
    compile_and_call: Callable[..., Any] = utils._hop_compile_and_call

    def compile_copy_and_call(function: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(function, types.FunctionType):
            function = _copy(function)
        return compile_and_call(function, *args, **kwargs)

    with (
        mock.patch.object(utils, "_hop_compile_and_call", compile_copy_and_call),
        # Which sizes of which function have differed; None is what it is in a new process.
        mock.patch.multiple(pgo, _CODE_STATE=None, _INIT_CODE_STATE=None),
    ):
        yield


def _copy(function: types.FunctionType) -> types.FunctionType:
    """Returns the same function with code of its own, for which nothing is compiled."""
    return types.FunctionType(
        function.__code__.replace(),
        function.__globals__,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
