from __future__ import annotations

import os
import subprocess
import sys

import pytest

COMPARE = """
import torch
from slipway.program.integers import multiply_integers_exactly

multiply_integers_exactly()
multiply_integers_exactly()
for dtype in (torch.int8, torch.uint8):
    limits = torch.iinfo(dtype)
    left = torch.randint(limits.min, limits.max + 1, (20, 64)).to(dtype)
    right = torch.randint(-128, 128, (64, 24)).to(torch.int8)
    expected = left.int() @ right.int()
    for operand in (right, right.t().contiguous().t()):
        product = torch._int_mm(left, operand)
        assert product.dtype is torch.int32
        assert torch.equal(product, expected)
        out = torch.empty(20, 24, dtype=torch.int32)
        assert torch._int_mm(left, operand, out=out) is out
        assert torch.equal(out, expected)
    assert torch._int_mm(left[:, :0], right[:0]).tolist() == [[0] * 24] * 20
    assert torch._int_mm(left[:0], right).shape == (0, 24)
"""


@pytest.mark.parametrize("instructions", ["DEFAULT", "AVX2"])
def test_products_are_exact_with_any_instructions(instructions: str) -> None:
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", COMPARE],
        env={
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            "ONEDNN_MAX_CPU_ISA": instructions,
        },
        check=True,
    )
