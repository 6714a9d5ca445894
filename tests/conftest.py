"""Tiny models without downloads, and the tolerances of the suite."""

from __future__ import annotations

import os


os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
import transformers
from torch import nn

import oialr_peft  # noqa: F401  (registers the method)


torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))


class MLP(nn.Module):
    """Three square-ish layers and a head, in the given dtype."""

    def __init__(self, width: int = 24, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.first = nn.Linear(12, width, dtype=dtype)
        self.middle = nn.Linear(width, width, bias=False, dtype=dtype)
        self.last = nn.Linear(width, 16, dtype=dtype)
        self.score = nn.Linear(16, 4, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.score(torch.tanh(self.last(torch.tanh(self.middle(torch.tanh(self.first(x)))))))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def mlp() -> MLP:
    return MLP()


def tiny_llama(**kwargs) -> transformers.LlamaForCausalLM:
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=48,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            **kwargs,
        )
    )


def tiny_gpt2() -> transformers.GPT2LMHeadModel:
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=48, n_embd=16, n_layer=2, n_head=2, n_positions=32, bos_token_id=0)
    )


def tiny_mixtral() -> transformers.MixtralForCausalLM:
    """Of fused experts, gate and up in one."""
    return transformers.MixtralForCausalLM(
        transformers.MixtralConfig(
            vocab_size=48,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=8,
            num_local_experts=4,
            num_experts_per_tok=2,
        )
    )


def tiny_bert() -> transformers.BertForSequenceClassification:
    return transformers.BertForSequenceClassification(
        transformers.BertConfig(
            vocab_size=48, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
        )
    )


def tiny_vit() -> transformers.ViTForImageClassification:
    return transformers.ViTForImageClassification(
        transformers.ViTConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=16,
            patch_size=8,
            num_labels=4,
        )
    )


def tiny_t5(tie_word_embeddings: bool = True) -> transformers.T5ForConditionalGeneration:
    return transformers.T5ForConditionalGeneration(
        transformers.T5Config(
            vocab_size=48,
            d_model=16,
            d_kv=8,
            d_ff=32,
            num_layers=2,
            num_heads=2,
            decoder_start_token_id=0,
            tie_word_embeddings=tie_word_embeddings,
        )
    )


def tiny_autoformer() -> transformers.AutoformerForPrediction:
    return transformers.AutoformerForPrediction(
        transformers.AutoformerConfig(
            prediction_length=8,
            context_length=12,
            label_length=4,
            input_size=3,
            lags_sequence=[0],
            scaling=False,
            num_time_features=2,
            d_model=16,
            encoder_layers=2,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=32,
            decoder_ffn_dim=32,
            moving_average=5,
            distribution_output="normal",
        )
    )


def tokens(batch: int = 2, length: int = 8, seed: int = 1) -> torch.Tensor:
    return torch.randint(1, 48, (batch, length), generator=torch.Generator().manual_seed(seed))


MODELS = {
    "llama": (tiny_llama, lambda: {"input_ids": tokens()}),
    "gpt2": (tiny_gpt2, lambda: {"input_ids": tokens()}),
    "bert": (tiny_bert, lambda: {"input_ids": tokens()}),
    "vit": (tiny_vit, lambda: {"pixel_values": torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))}),
    "t5": (tiny_t5, lambda: {"input_ids": tokens(), "decoder_input_ids": tokens(seed=2)}),
    "autoformer": (
        tiny_autoformer,
        lambda: {
            "past_values": torch.linspace(-1, 1, 2 * 12 * 3).reshape(2, 12, 3).sin(),
            "past_time_features": torch.zeros(2, 12, 2),
            "past_observed_mask": torch.ones(2, 12, 3),
            "future_values": torch.zeros(2, 8, 3),
            "future_time_features": torch.zeros(2, 8, 2),
        },
    ),
}


def output(model: nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """The main output tensor of any of the tiny models, in eval mode."""
    model.eval()
    with torch.no_grad():
        result = model(**inputs)
    return result.params[0] if hasattr(result, "params") else result.logits
