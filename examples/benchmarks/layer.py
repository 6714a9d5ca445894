"""What does one layer cost at every rank? Forward and backward against a dense layer and two plain ways.

    python layer.py --output results/layer.json

`chain` multiplies through the three factors with autograd, `rebuilt` forms the weight as the authors' code does.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import torch
import torch.nn.functional as F
from peft import get_peft_model
from timing import compile_in_place, interleave, ratio, write
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import HfArgumentParser

from oialr_peft import OIALRConfig


SHAPES = ("512x512", "2048x512", "512x2048", "768x768", "3072x768")  # out x in
SHARES = (1.0, 0.5, 0.25, 0.1, 0.05)  # of the full rank


@dataclass
class Settings:
    """Settings of the measurement."""

    shapes: list[str] = field(default_factory=lambda: list(SHAPES), metadata={"help": "Out x in of the layers."})
    shares: list[float] = field(default_factory=lambda: list(SHARES), metadata={"help": "Ranks."})
    rows: int = field(default=3072, metadata={"help": "Rows of the input: batch times sequence length."})
    rounds: int = field(default=25, metadata={"help": "Rounds that count."})
    device: str = field(default="cpu", metadata={"help": "cpu or cuda."})
    dtype: str = field(default="float32", metadata={"help": "float32, or bfloat16: autocast."})
    compile: str = field(default="", metadata={"help": "Backend or mode of torch.compile; default eager."})
    output: str = field(default="results/layer.json", metadata={"help": "Results file."})


def main() -> None:
    """Measures every shape at every rank and writes the ratios."""
    (settings,) = HfArgumentParser(cast(Any, Settings)).parse_args_into_dataclasses()
    rows = []
    for name in tqdm(settings.shapes, desc="shapes"):
        out, inner = map(int, name.split("x"))
        for share in settings.shares:
            seconds = interleave(runs_of((out, inner), share, settings), settings.rounds, settings.device)
            row = {"out": out, "in": inner, "share": share}
            row |= {f"{name}/dense": ratio(seconds, name, "dense") for name in ("oialr", "chain", "rebuilt")}
            rows.append({**row, "oialr/best": ratio(seconds, "oialr", "chain", "rebuilt")})
    write(settings.output, rows)


def runs_of(shape: tuple[int, int], share: float, settings: Settings) -> dict[str, Callable[[], None]]:
    """One forward and backward pass by name, for one shape (out, in) and rank."""
    torch.manual_seed(0)
    dense = nn.Linear(shape[1], shape[0])
    config = OIALRConfig(r=share, target_modules=["0"], keep_base_weights=True)
    layer: Any = get_peft_model(nn.Sequential(nn.Linear(shape[1], shape[0])), config).to(settings.device)
    layer = layer.base_model.model[0]
    bias = layer.get_base_layer().bias.requires_grad_()
    dense.to(settings.device)
    u, sigma, vh = layer.weights["default"].factors
    chain: Any = Multiplied(lambda x: F.linear(F.linear(F.linear(x, vh), sigma), u, bias))
    rebuilt: Any = Multiplied(lambda x: F.linear(x, u @ sigma @ vh, bias))
    for module in (dense, layer, chain, rebuilt):
        compile_in_place(module, settings.compile)
    x = torch.randn(settings.rows, shape[1], device=settings.device, requires_grad=True)
    dy = torch.randn(settings.rows, shape[0], device=settings.device)

    def passes(forward: Callable[[Tensor], Tensor], *parameters: Tensor) -> Callable[[], None]:
        def run() -> None:
            for tensor in (x, *parameters):
                tensor.grad = None
            with torch.autocast(settings.device, torch.bfloat16, enabled=settings.dtype == "bfloat16"):
                y = forward(x)
            y.backward(dy.to(y.dtype))

        return run

    return {
        "dense": passes(dense, *dense.parameters()),
        "oialr": passes(layer, sigma, bias),
        "chain": passes(chain, sigma, bias),
        "rebuilt": passes(rebuilt, sigma, bias),
    }


class Multiplied(nn.Module):
    """A function of the input as a module, so that it is compiled as the layers are."""

    def __init__(self, product: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.product = product

    def forward(self, x: Tensor) -> Tensor:
        """The function's value."""
        return self.product(x)


if __name__ == "__main__":
    main()
