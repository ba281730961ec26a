"""Recurrent layers are exported for sequences of any length."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from slipway.export import ExportError, ExportErrorKind, export, to_exported_program
from slipway.program import Program, load
from slipway.program.interpreter import use_interpreter

SYMBOLS = {"batch": (1, 8), "steps": (1, 30)}
LAYERS: dict[str, nn.Module] = {
    "lstm": nn.LSTM(4, 6, batch_first=True),
    "deep lstm": nn.LSTM(4, 6, num_layers=2, bidirectional=True, proj_size=3, batch_first=True),
    "gru": nn.GRU(4, 6, batch_first=True, bias=False),
    "deep gru": nn.GRU(4, 6, num_layers=3, bidirectional=True, batch_first=True),
    "rnn": nn.RNN(4, 6, batch_first=True),
    "rnn with relu": nn.RNN(4, 6, nonlinearity="relu", bidirectional=True, batch_first=True),
}


class Tagger(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        states: torch.Tensor = self.layer(x)[0]
        return states.softmax(-1)


def exported(name: str, *, strict: bool = False) -> Program:
    model = Tagger(LAYERS[name]).eval()
    example = torch.randn(2, 5, 4)
    shapes = ("batch, steps, 4",)
    return export(model, example, dynamic_shapes=shapes, symbols=SYMBOLS, strict=strict)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_takes_sequences_of_any_length(name: str, strict: bool, tmp_path: Path) -> None:
    program = exported(name, strict=strict)
    assert program.contract.relations == ()
    assert program.methods["forward"].batching is not None
    program.save(tmp_path)
    interpreted = load(tmp_path)
    assert use_interpreter(interpreted) == []
    for shape in ((1, 1, 4), (8, 1, 4), (1, 30, 4), (3, 17, 4)):
        x = torch.randn(shape)
        expected = Tagger(LAYERS[name]).eval()(x)
        torch.testing.assert_close(program(x), expected)
        torch.testing.assert_close(interpreted(x), expected)


def test_torchs_exported_program_takes_them_too() -> None:
    program = exported("gru")
    x = torch.randn(3, 17, 4)
    torch.testing.assert_close(to_exported_program(program).module()(x), program(x))


def test_layers_hand_on_their_states() -> None:
    encoder = nn.LSTM(4, 6, batch_first=True)
    decoder = nn.LSTM(4, 6, batch_first=True)

    def model(source: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        result, (hidden, _) = decoder(target, encoder(source)[1])
        return result, hidden[-1]

    shapes = ("batch, steps, 4", "batch, 3, 4")
    example = torch.randn(2, 5, 4), torch.randn(2, 3, 4)
    program = export(model, example, dynamic_shapes=shapes, symbols=SYMBOLS)
    call = torch.randn(8, 1, 4), torch.randn(8, 3, 4)
    torch.testing.assert_close(program(*call), model(*call))


def test_sizes_that_a_layer_compares_must_agree() -> None:
    def model(x: torch.Tensor, hidden: torch.Tensor, inner: torch.Tensor) -> torch.Tensor:
        return torch.gru(x, hidden, [WEIGHT, inner], False, 1, 0.0, False, False, True)[0]

    example = torch.randn(2, 5, 4), torch.zeros(1, 2, 6), torch.randn(18, 6)
    for shapes, needed in (
        (("batch, 5, 4", "1, rows, 6", "_, _"), "rows == batch"),
        (("2, 5, width", "1, 2, 6", "_, _"), "width == 4"),
    ):
        with pytest.raises(ExportError, match=needed) as caught:
            export(model, example, dynamic_shapes=shapes)
        assert caught.value.kind is ExportErrorKind.CONSTRAINT_VIOLATION


WEIGHT = torch.randn(18, 4)


def test_torchs_own_kernels_are_back_afterwards() -> None:
    kernels = dict(torch.ops.aten.lstm.input.py_kernels)
    exported("lstm")
    assert torch.ops.aten.lstm.input.py_kernels == kernels
