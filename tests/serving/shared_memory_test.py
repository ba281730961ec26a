"""System shared memory, as tritonclient registers and uses it."""

from __future__ import annotations

import itertools
import os
import resource
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc import InferenceServerClient, InferInput, InferRequestedOutput, service_pb2
from tritonclient.utils import InferenceServerException

from slipway.tests.serving.programs import AFFINE_WEIGHT, LOOKUP_TABLE, write_affine, write_lookup
from slipway.tests.serving.requests import call, infer_request, tensor, zeros
from slipway.tests.serving.server_process import ServerProcess

INVALID = grpc.StatusCode.INVALID_ARGUMENT
NOT_FOUND = grpc.StatusCode.NOT_FOUND
NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    root = tmp_path_factory.mktemp("repository")
    write_affine(root / "affine" / "1")
    write_lookup(root / "lookup" / "1")
    with ServerProcess(root, ["--allow-client-shared-memory"]) as process:
        yield process


@pytest.fixture(autouse=True)
def nothing_stays_registered(client: InferenceServerClient) -> Iterator[None]:
    yield
    client.unregister_system_shared_memory()
    assert not client.get_system_shared_memory_status().regions


@pytest.fixture
def make_file() -> Iterator[Callable[[int], str]]:
    """Makes files of so many bytes in /dev/shm, and returns their names."""
    paths: list[Path] = []

    def make(size: int) -> str:
        paths.append(Path(f"/dev/shm/slipway_test_{os.getpid()}_{next(NUMBERS)}"))
        paths[-1].write_bytes(bytes(range(256)) * (size // 256 + 1))
        os.truncate(paths[-1], size)
        return paths[-1].name

    yield make
    for path in paths:
        path.unlink(missing_ok=True)


def refused(action: Callable[[], Any]) -> tuple[str, str]:
    with pytest.raises(InferenceServerException) as caught:
        action()
    return caught.value.status(), caught.value.message()


def test_inputs_and_outputs_in_regions_are_those_of_the_model(
    client: InferenceServerClient,
) -> None:
    x = np.random.default_rng(0).standard_normal((3, 4), np.float32)
    # What `shm_open` makes, with the mode that tritonclient gives it.
    regions = {name: SharedMemory(create=True, size=64) for name in ("in", "out")}
    try:
        files = {name: Path("/dev/shm", region.name) for name, region in regions.items()}
        for name, region in regions.items():
            client.register_system_shared_memory(name, f"/{region.name}", 64)
        given = InferInput("x", [3, 4], "FP32")
        given.set_shared_memory("in", 48, offset=16)
        wanted = InferRequestedOutput("y")
        wanted.set_shared_memory("out", 40, offset=8)
        for scale in (1, 2):  # the second time the header is known
            files["in"].write_bytes(bytes(16) + (x * scale).tobytes())
            result = client.infer("affine", [given], outputs=[wanted], request_id=str(scale))
            y = np.frombuffer(files["out"].read_bytes()[8:44], np.float32).reshape(3, 3)
            np.testing.assert_allclose(y, scale * x @ AFFINE_WEIGHT.numpy().T, rtol=1e-5)
            response = result.get_response()
            assert list(response.raw_output_contents) == [b""]
            (output,) = response.outputs
            assert (output.name, list(output.shape)) == ("y", [3, 3])
            assert output.parameters["shared_memory_region"].string_param == "out"
            assert output.parameters["shared_memory_offset"].int64_param == 8
            assert output.parameters["shared_memory_byte_size"].int64_param == 36
    finally:
        for region in regions.values():
            region.close()
            region.unlink()


@pytest.mark.parametrize("in_region", ["tokens", "mask"])
def test_raw_contents_skip_what_lies_in_regions(
    client: InferenceServerClient, make_file: Callable[[int], str], in_region: str
) -> None:
    tokens, mask = np.array([[2, 0, 1]]), np.array([[True, False, True]])
    values = {"tokens": (tokens, "INT64"), "mask": (mask, "BOOL")}
    name = make_file(24)
    client.register_system_shared_memory("r", name, 24)
    value, _ = values[in_region]
    Path("/dev/shm", name).write_bytes(value.tobytes().ljust(24, b"\0"))
    for order in (["tokens", "mask"], ["mask", "tokens"]):
        inputs = []
        for item in order:
            array, datatype = values[item]
            if item == in_region:
                inputs.append(InferInput(item, array.shape, datatype))
                inputs[-1].set_shared_memory("r", array.nbytes)
            else:
                inputs.append(tensor(item, array, datatype))
        kept, embedded = InferRequestedOutput("kept"), InferRequestedOutput("embedded")
        result = client.infer("lookup", inputs, outputs=[kept, embedded])
        np.testing.assert_array_equal(result.as_numpy("kept"), ~mask)
        np.testing.assert_array_equal(result.as_numpy("embedded"), LOOKUP_TABLE.numpy()[tokens])


def test_an_output_in_a_region_keeps_its_place_among_the_others(
    client: InferenceServerClient, make_file: Callable[[int], str]
) -> None:
    name = make_file(64)
    client.register_system_shared_memory("r", name, 64)
    embedded, kept = InferRequestedOutput("embedded"), InferRequestedOutput("kept")
    embedded.set_shared_memory("r", 64)
    inputs = [
        tensor("tokens", np.array([[1]]), "INT64"),
        tensor("mask", np.array([[False]]), "BOOL"),
    ]
    response = client.infer("lookup", inputs, outputs=[embedded, kept]).get_response()
    assert list(response.raw_output_contents) == [b"", b"\1"]
    written = Path("/dev/shm", name).read_bytes()
    assert written[:8] == LOOKUP_TABLE[1].numpy().tobytes()
    assert written[8:] == bytes(range(8, 64))


def test_typed_contents_go_with_regions(
    channel: grpc.Channel, client: InferenceServerClient, make_file: Callable[[int], str]
) -> None:
    name = make_file(2)
    Path("/dev/shm", name).write_bytes(b"\0\1")
    client.register_system_shared_memory("r", name, 2)
    request = service_pb2.ModelInferRequest(model_name="lookup")
    mask = request.inputs.add(name="mask", datatype="BOOL", shape=[1, 2])
    mask.parameters["shared_memory_region"].string_param = "r"
    mask.parameters["shared_memory_byte_size"].int64_param = 2
    tokens = request.inputs.add(name="tokens", datatype="INT64", shape=[1, 2])
    for values in ([0, 1], [2, 0]):
        tokens.contents.int64_contents[:] = values
        embedded, kept = call(channel, "ModelInfer", request).raw_output_contents
        assert embedded == LOOKUP_TABLE.numpy()[values].tobytes()
        assert kept == b"\1\0"


def test_status_lists_what_is_registered(
    client: InferenceServerClient, make_file: Callable[[int], str]
) -> None:
    names = [make_file(100), make_file(100)]
    client.register_system_shared_memory("a", names[0], 60, offset=40)
    client.register_system_shared_memory("b", f"/{names[1]}", 1)
    regions = client.get_system_shared_memory_status().regions
    assert {
        name: (region.name, region.key, region.offset, region.byte_size)
        for name, region in regions.items()
    } == {"a": ("a", names[0], 40, 60), "b": ("b", f"/{names[1]}", 0, 1)}
    assert list(client.get_system_shared_memory_status("b").regions) == ["b"]
    client.unregister_system_shared_memory("a")
    client.unregister_system_shared_memory("a")
    assert list(client.get_system_shared_memory_status().regions) == ["b"]
    status, text = refused(lambda: client.get_system_shared_memory_status("a"))
    assert status == str(NOT_FOUND)
    assert "Unable to find shared memory region: 'a'" in text


def test_it_is_an_extension_of_this_server(client: InferenceServerClient) -> None:
    assert "system_shared_memory" in client.get_server_metadata().extensions


def test_a_name_is_registered_once(
    client: InferenceServerClient, make_file: Callable[[int], str]
) -> None:
    name = make_file(8)
    client.register_system_shared_memory("r", name, 8)
    status, text = refused(lambda: client.register_system_shared_memory("r", name, 4))
    assert status == str(grpc.StatusCode.ALREADY_EXISTS)
    assert "'r' already in manager" in text


@pytest.mark.parametrize(
    "key", ["", "/", "..", "/..", ".", "../etc/passwd", "/../etc/passwd", "a/b", "//a", "a\0b"]
)
def test_only_plain_names_are_opened(client: InferenceServerClient, key: str) -> None:
    status, text = refused(lambda: client.register_system_shared_memory("r", key, 1))
    assert status == str(INVALID)
    assert "is not the name of a file directly in /dev/shm" in text


def test_what_is_no_file_of_the_servers_user_is_not_opened(
    client: InferenceServerClient, make_file: Callable[[int], str]
) -> None:
    name = make_file(8)
    status, text = refused(lambda: client.register_system_shared_memory("r", f"{name}_not", 8))
    assert status == str(INVALID)
    assert "No such file or directory" in text
    link, pipe, folder = (Path(f"/dev/shm/{name}_{kind}") for kind in ("link", "pipe", "folder"))
    try:
        link.symlink_to(name)
        os.mkfifo(pipe)
        folder.mkdir()
        for path in (link, pipe, folder):
            status, text = refused(partial(client.register_system_shared_memory, "r", path.name, 0))
            assert status == str(INVALID)
            assert "Unable to open shared memory region" in text
    finally:
        link.unlink()
        pipe.unlink()
        folder.rmdir()


@pytest.mark.parametrize(
    ("offset", "size"), [(0, 9), (8, 1), (9, 1), (0, 0), (2**64 - 1, 2), (1, 2**64 - 1)]
)
def test_a_region_lies_within_its_file(
    client: InferenceServerClient, make_file: Callable[[int], str], offset: int, size: int
) -> None:
    name = make_file(8)
    status, text = refused(
        lambda: client.register_system_shared_memory("r", name, size, offset=offset)
    )
    assert status == str(INVALID)
    assert "which has 8 bytes" in text


Edit = Callable[[Any], None]


def parameter(owner: str, name: str, **value: object) -> Edit:
    def edit(request: Any) -> None:
        (item,) = getattr(request, owner)
        item.parameters[name].CopyFrom(service_pb2.InferParameter(**value))

    return edit


@pytest.mark.parametrize(
    ("edit", "code", "text"),
    [
        (
            parameter("inputs", "shared_memory_region", string_param="no"),
            NOT_FOUND,
            "Unable to find shared memory region: 'no'",
        ),
        (
            parameter("outputs", "shared_memory_region", string_param="no"),
            NOT_FOUND,
            "Unable to find shared memory region: 'no'",
        ),
        (
            parameter("inputs", "shared_memory_offset", int64_param=1),
            INVALID,
            "1 + 16 is more than its 16 bytes",
        ),
        (
            parameter("inputs", "shared_memory_offset", int64_param=-1),
            INVALID,
            "must not be negative",
        ),
        (
            parameter("outputs", "shared_memory_byte_size", int64_param=2**62),
            INVALID,
            "is more than its 16 bytes",
        ),
        (
            parameter("inputs", "shared_memory_byte_size", int64_param=12),
            INVALID,
            "input byte size mismatch for input 'x'",
        ),
        (
            parameter("outputs", "shared_memory_byte_size", int64_param=11),
            INVALID,
            "should be at least 12 bytes to hold the results",
        ),
        (
            parameter("inputs", "shared_memory_byte_size", string_param="16"),
            INVALID,
            "invalid value type for 'shared_memory_byte_size' parameter for input 'x'",
        ),
        (
            lambda request: request.inputs[0].parameters.pop("shared_memory_byte_size"),
            INVALID,
            "input 'x' lies in shared memory and needs 'shared_memory_byte_size'",
        ),
        (
            lambda request: request.raw_input_contents.append(bytes(16)),
            INVALID,
            "raw_input_contents has 1 entry for 0 inputs outside of shared memory",
        ),
    ],
)
def test_a_place_outside_a_region_is_refused(
    channel: grpc.Channel,
    client: InferenceServerClient,
    make_file: Callable[[int], str],
    edit: Edit,
    code: grpc.StatusCode,
    text: str,
) -> None:
    # The region is smaller than its file.
    client.register_system_shared_memory("r", make_file(64), 16)
    request = service_pb2.ModelInferRequest(model_name="affine")
    for item in (
        request.inputs.add(name="x", datatype="FP32", shape=[1, 4]),
        request.outputs.add(name="y"),
    ):
        item.parameters["shared_memory_region"].string_param = "r"
        item.parameters["shared_memory_byte_size"].int64_param = 16
    assert call(channel, "ModelInfer", request).outputs
    edit(request)
    with pytest.raises(grpc.RpcError) as caught:
        call(channel, "ModelInfer", request)
    assert caught.value.code() is code
    assert text in caught.value.details()


@pytest.mark.parametrize("role", ["input", "output"])
def test_a_file_that_is_cut_short_is_an_error_and_not_the_end_of_the_server(
    server: ServerProcess,
    channel: grpc.Channel,
    client: InferenceServerClient,
    make_file: Callable[[int], str],
    role: str,
) -> None:
    name = make_file(64)
    client.register_system_shared_memory("r", name, 64)
    request = infer_request("affine", x=zeros("FP32", [1, 4]))
    item = request.outputs.add(name="y")
    if role == "input":
        del request.raw_input_contents[:]
        item = request.inputs[0]
    item.parameters["shared_memory_region"].string_param = "r"
    item.parameters["shared_memory_byte_size"].int64_param = 16
    assert call(channel, "ModelInfer", request).outputs
    os.truncate(f"/dev/shm/{name}", 8)
    with pytest.raises(grpc.RpcError) as caught:
        call(channel, "ModelInfer", request)
    assert caught.value.code() is INVALID
    assert "has been cut short" in caught.value.details()
    assert os.path.getsize(f"/dev/shm/{name}") == 8
    assert server.process.poll() is None


def test_a_write_that_the_system_refuses_is_an_error_of_that_request(
    server: ServerProcess,
    channel: grpc.Channel,
    client: InferenceServerClient,
    make_file: Callable[[int], str],
) -> None:
    client.register_system_shared_memory("r", make_file(64), 64)
    request = infer_request("affine", x=zeros("FP32", [1, 4]))
    item = request.outputs.add(name="y")
    item.parameters["shared_memory_region"].string_param = "r"
    item.parameters["shared_memory_offset"].int64_param = 32
    item.parameters["shared_memory_byte_size"].int64_param = 16
    # As for a file with holes where there is no memory to fill them.
    usual = resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (8, -1))
    try:
        with pytest.raises(grpc.RpcError) as caught:
            call(channel, "ModelInfer", request)
    finally:
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, usual)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "cannot write 12 bytes to shared memory region 'r': File too large" in (
        caught.value.details()
    )
    assert call(channel, "ModelInfer", request).outputs


def test_booleans_in_a_region_are_zero_or_one(
    client: InferenceServerClient, make_file: Callable[[int], str]
) -> None:
    client.register_system_shared_memory("r", make_file(3), 3)  # it has 0, 1, 2
    mask = InferInput("mask", [1, 3], "BOOL")
    mask.set_shared_memory("r", 3)
    inputs = [mask, tensor("tokens", np.zeros((1, 3), np.int64), "INT64")]
    status, text = refused(lambda: client.infer("lookup", inputs))
    assert status == str(INVALID)
    assert "element 2 is 2" in text


def test_no_more_regions_than_there_may_be(
    client: InferenceServerClient, make_file: Callable[[int], str]
) -> None:
    name = make_file(8)
    for index in range(256):
        client.register_system_shared_memory(str(index), name, 8)
    status, text = refused(lambda: client.register_system_shared_memory("more", name, 8))
    assert status == str(grpc.StatusCode.RESOURCE_EXHAUSTED)
    assert "256 shared memory regions are registered" in text
