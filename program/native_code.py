"""Calls a shared library that AOTInductor compiled, by its C interface.

Torch's own loaders hold the interpreter's lock while the code runs, and the convenient one of them
starts a C++ compiler. This one does neither: instances run in parallel, on machines without a
compiler. Nothing here checks shapes: code that is called with others reads out of bounds.
"""

from __future__ import annotations

import ctypes
import os
import threading
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from slipway.program.engine import EngineFailure
from slipway.program.errors import CompiledCodeError
from slipway.program.words import counted

__all__ = ["NativeCode"]

_Handle = ctypes.c_void_p

_ALIGNMENT = 64
"""Of weights in code that holds them, in bytes."""

_loaded: dict[bytes, ctypes.CDLL] = {}
_loading = threading.Lock()

_capsule_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_capsule_pointer.restype = ctypes.c_void_p
_capsule_pointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
_new_capsule = ctypes.pythonapi.PyCapsule_New
_new_capsule.restype = ctypes.py_object
_new_capsule.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]


class _Constant(ctypes.Structure):
    _fields_ = (("name", ctypes.c_char_p), ("tensor", _Handle))


class NativeCode:
    """The native code of one method, with the program's weights in place."""

    def __init__(
        self,
        library: bytes,
        digest: bytes,
        weights: Mapping[str, torch.Tensor],
        inputs: int,
        outputs: int,
        concurrency: int,
    ) -> None:
        """Loads the code, which runs with all rights of the process from then on.

        Args:
          library: the content of the shared library.
          digest: of the content.
          weights: the program's, by name; those that the code uses are kept, and not copied.
          inputs: how many tensors the method takes.
          outputs: how many tensors it gives.
          concurrency: how many calls can run at the same time; others wait.

        Raises:
          CompiledCodeError: it cannot be loaded, or is of some other program.
        """
        self._library = _load(library, digest)
        container = _Handle()
        self._call(
            "AOTInductorModelContainerCreateWithDevice",
            ctypes.byref(container),
            ctypes.c_size_t(concurrency),
            b"cpu",
            None,
        )
        self._container = container
        self._inputs, self._outputs = inputs, outputs
        for name, expected in (("Input", inputs), ("Output", outputs)):
            count = ctypes.c_size_t()
            self._call(f"AOTInductorModelContainerGetNum{name}s", container, ctypes.byref(count))
            if count.value != expected:
                raise CompiledCodeError(
                    f"it has {counted(count.value, name.lower())}; the method has {expected}"
                )
        constants = self._constants(weights)
        self._weights = list(constants.values())
        handles = _handles_of(self._weights)
        pairs = (_Constant * len(constants))(
            *(_Constant(name, handle) for name, handle in zip(constants, handles, strict=True))
        )
        # Not when the interpreter ends, while other threads may still run it.
        weakref.finalize(self, _free, self._library, container, handles).atexit = False
        self._call(
            "AOTInductorModelContainerUpdateUserManagedConstantBufferPairs",
            container,
            pairs,
            ctypes.c_size_t(len(constants)),
            ctypes.c_bool(False),
            ctypes.c_bool(True),
        )
        self._run = self._library.AOTInductorModelContainerRun
        self._input_handles = _Handle * inputs
        self._output_handles = _Handle * outputs

    def run(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Returns the method's tensor outputs. Other threads run meanwhile.

        Args:
          tensors: the method's tensor inputs, found legal by its contract.

        Raises:
          EngineFailure: it refused the tensors' values, or failed.
        """
        # The code knows the strides of fresh tensors only.
        plain = [
            tensor.contiguous().resolve_conj().resolve_neg()
            if not tensor.is_contiguous() or tensor.is_conj() or tensor.is_neg()
            else tensor
            for tensor in tensors
        ]
        inputs = self._input_handles(*_handles_of(plain))
        outputs = self._output_handles()
        if self._run(self._container, inputs, self._inputs, outputs, self._outputs, None, None):
            raise EngineFailure(_last_error(self._library))
        return _tensors_of(list(outputs))

    def _constants(self, weights: Mapping[str, torch.Tensor]) -> dict[bytes, torch.Tensor]:
        """Returns the weights that the code uses, by the names that it has for them."""
        count = ctypes.c_size_t()
        self._call("AOTInductorModelContainerGetNumConstants", self._container, ctypes.byref(count))
        constants = {}
        for index in range(count.value):
            place = ctypes.c_size_t(index)
            own, original = ctypes.c_char_p(), ctypes.c_char_p()
            size = ctypes.c_size_t()
            for function, result in (
                ("Name", own),
                ("OriginalFQN", original),
                ("DataSize", size),
            ):
                self._call(
                    f"AOTInductorModelContainerGetConstant{function}",
                    self._container,
                    place,
                    ctypes.byref(result),
                )
            assert own.value is not None
            name = (original.value or b"").decode(errors="replace")
            weight = weights.get(name)
            # Sizes are rounded up to the next multiple of the alignment.
            if weight is None or not 0 <= size.value - weight.nbytes < _ALIGNMENT:
                raise CompiledCodeError(
                    f"it needs a weight '{name}' of {size.value} bytes, which the program lacks"
                )
            constants[own.value] = weight.contiguous()
        return constants

    def _call(self, function: str, *arguments: Any) -> None:
        try:
            status = getattr(self._library, function)(*arguments)
        except AttributeError as error:
            raise CompiledCodeError(f"it has no function {function}") from error
        if status:
            raise CompiledCodeError(f"{function} fails: {_last_error(self._library)}")


def _load(library: bytes, digest: bytes) -> ctypes.CDLL:
    with _loading:
        if digest not in _loaded:
            # A copy that nobody can change between the check of its digest and its use. It stays
            # open for good: the system's loader goes by names, and would take the next file of
            # this name for the same one; and it never lets go of C++ libraries anyway.
            descriptor = os.memfd_create("compiled")
            try:
                with os.fdopen(os.dup(descriptor), "wb") as file:
                    file.write(library)
                _loaded[digest] = ctypes.CDLL(f"/proc/self/fd/{descriptor}")
            except OSError as error:
                os.close(descriptor)
                raise CompiledCodeError(f"it cannot be loaded: {error}") from error
        return _loaded[digest]


def _handles_of(tensors: Sequence[torch.Tensor]) -> list[int]:
    """Returns a new handle for each tensor, which its taker frees."""
    capsules = torch._C._aoti.unsafe_alloc_void_ptrs_from_tensors(list(tensors))
    return [_capsule_pointer(capsule, None) for capsule in capsules]


def _tensors_of(handles: Sequence[Any]) -> list[torch.Tensor]:
    """Returns the tensors of handles, which it frees."""
    tensors: list[torch.Tensor] = torch._C._aoti.alloc_tensors_by_stealing_from_void_ptrs(
        [_new_capsule(handle, None, None) for handle in handles]
    )
    return tensors


def _last_error(library: ctypes.CDLL) -> str:
    text = ctypes.c_char_p()
    if library.AOTInductorGetLastError(ctypes.byref(text)) or not text.value:
        return "no reason is given"
    return text.value.decode(errors="replace")


def _free(library: ctypes.CDLL, container: _Handle, handles: list[int]) -> None:
    library.AOTInductorModelContainerDelete(container)
    _tensors_of(handles)
