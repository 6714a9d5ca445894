"""How long does factorising a model take, and how far off is it? Exact SVD against the randomised one.

    python initialisation.py --output results/initialisation.json

The layers are those of a Llama of a billion parameters: one decoder block, whose 16 copies make the model. Singular
values fall as 1 / i, roughly as those of trained weights do.
"""

from dataclasses import dataclass, field
from typing import Any, cast

import torch
from peft import get_peft_model
from timing import now, write
from torch import Tensor
from tqdm.auto import tqdm
from transformers import HfArgumentParser, LlamaConfig, LlamaForCausalLM

from oialr_peft import OIALRConfig
from oialr_peft.linalg import decompose


BLOCK = {"q, o": (1, 1, 2), "k, v": (0.25, 1, 2), "gate, up": (4, 1, 2), "down": (1, 4, 1)}  # widths out, in; how many


@dataclass
class Settings:
    """Settings of the measurement."""

    ranks: list[int] = field(default_factory=lambda: [16, 64, 128], metadata={"help": "Ranks to start at."})
    blocks: int = field(default=16, metadata={"help": "Blocks of the model that the seconds are given for."})
    width: int = field(default=2048, metadata={"help": "Of the model."})
    whole: bool = field(default=False, metadata={"help": "Make the whole model as well, each way once."})
    device: str = field(default="cpu", metadata={"help": "cpu or cuda."})
    dtype: str = field(default="float32", metadata={"help": "Of the whole model's weights: float32, bfloat16."})
    output: str = field(default="results/initialisation.json", metadata={"help": "Results file."})


def main() -> None:
    """Factorises one layer of every shape in both ways and writes seconds and errors."""
    (settings,) = HfArgumentParser(cast(Any, Settings)).parse_args_into_dataclasses()
    rows = []
    for name, (*widths, count) in tqdm(BLOCK.items(), desc="shapes"):
        out, inner = (int(width * settings.width) for width in widths)
        weight = decaying(out, inner).to(settings.device)
        exact = seconds_and_error(weight, min(weight.shape), settings.ranks, "svd")
        for number, rank in enumerate(settings.ranks):
            drawn = seconds_and_error(weight, rank, [rank], "lowrank")
            row: dict[str, Any] = {"layers": name, "out": out, "in": inner, "count": count, "rank": rank}
            row |= {"svd seconds": exact[0], "svd error": exact[1][number]}
            rows.append({**row, "lowrank seconds": drawn[0], "lowrank error": drawn[1][0]})
    model = [
        {"rank": rank}
        | {
            f"{kind} seconds": settings.blocks
            * sum(r["count"] * r[f"{kind} seconds"] for r in rows if r["rank"] == rank)
            for kind in ("svd", "lowrank")
        }
        for rank in settings.ranks
    ]
    ways = {"svd": None, "lowrank": settings.ranks[-1]}
    whole = [whole_model(init, rank, settings) for init, rank in ways.items()] if settings.whole else []
    write(settings.output, rows, model=model, blocks=settings.blocks, whole=whole)
    print(model)


def seconds_and_error(weight: Tensor, rank: int, ranks: list[int], method: str) -> tuple[float, list[float]]:
    """Seconds of one decomposition, and the relative Frobenius error after a cut to each of `ranks`."""
    began = now(weight.device.type)
    rotation = decompose(weight, rank, method)
    assert rotation is not None, "the weight is finite"
    squares = rotation.singular_values.square().cpu()
    seconds = now(weight.device.type) - began
    whole = weight.square().sum().cpu()
    return seconds, [float((1 - squares[:cut].sum() / whole).clamp_min(0).sqrt()) for cut in ranks]


def whole_model(init: Any, rank: int | None, settings: Settings) -> dict[str, Any]:
    """Seconds of `get_peft_model` on a Llama of these shapes, and the number of its weights."""
    sizes: dict[str, Any] = {"hidden_size": settings.width, "intermediate_size": 4 * settings.width, "vocab_size": 256}
    heads: dict[str, Any] = {"num_attention_heads": 32, "num_key_value_heads": 8}
    with torch.device(settings.device):
        model: Any = LlamaForCausalLM(LlamaConfig(num_hidden_layers=settings.blocks, **sizes, **heads))
    model.to(getattr(torch, settings.dtype))
    weights, began = sum(p.numel() for p in model.parameters()), now(settings.device)
    get_peft_model(model, OIALRConfig(r=rank, init=init))
    return {"init": init, "rank": rank, "weights": weights, "seconds": now(settings.device) - began}


def decaying(out: int, inner: int) -> Tensor:
    """A random matrix (out, inner) with singular values 1, 1/2, 1/3, ..."""
    generator = torch.Generator().manual_seed(0)
    rank = min(out, inner)
    left = torch.linalg.qr(torch.randn(out, rank, generator=generator)).Q
    right = torch.linalg.qr(torch.randn(inner, rank, generator=generator)).Q
    return left / torch.arange(1, rank + 1) @ right.mT


if __name__ == "__main__":
    main()
