"""Programs of real architectures, made by torch_export targets, beside the library's own models."""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Any

import pytest
import torch
from runfiles import Runfiles
from torch import nn
from torch.utils import _pytree as pytree

from slipway.export import ExportError, ExportSpec, export_spec
from slipway.export.resizing import resized_leaves
from slipway.program import Contract, ContractViolation, Program, load
from slipway.program.cases import AnsweredCase
from slipway.program.interpreter import use_interpreter
from slipway.tests.architectures import generation, models
from slipway.tests.architectures.models import ARCHITECTURES
from slipway.tests.architectures.scanned_mamba import ScannedMamba


def path_of(name: str) -> str:
    runfiles = Runfiles.Create()
    assert runfiles is not None
    path = runfiles.Rlocation(f"slipway/tests/architectures/{name}.program")
    assert path is not None
    return path


@cache
def program_of(name: str) -> Program:
    return load(path_of(name))


@cache
def spec_of(name: str) -> ExportSpec:
    """Returns what the target exported: the exporter starts from the same seed."""
    torch.manual_seed(0)
    return generation.export_spec() if name == "generation" else ARCHITECTURES[name]()


def model_of(name: str) -> nn.Module:
    """Returns the library's own model."""
    model = spec_of(name).model
    assert isinstance(model, nn.Module)
    return model.model if isinstance(model, ScannedMamba) else model


def example_of(name: str) -> list[Any]:
    spec = spec_of(name)
    return pytree.tree_leaves((spec.args, spec.kwargs))


def bindings(contract: Contract) -> list[tuple[int, ...]]:
    """Returns the lowest and the highest sizes, and some between, each with batches of 1 too."""
    lowest = tuple(symbol.minimum for symbol in contract.symbols)
    highest = tuple(symbol.maximum or 0 for symbol in contract.symbols)
    between = tuple(3 + 4 * place for place in range(len(lowest)))
    ragged = tuple(11 - 3 * place for place in range(len(lowest)))
    chosen = [lowest, highest, between, ragged]
    if contract.batch_symbol is not None:
        chosen += [
            tuple(1 if place == contract.batch_symbol else size for place, size in enumerate(item))
            for item in (highest, between)
        ]
    assert all(map(contract.is_legal, chosen))
    return chosen


def call(name: str, leaves: list[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Returns a call as the library's model takes it, in containers of its own."""
    spec = spec_of(name)
    structure = pytree.tree_structure((spec.args, dict(spec.kwargs or {})))
    args_and_kwargs: tuple[tuple[Any, ...], dict[str, Any]]
    args_and_kwargs = pytree.tree_unflatten(leaves, structure)
    return args_and_kwargs


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_program_gives_what_the_model_gives_for_every_shape(name: str) -> None:
    program, model = program_of(name), model_of(name)
    for binding in bindings(program.contract):
        leaves = resized_leaves(program.contract, binding, example_of(name))
        assert leaves is not None
        args, kwargs = call(name, leaves)
        with torch.no_grad():
            actual, expected = program(*args, **kwargs), model(*args, **kwargs)
        assert list(actual) == list(expected)
        torch.testing.assert_close(pytree.tree_leaves(actual), pytree.tree_leaves(expected))


@pytest.mark.parametrize("name", [*ARCHITECTURES, "generation"])
def test_the_server_gives_what_python_gives(name: str) -> None:
    # A copy of its own: `program_of` hands out the same one to all tests.
    program = load(path_of(name))
    left = use_interpreter(program)
    assert left == (["forward"] if name == "mamba" else [])  # mamba has a loop
    for method, served in program.methods.items():
        plain = program_of(name).methods[method]
        cases = [
            case
            for case in program.cases
            if isinstance(case, AnsweredCase) and case.method == method
        ]
        assert cases
        for case in cases:
            tensors = [case.inputs[key] for key in served.contract.tensor_inputs]
            with torch.inference_mode():
                torch.testing.assert_close(served.run(tensors), plain.run(tensors))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_contract_is_as_wide_as_was_declared(name: str) -> None:
    contract, spec = program_of(name).contract, spec_of(name)
    assert contract.relations == ()
    assert contract.notes == ()
    assert not contract.contiguous
    ranges = {item.name: (item.minimum, item.maximum) for item in contract.symbols}
    assert ranges == spec.symbols
    if name != "clip":  # which has two
        assert contract.batch_symbol is not None
        assert contract.symbols[contract.batch_symbol].name == "batch"


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_sizes_outside_the_contract_are_refused(name: str) -> None:
    program = program_of(name)
    contract = program.contract
    usual = bindings(contract)[2]
    outside = []
    for place, symbol in enumerate(contract.symbols):
        for size in (symbol.minimum - 1, (symbol.maximum or 0) + 1):
            outside.append((*usual[:place], size, *usual[place + 1 :]))
    calls = [resized_leaves(contract, binding, example_of(name)) for binding in outside]
    leaves = resized_leaves(contract, usual, example_of(name))
    assert leaves is not None
    for place, (spec, leaf) in enumerate(zip(contract.inputs, leaves, strict=True)):
        assert spec.tensor is not None
        others = [leaf[None], leaf.to(torch.float64)]
        for dimension, size in enumerate(spec.tensor.shape):
            # Static, or the same as the other input's: the mask covers another one.
            if size.constant_value() is not None or spec.name == "attention_mask":
                others.append(torch.cat([leaf, leaf.narrow(dimension, 0, 1)], dimension))
        calls += [[*leaves[:place], other, *leaves[place + 1 :]] for other in others]
    for leaves in calls:
        assert leaves is not None
        args, kwargs = call(name, leaves)
        with pytest.raises(ContractViolation):
            program(*args, **kwargs)


def test_a_loop_over_the_sequence_is_refused_with_its_line() -> None:
    spec = dataclasses.replace(spec_of("mamba"), model=models.unmodified_mamba().eval())
    with pytest.raises(ExportError) as caught:
        export_spec(spec)
    assert "the model needs seq == 9" in caught.value.reason
    assert caught.value.source is not None
    assert caught.value.source.text == "for index in range(seq_len):"


def test_an_operator_of_the_library_is_named() -> None:
    spec = spec_of("mixtral")
    config = spec.model.config  # type: ignore[union-attr]
    config = type(config).from_dict(config.to_dict(), experts_implementation="grouped_mm")
    model = type(spec.model)(config).eval()
    with pytest.raises(ExportError, match="grouped_mm_fallback"):
        export_spec(dataclasses.replace(spec, model=model))


def test_a_program_with_a_cache_generates_what_the_library_generates() -> None:
    program, model = program_of("generation"), spec_of("generation").model.model
    for batch, length in ((1, 1), (1, 7), (3, 5)):
        tokens = torch.randint(3, 99, (batch, length))
        expected = model.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            do_sample=False,
            max_new_tokens=12,
            pad_token_id=0,
        )
        result = program.methods["prefill"](tokens, torch.ones_like(tokens))
        while tokens.shape[1] < expected.shape[1] - 1:
            newest = result["scores"].argmax(-1, keepdim=True)
            tokens = torch.cat([tokens, newest], 1)
            result = program.methods["step"](newest, torch.ones_like(tokens), result["past"])
        tokens = torch.cat([tokens, result["scores"].argmax(-1, keepdim=True)], 1)
        assert tokens.tolist() == expected.tolist()


def test_a_mask_must_cover_the_cache_and_the_new_token() -> None:
    step = program_of("generation").methods["step"]
    cached = torch.zeros(1, 2, 7, 8)
    mask = torch.ones(1, 7, dtype=torch.int64)
    with pytest.raises(ContractViolation, match="total == past \\+ 1"):
        step(mask[:, :1], mask, [(cached, cached)] * 2)
