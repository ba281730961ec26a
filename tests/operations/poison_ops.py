"""An operator that fails as a GPU does on which a kernel has gone wrong."""

import torch

_LIBRARY = torch.library.Library("slipway_tests", "DEF")
_LIBRARY.define("poison(Tensor x) -> Tensor")


def _poison(x: torch.Tensor) -> torch.Tensor:
    if x.any():
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
    return x.clone()


_LIBRARY.impl("poison", _poison, "CompositeExplicitAutograd")
