"""KServe's Python server with the models of a folder: kserve_server.py FOLDER PORT THREADS.

Its gRPC server alone, with calls of the model on the event loop, where they cost least. It does
not batch over gRPC.
"""

import asyncio
import logging
import sys
from pathlib import Path

import torch
from grpc import aio
from kserve import InferOutput, InferResponse, Model, ModelRepository
from kserve.protocol.dataplane import DataPlane
from kserve.protocol.grpc.server import GRPCServer
from kserve.protocol.model_repository_extension import ModelRepositoryExtension


class Script(Model):
    def __init__(self, file):
        super().__init__(file.stem)
        self.script = torch.jit.load(str(file)).eval()
        self.enable_latency_logging = False
        self.ready = True

    def predict(self, payload, headers=None, response_headers=None):
        tensors = [torch.from_numpy(item.as_numpy().copy()) for item in payload.inputs]
        with torch.inference_mode():
            result = self.script(*tensors).numpy()
        output = InferOutput(name="output", shape=list(result.shape), datatype="FP32")
        output.set_data_from_numpy(result, binary_data=True)
        return InferResponse(response_id=payload.id, model_name=self.name, infer_outputs=[output])


async def serve(models, port):
    repository = ModelRepository()
    for model in models:
        repository.update(model)

    # KServe listens everywhere; a benchmark must not.
    listen = aio.Server.add_insecure_port
    aio.Server.add_insecure_port = lambda self, address: listen(
        self, address.replace("[::]", "127.0.0.1")
    )
    limits = {"grpc_max_send_message_length": -1, "grpc_max_receive_message_length": -1}
    server = GRPCServer(
        port, DataPlane(repository), ModelRepositoryExtension(repository), kwargs=limits
    )
    running = asyncio.create_task(server.start(max_workers=4))
    while not running.done() and server._server is None:
        await asyncio.sleep(0.1)
    print(f"ready 127.0.0.1:{port}", flush=True)
    await running


if __name__ == "__main__":
    logging.disable(logging.INFO)
    torch.set_num_threads(int(sys.argv[3]))
    asyncio.run(serve([Script(file) for file in Path(sys.argv[1]).glob("*.pt")], int(sys.argv[2])))
