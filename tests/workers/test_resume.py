"""A run that goes on with another number of processes ends as the run that never changed it."""

import pytest
import torch

from tests.workers.launch import torchrun
from tests.workers.test_ddp import composed, rest


@pytest.mark.parametrize("first", [2, pytest.param(1, marks=pytest.mark.slow)])
def test_resume_on_another_number_of_processes(first, tmp_path):
    whole, changed = tmp_path / "whole", tmp_path / "changed"
    torchrun(1, "resume_worker", whole, 1, 24)
    torchrun(first, "resume_worker", changed, first, 12)
    torchrun(3 - first, "resume_worker", changed, 3 - first, 24)
    states = [torch.load(folder / "end-24.pt") for folder in (changed, whole)]
    found, expected = ({**rest(state), **composed(state)} for state in states)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=2e-5, msg=name)
