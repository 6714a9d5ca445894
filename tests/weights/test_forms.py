"""One table of kind x form x dtype: whatever is done to a weight, it means the same."""

import copy
from itertools import product

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from oialr_peft.layer import adapted_weights
from oialr_peft.linalg import rotate
from oialr_peft.weights import DENSE, FACTORED, LEFT_TRAINS, RIGHT_TRAINS
from tests.helpers import adapt, disturb


KINDS = {
    "linear": lambda: (nn.Linear(12, 16), torch.randn(5, 12)),
    "linear without bias": lambda: (nn.Linear(16, 12, bias=False), torch.randn(2, 3, 16)),
    "transposed linear": lambda: (Conv1D(16, 12), torch.randn(5, 12)),
    "conv1d": lambda: (nn.Conv1d(12, 16, 3, stride=2, padding_mode="reflect", padding=1), torch.randn(2, 12, 11)),
    "conv2d": lambda: (nn.Conv2d(6, 20, 3, dilation=2, padding="same"), torch.randn(2, 6, 9, 7)),
    "conv3d": lambda: (nn.Conv3d(4, 12, (2, 3, 3), padding=1), torch.randn(2, 4, 4, 5, 6)),
    "embedding": lambda: (nn.Embedding(20, 12, padding_idx=3), torch.tensor([[1, 3, 19], [0, 7, 7]])),
    "conv2d groups": lambda: (nn.Conv2d(12, 32, 3, groups=4, stride=2), torch.randn(2, 12, 9, 7)),
}
FORMS = {"dense": DENSE, "factored": FACTORED, "left trains": LEFT_TRAINS, "right trains": RIGHT_TRAINS}
TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 5e-2}
TABLE = [pytest.param(*case, id="-".join(map(str, case))) for case in product(KINDS, FORMS, TOLERANCES)]


@pytest.fixture
def case(request):
    """A model of one layer of rank 3 in a form, its weight, what goes in, and the layer with the dense weight."""
    kind, form, dtype = request.param
    layer, x = KINDS[kind]()
    layer, x = layer.to(dtype), x.to(dtype) if x.is_floating_point() else x
    dense, (low_rank,) = copy.deepcopy(layer), adapted_weights(adapt(copy.deepcopy(layer), r=3)).values()
    layer.weight.data = low_rank.dense(dtype)
    model = adapt(layer, delay=1, keep_base_weights=True)
    (weight,) = adapted_weights(model).values()
    if FORMS[form] != DENSE:
        weight.apply(rotate(weight.matrix).cut(3).change(weight.full_factors, FORMS[form]))
        disturb(model)
    dense.weight.data = weight.dense(dense.weight.dtype)
    return model, weight, x, dense, TOLERANCES[dtype]


def close(found, expected, tolerance):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("case", [case.values for case in TABLE], indirect=True, ids=[case.id for case in TABLE])
class TestEveryForm:
    def test_the_forward_is_that_of_the_dense_weight(self, case):
        model, _, x, dense, tolerance = case
        y = model(x)
        assert y.dtype == dense(x).dtype
        close(y, dense(x), tolerance)

    def test_the_core_gets_the_gradient_of_the_dense_weight_between_its_bases(self, case):
        model, weight, x, dense, tolerance = case
        model(x).square().mean().backward()
        dense(x).square().mean().backward()
        left, _, right = weight.full_factors
        expected = dense.weight.grad.reshape(weight.matrix_shape).to(weight.core.dtype)
        expected = expected if left is None else left.mT @ expected
        expected = expected if right is None else expected @ right.mT
        close(weight.core.grad.reshape(expected.shape), expected, tolerance)

    def test_an_svd_takes_it_to_factors_of_the_same_weight_in_the_same_parameter(self, case):
        model, weight, x, dense, tolerance = case
        core, expected = weight.core, weight.dense(torch.float64)
        weight.apply(rotate(weight.matrix).cut(3).change(weight.full_factors))
        assert weight.form == FACTORED
        assert weight.core is core
        assert weight.rank == 3
        close(weight.dense(torch.float64), expected, tolerance)
        close(model(x), dense(x), tolerance)

    def test_only_the_core_trains_and_the_layer_holds_no_more_than_the_form(self, case):
        model, weight, *_ = case
        held = [f"base_model.model.layer.{slot.name}.default" for slot in (weight.form.core, *weight.form.bases)]
        assert [name for name in model.state_dict() if "oialr_" in name] == held
        assert [p for p in model.parameters() if p.requires_grad] == [weight.core]
        assert weight.trainable_size == weight.core.numel()

    def test_merging_and_copies_are_the_same_layer(self, case):
        model, _, x, dense, tolerance = case
        twin = copy.deepcopy(model)
        disturb(twin)
        close(model(x), dense(x), tolerance)
        merged = model.merge_and_unload().layer
        assert type(merged) is type(dense)
        assert torch.equal(merged.weight, dense.weight)

    def test_autocast_gives_its_dtype(self, case):
        model, _, x, dense, _ = case
        with torch.autocast("cpu", torch.bfloat16):
            y, expected = model(x), dense(x)
        assert y.dtype == (expected.dtype if dense.weight.dtype != torch.float64 else torch.float64)
        close(y.float(), dense(x).float(), 6e-2)
