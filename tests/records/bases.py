"""The models of the records, with weights that come from no random generator, and what goes into them."""

from __future__ import annotations

import torch
import transformers
from torch import nn


def filled(model: nn.Module) -> nn.Module:
    """The model with weights that come from no random generator, whose numbers other versions of torch may change."""
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            angles = torch.arange(parameter.numel(), dtype=torch.float64) * (1.3 + 0.1 * number)
            wave = (angles + angles.square() / 97).sin().reshape(parameter.shape)
            parameter.copy_(wave / max(1, parameter.shape[-1]) ** 0.5)
    return model


def batch(*shape: int, seed: int = 0) -> torch.Tensor:
    count = torch.Size(shape).numel()
    return (torch.arange(count) * 0.7 + seed).sin().mul(1.7).reshape(shape)


def mlp() -> nn.Module:
    return filled(nn.Sequential(nn.Linear(20, 32), nn.Tanh(), nn.Linear(32, 24), nn.Tanh(), nn.Linear(24, 16)))


def llama() -> nn.Module:
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2}
    return filled(transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=40, **sizes)))


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.plane = nn.Conv2d(3, 8, 3, padding=1)
        self.groups = nn.Conv2d(8, 8, 3, stride=2, groups=2, padding_mode="circular", padding=1)
        self.line = nn.Conv1d(8, 12, 3, padding="same")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.line(self.groups(self.plane(x).tanh()).tanh().flatten(2))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.out = nn.Linear(16, 12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.attention(x, x, x)[0])


def gpt2() -> nn.Module:
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 16}
    return filled(transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=40, bos_token_id=0, **sizes)))


def outputs(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        found = model.eval()(x)
    return found if isinstance(found, torch.Tensor) else found.logits


def ids() -> torch.Tensor:
    return torch.arange(16).reshape(2, 8) * 7 % 39 + 1


# A base model without values of its own, what goes in, and the settings of its adapter.
ADAPTERS = {
    "linear": (mlp, lambda: batch(8, 20), {}),
    "convolution": (
        lambda: filled(Convolutions()),
        lambda: batch(2, 3, 8, 8),
        {"target_modules": ["plane", "groups"], "sigma_cutoff": 0.6},
    ),
    "attention": (lambda: filled(Attention()), lambda: batch(2, 6, 16), {"target_modules": ["attention"]}),
    "from_scratch": (llama, ids, {"delay": 2, "layer_step": 0.3, "train_rest": True}),
    "half_dense": (llama, ids, {"delay": 4, "target_modules": ["q_proj", "down_proj"]}),
    "gpt2": (gpt2, ids, {}),
}
