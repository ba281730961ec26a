"""Triton with the models of a folder, through pytriton: pytriton_server.py FOLDER PORT THREADS.

Batches dynamically. What waits while a batch runs is the next one: no delay is configured.
"""

import socket
import sys
from pathlib import Path

import numpy as np
import torch
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

INPUTS = {
    "mlp": [Tensor(name="features", dtype=np.float32, shape=(256,))],
    "resnet": [Tensor(name="image", dtype=np.float32, shape=(3, -1, -1))],
    "encoder": [
        Tensor(name="tokens", dtype=np.int64, shape=(-1,)),
        Tensor(name="mask", dtype=np.bool_, shape=(-1,)),
    ],
}
MAX_BATCH = {"mlp": 64, "resnet": 16, "encoder": 32}


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def inference(file):
    script = torch.jit.load(str(file)).eval()

    @batch
    def infer(**arrays):
        with torch.inference_mode():
            tensors = [torch.from_numpy(array.copy()) for array in arrays.values()]
            return {"output": script(*tensors).numpy()}

    return infer


def main():
    torch.set_num_threads(int(sys.argv[3]))
    config = TritonConfig(
        grpc_address="127.0.0.1",
        grpc_port=int(sys.argv[2]),
        http_address="127.0.0.1",
        http_port=free_port(),
        allow_metrics=False,
        log_verbose=0,
    )
    with Triton(config=config) as triton:
        for file in Path(sys.argv[1]).glob("*.pt"):
            triton.bind(
                model_name=file.stem,
                infer_func=inference(file),
                inputs=INPUTS[file.stem],
                outputs=[Tensor(name="output", dtype=np.float32, shape=(-1,))],
                config=ModelConfig(max_batch_size=MAX_BATCH[file.stem], batcher=DynamicBatcher()),
                strict=False,
            )
        triton.run()
        print(f"ready 127.0.0.1:{sys.argv[2]}", flush=True)
        triton.serve()


if __name__ == "__main__":
    main()
