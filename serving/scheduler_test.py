"""How requests are batched; an answer that is held up keeps an instance busy."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from slipway.proto import open_inference_pb2 as protocol
from slipway.tests.serving.programs import write_affine, write_places
from slipway.tests.serving.scheduling import (
    Answer,
    MakeBench,
    affine,
    benches,
    columns,
    finish,
    lookup,
    no_rows,
    sizes,
)


@pytest.fixture
def make_bench(tmp_path: Path) -> Iterator[MakeBench]:
    with benches(tmp_path) as make:
        yield make


@pytest.mark.parametrize(
    ("options", "expected"),
    [({}, {1: 1, 8: 1, 2: 1}), ({"max_batch_size": 4}, {1: 1, 4: 2, 2: 1})],
    ids=["by the contract", "by the options"],
)
def test_a_batch_grows_while_the_instance_is_busy_up_to_its_bound(
    make_bench: MakeBench, options: dict[str, int], expected: dict[int, int]
) -> None:
    bench = make_bench(**options)
    busy = bench.occupy()
    answers = [bench.submit(affine(value)) for value in range(10)]
    finish(bench, busy, answers)
    assert sizes(bench) == expected
    for value, answer in enumerate(answers):
        assert answer.outputs["y"].tolist() == [[value * 6, value * 22, value * 38]]


def test_the_stages_of_requests_take_all_of_their_time(make_bench: MakeBench) -> None:
    bench = make_bench()
    busy = bench.occupy()
    finish(bench, busy, [bench.submit(affine()) for _ in range(3)])
    stages = bench.model("affine").statistics.snapshot().stages
    assert [stage.count for stage in stages.values()] == [4] * len(stages)
    total = stages.pop("total").total
    assert math.isclose(sum(stage.total for stage in stages.values()), total, rel_tol=1e-6)


def test_a_batch_that_the_contract_does_not_bound_is_bounded_by_the_options(
    make_bench: MakeBench, tmp_path: Path
) -> None:
    write_affine(tmp_path / "affine" / "1", most_rows=None)
    bench = make_bench(max_batch_size=16)
    busy = bench.occupy()
    answers = [bench.submit(affine(value)) for value in range(20)]
    finish(bench, busy, answers)
    assert sizes(bench) == {1: 1, 16: 1, 4: 1}


def test_rows_along_another_axis_are_joined_and_split_too(make_bench: MakeBench) -> None:
    bench = make_bench()
    busy = bench.occupy("columns")
    answers = [bench.submit(columns(value, rows)) for value, rows in ((1, 1), (2, 3), (3, 2))]
    finish(bench, busy, answers, "columns")
    assert sizes(bench, "columns") == {1: 1, 6: 1}
    for answer, value, rows in zip(answers, (1, 2, 3), (1, 3, 2), strict=True):
        assert answer.outputs["y"].tolist() == [[value * n] * rows for n in (6, 22, 38)]


def test_other_symbols_must_agree(make_bench: MakeBench) -> None:
    bench = make_bench()
    busy = bench.occupy("lookup")
    answers = [bench.submit(lookup([[0] * length])) for length in (1, 2, 1, 2, 3)]
    finish(bench, busy, answers, "lookup")
    assert sizes(bench, "lookup") == {1: 2, 2: 2}
    assert [answer.outputs["kept"].shape[1] for answer in answers] == [1, 2, 1, 2, 3]


def test_the_most_urgent_run_first_and_equals_as_they_came(make_bench: MakeBench) -> None:
    bench = make_bench(max_batch_size=1)
    busy = bench.occupy()
    order: list[int] = []

    class Ordered(Answer):
        def respond(self, message: bytes) -> None:
            super().respond(message)
            order.append(int(self.outputs["y"][0, 0]) // 6)

    urgency = [0, 3, 1, 8, 3, 100]  # 0 is what requests have that say nothing: 8
    answers = [
        bench.submit(affine(value, priority=priority), Ordered())
        for value, priority in enumerate(urgency)
    ]
    finish(bench, busy, answers)
    assert order == [2, 1, 4, 0, 3, 5]


def test_as_many_batches_run_at_once_as_there_are_instances(make_bench: MakeBench) -> None:
    bench = make_bench(instances=2, max_batch_size=1)
    held = [bench.submit(affine(), Answer(is_held=True)) for _ in range(2)]
    bench.run()
    for answer in held:
        answer.wait()
    waiting = bench.submit(affine())
    bench.run()
    assert bench.model("affine").scheduler.queued[0] == 1
    held[1].release()
    waiting.wait()
    held[0].release()


def test_requests_without_rows_are_answered_and_others_after_them(make_bench: MakeBench) -> None:
    bench = make_bench()
    for message in (lookup(), lookup(), no_rows(3), lookup()):
        answer = bench.submit(message)
        bench.run("lookup")
        answer.wait()
        assert answer.outputs


def test_outputs_have_the_sizes_that_the_values_give_them(
    make_bench: MakeBench, tmp_path: Path
) -> None:
    write_places(tmp_path / "places" / "1")
    bench = make_bench()
    for values, expected in (
        ([0, 5, 0, 7], [[1], [3]]),
        ([0, 0, 0, 0], []),
        ([1, 1, 1, 0], [[0], [1], [2]]),
    ):
        request = protocol.ModelInferRequest(model_name="places")
        request.inputs.add(name="x", datatype="FP32", shape=[4])
        request.raw_input_contents.append(np.array(values, np.float32).tobytes())
        answer = bench.submit(request.SerializeToString())
        bench.run("places")
        answer.wait()
        assert answer.outputs["places"].tolist() == expected


def test_sixteen_sizes_of_batches_are_remembered(make_bench: MakeBench) -> None:
    bench = make_bench()
    for rows in (1, 2):
        for length in range(1, 17):
            answer = bench.submit(lookup([[0] * length] * rows))
            bench.run("lookup")
            answer.wait()
    recent = bench.model("lookup").executor.recent_bindings
    assert recent == [(2, length) for length in range(1, 17)]


def test_who_has_little_time_is_not_kept_waiting_for_others(make_bench: MakeBench) -> None:
    bench = make_bench(batch_delay=20.0)
    busy = bench.occupy()
    patient, hurried = bench.submit(affine()), bench.submit(affine(), expires_in=2.0)
    busy.release()
    hurried.wait()
    patient.wait()
    assert hurried.outputs and patient.outputs
    assert sizes(bench) == {1: 1, 2: 1}


def test_a_delay_lets_a_batch_fill(make_bench: MakeBench) -> None:
    bench = make_bench(batch_delay=3600.0)
    busy = bench.occupy()
    answers = [bench.submit(affine())]
    busy.release()  # the first waits for others now
    assert not answers[0].entered.wait(0.1)
    for _ in range(7):
        answers.append(bench.submit(affine()))
        bench.run()
    for answer in answers:
        answer.wait()
    assert sizes(bench) == {1: 1, 8: 1}


def test_no_request_waits_for_longer_than_the_delay_because_others_came(
    make_bench: MakeBench,
) -> None:
    bench = make_bench(batch_delay=3600.0)
    busy = bench.occupy()
    first = Answer()
    pending = bench.pending(affine(), first)
    pending.arrived -= 3600
    bench.model("affine").scheduler.submit(pending)
    second = bench.submit(affine())
    busy.release()
    first.wait()
    second.wait()


def test_there_is_no_delay_while_an_instance_is_idle(make_bench: MakeBench) -> None:
    bench = make_bench(batch_delay=3600.0, instances=2)
    busy = bench.occupy()
    waiting = bench.submit(affine())
    busy.release()
    waiting.wait()


def test_closing_waits_for_no_delay(make_bench: MakeBench) -> None:
    bench = make_bench(batch_delay=3600.0)
    busy = bench.occupy()
    waiting = bench.submit(affine())
    busy.release()
    assert not waiting.entered.wait(0.1)
    closing = threading.Thread(target=bench.repository.close)
    closing.start()
    waiting.wait()
    closing.join(60)
    assert not closing.is_alive()


def test_a_batch_that_cannot_grow_is_not_kept_waiting(make_bench: MakeBench) -> None:
    bench = make_bench(batch_delay=3600.0)
    busy = bench.occupy()
    first, second = bench.submit(affine(rows=5)), bench.submit(affine(rows=4))
    busy.release()
    first.wait()  # with another row there would be too many
    assert not second.entered.is_set()
    bench.submit(affine(rows=4))
    bench.run()
    second.wait()
    assert sizes(bench) == {1: 1, 5: 1, 8: 1}
