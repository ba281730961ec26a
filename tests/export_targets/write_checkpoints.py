"""Writes one checkpoint in several formats into a folder: scale 1, 2, 3 and shift 4, 5, 6."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import save_file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    state = {"scale": torch.tensor([1.0, 2.0, 3.0]), "shift": torch.tensor([4.0, 5.0, 6.0])}
    torch.save(state, folder / "scaler.pt")
    save_file(state, folder / "scaler.safetensors")
    places = {"scale": "scaler-1.safetensors", "shift": "scaler-2.safetensors"}
    for name, place in places.items():
        save_file({name: state[name]}, folder / place)
    (folder / "scaler.safetensors.index.json").write_text(json.dumps({"weight_map": places}))


if __name__ == "__main__":
    main()
