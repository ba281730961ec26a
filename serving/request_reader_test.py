from __future__ import annotations

import tempfile
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from slipway.proto import open_inference_pb2 as protocol
from slipway.serving.errors import (
    ContractError,
    InvalidRequestError,
    NotFoundError,
    ResourceExhaustedError,
    ServingError,
    UnavailableError,
    UnsupportedError,
)
from slipway.serving.host import Host
from slipway.serving.loader import Loader
from slipway.serving.model import Environment
from slipway.serving.plan import InferenceRequest
from slipway.serving.processors import Processors
from slipway.serving.repository import Repository
from slipway.serving.request_reader import DEFAULT_PRIORITY, RequestReader
from slipway.serving.routing import Route
from slipway.serving.shared_memory import SharedMemoryRegions
from slipway.tests.serving.programs import write_affine, write_lookup

LOADER = Loader(Host(Processors(1)), Environment())


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Repository]:
    root: Path = tmp_path_factory.mktemp("repository")
    write_affine(root / "affine" / "1")
    write_lookup(root / "lookup" / "1")
    made = Repository(root)
    made.update(LOADER)
    yield made
    made.close()


@pytest.fixture
def reader(repository: Repository) -> RequestReader:
    return RequestReader(repository)


def good() -> protocol.ModelInferRequest:
    request = protocol.ModelInferRequest(model_name="lookup", id="7")
    request.inputs.add(name="mask", datatype="BOOL", shape=[2, 3])
    request.inputs.add(name="tokens", datatype="INT64", shape=[2, 3])
    request.raw_input_contents.extend([bytes(6), bytes(48)])
    return request


def refusal(reader: RequestReader, request: protocol.ModelInferRequest) -> ServingError:
    """Returns the refusal, which is the same at the second time."""
    errors = []
    for _ in range(2):
        with pytest.raises(ServingError) as caught:
            reader.read(request.SerializeToString())
        errors.append(caught.value)
    assert str(errors[0]) == str(errors[1])
    assert errors[0].violations == errors[1].violations
    return errors[0]


def facts(request: InferenceRequest) -> dict[str, Any]:
    plan = request.plan
    return {
        "contents": [content.tobytes() for content in request.read_contents()],
        "shapes": [header.shape for header in plan.inputs],
        "id": request.identifier,
        "rows": plan.rows,
        "row_size": plan.row_size,
        "group": plan.group,
        "binding": plan.binding,
        "outputs": plan.outputs,
        "digest": plan.wants_digest,
        "priority": plan.priority,
        "timeout": plan.timeout,
    }


def test_a_request_is_read_in_the_contracts_order(reader: RequestReader) -> None:
    request = good()
    request.raw_input_contents[0] = b"\1" * 6
    message = request.SerializeToString()
    result = reader.read(message)
    assert facts(result) == {
        "contents": [bytes(48), b"\1" * 6],
        "shapes": [(2, 3), (2, 3)],
        "id": b"7",
        "rows": 2,
        "row_size": 27,
        "group": (3,),
        "binding": (2, 3),
        "outputs": (0, 1),
        "digest": False,
        "priority": DEFAULT_PRIORITY,
        "timeout": 0.0,
    }
    assert result.size == len(message)


def test_the_same_header_is_read_once_and_gives_the_same(reader: RequestReader) -> None:
    request = good()
    request.parameters["priority"].int64_param = 3
    request.parameters["timeout"].int64_param = 1500
    request.outputs.add(name="kept")
    first = reader.read(request.SerializeToString())
    request.id = "other"
    request.raw_input_contents[1] = b"\1" * 48
    second = reader.read(request.SerializeToString())
    assert second.plan is first.plan
    assert facts(second) == facts(first) | {"id": b"other", "contents": [b"\1" * 48, bytes(6)]}
    assert (second.plan.priority, second.plan.timeout, second.plan.outputs) == (3, 0.0015, (1,))


@given(data=st.data())
def test_whatever_was_read_before_the_verdict_is_that_of_a_new_reader(
    repository: Repository, data: st.DataObject
) -> None:
    reader = RequestReader(repository)
    for _ in range(4):
        request = good()
        request.model_name = data.draw(st.sampled_from(["lookup", "lookup", "affine", "no"]))
        request.id = data.draw(st.sampled_from(["", "1", "é"]))
        for item in request.inputs:
            item.shape[:] = data.draw(st.sampled_from([(2, 3), (2, 3), (3, 2), (9, 9), (2, -1)]))
        contents = st.sampled_from([bytes(6), bytes(48), b"\2" * 6, bytes(5)])
        del request.raw_input_contents[:]
        request.raw_input_contents.extend(data.draw(st.lists(contents, max_size=3)))
        if data.draw(st.booleans()):
            request.inputs[1].contents.int64_contents.extend([1] * 6)
        message = request.SerializeToString()

        def verdict(reader: RequestReader, message: bytes = message) -> Any:
            try:
                return facts(reader.read(message))
            except ServingError as error:
                return type(error), str(error), error.violations

        assert verdict(reader) == verdict(RequestReader(repository))


def test_what_a_name_means_is_asked_again_when_models_have_changed(tmp_path: Path) -> None:
    write_affine(tmp_path / "affine" / "1")
    repository = Repository(tmp_path)
    reader = RequestReader(repository)
    request = protocol.ModelInferRequest(model_name="affine", raw_input_contents=[bytes(16)])
    request.inputs.add(name="x", datatype="FP32", shape=[1, 4])
    message = request.SerializeToString()
    with pytest.raises(UnavailableError):
        reader.read(message)
    repository.update(LOADER)
    plan = reader.read(message).plan
    assert reader.read(message).plan is plan
    write_affine(tmp_path / "affine" / "2")
    repository.update(LOADER)
    assert reader.read(message).plan.model.version == 2
    repository.unwant("affine")
    repository.update(LOADER, name="affine")
    with pytest.raises(UnavailableError, match="it is unloaded"):
        reader.read(message)
    repository.close()


def test_ids_are_text(reader: RequestReader) -> None:
    message = good().SerializeToString()
    identifier = "7 é 語".encode()
    text = message + b"\x1a" + bytes([len(identifier)]) + identifier
    assert reader.read(text).identifier == identifier
    for broken in (b"\xff", b"\xc3", b"\xed\xa0\x80"):
        with pytest.raises(InvalidRequestError, match="bytes, is no"):
            reader.read(message + b"\x1a" + bytes([len(broken)]) + broken)


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("was_read_before", [True, False])
def test_sizes_must_be_what_the_shapes_take(
    reader: RequestReader, index: int, was_read_before: bool
) -> None:
    request = good()
    if was_read_before:
        reader.read(request.SerializeToString())
    request.raw_input_contents[index] += b"\0"
    error = refusal(reader, request)
    assert "input byte size mismatch" in str(error)
    assert error.violations[0].field == f"raw_input_contents[{index}]"


@pytest.mark.parametrize("was_read_before", [True, False])
def test_booleans_are_zero_or_one(reader: RequestReader, was_read_before: bool) -> None:
    request = good()
    if was_read_before:
        reader.read(request.SerializeToString())
    request.raw_input_contents[0] = b"\0\1\2\0\0\0"
    assert "element 2 is 2" in str(refusal(reader, request))


@pytest.mark.parametrize(("size", "count"), [(3_900, 4_000), (100_000, 200)])
def test_what_is_kept_of_headers_has_a_bound(reader: RequestReader, size: int, count: int) -> None:
    tracemalloc.start()
    try:
        for number in range(count):
            request = good()
            request.parameters["hint"].string_param = f"{number:0{size}}"
            reader.read(request.SerializeToString())
        # All would be 16 MB at least.
        assert tracemalloc.get_traced_memory()[0] < 10e6
    finally:
        tracemalloc.stop()


def test_what_is_kept_of_answers_has_a_bound(reader: RequestReader) -> None:
    request = reader.read(good().SerializeToString())
    outputs = len(request.plan.outputs)
    tracemalloc.start()
    try:
        for rows in range(20_000):
            request.response([(rows, 3)] * outputs, [memoryview(b"")] * outputs)
        # All would be several megabytes.
        assert tracemalloc.get_traced_memory()[0] < 1e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("entries", [1, 3])
def test_raw_entries_must_be_as_many_as_inputs(reader: RequestReader, entries: int) -> None:
    request = good()
    reader.read(request.SerializeToString())
    del request.raw_input_contents[:]
    request.raw_input_contents.extend([bytes(6)] * entries)
    counted = "1 entry" if entries == 1 else f"{entries} entries"
    assert f"raw_input_contents has {counted} for 2 inputs" in str(refusal(reader, request))


def test_far_too_many_inputs_and_outputs_are_one_violation_each(reader: RequestReader) -> None:
    request = good()
    for index in range(5000):
        request.inputs.add(name=f"x{index}", datatype="FP32", shape=[1])
    error = refusal(reader, request)
    assert [(item.field, item.reason) for item in error.violations] == [("inputs", "UNKNOWN_INPUT")]
    assert "refused the request: it has 5002 inputs, and the model has 2" in str(error)
    request = good()
    for index in range(5000):
        request.outputs.add(name=f"x{index}")
    assert "it has 5000 outputs, and the model has 2" in str(refusal(reader, request))


def test_raw_and_typed_contents_must_not_be_mixed(reader: RequestReader) -> None:
    request = good()
    request.inputs[1].contents.int64_contents.append(1)
    text = str(refusal(reader, request))
    assert "contents field must not be specified when using raw_input_contents for 'tokens'" in text


def test_typed_contents_are_read_each_time(reader: RequestReader) -> None:
    request = good()
    del request.raw_input_contents[:]
    request.inputs[0].contents.bool_contents.extend([True] * 6)
    for value in (1, 2, 2):
        request.inputs[1].contents.int64_contents[:] = [value] * 6
        tokens, mask = reader.read(request.SerializeToString()).read_contents()
        assert np.frombuffer(tokens, np.int64).tolist() == [value] * 6
        assert mask.tobytes() == b"\1" * 6


@pytest.fixture
def region() -> Iterator[SharedMemoryRegions]:
    """A region of 64 bytes that is called r."""
    with tempfile.NamedTemporaryFile(dir="/dev/shm") as file:
        file.write(bytes(64))
        file.flush()
        regions = SharedMemoryRegions()
        regions.register("r", Path(file.name).name, 0, 64)
        yield regions


def test_what_lies_in_a_region_counts_and_what_does_not_is_checked(
    repository: Repository, region: SharedMemoryRegions
) -> None:
    request = good()
    tokens = request.inputs[1].parameters
    tokens["shared_memory_region"].string_param = "r"
    tokens["shared_memory_byte_size"].int64_param = 48
    del request.raw_input_contents[1:]
    message = request.SerializeToString()
    reader = RequestReader(repository, region)
    assert reader.read(message).size == len(message) + 48
    request.raw_input_contents[0] = bytes(5)
    assert "shape [2, 3] of BOOL takes 6 bytes, got 5" in str(refusal(reader, request))


@pytest.mark.parametrize("raw", [True, False], ids=["others raw", "others typed"])
def test_contents_of_what_lies_in_a_region_are_refused(
    repository: Repository, region: SharedMemoryRegions, raw: bool
) -> None:
    """Also empty ones: whoever sets both does not know which of them counts."""
    request = good()
    tokens = request.inputs[1]
    tokens.parameters["shared_memory_region"].string_param = "r"
    tokens.parameters["shared_memory_byte_size"].int64_param = 48
    tokens.contents.SetInParent()
    del request.raw_input_contents[1:]
    if not raw:
        del request.raw_input_contents[:]
        request.inputs[0].contents.bool_contents.extend([True] * 6)
    error = refusal(RequestReader(repository, region), request)
    assert [(item.field, item.reason) for item in error.violations] == [
        ("inputs[tokens].contents", "CONTENTS")
    ]
    assert "for 'tokens', whose elements are in shared memory: send one of the two" in str(error)


def test_requests_with_one_header_go_to_the_versions_of_their_ids(tmp_path: Path) -> None:
    for version in (1, 2):
        write_affine(tmp_path / "affine" / str(version))
    route = Route(labels={"canary": 1}, shares={"canary": 50.0})
    repository = Repository(tmp_path, routes={"affine": route})
    repository.update(LOADER)
    reader = RequestReader(repository)
    request = protocol.ModelInferRequest(model_name="affine")
    request.inputs.add(name="x", datatype="FP32", shape=[1, 4])
    request.raw_input_contents.append(bytes(16))
    met = set()
    for request.id in map(str, range(50)):
        request.model_version = ""
        version = reader.read(request.SerializeToString()).plan.model.version
        assert version == repository.find("affine", "", request.id.encode()).version
        met.add(version)
        request.model_version = "2"
        assert reader.read(request.SerializeToString()).plan.model.version == 2
    assert met == {1, 2}
    repository.close()


def edit(request: protocol.ModelInferRequest, name: str) -> None:
    request.parameters[name].string_param = "x"


@pytest.mark.parametrize(
    ("change", "kind", "text"),
    [
        (lambda request: setattr(request, "model_name", "no"), NotFoundError, "'no' is not found"),
        (
            lambda request: request.inputs[0].shape.__setitem__(0, 5),
            ContractError,
            "'mask' dimension 0",
        ),
        (lambda request: edit(request, "priority"), InvalidRequestError, "invalid value type for"),
        (lambda request: edit(request, "timeout"), InvalidRequestError, "invalid value type for"),
        (lambda request: edit(request, "slipway_x"), InvalidRequestError, "unknown parameter"),
        (
            lambda request: request.outputs.add(name="no"),
            InvalidRequestError,
            "unexpected inference output 'no'",
        ),
        (
            lambda request: request.inputs[0].parameters["shared_memory_region"].SetInParent(),
            UnsupportedError,
            "Client shared memory is disabled",
        ),
    ],
)
def test_a_refusal_is_no_other_the_second_time(
    reader: RequestReader,
    change: Callable[[protocol.ModelInferRequest], Any],
    kind: type[ServingError],
    text: str,
) -> None:
    request = good()
    change(request)
    error = refusal(reader, request)
    assert type(error) is kind
    assert text in str(error)


@pytest.mark.parametrize("kind", ["int64_param", "uint64_param"])
def test_urgency_and_patience_are_integers_of_either_kind(reader: RequestReader, kind: str) -> None:
    request = good()
    setattr(request.parameters["priority"], kind, 3)
    setattr(request.parameters["timeout"], kind, 1500)
    plan = reader.read(request.SerializeToString()).plan
    assert (plan.priority, plan.timeout) == (3, 0.0015)


def test_negative_urgency_and_patience_are_refused_together(reader: RequestReader) -> None:
    request = good()
    request.parameters["priority"].int64_param = -1
    request.parameters["timeout"].int64_param = -2
    error = refusal(reader, request)
    assert {violation.field for violation in error.violations} == {
        "parameters[priority]",
        "parameters[timeout]",
    }
    assert "'priority' is -1; it must not be negative" in str(error)
    assert "'timeout' is -2; it must not be negative" in str(error)


def test_options_of_other_servers_are_hints(reader: RequestReader) -> None:
    request = good()
    request.parameters["sequence_id"].int64_param = 1
    assert reader.read(request.SerializeToString()).plan.priority == DEFAULT_PRIORITY


def test_it_tells_whose_request_was_refused(repository: Repository, reader: RequestReader) -> None:
    model = repository.find("lookup", "")
    request = good()
    request.id = "one"
    reader.read(request.SerializeToString())
    assert (reader.model, reader.identifier) == (model, b"one")
    request.raw_input_contents[0] = b""
    refusal(reader, request)
    assert reader.model is model
    request.inputs[0].name = "z"
    refusal(reader, request)
    assert reader.model is model
    request.model_name = "no"
    request.id = "two"
    refusal(reader, request)
    assert reader.model is None
    assert reader.identifier == b"two"


def test_a_response_is_bounded_with_its_id_and_its_header(repository: Repository) -> None:
    request = protocol.ModelInferRequest(model_name="affine", id="i" * 100)
    request.inputs.add(name="x", datatype="FP32", shape=[1, 4])
    request.raw_input_contents.append(bytes(16))
    message = request.SerializeToString()
    results = [(1, 3)], [memoryview(bytes(12))]
    size = len(RequestReader(repository).read(message).response(*results))
    exact = RequestReader(repository, max_message_bytes=size).read(message)
    assert len(exact.response(*results)) == size
    for limit, stated in ((size - 1, size), (11, 12)):
        bounded = RequestReader(repository, max_message_bytes=limit).read(message)
        with pytest.raises(
            ResourceExhaustedError,
            match=f"byte size {stated} which exceeds gRPC's byte size limit {limit};",
        ):
            bounded.response(*results)
