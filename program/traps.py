"""Values at which torch's kernels for the host end the process, kept away from them.

A processor traps where the least integer is divided by -1, which torch leaves to it, also within
the least common multiple; and the gradient of sampling by a grid looks for what is beyond the
picture outside of its memory. A product of groups leaves memory as it was, and so what others may
have had there, behind the last group.
"""

from __future__ import annotations

import copy
import operator

import torch
from torch import fx

__all__ = ["SCRIPTED", "avoid_traps"]

_aten = torch.ops.aten

_DIVISIONS = {
    _aten.div.Tensor_mode,
    _aten.div_.Tensor_mode,
    _aten.divide.Tensor_mode,
    _aten.divide_.Tensor_mode,
}
_OF_NUMBERS = {
    _aten.div.Scalar_mode: _aten.div.Tensor_mode,
    _aten.div_.Scalar_mode: _aten.div_.Tensor_mode,
    _aten.divide.Scalar_mode: _aten.divide.Tensor_mode,
    _aten.divide_.Scalar_mode: _aten.divide_.Tensor_mode,
}
_MULTIPLES = {
    _aten.lcm.default,
    _aten.lcm_.default,
}
_GROUPS = _aten._grouped_mm.default
_SAMPLING = {
    _aten._grid_sampler_2d_cpu_fallback_backward.default,
    _aten.grid_sampler_2d_backward.default,
}


def divisor(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Returns what to divide by instead of `y`: 1, not -1, where `x` is the least integer.

    That gives the least integer again, as the other ways of dividing do.
    """
    dtype = torch.result_type(x, y)
    if dtype != torch.int32 and dtype != torch.int64:
        return y
    whole = x.to(dtype)
    is_least = torch.logical_and(torch.lt(whole, 0), torch.eq(whole, torch.neg(whole)))
    return torch.where(torch.logical_and(is_least, torch.eq(y, -1)), 1, y).to(dtype)


def divisor_of(x: torch.Tensor, y: int) -> torch.Tensor:
    """Does what `divisor` does for a number."""
    number = torch.tensor(y)
    return divisor(x, number.to(torch.result_type(x, number)))


def multiplier(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Returns what to take the least common multiple with instead of `y`.

    It is 1 where `x` is the least integer, and `y` is not 0: what torch gives for that is what it
    gives for all others, and it does not divide by -1.
    """
    dtype = torch.result_type(x, y)
    whole = x.to(dtype)
    is_least = torch.logical_and(torch.lt(whole, 0), torch.eq(whole, torch.neg(whole)))
    return torch.where(torch.logical_and(is_least, torch.ne(y, 0)), 1, y).to(dtype)


def last_to_the_end(x: torch.Tensor, y: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """Returns where groups end of which `x @ y` is computed, the last of them not before the end.

    What torch would not compute is of the last group then. It stays what the caller must not use.
    """
    result = ends.clone()
    if x.dim() == 2 and y.dim() == 3:
        result[-1:].clamp_(min=x.size(0))
    elif x.dim() == 3 and y.dim() == 2:
        result[-1:].clamp_(min=y.size(1))
    return result


def near_places(grid: torch.Tensor) -> torch.Tensor:
    """Returns a grid whose places are numbers, and not so far off that they are no integers.

    What is no number lies beyond the picture then, where nothing changes from place to place.
    """
    return torch.clamp(torch.nan_to_num(grid, nan=-2.0), -1e6, 1e6)


SCRIPTED = (divisor, divisor_of, multiplier, last_to_the_end, near_places)
"""What `avoid_traps` puts into graphs. It is TorchScript, and depends on dtypes."""


def avoid_traps(module: fx.GraphModule) -> fx.GraphModule:
    """Returns a graph, with its subgraphs, that no values end the process in.

    Returns:
      A graph with the same inputs and outputs. `module` itself, which is not changed, if it has no
      such operators.
    """
    if not any(_place(node) for graph in _graphs(module) for node in graph.graph.nodes):
        return module
    changed = copy.deepcopy(module)
    for graph in _graphs(changed):
        for node in graph.graph.nodes:
            place = _place(node)
            if place:
                with graph.graph.inserting_before(node):
                    node.update_arg(place, _replacement(graph.graph, node))
                node.target = _OF_NUMBERS.get(node.target, node.target)
        graph.recompile()
    return changed


def _graphs(module: fx.GraphModule) -> list[fx.GraphModule]:
    return [part for part in module.modules() if isinstance(part, fx.GraphModule)]


def _place(node: fx.Node) -> int:
    """Returns which argument of a node may have such values; 0 if none has."""
    place = 2 if node.target in _SAMPLING or node.target is _GROUPS else 0
    if node.target in _MULTIPLES or _divides(node):
        place = 1
    given = node.args[place] if place < len(node.args) else None
    # Other numbers do no harm, except for those that a call's values or sizes give.
    return place if isinstance(given, fx.Node) or (type(given) is int and given == -1) else 0


def _replacement(graph: fx.Graph, node: fx.Node) -> fx.Node:
    if node.target in _SAMPLING:
        return graph.call_function(near_places, (node.args[2],))
    if node.target is _GROUPS:
        return graph.call_function(last_to_the_end, node.args[:3])
    if node.target in _MULTIPLES:
        return graph.call_function(multiplier, node.args[:2])
    function = divisor if _is_tensor(node.args[1]) else divisor_of
    return graph.call_function(function, node.args[:2])


def _divides(node: fx.Node) -> bool:
    # To round down, torch takes another way, which knows of the least integer.
    return node.target is torch.ops.prims.div.default or (
        (node.target in _DIVISIONS or node.target in _OF_NUMBERS)
        and node.kwargs.get("rounding_mode") == "trunc"
    )


def _is_tensor(given: object) -> bool:
    if not isinstance(given, fx.Node):
        return False
    if isinstance(given.target, torch._ops.OpOverload):
        returns = given.target._schema.returns
        return bool(returns) and str(returns[0].type) == "Tensor"
    return given.op != "call_function" or given.target is operator.getitem
