from __future__ import annotations

from pathlib import Path

import pytest
import torch

from slipway.program import Contract, InputSpec, OutputSpec, Symbol, TensorSpec, load
from slipway.program.compiled import Execution
from slipway.program.expressions import Add, Constant, Expression, SymbolReference
from slipway.program.scalar_types import ScalarType
from slipway.program.trees import Kind, Tree
from slipway.proto import open_inference_pb2 as protocol
from slipway.serving.signature import Signature, SignatureError
from slipway.tests.serving.programs import write_echo, write_lookup

BATCH = SymbolReference(0, "batch")
LEAF = Tree(Kind.LEAF)


def contract(
    input_shape: tuple[Expression, ...],
    output_shape: tuple[Expression, ...],
    *,
    maximum: int | None = 8,
    batch_symbol: int | None = 0,
    dtype: ScalarType = ScalarType.FLOAT32,
) -> Contract:
    return Contract(
        method="forward",
        symbols=(Symbol("batch", 1, maximum),),
        inputs=(InputSpec("x", TensorSpec(dtype, input_shape)),),
        input_tree=Tree(Kind.TUPLE, (Tree(Kind.TUPLE, (LEAF,)), Tree(Kind.DICT))),
        parameters=("x",),
        outputs=(OutputSpec("y", TensorSpec(dtype, output_shape)),),
        output_tree=LEAF,
        batch_symbol=batch_symbol,
    )


def test_a_batch_in_front_of_every_tensor_is_a_batch_to_triton() -> None:
    signature = Signature.of(contract((BATCH, Constant(4)), (BATCH,)))
    assert signature.max_batch_size == 8
    config = signature.config("m", torch.device("cpu"), "abc", Execution(None, "why"))
    assert list(config.input[0].dims) == [4]
    assert list(config.output[0].dims) == []
    assert list(signature.metadata("m", [1]).inputs[0].shape) == [-1, 4]


@pytest.mark.parametrize(
    "other",
    [
        contract((Constant(4), BATCH), (BATCH,)),
        contract((BATCH, Constant(4)), (Constant(4), BATCH)),
        contract((BATCH,), (Add((BATCH, Constant(1))),)),
        contract((BATCH,), ()),
        contract((BATCH,), (BATCH,), maximum=None),
        contract((BATCH,), (BATCH,), batch_symbol=None),
    ],
)
def test_any_other_contract_does_not_batch_and_keeps_its_dimensions(other: Contract) -> None:
    signature = Signature.of(other)
    assert signature.max_batch_size == 0
    config = signature.config("m", torch.device("cpu"), "abc", Execution(None, "why"))
    assert list(config.input[0].dims) == list(signature.metadata("m", [1]).inputs[0].shape)


def test_a_batch_that_int32_cannot_hold_is_cut() -> None:
    assert Signature.of(contract((BATCH,), (BATCH,), maximum=2**40)).max_batch_size == 2**31 - 1


@pytest.mark.parametrize("dtype", [ScalarType.COMPLEX64, ScalarType.FLOAT8_E5M2])
def test_a_dtype_that_the_protocol_lacks_is_an_error(dtype: ScalarType) -> None:
    with pytest.raises(SignatureError, match=rf"input 'x' is {dtype.value}, which"):
        Signature.of(contract((BATCH,), (BATCH,), dtype=dtype))


def test_metadata_and_configuration_agree(tmp_path: Path) -> None:
    for write in (write_echo, write_lookup):
        write(tmp_path / write.__name__)
        signature = Signature.of(load(tmp_path / write.__name__).methods["forward"].contract)
        metadata = signature.metadata("m", [1, 3])
        config = signature.config("m", torch.device("cuda", 2), "abc", Execution(None, "why"))
        assert metadata.versions == ["1", "3"]
        assert [item.name for item in metadata.inputs] == [item.name for item in config.input]
        assert [item.name for item in metadata.outputs] == [item.name for item in config.output]
        for described, configured in zip(metadata.inputs, config.input, strict=True):
            name = protocol.DataType.Name(configured.data_type)
            assert name == f"TYPE_{described.datatype}"
        assert config.instance_group[0].kind == protocol.ModelInstanceGroup.KIND_GPU
        assert config.instance_group[0].gpus == [2]
