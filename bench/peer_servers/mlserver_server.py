"""MLServer with the models of a folder: mlserver_server.py FOLDER PORT THREADS.

Batches what it can put together, which is requests of one shape: not those of the encoder. In one
process, without its pool of workers, as each request would be copied to one.
"""

import asyncio
import socket
import sys
from pathlib import Path

import torch
from mlserver import MLModel, MLServer, ModelSettings, Settings
from mlserver.codecs import NumpyCodec
from mlserver.settings import ModelParameters
from mlserver.types import InferenceResponse

MAX_BATCH = {"mlp": 64, "resnet": 16, "encoder": 0}
LONGEST_WAIT = 0.001


class Script(MLModel):
    async def load(self):
        self.script = torch.jit.load(self.settings.parameters.uri).eval()
        return True

    async def predict(self, payload):
        arrays = [NumpyCodec.decode_input(item) for item in payload.inputs]
        with torch.inference_mode():
            result = self.script(*(torch.from_numpy(array.copy()) for array in arrays)).numpy()
        output = NumpyCodec.encode_output("output", result)
        return InferenceResponse(id=payload.id, model_name=self.name, outputs=[output])


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


async def serve(folder, port):
    settings = Settings(
        host="127.0.0.1",
        grpc_port=port,
        http_port=free_port(),
        metrics_port=free_port(),
        metrics_endpoint=None,
        parallel_workers=0,
        debug=False,
        grpc_max_message_length=-1,
    )
    models = [
        ModelSettings(
            name=file.stem,
            # By the name under which it can be imported, which is not __main__.
            implementation="mlserver_server.Script",
            max_batch_size=MAX_BATCH[file.stem],
            max_batch_time=LONGEST_WAIT if MAX_BATCH[file.stem] else 0,
            parameters=ModelParameters(uri=str(file)),
        )
        for file in folder.glob("*.pt")
    ]
    server = MLServer(settings)
    running = asyncio.create_task(server.start(models))
    print(f"ready 127.0.0.1:{port}", flush=True)
    await running


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[3]))
    asyncio.run(serve(Path(sys.argv[1]), int(sys.argv[2])))
