"""What TorchServe runs for each batch: inputs as raw bytes, those of one shape together."""

import os

import numpy as np
import torch

INPUTS = {
    "mlp": [("features", np.float32, (1, 256))],
    "resnet": [("image", np.float32, (1, 3, 224, 224))],
    "encoder": [("tokens", np.int64, (1, -1)), ("mask", np.bool_, (1, -1))],
}


class Handler:
    def initialize(self, context):
        torch.set_num_threads(int(os.environ["BENCH_THREADS"]))
        self.name = context.manifest["model"]["modelName"]
        folder = context.system_properties["model_dir"]
        self.script = torch.jit.load(os.path.join(folder, f"{self.name}.pt")).eval()

    def handle(self, rows, context):
        groups = {}
        for place, row in enumerate(rows):
            tensors = [
                torch.from_numpy(np.frombuffer(row[name], dtype).reshape(shape).copy())
                for name, dtype, shape in INPUTS[self.name]
            ]
            groups.setdefault(tensors[0].shape, []).append((place, tensors))
        answers = [b""] * len(rows)
        with torch.inference_mode():
            for group in groups.values():
                batch = [torch.cat(column) for column in zip(*(t for _, t in group), strict=True)]
                for (place, _), output in zip(group, self.script(*batch), strict=True):
                    answers[place] = output.numpy().tobytes()
        return answers
