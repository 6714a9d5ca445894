"""Time to quality: a Llama of GaLore's 60M shape on the characters of a text, by one method of examples/quality.

    python llama.py --text input.txt --method oialr_longer --device cuda --output llama.json

Width 512, 8 layers, feed-forward 1376, 256 characters of context, batches of 64, forward passes in bfloat16. The curve
is validation loss over steps and over seconds of training.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from pathlib import Path
from typing import Any, cast

import torch
from transformers import LlamaConfig, LlamaForCausalLM


EXAMPLES = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(EXAMPLES / "quality"), str(EXAMPLES / "benchmarks")]
from gpt import SIZES, Size  # noqa: E402
from run import METHODS, Settings, train  # type: ignore[import]  # noqa: E402  # quality's, not this folder's
from tasks import Characters  # type: ignore[import]  # noqa: E402  # quality's too
from timing import write  # noqa: E402


SHAPES = {"60M": Size(layers=8, width=512, heads=8, context=256, batch=64), "tiny": SIZES["tiny"]}


class Llama(LlamaForCausalLM):
    """Characters to the scores of the next, in bfloat16 by autocast."""

    def __init__(self, size: Size, vocabulary: int) -> None:
        sizes: dict[str, Any] = {"hidden_size": size.width, "intermediate_size": round(2.6875 * size.width)}
        sizes |= {"num_hidden_layers": size.layers, "num_attention_heads": size.heads}
        super().__init__(LlamaConfig(vocab_size=vocabulary, max_position_embeddings=size.context, **sizes))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        with torch.autocast(tokens.device.type, torch.bfloat16):
            scores: Any = super().forward(input_ids=cast(Any, tokens), use_cache=False).logits
        return scores.float()


def main() -> None:
    """Trains one model and writes its curve."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, default=None, help="TinyShakespeare's input.txt; absent: random letters")
    parser.add_argument("--method", choices=METHODS, required=True)
    parser.add_argument("--size", choices=SHAPES, default="60M")
    parser.add_argument("--lr", type=float, default=0.02, help="of Muon; AdamW's is a tenth")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", required=True)
    parsed = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        text = parsed.text or Path(folder) / "letters.txt"
        if parsed.text is None:
            text.write_text("".join(random.Random(0).choices("abcdefgh", k=4000)))
        task = Characters(text, SHAPES[parsed.size], parsed.device, Llama)
    rank = 1.0 if parsed.method == "dense" else 0.25
    settings = Settings(parsed.lr, rank, parsed.steps)
    found = train(parsed.method, task, settings, parsed.seed, points=min(40, parsed.steps))
    write(parsed.output, [], method=parsed.method, seed=parsed.seed, lr=parsed.lr, rank=rank, **found)


if __name__ == "__main__":
    main()
