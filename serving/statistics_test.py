from __future__ import annotations

import time

from slipway.serving.errors import FieldViolation, InvalidRequestError, NotFoundError
from slipway.serving.statistics import ModelStatistics, StageTimes


def test_the_protocol_is_told_of_requests_rows_and_batches() -> None:
    statistics = ModelStatistics()
    before = time.time_ns() // 10**6
    times = StageTimes(input=0.25, compute=0.5, output=0.125)
    statistics.executed(6, [1.0, 2.0], [3.0, 5.0], times)
    statistics.executed(3, [1.0], [2.0], times)
    statistics.executed(6, [1.0], [2.0], times)
    statistics.failed(0.5, NotFoundError("no"))

    told = statistics.to_proto("m", 7)
    assert (told.name, told.version) == ("m", "7")
    assert before <= told.last_inference <= time.time_ns() // 10**6
    assert (told.inference_count, told.execution_count) == (15, 3)
    stages = told.inference_stats
    assert {
        field.name: (getattr(stages, field.name).count, getattr(stages, field.name).ns)
        for field in stages.DESCRIPTOR.fields
        if stages.HasField(field.name)
    } == {
        "success": (4, 12 * 10**9),
        "fail": (1, 5 * 10**8),
        "queue": (4, 5 * 10**9),
        "compute_input": (4, 10**9),
        "compute_infer": (4, 2 * 10**9),
        "compute_output": (4, 5 * 10**8),
    }
    assert [
        (
            size.batch_size,
            size.compute_input.count,
            size.compute_input.ns,
            size.compute_infer.ns,
            size.compute_output.ns,
        )
        for size in told.batch_stats
    ] == [
        (3, 1, 25 * 10**7, 5 * 10**8, 125 * 10**6),
        (6, 2, 5 * 10**8, 10**9, 25 * 10**7),
    ]
    assert statistics.batch_sizes() == {3: 1, 6: 2}


def test_a_moment_has_every_request_and_batch_in_it() -> None:
    statistics = ModelStatistics()
    statistics.executed(6, [1.0, 2.0], [3.0, 5.0], StageTimes(0.25, 0.5, 0.125))
    statistics.failed(0.5, NotFoundError("no"))
    moment = statistics.snapshot()
    statistics.executed(1, [1.0], [3.0], StageTimes())
    assert moment.codes == {"OK": 2, "NOT_FOUND": 1}
    assert moment.refusals == {"NOT_FOUND": 1}
    assert {name: (stage.count, stage.total) for name, stage in moment.stages.items()} == {
        "queue": (2, 3.0),
        "input": (2, 0.5),
        "compute": (2, 1.0),
        "output": (2, 0.25),
        "total": (2, 8.0),
    }
    assert (moment.batches.count, moment.batches.total) == (1, 6.0)


def test_a_refusal_counts_once_for_each_of_its_kinds() -> None:
    refusals = ModelStatistics().refusals
    violations = [FieldViolation("x", "no", reason) for reason in ("RANK", "RANK", "DTYPE")]
    refusals.add(InvalidRequestError("no", violations))
    assert refusals.codes == {"INVALID_ARGUMENT": 1}
    assert refusals.kinds == {"RANK": 1, "DTYPE": 1}


def test_sizes_of_batches_that_clients_choose_do_not_grow_for_ever() -> None:
    statistics = ModelStatistics()
    for rows in range(2000):
        statistics.executed(rows, [1.0], [1.0], StageTimes())
    assert len(statistics.batch_sizes()) == 1024
    assert statistics.to_proto("m", 1).execution_count == 2000
