"""Ways of training a model, each as a function from a task to a model and its optimizer."""

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from peft import AdaLoraConfig, LoraConfig, OSFConfig, get_peft_model
from tasks import Task
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from oialr_peft import OIALRConfig


RATE = 1e-4
PISSA: Any = "pissa_niter_4"  # the fast SVD


def dense(task: Task) -> tuple[nn.Module, Optimizer]:
    """Every parameter trains."""
    model = task.make()
    return model, AdamW(trainable(model), RATE)


def oialr(share: float, train_rest: bool) -> Callable[[Task], tuple[nn.Module, Optimizer]]:
    """OIALR at a rank of `share` of each layer's full rank, with or without the rest of the model."""

    def make(task: Task) -> tuple[nn.Module, Optimizer]:
        config = OIALRConfig(r=share, exclude_modules=task.excluded, train_rest=train_rest, keep_base_weights=False)
        model = get_peft_model(task.make(), config)
        return model, AdamW(trainable(model), RATE)

    return make


def plain(share: float, rebuilt: bool) -> Callable[[Task], tuple[nn.Module, Optimizer]]:
    """u @ sigma @ vh by autograd: as a chain, or multiplied out in every forward as in the authors' code."""

    def make(task: Task) -> tuple[nn.Module, Optimizer]:
        model: Any = task.make()
        for name in targets(task):
            layer = model.get_submodule(name)
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, Plain(layer, share, rebuilt))
        return model, AdamW(trainable(model), RATE)

    return make


class Plain(nn.Module):
    """A linear layer of three factors, the outer two frozen."""

    def __init__(self, layer: nn.Linear, share: float, rebuilt: bool) -> None:
        super().__init__()
        u, s, vh = torch.linalg.svd(layer.weight.detach(), full_matrices=False)
        rank = max(1, int(share * len(s)))
        self.register_buffer("u", u[:, :rank].contiguous())
        self.register_buffer("vh", vh[:rank].contiguous())
        self.sigma = nn.Parameter(s[:rank].diag())
        self.bias, self.rebuilt = layer.bias, rebuilt

    def forward(self, x: Tensor) -> Tensor:
        """x through the factors."""
        u, vh = cast(Tensor, self.u), cast(Tensor, self.vh)
        if self.rebuilt:
            return F.linear(x, u @ self.sigma @ vh, self.bias)
        return F.linear(F.linear(F.linear(x, vh), self.sigma), u, self.bias)


def adapter(config: Callable[..., Any]) -> Callable[[Task], tuple[nn.Module, Optimizer]]:
    """One of PEFT's own methods on the layers that OIALR takes."""

    def make(task: Task) -> tuple[nn.Module, Optimizer]:
        model = get_peft_model(task.make(), config(target_modules=targets(task)))
        return model, AdamW(trainable(model), RATE)

    return make


def galore(task: Task) -> tuple[nn.Module, Optimizer]:
    """Every parameter trains; the moments of the weights that OIALR takes live in a projection of rank 128."""
    from galore_torch import GaLoreAdamW  # pyright: ignore[reportMissingImports]  # of the benchmarks' extra alone

    model = task.make()
    chosen = [model.get_submodule(name).weight for name in targets(task)]
    others = [p for p in trainable(model) if not any(p is weight for weight in chosen)]
    projected = {"params": chosen, "rank": 128, "update_proj_gap": 200, "scale": 0.25, "proj_type": "std"}
    groups: Any = [{"params": others}, projected]
    return model, GaLoreAdamW(groups, lr=RATE, no_deprecation_warning=True)


METHODS: dict[str, Callable[[Task], tuple[nn.Module, Optimizer]]] = {
    "dense": dense,
    **{f"OIALR {share:.0%}": oialr(share, train_rest=False) for share in (1.0, 0.5, 0.25, 0.1)},
    **{f"OIALR {share:.0%}, rest trained": oialr(share, train_rest=True) for share in (1.0, 0.25)},
    **{f"plain chain {share:.0%}, rest trained": plain(share, rebuilt=False) for share in (1.0, 0.25)},
    **{f"rebuilt {share:.0%}, rest trained": plain(share, rebuilt=True) for share in (1.0, 0.25)},
    "LoRA r16": adapter(lambda **targets: LoraConfig(r=16, **targets)),
    "AdaLoRA r16": adapter(lambda **targets: AdaLoraConfig(init_r=16, target_r=8, total_step=10_000, **targets)),
    "PiSSA r16": adapter(lambda **targets: LoraConfig(r=16, init_lora_weights=PISSA, **targets)),
    "OSF 75% frozen": adapter(lambda **targets: OSFConfig(effective_rank=0.75, **targets)),
    "GaLore r128": galore,
}


def targets(task: Task) -> list[str]:
    """The names of the layers that OIALR takes by default."""
    config = OIALRConfig(exclude_modules=task.excluded, delay=1)  # no SVD before step 1
    model: Any = get_peft_model(task.make(), config)
    return list(model.base_model.selection.chosen)


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that train."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]
