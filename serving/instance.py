"""One loaded method on one device."""

from __future__ import annotations

import errno
import logging
import os
import re
import traceback
from collections.abc import Sequence

import torch

from slipway.program import DataViolation, Method
from slipway.serving.devices import Device
from slipway.serving.errors import (
    DeviceError,
    InternalError,
    InvalidRequestError,
    ResourceExhaustedError,
    ServingError,
)

__all__ = ["Instance", "is_lack_of_memory"]

_LOGGER = logging.getLogger(__name__)

_LOOKUP = re.compile(
    r"index out of range in self|index -?\d+ is out of bounds for dimension \d+ with size \d+"
    r"|tried to access index -?\d+ on a tensor of \d+ elements"
    r"|Class values must be (?:non-negative|smaller than num_classes)"
    r"|Index \d+ of input takes value -?\d+ which is not in the valid range \[0, \d+\)"
    r"|Expected idx >= 0 && idx < num_embeddings but found idx to be -?\d+"
    r"|Expected i < index_size to be true"
    r"|offsets\[0\] has to be 0|offsets\[-1\] can not be greater than input's length \d+"
    r"|Number of elements of source < number of ones in mask"
    r"|Target -?\d+ is out of bounds|'?target'? (?:is )?out of range|[Ff]ound an invalid max index"
    r"|lengths contains negative value|Expected all rows of lengths along axis to sum to"
    r"|repeats can not be negative|bincount only supports 1-d non-negative integral inputs"
    r"|sorter index out of range"
    # Where there are no elements at all:
    r"|self indexing axis dim should be positive|out of bounds for dimension with size 0"
    r"|tried to take from an empty tensor"
)
"""What torch says on the host of an index that is a caller's value."""

_DOMAIN = re.compile(
    r"ZeroDivisionError"
    r"|linalg\.\w+: [^\n]+"  # singular matrices and the like
    r"|invalid multinomial distribution[^\n]*|probability tensor contains[^\n]*"
    r"|Expected p_in >= 0 && p_in <= 1|normal expects all elements of std >= 0\.0"
    r"|invalid Poisson rate[^\n]*|all elements of (?:input|target) should be between 0 and 1"
    r"|q values must be in the range \[0, 1\]|range of \[[^\]\n]*\] is not finite"
)
"""What torch says on the host of a value that an operator has no result for."""

# After these of CUDA's errors a device goes on: cudaErrorMemoryAllocation, and what it says of an
# operator that cannot be launched for these sizes (cudaErrorInvalidValue, InvalidConfiguration,
# LaunchOutOfResources).
_CUDA_OUT_OF_MEMORY = 2
_CUDA_NOT_LAUNCHED = {1, 9, 701}


class Instance:
    """Runs one method of a program on one device.

    Attributes:
      subject: the model and version, for messages.
      device: where the program's weights lie.
    """

    def __init__(self, subject: str, method: Method, device: Device) -> None:
        self.subject = subject
        self.device = device
        self._method = method

    def run(
        self, tensors: Sequence[torch.Tensor], *, may_divide: bool = True
    ) -> tuple[list[torch.Tensor], float]:
        """Returns the method's tensor outputs for `tensors`, on the host.

        Beside them, the seconds of processors that it took.

        Args:
          tensors: the tensor inputs in the contract's order, on the host, found legal by the
            contract.
          may_divide: whether it takes long enough for several processors to be of use.

        Raises:
          InvalidRequestError: the model cannot take these values.
          ResourceExhaustedError: the device's memory does not suffice.
          DeviceError: the device failed, and will fail from now on.
          InternalError: the model failed.
        """
        try:
            return self.device.run(self._method, tensors, may_divide=may_divide)
        except DataViolation as error:
            raise InvalidRequestError(f"{self.subject} refused the request: {error}") from error
        except (MemoryError, RuntimeError, IndexError, ValueError) as error:
            raise self._translated(error) from error

    def release(self) -> None:
        """Lets go of the program; no call may come any more."""
        del self._method

    def _translated(self, error: Exception) -> ServingError:
        device = self.device.torch_device
        if is_lack_of_memory(error):
            _forget_variables(error)
            return ResourceExhaustedError(
                f"{self.subject} needs more memory for this request than {device} has left: "
                "send fewer or smaller inputs"
            )
        lookup = _LOOKUP.search(str(error))
        if lookup is not None:
            # The contract is about shapes; this is about values, and only the model sees those.
            return InvalidRequestError(
                f"{self.subject} refused the request: a value of an input selects an element that "
                f"does not exist, such as a token outside the vocabulary ({lookup[0]})"
            )
        outside = _DOMAIN.search(str(error))
        if outside is not None:
            return InvalidRequestError(
                f"{self.subject} refused the request: for the values of its inputs an operator has "
                f"no result, as for a division of integers by 0 or a singular matrix ({outside[0]})"
            )
        if (
            isinstance(error, torch.AcceleratorError)
            and _cuda_code(error) not in _CUDA_NOT_LAUNCHED
        ):
            _LOGGER.critical("%s: %s failed", self.subject, device, exc_info=error)
            return DeviceError(f"{self.subject} failed: {device} is in error, and the server stops")
        _LOGGER.error("%s failed while running", self.subject, exc_info=error)
        return InternalError(f"{self.subject} failed while running; the server's log has the cause")


def is_lack_of_memory(error: BaseException) -> bool:
    """Returns whether the machine, or a device, had too little memory for something."""
    return (
        isinstance(error, MemoryError | torch.OutOfMemoryError)
        # Torch's own allocations, and what it maps.
        or os.strerror(errno.ENOMEM) in str(error)
        # So it is called if the host has none for the copies.
        or _cuda_code(error) == _CUDA_OUT_OF_MEMORY
    )


def _cuda_code(error: BaseException) -> int | None:
    """Returns CUDA's number for an error, if it is one of CUDA's."""
    return getattr(error, "error_code", None) if isinstance(error, torch.AcceleratorError) else None


def _forget_variables(error: BaseException | None) -> None:
    """Frees what the calls had computed that failed; the error keeps where they were."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__
