"""Starts the server, and asks it over gRPC: its answers are the model's own."""

from __future__ import annotations

import subprocess
import sys
import unittest
from pathlib import Path

import grpc
import torch
from models.ranker import build_model
from runfiles import Runfiles

from slipway.proto import open_inference_pb2 as inference

RUNFILES = Runfiles.Create()
SERVER, PROGRAM = (Path(RUNFILES.Rlocation(path)) for path in sys.argv[1:3])
METHOD = "/inference.GRPCInferenceService/ModelInfer"


class ServerTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls) -> None:
        server = subprocess.Popen(
            [SERVER, "--port=0"], env=RUNFILES.EnvVars(), stdout=subprocess.PIPE, text=True
        )
        cls.addClassCleanup(server.__exit__, None, None, None)
        cls.addClassCleanup(server.terminate)
        cls.channel = grpc.insecure_channel(server.stdout.readline().split()[-1])
        cls.addClassCleanup(cls.channel.close)

    def infer(self, parcels: torch.Tensor) -> inference.ModelInferResponse:
        request = inference.ModelInferRequest(model_name="ranker")
        request.inputs.add(name="parcels", datatype="FP32", shape=parcels.shape)
        request.raw_input_contents.append(parcels.numpy().tobytes())
        return self.channel.unary_unary(
            METHOD,
            request_serializer=inference.ModelInferRequest.SerializeToString,
            response_deserializer=inference.ModelInferResponse.FromString,
        )(request, timeout=60)

    def test_it_answers_as_the_model_does(self) -> None:
        parcels = torch.arange(12.0).reshape(3, 4) * 500
        answer = self.infer(parcels)
        scores = torch.frombuffer(bytearray(answer.raw_output_contents[0]), dtype=torch.float32)
        with torch.no_grad():
            torch.testing.assert_close(scores.reshape(3, 3), build_model()(parcels))

    def test_it_refuses_what_the_contract_does_not_allow(self) -> None:
        with self.assertRaises(grpc.RpcError) as raised:
            self.infer(torch.ones(9, 4))
        self.assertEqual(raised.exception.code(), grpc.StatusCode.INVALID_ARGUMENT)
        self.assertIn("allowed: 1..8", raised.exception.details())


class RepositoryTest(unittest.TestCase):
    def test_it_is_laid_out_for_a_server(self) -> None:
        self.assertEqual(PROGRAM.parts[-2:], ("ranker", "1"))
        self.assertTrue((PROGRAM / "program.pb").is_file())


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
