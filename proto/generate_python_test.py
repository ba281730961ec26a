"""The generated modules: rewriting them, and holding ours beside a client's."""

import importlib.metadata
import re

import pytest
from google.protobuf import descriptor_pool, json_format
from tritonclient.grpc import service_pb2 as client_pb2

from slipway.proto import generate_python, open_inference_pb2, program_pb2


def test_messages_of_a_private_pool_work() -> None:
    request = open_inference_pb2.ModelInferRequest(model_name="ranker", id="7")
    request.parameters["priority"].int64_param = 3
    request.parameters["trace"].bool_param = True
    tensor = request.inputs.add(name="x", datatype="FP32", shape=[2, 3])
    tensor.contents.fp32_contents.extend([1.0, 2.0])

    parsed = open_inference_pb2.ModelInferRequest.FromString(request.SerializeToString())

    assert parsed == request
    assert parsed.parameters["priority"].WhichOneof("parameter_choice") == "int64_param"
    assert list(parsed.inputs[0].shape) == [2, 3]
    assert json_format.MessageToDict(parsed)["modelName"] == "ranker"


def test_a_client_in_the_same_process_reads_what_we_write() -> None:
    ours = open_inference_pb2.ModelInferRequest(model_name="ranker")
    ours.parameters["priority"].int64_param = 3

    theirs = client_pb2.ModelInferRequest.FromString(ours.SerializeToString())

    assert theirs.model_name == "ranker"
    assert theirs.parameters["priority"].int64_param == 3


def test_only_the_private_pool_knows_the_messages() -> None:
    ours = open_inference_pb2.POOL.FindMessageTypeByName("inference.ModelInferRequest")
    default = descriptor_pool.Default().FindMessageTypeByName("inference.ModelInferRequest")

    assert ours is open_inference_pb2.ModelInferRequest.DESCRIPTOR
    assert default is client_pb2.ModelInferRequest.DESCRIPTOR
    assert program_pb2.DESCRIPTOR.pool is descriptor_pool.Default()


def test_files_are_known_by_the_path_that_imports_them() -> None:
    assert program_pb2.DESCRIPTOR.name == "slipway/proto/program.proto"


def test_a_private_pool_refuses_a_file_that_imports() -> None:
    module = "from google.protobuf import any_pb2 as any__pb2\nDESCRIPTOR = ...\n"
    with pytest.raises(generate_python.GenerateError, match="any_pb2"):
        generate_python.use_private_pool(module)


def test_a_private_pool_refuses_code_it_does_not_know() -> None:
    with pytest.raises(generate_python.GenerateError, match="protoc's output has changed"):
        generate_python.use_private_pool("DESCRIPTOR = None\n")


def test_the_runtime_is_not_older_than_the_generated_code() -> None:
    # protobuf refuses to import generated code that is newer than itself, and supports
    # code one major version older.
    with open(program_pb2.__file__, encoding="utf-8") as module:
        written = re.search(r"Protobuf Python Version: (\d+)\.(\d+)\.(\d+)", module.read())
    assert written
    code = tuple(map(int, written.groups()))
    runtime = tuple(map(int, importlib.metadata.version("protobuf").split(".")))
    assert code <= runtime
    assert code[0] >= runtime[0] - 1
