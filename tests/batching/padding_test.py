"""Requests of nearly the same length share a batch where the program says what to pad with, and
each caller gets what it would have got alone.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from slipway.program import Method, Program, load
from slipway.program.batching import Padding
from slipway.proto import open_inference_pb2 as protocol
from slipway.serving.model import Environment
from slipway.serving.scheduler import SchedulingOptions
from slipway.tests.serving.programs import LOOKUP_TABLE, write_lookup, write_peaks
from slipway.tests.serving.scheduling import Answer, Bench, lookup

TABLE = LOOKUP_TABLE.numpy()


@pytest.fixture(scope="module")
def bench() -> Bench:
    return make_bench()


@pytest.fixture
def new_bench() -> Bench:
    """Knows nothing yet of what batches cost."""
    return make_bench()


def make_bench() -> Bench:
    """Serves lookup with tokens padded with 2, a token with an embedding, and masks with true."""
    root = Path(tempfile.mkdtemp())
    write_lookup(root / "plain")
    plain = load(root / "plain")
    batching = plain.methods["forward"].contract.batching
    assert batching is not None
    padding = Padding("seq", {"tokens": 2, "mask": True})
    contract = dataclasses.replace(
        plain.methods["forward"].contract,
        batching=dataclasses.replace(batching, paddings=(padding,)),
    )
    Program({"forward": contract}, plain.graphs, plain.weights, device=plain.device).save(
        root / "models" / "lookup" / "1"
    )
    # With a delay, threads of its own run all, and one of them can be held up.
    options = SchedulingOptions(max_batch_size=4, batch_delay=1e-9)
    return Bench(root / "models", Environment(options))


def run_together(bench: Bench, requests: list[list[list[int]]]) -> list[Answer]:
    """Returns the answers to requests that all wait when the instance becomes free."""
    first = bench.occupy("lookup")
    answers = [bench.submit(lookup(tokens)) for tokens in requests]
    first.release()
    bench.run("lookup")
    for answer in answers:
        answer.wait()
    return answers


@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_everybody_gets_what_they_would_get_alone(bench: Bench, data: st.DataObject) -> None:
    requests = []
    for _ in range(data.draw(st.integers(1, 8))):
        rows, length = data.draw(st.integers(0, 3)), data.draw(st.integers(1, 16))
        row = st.lists(st.integers(0, 2), min_size=length, max_size=length)
        requests.append(data.draw(st.lists(row, min_size=rows, max_size=rows)) or [[]] * rows)
    requests = [tokens for tokens in requests if tokens]
    for tokens, answer in zip(requests, run_together(bench, requests), strict=True):
        assert answer.error is None
        values = np.array(tokens)
        np.testing.assert_array_equal(answer.outputs["embedded"], TABLE[values])
        np.testing.assert_array_equal(answer.outputs["kept"], values != 1)


def test_they_are_padded_with_the_values_of_the_program(
    new_bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Method.run
    given: list[list[torch.Tensor]] = []

    def noted(self: Method, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        given.append(list(tensors))
        return run(self, tensors)

    monkeypatch.setattr(Method, "run", noted)
    run_together(new_bench, [[[0] * 15], [[1] * 16]])
    tokens, mask = given[-1]
    assert tokens[:, 14:].tolist() == [[0, 2], [1, 1]]
    assert mask[:, 14:].tolist() == [[False, True], [True, True]]


def test_at_first_lengths_within_a_quarter_share_a_batch(new_bench: Bench) -> None:
    statistics = new_bench.model("lookup").statistics
    before = statistics.batch_sizes().get(3, 0)
    run_together(new_bench, [[[0] * 15], [[1] * 16], [[2] * 15]])
    assert statistics.batch_sizes()[3] == before + 1


def test_at_first_lengths_that_differ_by_more_do_not(new_bench: Bench) -> None:
    statistics = new_bench.model("lookup").statistics
    before = dict(statistics.batch_sizes())
    run_together(new_bench, [[[0] * 4], [[1] * 16]])
    after = statistics.batch_sizes()
    assert after.get(2, 0) == before.get(2, 0)
    assert after[1] == before.get(1, 0) + 3


def test_each_dimension_of_an_input_is_padded_with_its_own_value(tmp_path: Path) -> None:
    write_peaks(tmp_path / "peaks" / "1")
    bench = Bench(tmp_path, Environment(SchedulingOptions(max_batch_size=4, batch_delay=1e-9)))
    generator = np.random.default_rng(0)
    shapes = [(1, 16, 16), (2, 15, 16), (1, 16, 15), (1, 13, 14), (1, 14, 14)]
    given = [generator.standard_normal(shape).astype(np.float32) for shape in shapes]
    first = bench.submit(peaks(given[0]), Answer(is_held=True))
    bench.run("peaks")
    first.wait()
    answers = [bench.submit(peaks(x)) for x in given[1:]]
    first.release()
    bench.run("peaks")
    for answer, x in zip(answers, given[1:], strict=True):
        answer.wait()
        np.testing.assert_allclose(answer.outputs["y"], x.max(2).sum(1), rtol=1e-5)
    assert set(bench.model("peaks").statistics.batch_sizes()) != {1, 2}  # some were joined
    bench.close()


def peaks(x: np.ndarray[Any, Any]) -> bytes:
    request = protocol.ModelInferRequest(model_name="peaks", raw_input_contents=[x.tobytes()])
    request.inputs.add(name="x", datatype="FP32", shape=x.shape)
    return request.SerializeToString()


def test_lengths_do_not_share_a_batch_once_padding_is_known_to_take_longer(
    new_bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Method.run

    def slow(self: Method, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        time.sleep(2e-3 * tensors[0].numel())
        return run(self, tensors)

    monkeypatch.setattr(Method, "run", slow)
    for length in (1, 16) * 6:
        answer = new_bench.submit(lookup([[0] * length]))
        new_bench.run("lookup")
        answer.wait()
    run_together(new_bench, [[[0] * 15], [[1] * 16], [[2] * 15]])
    sizes = new_bench.model("lookup").statistics.batch_sizes()
    assert sizes.keys() == {1, 2}
