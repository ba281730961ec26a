"""Which inputs of a graph may be changed when it runs, found from the operators that it calls.

A program says so too, but what would follow from its being wrong, calls that see each other's
state, is too bad to take an artifact's word for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

__all__ = ["possibly_mutated_inputs", "written_arguments"]

# They write running statistics without saying so in their schemas: the positions of the statistics,
# and of the flag that has them written, where there is one.
_STATISTICS: dict[object, tuple[tuple[int, int], int | None]] = {
    torch.ops.aten.batch_norm.default: ((3, 4), 5),
    torch.ops.aten.batch_norm_update_stats.default: ((1, 2), None),
    torch.ops.aten.cudnn_batch_norm.default: ((3, 4), 5),
    torch.ops.aten.instance_norm.default: ((3, 4), 5),
    torch.ops.aten.miopen_batch_norm.default: ((3, 4), 5),
    torch.ops.aten.native_batch_norm.default: ((3, 4), 5),
    torch.ops.aten._batch_norm_impl_index.default: ((3, 4), 5),
}

# They give views without saying so in their schemas.
_VIEWS = frozenset({"aten::_unsafe_view", "aten::lift"})


# Made of other operators, which in general may hand on views without saying so; these compute.
_COMPUTE = frozenset(
    f"aten::{name}"
    for name in (
        "batch_norm",
        "bilinear",
        "conv1d",
        "conv2d",
        "conv3d",
        "conv_transpose1d",
        "conv_transpose2d",
        "conv_transpose3d",
        "cosine_similarity",
        "embedding_bag",
        "group_norm",
        "gru",
        "instance_norm",
        "layer_norm",
        "linear",
        "log_softmax",
        "lstm",
        "matmul",
        "max_pool1d",
        "max_pool2d",
        "max_pool3d",
        "rms_norm",
        "scaled_dot_product_attention",
        "softmax",
    )
)


def possibly_mutated_inputs(graph: torch.fx.Graph) -> list[int]:
    """Returns the positions of the placeholders that running the graph may change.

    Those that an operator writes into, itself or by way of what may be a view. Where that is not
    known, as for `reshape`, it may be one. An operator that runs a subgraph which changes any of
    its own inputs may change all that it is given: in what order operands become inputs is up to
    each operator.
    """
    origins: dict[torch.fx.Node, frozenset[torch.fx.Node]] = {}
    changed: set[torch.fx.Node] = set()
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    # Each is looked at once, however often it is run: subgraphs may be nested.
    writing = {node for node in graph.nodes if node.op == "get_attr" and _writes(node)}
    for node in graph.nodes:
        if node.op == "placeholder":
            origins[node] = frozenset({node})
            continue
        sources = [origins.get(item, frozenset()) for item in node.all_input_nodes]
        origins[node] = frozenset().union(*sources) if _may_alias(node) else frozenset()
        for written in written_arguments(node):
            changed |= origins.get(written, frozenset())
        if not writing.isdisjoint(node.all_input_nodes):
            changed = changed.union(*sources)
    return [place for place, node in enumerate(placeholders) if node in changed]


def _writes(node: torch.fx.Node) -> bool:
    """Returns whether a subgraph, which a node of its parent stands for, may change its inputs."""
    module = getattr(node.graph.owning_module, str(node.target))
    assert isinstance(module, torch.fx.GraphModule)
    return bool(possibly_mutated_inputs(module.graph))


def _may_alias(node: torch.fx.Node) -> bool:
    """Returns whether a node's result may share memory with what it is computed from."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return True  # getitem, and operators that run subgraphs
    if any(item.alias_info is not None for item in node.target._schema.returns):
        return True
    schema_name = node.target._schema.name
    if schema_name in _VIEWS:
        return True
    name = f"{schema_name}.{node.target._overloadname}"
    return schema_name not in _COMPUTE and bool(
        torch._C._dispatch_has_kernel_for_dispatch_key(
            name.removesuffix(".default"), "CompositeImplicitAutograd"
        )
    )


def written_arguments(node: torch.fx.Node) -> Iterator[torch.fx.Node]:
    """Yields the tensors that a node writes into."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return
    if node.target is torch.ops.aten.detach_.default:
        return  # it changes what autograd knows of a tensor, which torch.tensor() ends with
    parameters = node.target._schema.arguments
    given: list[Any] = [node.kwargs.get(parameter.name) for parameter in parameters]
    given[: len(node.args)] = node.args
    statistics, flag = _STATISTICS.get(node.target, ((), None))
    if flag is None or given[flag]:
        yield from _tensors([given[position] for position in statistics])
    for value, parameter in zip(given, parameters, strict=True):
        if parameter.alias_info is not None and parameter.alias_info.is_write:
            yield from _tensors(value if isinstance(value, list | tuple) else [value])


def _tensors(values: object) -> Iterator[torch.fx.Node]:
    assert isinstance(values, list | tuple)
    yield from (value for value in values if isinstance(value, torch.fx.Node))
