"""How fast does a compressed language model read and write? Prefill and single-token decode against dense.

    python decode.py --output results/decode.json

A Llama of a billion parameters, dense and as `save_compressed` writes it, with a static cache. Prefill is one forward
over the prompt without it, decode one forward of a single token behind the prompt.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from peft import get_peft_model
from timing import compile_in_place, interleave, ratio, write
from tqdm.auto import tqdm
from transformers import HfArgumentParser, LlamaConfig, LlamaForCausalLM, StaticCache

from oialr_peft import OIALRConfig, save_compressed


@dataclass
class Settings:
    """Settings of the measurement."""

    shares: list[float] = field(default_factory=lambda: [0.5, 0.25, 0.1], metadata={"help": "Ranks."})
    batches: list[int] = field(default_factory=lambda: [1, 8, 64], metadata={"help": "Sequences at a time."})
    tokens: int = field(default=512, metadata={"help": "Length of the prompt."})
    width: int = field(default=2048, metadata={"help": "Of the model."})
    layers: int = field(default=16, metadata={"help": "Of the model."})
    rounds: int = field(default=15, metadata={"help": "Rounds that count."})
    device: str = field(default="cpu", metadata={"help": "cpu or cuda."})
    dtype: str = field(default="float32", metadata={"help": "Of the weights: float32, bfloat16."})
    compile: str = field(default="", metadata={"help": "Backend or mode of torch.compile; default eager."})
    output: str = field(default="results/decode.json", metadata={"help": "Results file."})


def main() -> None:
    """Loads dense and compressed models and times both kinds of forward pass in turn."""
    (settings,) = HfArgumentParser(cast(Any, Settings)).parse_args_into_dataclasses()
    kinds = ["dense", *map(str, settings.shares)]
    models = {kind: load(kind, settings) for kind in tqdm(kinds, desc="models")}
    rows: list[dict[str, Any]] = [{"kind": kind} for kind in kinds]
    for batch in tqdm(settings.batches, desc="batches"):
        runs = {kind: Runs(model, batch, settings) for kind, model in models.items()}
        for what in ("prefill", "decode"):
            timed: dict[str, Callable[[], None]] = {kind: getattr(run, what) for kind, run in runs.items()}
            with torch.inference_mode():
                seconds = interleave(timed, settings.rounds, settings.device)
            for row in rows:
                row[f"{what} {batch}/dense"] = ratio(seconds, row["kind"], "dense")
                row[f"{what} {batch}, ms"] = 1000 * min(seconds[row["kind"]])
        torch.compiler.reset()  # another batch would be a dynamic shape, which has no graph of its own
    write(settings.output, rows, tokens=settings.tokens)


def load(kind: str, settings: Settings) -> torch.nn.Module:
    """The model of a kind ready to run; compressed ones by way of their checkpoint."""
    sizes: dict[str, Any] = {"hidden_size": settings.width, "intermediate_size": 4 * settings.width}
    heads: dict[str, Any] = {"num_attention_heads": 32, "num_key_value_heads": 8}
    config = LlamaConfig(num_hidden_layers=settings.layers, vocab_size=32_000, **sizes, **heads)
    torch.manual_seed(0)
    with torch.device(settings.device):
        model: Any = LlamaForCausalLM(config).to(getattr(torch, settings.dtype))
    if kind != "dense":
        with tempfile.TemporaryDirectory() as name:
            save_compressed(get_peft_model(model, OIALRConfig(r=float(kind), init="lowrank")), Path(name))
            loaded: Any = LlamaForCausalLM.from_pretrained(name, dtype=getattr(torch, settings.dtype))
            model = loaded.to(settings.device)
    model.eval()
    compile_in_place(model, settings.compile)
    return model


class Runs:
    """The two forward passes of one model, with a cache of their own."""

    def __init__(self, model: torch.nn.Module, batch: int, settings: Settings) -> None:
        self.model: Any = model
        self.prompt = torch.randint(32_000, (batch, settings.tokens), device=settings.device)
        self.token = self.prompt[:, :1].clone()
        length = settings.tokens + settings.rounds + 8  # decoding fills up the end
        self.cache = StaticCache(model.config, max_cache_len=length)  # type: ignore[arg-type]
        with torch.inference_mode(), torch.compiler.set_stance("force_eager"):
            model(input_ids=self.prompt, past_key_values=self.cache, logits_to_keep=1)

    def prefill(self) -> None:
        """The whole prompt."""
        self.model(input_ids=self.prompt, use_cache=False, logits_to_keep=1)

    def decode(self) -> None:
        """One more token."""
        self.model(input_ids=self.token, past_key_values=self.cache, logits_to_keep=1)


if __name__ == "__main__":
    main()
