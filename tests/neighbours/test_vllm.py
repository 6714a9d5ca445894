"""The plug-in for vLLM with vLLM's own layers and loader; its engine needs a GPU. Not run where vLLM is absent."""

import pytest
import torch
from peft import get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from oialr_peft import OIALRConfig, save_compressed


vllm = pytest.importorskip("vllm", reason="not run: vllm absent")
PACKED = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}


@pytest.fixture
def small(tmp_path):
    """A compressed Llama with biases, in which some parts of fused layers stay dense."""
    torch.manual_seed(0)
    config = LlamaConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    config.update({"num_key_value_heads": 2, "vocab_size": 64, "attention_bias": True, "mlp_bias": True})
    pattern = {"k_proj": 1.0, "gate_proj": 0.5}
    model = get_peft_model(LlamaForCausalLM(config), OIALRConfig(r=0.25, rank_pattern=pattern))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter)
    save_compressed(model, tmp_path)
    return AutoModelForCausalLM.from_pretrained(tmp_path)


def block(config, prefix: str) -> nn.Module:
    """The linear layers of a block as vLLM's Llama has them."""
    from vllm.model_executor.layers.linear import MergedColumnParallelLinear, QKVParallelLinear, RowParallelLinear

    def made(kind, name, *sizes):
        return kind(*sizes, bias=True, quant_config=config, prefix=f"{prefix}.{name}", disable_tp=True)

    module, module.self_attn, module.mlp = nn.Module(), nn.Module(), nn.Module()
    module.self_attn.qkv_proj = made(QKVParallelLinear, "self_attn.qkv_proj", 32, 8, 4, 2)
    module.self_attn.o_proj = made(RowParallelLinear, "self_attn.o_proj", 32, 32)
    module.mlp.gate_up_proj = made(MergedColumnParallelLinear, "mlp.gate_up_proj", 32, [64, 64])
    module.mlp.down_proj = made(RowParallelLinear, "mlp.down_proj", 64, 32)
    return module


def test_vllms_layers_give_what_the_compressed_model_gives(small):
    from vllm.model_executor.layers.quantization import get_quantization_config
    from vllm.model_executor.models.llama import LlamaModel
    from vllm.model_executor.models.utils import AutoWeightsLoader

    from oialr_peft.export.vllm_plugin import register

    register()
    register()
    config = get_quantization_config("oialr").from_config(small.config.quantization_config.to_dict())
    config.packed_modules_mapping = PACKED
    prefix = "model.layers.1"
    ours, theirs = small.get_submodule(prefix), block(config, prefix)
    weights = [(n, t) for n, t in ours.state_dict().items() if "norm" not in n]
    mapper = LlamaModel.hf_to_vllm_mapper | config.get_checkpoint_weight_mapper()
    loaded = AutoWeightsLoader(theirs).load_weights(weights, mapper=mapper)
    assert loaded
    x, inner = torch.randn(5, 32), torch.randn(5, 64)
    for names, layer, value in (
        (("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), theirs.self_attn.qkv_proj, x),
        (("self_attn.o_proj",), theirs.self_attn.o_proj, x),
        (("mlp.gate_proj", "mlp.up_proj"), theirs.mlp.gate_up_proj, x),
        (("mlp.down_proj",), theirs.mlp.down_proj, inner),
    ):
        expected = torch.cat([ours.get_submodule(name)(value) for name in names], -1)
        torch.testing.assert_close(layer(value)[0], expected)
    held = sum(p.numel() for p in theirs.parameters())
    assert held == sum(tensor.numel() for _, tensor in weights)


def test_what_cannot_be_served_is_refused_by_name():
    from oialr_peft.export.vllm_plugin import FactoredConfig, FactoredMethod

    with pytest.raises(ValueError, match=r"'encoder\.attention' was taken apart"):
        FactoredConfig.from_config({"layers": {}, "attention": ["encoder.attention"]})
    with pytest.raises(ValueError, match="is held as two factors"):
        FactoredConfig({"model.embed_tokens": 2}).get_quant_method(nn.Embedding(4, 4), "model.embed_tokens")
    with pytest.raises(ValueError, match="tensor_parallel_size=1"):
        FactoredMethod([2]).create_weights(nn.Module(), 4, [8], 8, 8, torch.float32)
