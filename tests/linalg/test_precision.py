"""Products of factors are not rounded to fewer bits by what a loop switches on."""

import pytest
import torch

from oialr_peft.linalg import full_precision


MATMUL = torch.backends.cuda.matmul
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def as_before():
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.skipif(not hasattr(MATMUL, "fp32_precision"), reason="not run: this torch has the older switch alone")
def test_tf32_by_the_newer_switch_is_off_inside_and_as_before_afterwards():
    MATMUL.fp32_precision = "tf32"
    with full_precision(CPU):
        assert MATMUL.fp32_precision == "ieee"
        assert torch.get_float32_matmul_precision() == "highest"  # which torch refuses to tell where they disagree
    assert MATMUL.fp32_precision == "tf32"


@pytest.mark.parametrize("wanted", ["highest", "high", "medium"])
def test_the_older_switch_is_off_inside_and_as_before_afterwards(wanted):
    torch.set_float32_matmul_precision(wanted)
    with full_precision(CPU):
        assert torch.get_float32_matmul_precision() == "highest"
        assert not MATMUL.allow_tf32
    assert torch.get_float32_matmul_precision() == wanted


def test_devices_without_autocast_have_none_to_leave():
    with full_precision(torch.device("meta")):
        pass
