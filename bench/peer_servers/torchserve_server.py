"""TorchServe with the models of a folder: torchserve_server.py FOLDER PORT THREADS.

Batches dynamically, with the shortest delay that it can wait. Needs Java 17.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).absolute().parent
MAX_BATCH = {"mlp": 64, "resnet": 16, "encoder": 32}
LOGGING = """<Configuration>
  <Appenders><Console name="console" target="SYSTEM_ERR"/></Appenders>
  <Loggers><Root level="warn"><AppenderRef ref="console"/></Root></Loggers>
</Configuration>
"""


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def main():
    folder, port, threads = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    programs = Path(sys.executable).parent
    store = Path(tempfile.mkdtemp())
    models = {}
    for file in folder.glob("*.pt"):
        command = [programs / "torch-model-archiver", "--model-name", file.stem, "--version", "1.0"]
        command += ["--serialized-file", file, "--handler", HERE / "torchserve_handler.py"]
        command += ["--export-path", store]
        subprocess.run(command, check=True)
        worker = {
            "defaultVersion": True,
            "marName": f"{file.stem}.mar",
            "minWorkers": 1,
            "maxWorkers": 1,
            "batchSize": MAX_BATCH[file.stem],
            "maxBatchDelay": 1,
            "responseTimeout": 120,
        }
        models[file.stem] = {"1.0": worker}
    ports = [free_port() for _ in range(4)]
    (store / "config.properties").write_text(
        f"inference_address=http://127.0.0.1:{ports[0]}\n"
        f"management_address=http://127.0.0.1:{ports[1]}\n"
        f"metrics_address=http://127.0.0.1:{ports[2]}\n"
        "grpc_inference_address=127.0.0.1\n"
        f"grpc_inference_port={port}\n"
        "grpc_management_address=127.0.0.1\n"
        f"grpc_management_port={ports[3]}\n"
        "job_queue_size=1000\n"
        "max_request_size=100000000\n"
        "disable_token_authorization=true\n"
        "disable_system_metrics=true\n"
        f"model_store={store}\nload_models=all\n"
        "models=" + json.dumps(models).replace("\n", "") + "\n"
    )
    environment = dict(os.environ) | {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "BENCH_THREADS": threads,
        "LOG_LOCATION": str(store),
        "METRICS_LOCATION": str(store),
    }
    command = [programs / "torchserve", "--start", "--foreground", "--disable-token-auth"]
    command += ["--ts-config", store / "config.properties", "--model-store", store]
    # A line for each request and metric costs more than the request.
    (store / "log4j2.xml").write_text(LOGGING)
    command += ["--log-config", store / "log4j2.xml"]
    with (store / "log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=store)
    print(f"ready 127.0.0.1:{port}", flush=True)
    process.wait()


if __name__ == "__main__":
    main()
