"""Fused experts of a mixture, (experts, out, in) in one tensor, are two layers of their own."""

import copy

import pytest
import torch
import transformers
from peft import PeftModel, get_peft_model

from oialr_peft import OIALRConfig, OIALRUpdater, save_compressed
from oialr_peft.export.modules import Factored
from oialr_peft.kinds.experts import Experts
from oialr_peft.layer import adapted_weights
from tests.conftest import output, tiny_mixtral, tokens
from tests.helpers import disturb


pytestmark = pytest.mark.skipif(transformers.__version__ < "5", reason="not run: transformers 4 has no fused experts")
SIZES = {"vocab_size": 48, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZES |= {"num_key_value_heads": 2, "num_experts_per_tok": 2, "num_local_experts": 4, "head_dim": 8}
BATCH = {"input_ids": tokens()}


def gpt_oss():
    """Biases, weights stored transposed, a gate of its own."""
    return transformers.GptOssForCausalLM(transformers.GptOssConfig(**SIZES, intermediate_size=24))


def nemotron():
    """No gate, and a bottleneck before the experts."""
    config = transformers.NemotronHConfig(
        **{name: size for name, size in SIZES.items() if name not in ("num_local_experts", "num_hidden_layers")},
        layers_block_type=["moe", "attention"],
        n_routed_experts=4,
        moe_intermediate_size=32,
        moe_shared_expert_intermediate_size=32,
        n_group=1,
        topk_group=1,
        intermediate_size=32,
    )
    return transformers.NemotronHForCausalLM(config)


MIXTURES = {"mixtral": tiny_mixtral, "gpt_oss": gpt_oss, "nemotron": nemotron}


@pytest.fixture(params=MIXTURES)
def make(request):
    def made():
        torch.manual_seed(0)
        return MIXTURES[request.param]().eval()

    return made


def experts_of(model):
    return [module for module in model.modules() if isinstance(module, Experts)]


def fused_of(model):
    return [(n, module) for n, module in model.named_modules() if hasattr(module, "is_transposed")]


def loss_of(model):
    return model(**BATCH, labels=BATCH["input_ids"]).loss


def test_outputs_and_gradients_are_those_of_the_dense_experts(make):
    dense = make()
    loss_of(dense).backward()
    model = get_peft_model(copy.deepcopy(dense), OIALRConfig())
    assert len(experts_of(model)) == len(fused_of(dense)) > 0
    torch.testing.assert_close(output(model, BATCH), output(dense, BATCH), rtol=1e-4, atol=1e-5)
    loss_of(model).backward()
    weights = adapted_weights(model)
    for name, module in fused_of(dense):
        first = module.gate_up_proj if module.has_gate else module.up_proj
        for part, parameter in (("first", first), ("second", module.down_proj)):
            left, core, right = weights[f"{name}.{part}"].factors
            assert core.shape == (4, *(2 * [min(parameter.shape[-2:])]))
            torch.testing.assert_close(core.grad, left.mT @ parameter.grad @ right.mT, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("start", [{}, {"delay": 2, "train_rest": True, "bases": "longer"}], ids=["fine", "scratch"])
def test_from_training_to_every_kind_of_file(make, start, tmp_path):
    model = get_peft_model(make(), OIALRConfig(update_interval=2, layer_step=1.0, sigma_cutoff=0.7, **start)).train()
    full = model.base_model.ranks()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    updater = OIALRUpdater(model, optimizer)
    for _ in range(6):
        loss_of(model).backward()
        optimizer.step()
        updater.step()
        optimizer.zero_grad()
    assert all(rank < full[name] for name, rank in model.base_model.ranks().items() if ".experts." in name)
    expected = output(model, BATCH)
    model.save_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(make(), tmp_path / "adapter")
    torch.testing.assert_close(output(again, BATCH), expected, rtol=1e-5, atol=1e-6)
    save_compressed(model, tmp_path / "small")
    small = type(make()).from_pretrained(tmp_path / "small")
    assert all(isinstance(experts.first, Factored) for experts in experts_of(small))
    torch.testing.assert_close(output(small, BATCH), expected, rtol=1e-4, atol=1e-5)
    small.dequantize().save_pretrained(tmp_path / "dense")
    for plain in (type(make()).from_pretrained(tmp_path / "dense"), model.merge_and_unload()):
        assert not experts_of(plain)
        assert fused_of(plain)
        torch.testing.assert_close(output(plain, BATCH), expected, rtol=1e-4, atol=1e-5)


def test_beside_a_frozen_residual(make, tmp_path):
    model, before = get_peft_model(make(), OIALRConfig(residual=True, r=4)), output(make(), BATCH)
    torch.testing.assert_close(output(model, BATCH), before, rtol=1e-4, atol=1e-5)
    disturb(model)
    expected = output(model, BATCH)
    assert not torch.allclose(expected, before, atol=1e-4)
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(make(), tmp_path)
    for one in (again, model.merge_and_unload()):
        torch.testing.assert_close(output(one, BATCH), expected, rtol=1e-4, atol=1e-5)


def test_an_expert_that_nobody_chose_gets_no_gradient():
    layer = experts_of(get_peft_model(tiny_mixtral(), OIALRConfig(target_modules=["experts"])))[0]
    x = torch.randn(6, 16, requires_grad=True)
    chosen = torch.tensor([[0, 2]]).expand(6, 2)
    layer(x, chosen, torch.rand(6, 2)).square().sum().backward()
    assert x.grad.abs().sum() > 0
    for part in (layer.first, layer.second):
        by_expert = part.oialr_sigma["default"].grad.abs().sum((1, 2))
        assert (by_expert > 0).tolist() == [True, False, True, False]


def test_no_tokens_at_all_give_none():
    layer = experts_of(get_peft_model(tiny_mixtral(), OIALRConfig(target_modules=["experts"])))[0]
    none = torch.zeros(0, 2)
    assert layer(torch.zeros(0, 16), none.long(), none).shape == (0, 16)


def test_quantised_experts_are_left_alone():
    model = tiny_mixtral()
    for _, module in fused_of(model):
        module.down_proj = torch.nn.Parameter(module.down_proj.to(torch.float8_e4m3fn), requires_grad=False)
    assert not experts_of(get_peft_model(model, OIALRConfig()))
