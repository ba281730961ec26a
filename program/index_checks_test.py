from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx

from slipway.program.engine import EngineFailure
from slipway.program.errors import DataViolation
from slipway.program.index_checks import check_indices
from slipway.program.interpreter import InterpretedGraph
from slipway.program.vmap import VMAP_STEPS

_aten = torch.ops.aten

_TABLE = torch.arange(12.0).reshape(4, 3)
_INDEX = torch.tensor([[3, 0, 2]])


def traced(function: Callable[..., object], *examples: torch.Tensor) -> fx.GraphModule:
    """Returns the graph of a function of the table and of indices."""
    module = make_fx(function, pre_dispatch=True)(_TABLE, *examples)
    output = module.graph.output_node()
    if not isinstance(output.args[0], tuple):
        output.args = ((output.args[0],),)
        module.recompile()
    return module


def runners(module: fx.GraphModule) -> list[Callable[[Sequence[torch.Tensor]], Sequence[object]]]:
    """Returns what runs a graph, in Python and in torch's interpreter, given all but the table."""
    engine = InterpretedGraph(module.graph, {0: _TABLE})
    return [lambda given: module(_TABLE, *given), engine.run]


LOOKUPS: dict[str, tuple[Callable[..., object], int, int]] = {
    # How it looks something up, and the least and the largest index.
    "embedding": (lambda t, i: _aten.embedding.default(t, i), 0, 3),
    "embedding_bag": (
        lambda t, i: _aten.embedding_bag.default(t, i[0], torch.zeros_like(i[0, :1]))[0],
        0,
        3,
    ),
    "embedding_bag with padding": (
        lambda t, i: _aten.embedding_bag.padding_idx(
            t, i[0], torch.zeros_like(i[0, :1]), False, 0, False, None, False, 1
        )[0],
        0,
        3,
    ),
    "index": (lambda t, i: t[i], -4, 3),
    "of no dimension": (lambda t, i: t[0, 0].gather(0, i[0, 1]), 0, 0),
    "index of the last": (lambda t, i: t[:, i], -3, 2),
    "two indices": (lambda t, i: t[i, i.clamp(0, 2)], -4, 3),
    "index_select": (lambda t, i: t.index_select(0, i[0]), 0, 3),
    "index_select of the last": (lambda t, i: t.index_select(-1, i[0]), 0, 2),
    "gather of itself": (lambda t, i: i.gather(1, i), 0, 2),
    "gather": (lambda t, i: t.gather(0, i), 0, 3),
    "scatter": (lambda t, i: t.scatter(0, i, 7.0), 0, 3),
    "scatter of another": (lambda t, i: t.scatter(1, i, t), 0, 2),
    "scatter_add": (lambda t, i: t.scatter_add(0, i, t), 0, 3),
    "scatter_reduce": (lambda t, i: t.scatter_reduce(0, i, t, "amax"), 0, 3),
    "index_put": (lambda t, i: t.index_put((i[0],), t[:3]), -4, 3),
    "index_put in place": (lambda t, i: t.clone().index_put_((i[0],), t[:3]), -4, 3),
    "index_add": (lambda t, i: t.index_add(0, i[0], t[:3]), 0, 3),
    "index_copy": (lambda t, i: t.index_copy(0, i[0], t[:3]), 0, 3),
    "index_fill": (lambda t, i: t.index_fill(0, i[0], 1.0), -4, 3),
    "index_fill with a tensor": (lambda t, i: t.index_fill(0, i[0], t[0, 1]), -4, 3),
    "index_reduce": (lambda t, i: t.index_reduce(0, i[0], t[:3], "amax"), 0, 3),
    "take": (lambda t, i: t.take(i), -12, 11),
    "put": (lambda t, i: t.put(i[0], t[0]), -12, 11),
    "index_add in place": (lambda t, i: t.clone().index_add_(0, i[0], t[:3]), 0, 3),
    "index_copy in place": (lambda t, i: t.clone().index_copy_(0, i[0], t[:3]), 0, 3),
    "index_fill in place": (lambda t, i: t.clone().index_fill_(0, i[0], 1.0), -4, 3),
    "scatter and add": (lambda t, i: t.scatter(0, i, t, reduce="add"), 0, 3),
    "scatter and multiply": (lambda t, i: t.scatter(0, i, 7.0, reduce="multiply"), 0, 3),
    "scatter in place": (lambda t, i: t.clone().scatter_(0, i, 7.0), 0, 3),
    "scatter of another in place": (lambda t, i: t.clone().scatter_(0, i, t), 0, 3),
    "scatter and add in place": (lambda t, i: t.clone().scatter_(0, i, t, reduce="add"), 0, 3),
    "scatter and multiply in place": (
        lambda t, i: t.clone().scatter_(0, i, 7.0, reduce="multiply"),
        0,
        3,
    ),
    "scatter_add in place": (lambda t, i: t.clone().scatter_add_(0, i, t), 0, 3),
    "scatter_reduce in place": (lambda t, i: t.clone().scatter_reduce_(0, i, t, "amax"), 0, 3),
    "one_hot": (lambda t, i: _aten.one_hot.default(i, 4), 0, 3),
    "computed": (lambda t, i: _aten.embedding.default(t, i * 2 - i), 0, 3),
}


@pytest.mark.parametrize("name", LOOKUPS)
def test_says_whether_an_index_was_out_of_range(name: str) -> None:
    function, least, most = LOOKUPS[name]
    module = traced(function, torch.zeros_like(_INDEX))
    checked = check_indices(module, {0})
    assert checked is not module
    for first, second in zip(runners(module), runners(checked), strict=True):
        for index in (_INDEX.clamp(least, most), torch.tensor([[least, most, 0]])):
            expected, (actual, is_wrong) = first([index]), second([index])
            assert not is_wrong
            torch.testing.assert_close(actual, expected[0], rtol=0, atol=0)
        for wrong in (least - 1, most + 1, 2**40):
            _, is_wrong = second([torch.tensor([[0, wrong, 1]])])
            assert is_wrong, wrong


def test_bags_begin_one_after_the_other() -> None:
    def look_up(t: torch.Tensor, i: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        return _aten.embedding_bag.default(t, i, offsets)[0]  # type: ignore[no-any-return]

    index = torch.tensor([3, 0, 2])
    module = traced(look_up, index, torch.tensor([0, 1]))
    for first, second in zip(runners(module), runners(check_indices(module, {0})), strict=True):
        for legal in ([0, 0], [0, 3]):
            (expected,), (actual, is_wrong) = (
                run([index, torch.tensor(legal)]) for run in (first, second)
            )
            assert not is_wrong
            torch.testing.assert_close(actual, expected, rtol=0, atol=0)
        for wrong in ([0, 4], [2, 1], [0, -1]):
            assert second([index, torch.tensor(wrong)])[-1], wrong


@pytest.mark.parametrize("is_in_place", [False, True])
def test_a_mask_selects_no_more_places_than_there_are_elements(is_in_place: bool) -> None:
    def fill(t: torch.Tensor, mask: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
        return (
            t.clone().masked_scatter_(mask, source)
            if is_in_place
            else t.masked_scatter(mask, source)
        )

    # Of rows, each of three elements.
    mask, source = torch.tensor([[True], [False], [True], [False]]), torch.arange(8.0)
    module = traced(fill, mask, source)
    for first, second in zip(runners(module), runners(check_indices(module, {0})), strict=True):
        for legal in (mask, ~mask, mask & ~mask):
            (expected,), (actual, is_wrong) = (run([legal, source]) for run in (first, second))
            assert not is_wrong
            torch.testing.assert_close(actual, expected, rtol=0, atol=0)
        assert second([mask | ~mask, source])[-1]


@pytest.mark.parametrize(
    "look_up",
    [
        lambda t, i: _aten.embedding.default(t[:0], i),
        lambda t, i: t[:, :0].gather(1, i[None]),
        lambda t, i: t[:0][i],
        lambda t, i: t[:0].take(i),
    ],
)
def test_of_nothing_nothing_can_be_selected(look_up: Callable[..., object]) -> None:
    module = traced(look_up, torch.tensor([], dtype=torch.int64))
    in_python, interpreted = runners(check_indices(module, {0}))
    for run in (in_python, interpreted):
        result, is_wrong = run([torch.tensor([], dtype=torch.int64)])
        assert result.numel() == 0  # type: ignore[attr-defined]
        assert not is_wrong
    with pytest.raises(DataViolation, match="a dimension that has none"):
        in_python([torch.tensor([0])])
    with pytest.raises(EngineFailure, match="a dimension that has none"):
        interpreted([torch.tensor([0])])


def test_indices_may_be_written_into_a_tensor() -> None:
    def look_up(t: torch.Tensor, i: torch.Tensor) -> torch.Tensor:
        shifted = torch.zeros(4, dtype=torch.int64)
        view = shifted[:3]
        shifted[1:].copy_(i)
        return _aten.embedding.default(t, view)  # type: ignore[no-any-return]

    checked = check_indices(traced(look_up, torch.tensor([3, 0, 2])), {0})
    for run in runners(checked):
        actual, is_wrong = run([torch.tensor([3, 0, 2])])
        assert not is_wrong
        assert actual.tolist() == _TABLE[[0, 3, 0]].tolist()  # type: ignore[attr-defined]
        assert run([torch.tensor([4, 0, 2])])[-1]


def test_any_of_several_lookups_counts() -> None:
    def look_up(t: torch.Tensor, i: torch.Tensor, j: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return t[i], t.index_select(0, j[0])

    checked = check_indices(traced(look_up, _INDEX, _INDEX + 0), {0})
    wrong = torch.tensor([[1, 9, 1]])
    for run in runners(checked):
        assert not run([_INDEX, _INDEX])[-1]
        assert run([wrong, _INDEX])[-1]
        assert run([_INDEX, wrong])[-1]


@pytest.mark.parametrize("mode", [0, 1, 2])
@pytest.mark.parametrize("has_last_offset", [False, True])
def test_bags_lie_within_the_indices(mode: int, has_last_offset: bool) -> None:
    def look_up(t: torch.Tensor, i: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        return _aten.embedding_bag.default(
            t, i, offsets, False, mode, False, None, has_last_offset
        )[0]

    indices = torch.tensor([1, 2, 3, 0])
    module = traced(look_up, indices, torch.tensor([0, 2, 4]))
    checked = check_indices(module, {0}, unchecked_only=True)
    for first, second in zip(runners(module), runners(checked), strict=True):
        for offsets in ([0, 2, 4], [0, 0, 4], [0, 4, 4]):
            given = [indices, torch.tensor(offsets)]
            actual, is_wrong = second(given)
            assert not is_wrong
            torch.testing.assert_close(actual, first(given)[0], rtol=0, atol=0)
        # Torch itself adds up what lies before the table, or ends the process.
        for offsets in ([0, -3, 4], [0, 3, 2], [0, 5, 4], [0, -(2**40), 4]):
            if has_last_offset and offsets[-1] != 4:
                continue  # which torch finds out
            assert second([indices, torch.tensor(offsets)])[-1], offsets
        with pytest.raises(Exception, match=r"(?i)index|idx"):  # as torch itself finds out
            second([torch.tensor([1, 2, 9, 0]), torch.tensor([0, 2, 4])])


def test_there_may_be_no_bags() -> None:
    def look_up(t: torch.Tensor, i: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        return _aten.embedding_bag.default(t, i, offsets)[0]  # type: ignore[no-any-return]

    none = torch.zeros(0, dtype=torch.int64)
    checked = check_indices(traced(look_up, none, none + 0), {0}, unchecked_only=True)
    for run in runners(checked):
        actual, is_wrong = run([none, none])
        assert actual.shape == (0, 3)  # type: ignore[attr-defined]
        assert not is_wrong


@pytest.mark.parametrize(
    ("target", "rest"),
    [
        (_aten.embedding_bag.default, (slice(1), slice(2))),
        (_aten.embedding_bag.default, ()),
        (_aten.index.Tensor, ([slice(1)],)),
        (_aten.index.Tensor, (None,)),
        (_aten.one_hot.default, (slice(3),)),
    ],
)
def test_calls_that_nobody_makes_are_left_to_fail(
    target: Callable[..., object], rest: tuple[object, ...]
) -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    graph.output((graph.call_function(target, (x, *rest)),))
    module = fx.GraphModule(torch.nn.Module(), graph)
    for unchecked_only in (False, True):
        checked = check_indices(module, (), unchecked_only=unchecked_only)
        with pytest.raises((RuntimeError, TypeError)):
            checked(torch.tensor([1, 2]))


def test_segments_lie_within_what_they_divide() -> None:
    def reduce(t: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        return torch.segment_reduce(t, "sum", offsets=offsets, axis=0)

    checked = check_indices(traced(reduce, torch.tensor([0, 1, 4])), {0}, unchecked_only=True)
    actual, is_wrong = checked(_TABLE, torch.tensor([0, 3, 4]))
    assert not is_wrong
    assert actual.tolist() == [_TABLE[:3].sum(0).tolist(), _TABLE[3].tolist()]
    for offsets in ([0, 5, 4], [0, 3, 2**40], [-1, 2, 4], [0, 3, 1]):
        assert checked(_TABLE, torch.tensor(offsets))[-1], offsets


def test_segments_of_rows_lie_within_them() -> None:
    def reduce(t: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        return torch.segment_reduce(t, "sum", offsets=offsets, axis=1)

    good = torch.tensor([[0, 1, 3], [0, 2, 3], [0, 0, 3], [0, 3, 3]])
    checked = check_indices(traced(reduce, good), {0}, unchecked_only=True)
    actual, is_wrong = checked(_TABLE, good)
    assert not is_wrong
    assert actual.tolist() == [[0, 3], [7, 5], [0, 21], [30, 0]]
    for wrong in ([0, 4, 3], [0, 2, 1]):
        offsets = good.clone()
        offsets[2] = torch.tensor(wrong)
        assert checked(_TABLE, offsets)[-1], wrong


def unchecked(
    function: Callable[..., object], *examples: torch.Tensor
) -> list[Callable[[Sequence[torch.Tensor]], Sequence[Any]]]:
    """Returns what runs a function of tensors, and checks only what torch does not."""
    module = make_fx(lambda _, *given: function(*given), pre_dispatch=True)(_TABLE, *examples)
    output = module.graph.output_node()
    output.args = ((output.args[0],),)
    module.recompile()
    checked = check_indices(module, {0}, unchecked_only=True)
    assert checked is not module
    return runners(checked)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_lengths_of_segments_that_torch_does_not_look_at_lie_within_them(
    dtype: torch.dtype,
) -> None:
    def reduce(t: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        return torch.segment_reduce(t, "sum", lengths=lengths, unsafe=True)

    for run in unchecked(reduce, _TABLE, torch.tensor([1, 3], dtype=dtype)):
        for lengths in ([1, 3], [0, 4], [4, 0], [1, 1]):
            actual, is_wrong = run([_TABLE, torch.tensor(lengths, dtype=dtype)])
            assert not is_wrong
            first, rest = _TABLE[: lengths[0]], _TABLE[lengths[0] : sum(lengths)]
            assert actual.tolist() == [first.sum(0).tolist(), rest.sum(0).tolist()]
        for lengths in ([2, 3], [-1, 4], [1, 2**31 - 1], [5, 0]):
            assert run([_TABLE, torch.tensor(lengths, dtype=dtype)])[-1], lengths


def test_lengths_of_segments_that_torch_looks_at_are_left_alone() -> None:
    def reduce(t: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        return torch.segment_reduce(t, "sum", lengths=lengths)

    module = traced(reduce, torch.tensor([1, 3]))
    assert check_indices(module, {0}, unchecked_only=True) is module


def test_packed_sequences_only_get_fewer() -> None:
    def pad(x: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
        return _aten._pad_packed_sequence.default(x, sizes, True, 0.0, 3)[0]  # type: ignore[no-any-return]

    x = torch.arange(1.0, 7.0)[:, None]
    module = fx.GraphModule(torch.nn.Module(), fx.Graph())
    given = [module.graph.placeholder(name) for name in ("table", "x", "sizes")]
    padded = module.graph.call_function(
        _aten._pad_packed_sequence.default, (*given[1:], True, 0.0, 3)
    )
    result = module.graph.call_function(operator.getitem, (padded, 0))
    module.graph.output((result,))
    module.recompile()
    checked = check_indices(module, {0}, unchecked_only=True)
    for run in runners(checked):
        for legal in ([3, 2, 1], [2, 2, 2], [3, 3, 0]):
            sizes = torch.tensor(legal)
            actual, is_wrong = run([x, sizes])
            assert not is_wrong
            assert torch.equal(actual, pad(x, sizes))  # type: ignore[arg-type]
        # Torch writes before what it has for the lengths.
        for wrong in ([2, 1, 2], [3, 2, -(10**9)], [1, 2, 3], [10**9, 2, 1], [3, 3, 3]):
            assert run([x, torch.tensor(wrong)])[-1], wrong
    with pytest.raises(DataViolation, match="have no first element"):
        checked(_TABLE, x, torch.zeros(0, dtype=torch.int64))


def test_rows_of_compressed_indices_exist() -> None:
    def compress(rows: torch.Tensor) -> torch.Tensor:
        return torch._convert_indices_from_coo_to_csr(rows, 4)

    for run in unchecked(compress, torch.tensor([0, 1, 3])):
        actual, is_wrong = run([torch.tensor([0, 1, 3])])
        assert not is_wrong
        assert actual.tolist() == [0, 1, 2, 2, 3]
        for wrong in ([0, 1, 4], [-1, 1, 3], [0, 1, 2**40]):
            assert run([torch.tensor(wrong)])[-1], wrong


def test_compressed_rows_divide_all_columns() -> None:
    def expand(offsets: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        return torch._convert_indices_from_csr_to_coo(offsets, columns)

    columns = torch.tensor([0, 1, 1])
    for run in unchecked(expand, torch.tensor([0, 1, 3]), columns):
        actual, is_wrong = run([torch.tensor([0, 1, 3]), columns])
        assert not is_wrong
        assert actual.tolist() == [[0, 1, 1], [0, 1, 1]]
        # Torch leaves memory as it was where nothing begins or ends.
        for wrong in ([0, 1, 2], [1, 1, 3], [0, 4, 3], [0, 1, 2**40], [0, -(2**40), 3]):
            assert run([torch.tensor(wrong), columns])[-1], wrong


_SCORES = torch.log_softmax(torch.arange(100.0).reshape(10, 2, 5).sin(), -1)


@pytest.mark.parametrize("has_tensors", [True, False])
@pytest.mark.parametrize("is_private", [True, False])
def test_labels_that_count_exist(has_tensors: bool, is_private: bool) -> None:
    def loss(scores: torch.Tensor, labels: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        counts = (lengths + 10 - lengths, lengths) if has_tensors else ([10, 10], [3, 1])
        if is_private:
            return _aten._ctc_loss(scores, labels, *counts)[0]  # type: ignore[no-any-return]
        return _aten.ctc_loss(scores, labels, *counts)  # type: ignore[no-any-return]

    labels, lengths = torch.tensor([[1, 2, 4], [3, -1, 99]]), torch.tensor([3, 1])
    expected = loss(_SCORES, labels, lengths)
    for run in unchecked(loss, _SCORES, labels, lengths):
        actual, is_wrong = run([_SCORES, labels, lengths])
        assert not is_wrong
        torch.testing.assert_close(actual, expected, rtol=0, atol=0)
        for wrong in (-1, 5, 2**40):
            changed = labels.clone()
            changed[1, 0] = wrong
            assert run([_SCORES, changed, lengths])[-1], wrong


@pytest.mark.parametrize("is_one_row", [True, False])
def test_labels_need_no_dimension_of_their_own(is_one_row: bool) -> None:
    scores = _SCORES[:, 0] if is_one_row else _SCORES
    lengths = torch.tensor(3) if is_one_row else torch.tensor([3, 1])
    labels = torch.tensor([1, 2, 4] if is_one_row else [1, 2, 4, 3])

    def loss(scores: torch.Tensor, labels: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        return _aten.ctc_loss.Tensor(  # type: ignore[no-any-return]
            scores, labels, lengths + 10 - lengths, lengths
        )

    expected = loss(scores, labels, lengths)
    for run in unchecked(loss, scores, labels, lengths):
        actual, is_wrong = run([scores, labels, lengths])
        assert not is_wrong
        torch.testing.assert_close(actual, expected, rtol=0, atol=0)
        assert run([scores, labels + 1, lengths])[-1]


def _pooled(dimensions: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns a picture, its largest elements by pairs along each dimension, and their places."""
    x = torch.arange(2.0 * 4**dimensions).reshape(1, 2, *[4] * dimensions)
    pool = (_aten.max_pool2d_with_indices, _aten.max_pool3d_with_indices)[dimensions - 2]
    return x, *pool(x, [2] * dimensions)


GRADIENTS: dict[str, tuple[Callable[..., object], tuple[torch.Tensor, ...], int, int]] = {
    # What computes it, of what, which of that are indices, and the first that does not exist.
    "max_pool2d": (
        lambda x, g, i: _aten.max_pool2d_with_indices_backward(
            g, x, [2, 2], [], [0, 0], [1, 1], False, i
        ),
        _pooled(2),
        2,
        16,
    ),
    "max_pool3d": (
        lambda x, g, i: _aten.max_pool3d_with_indices_backward(
            g, x, [2, 2, 2], [], [0, 0, 0], [1, 1, 1], False, i
        ),
        _pooled(3),
        2,
        64,
    ),
    "adaptive_max_pool2d": (
        lambda x, g, i: _aten.adaptive_max_pool2d_backward(g, x, i),
        _pooled(2),
        2,
        16,
    ),
    "adaptive_max_pool3d": (
        lambda x, g, i: _aten.adaptive_max_pool3d_backward(g, x, i),
        _pooled(3),
        2,
        64,
    ),
    "nll_loss": (
        lambda x, i, w: _aten.nll_loss_backward(w, x, i, None, 1, -100, w),
        (_TABLE, torch.tensor([0, 2, -100, 1]), torch.tensor(3.0)),
        1,
        3,
    ),
    "nll_loss of one row": (
        lambda x, i, w: _aten.nll_loss_backward(w, x, i, None, 1, -100, w),
        (_TABLE[0], torch.tensor(2), torch.tensor(1.0)),
        1,
        3,
    ),
    "nll_loss2d": (
        lambda x, i, w: _aten.nll_loss2d_backward(w, x, i, None, 1, 7, w),
        (_TABLE.reshape(1, 3, 2, 2), torch.tensor([[[0, 2], [7, 1]]]), torch.tensor(3.0)),
        1,
        3,
    ),
    "embedding": (
        lambda g, i: _aten.embedding_dense_backward(g, i, 5, -1, True),
        (_TABLE, torch.tensor([0, 4, 4, 1])),
        1,
        5,
    ),
    "rows": (
        lambda g, i: _aten.embedding_backward(g, i, 5, -1, True, False),
        (_TABLE, torch.tensor([0, 4, 4, 1])),
        1,
        5,
    ),
    "rows of bags": (
        lambda g, i, b, n: _aten._embedding_bag_dense_backward(g, i, b, n, n, 4, False, 0, None),
        (torch.ones(2, 3), torch.tensor([3, 0, 2]), torch.tensor([0, 1, 1]), torch.tensor([1, 2])),
        1,
        4,
    ),
    "bags of rows": (
        lambda g, i, b, n: _aten._embedding_bag_dense_backward(g, i, b, n, n, 4, False, 0, None),
        (torch.ones(2, 3), torch.tensor([3, 0, 2]), torch.tensor([0, 1, 1]), torch.tensor([1, 2])),
        2,
        2,
    ),
    "unsafe write": (
        lambda x, i, v: _aten._unsafe_index_put(x, [i], v),
        (_TABLE, torch.tensor([3, -4]), torch.ones(2, 3)),
        1,
        4,
    ),
    "segments": (
        lambda x, g, i: _aten._segment_reduce_backward(g, g, x, "sum", lengths=i),
        (_TABLE, torch.ones(2, 3), torch.tensor([1, 3])),
        2,
        5,
    ),
    "weights in bags": (
        lambda g, w, i, o: _aten._embedding_bag_per_sample_weights_backward(
            g, w, i, o[:1] * 0, o, 0
        ),
        (torch.ones(2, 3), _TABLE, torch.tensor([3, 0, 2]), torch.tensor([0, 0, 1])),
        2,
        4,
    ),
    "numbers of bags": (
        lambda g, w, i, o: _aten._embedding_bag_per_sample_weights_backward(
            g, w, i, o[:1] * 0, o, 0
        ),
        (torch.ones(2, 3), _TABLE, torch.tensor([3, 0, 2]), torch.tensor([0, 0, 1])),
        3,
        2,
    ),
    "unsafe index": (
        lambda x, i: _aten._unsafe_index(x, [i]),
        (_TABLE, torch.tensor([3, -4])),
        1,
        4,
    ),
    "groups": (
        lambda x, y, i: _aten._grouped_mm(x, y, i),
        (torch.ones(6, 16), torch.ones(2, 16, 16), torch.tensor([2, 6], dtype=torch.int32)),
        2,
        7,
    ),
    "pivots": (
        lambda x, i, b: torch.linalg.ldl_solve(x, i, b),
        (torch.eye(3) + 1, torch.tensor([1, -3, -3], dtype=torch.int32), torch.ones(3, 1)),
        1,
        4,
    ),
}


@pytest.mark.parametrize("name", GRADIENTS)
def test_what_torch_takes_to_be_its_own_exists(name: str) -> None:
    function, given, place, wrong = GRADIENTS[name]
    expected = function(*given)
    for run in unchecked(function, *given):
        actual, is_wrong = run(given)
        assert not is_wrong
        torch.testing.assert_close(actual, expected, rtol=0, atol=0)
        for number in (wrong, -5, 2**31 - 1):
            changed = given[place].clone()
            changed.view(-1)[0] = number
            assert run([*given[:place], changed, *given[place + 1 :]])[-1], number


@pytest.mark.parametrize("pivots", [[1, 2, -3], [-1, 2, 3], [-1, 2, -3], [-2, -2, -3], [0, 2, 3]])
def test_negative_pivots_are_pairs(pivots: list[int]) -> None:
    _, given, _, _ = GRADIENTS["pivots"]
    for run in unchecked(torch.linalg.ldl_solve, *given):
        wrong = torch.tensor(pivots, dtype=torch.int32)
        assert run([given[0], wrong, given[2]])[-1]


def subgraph_of(target: Callable[..., object], *rest: object, **named: object) -> fx.GraphModule:
    """Returns a graph that calls another, which calls an operator with the table and an index."""
    inner, outer = fx.Graph(), fx.Graph()
    table, index = inner.placeholder("table"), inner.placeholder("index")
    arguments = {name: index if value is _INDEX else value for name, value in named.items()}
    call = inner.call_function(
        target, (table, *(index if value is _INDEX else value for value in rest)), arguments
    )
    inner.output((call,))
    root = torch.nn.Module()
    root.subgraph = fx.GraphModule(torch.nn.Module(), inner)
    given = (outer.placeholder("table"), outer.placeholder("index"))
    called = outer.call_module("subgraph", given)
    outer.output((outer.call_function(operator.getitem, (called, 0)),))
    return fx.GraphModule(root, outer)


@pytest.mark.parametrize("unchecked_only", [False, True])
def test_subgraphs_raise_for_what_torch_does_not_look_at(unchecked_only: bool) -> None:
    module = subgraph_of(_aten.segment_reduce.default, "sum", lengths=_INDEX, unsafe=True)
    checked = check_indices(module, {0}, unchecked_only=unchecked_only)
    good, bad = torch.tensor([1, 3]), torch.tensor([1, 2**40])
    assert torch.equal(checked(_TABLE, good)[0], module(_TABLE, good)[0])
    with pytest.raises(DataViolation, match="selects an element that does not exist"):
        checked(_TABLE, bad)
    # Where a dimension is mapped over nobody can look at it, and nothing is read elsewhere.
    (mapped,) = torch.vmap(checked, (None, 0))(_TABLE, torch.stack([good, bad]))
    assert torch.equal(mapped[0], module(_TABLE, good)[0])


def test_subgraphs_leave_the_rest_to_torch() -> None:
    module = subgraph_of(_aten.index_select.default, 0, _INDEX)
    assert check_indices(module, {0}) is module


@pytest.mark.filterwarnings("ignore:indexing with dtype torch.uint8")
@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8])
def test_masks_are_left_alone(dtype: torch.dtype) -> None:
    def look_up(t: torch.Tensor, mask: torch.Tensor, i: torch.Tensor) -> torch.Tensor:
        return t[None][mask, i]

    # The mask is of the first two dimensions, so that the index is of the third.
    mask, index = torch.tensor([[1, 0, 1, 0]], dtype=dtype), torch.tensor([2, -3])
    checked = check_indices(traced(look_up, mask, index), {0})
    for run in runners(checked):
        actual, is_wrong = run([mask, index])
        assert not is_wrong
        assert actual.tolist() == [2.0, 6.0]  # type: ignore[attr-defined]
        assert run([mask, torch.tensor([3, 0])])[-1]


def test_what_is_mapped_over_a_dimension_is_left_alone() -> None:
    graph = fx.Graph()
    table, index = graph.placeholder("table"), graph.placeholder("index")
    outside = graph.call_function(_aten.index.Tensor, (table, [index]))
    enter, add, remove, leave = (
        VMAP_STEPS[f"vmap::_{name}"]
        for name in (
            "vmap_increment_nesting",
            "add_batch_dim",
            "remove_batch_dim",
            "vmap_decrement_nesting",
        )
    )
    graph.call_function(enter, (3, "error"))
    row = graph.call_function(add, (index, 0, 1))
    looked_up = graph.call_function(_aten.index.Tensor, (table, [row]))
    inside = graph.call_function(remove, (looked_up, 1, 3, 0))
    graph.call_function(leave, ())
    graph.output((outside, inside))
    checked = check_indices(fx.GraphModule(torch.nn.Module(), graph), {0})
    index_value = torch.tensor([3, 0, 2])
    outside_value, inside_value, is_wrong = checked(_TABLE, index_value)
    assert not is_wrong
    assert outside_value.tolist() == inside_value.tolist() == _TABLE[index_value].tolist()


def test_what_torch_does_not_look_at_is_in_range_where_a_dimension_is_mapped_over() -> None:
    enter, add, remove, leave = (
        VMAP_STEPS[f"vmap::{name}"]
        for name in (
            "_vmap_increment_nesting",
            "_add_batch_dim",
            "_remove_batch_dim",
            "_vmap_decrement_nesting",
        )
    )
    graph = fx.Graph()
    rows = graph.placeholder("rows")
    graph.call_function(enter, (2, "error"))
    row = graph.call_function(add, (rows, 0, 1))
    compressed = graph.call_function(_aten._convert_indices_from_coo_to_csr.default, (row, 3))
    result = graph.call_function(remove, (compressed, 1, 2, 0))
    graph.call_function(leave, ())
    graph.output((result,))
    checked = check_indices(fx.GraphModule(torch.nn.Module(), graph), (), unchecked_only=True)
    (actual,) = checked(torch.tensor([[0, 2], [1, 2**40]]))
    assert actual.tolist() == [[0, 1, 1, 2], [0, 0, 1, 2]]


@pytest.mark.parametrize(
    "function",
    [
        lambda t, i: t[torch.arange(3)] + i.sum(),
        lambda t, i: t + i,
        lambda t, i: t[torch.zeros(3, dtype=torch.int64).fill_(1)] + i.sum(),
        lambda t, i: (t + i.sum())[torch.arange(3)],
        lambda t, i: (t + i.sum()).index_select(0, torch.arange(3)),
        lambda t, i: _aten.one_hot.default(i),
        lambda t, i: _aten.one_hot.default(torch.arange(3), 3) + i.sum(),
    ],
)
def test_what_depends_on_no_values_is_left_alone(function: Callable[..., object]) -> None:
    module = traced(function, _INDEX)
    assert check_indices(module, {0}) is module


@pytest.mark.parametrize("name", LOOKUPS)
def test_constant_indices_are_left_alone(name: str) -> None:
    module = traced(LOOKUPS[name][0], torch.zeros_like(_INDEX))
    assert check_indices(module, {0, 1}) is module


@pytest.mark.parametrize("count", [(), (-1,)])
def test_as_many_classes_as_are_given_are_left_alone(count: tuple[int, ...]) -> None:
    module = traced(lambda t, i: _aten.one_hot.default(i, *count), _INDEX)
    assert check_indices(module, {0}) is module


def test_the_number_of_classes_may_be_a_size() -> None:
    graph = fx.Graph()
    table, classes = graph.placeholder("table"), graph.placeholder("classes")
    rows = graph.call_function(_aten.sym_size.int, (table, 0))
    graph.output((graph.call_function(_aten.one_hot.default, (classes, rows)),))
    checked = check_indices(fx.GraphModule(torch.nn.Module(), graph), {0})
    for run in runners(checked):
        assert not run([torch.tensor([0, 3])])[-1]
        assert run([torch.tensor([0, 4])])[-1]


def test_positions_depend_on_no_values() -> None:
    graph = fx.Graph()
    table, tokens = graph.placeholder("table"), graph.placeholder("tokens")
    length = graph.call_function(_aten.sym_size.int, (tokens, 1))
    positions = graph.call_function(_aten.arange.default, (length,))
    graph.output((graph.call_function(_aten.embedding.default, (table, positions)),))
    module = fx.GraphModule(torch.nn.Module(), graph)
    assert check_indices(module, {0}) is module
