"""Products of factors are not rounded to fewer bits by what a loop switches on."""

import pytest
import torch

from oialr_peft.linalg import full_precision


MATMUL = torch.backends.cuda.matmul


@pytest.mark.skipif(not hasattr(MATMUL, "fp32_precision"), reason="not run: this torch has the older switch alone")
def test_tf32_is_off_inside_and_as_before_afterwards():
    before = MATMUL.fp32_precision
    try:
        MATMUL.fp32_precision = "tf32"
        with full_precision(torch.device("cpu")):
            assert MATMUL.fp32_precision == "ieee"
        assert MATMUL.fp32_precision == "tf32"
    finally:
        MATMUL.fp32_precision = before


@pytest.mark.parametrize("wanted", ["highest", "high"])
def test_the_older_switch_is_as_before_too(wanted):
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(wanted)
        with full_precision(torch.device("cpu")):
            pass
        assert torch.get_float32_matmul_precision() == wanted
    finally:
        torch.set_float32_matmul_precision(before)
