"""PEFT's method_comparison/MetaMathQA/run.py, as it is, on a CPU and without the Hub: a tiny Llama, made-up rows.

python stand_in.py --peft PEFT --experiment oialr/llama-3.2-3B-residual-rank32

It shows that a configuration works there, and no more: the model is tiny, its tokens are bytes, its sums are made up.
PEFT is a checkout of its repository; nothing in it is changed, the result goes to where `--output` says. Replaced
while run.py runs: the accelerator (its memory is told as 0), bitsandbytes (of which run.py asks the version), the data
sets, the model with its tokenizer, and the length of the run. With `--updates` an `OIALRUpdater` follows each step, as
the three lines of README.md would have it.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import runpy
import shutil
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers


HERE = Path(__file__).parent
SHORT = {"max_steps": 24, "eval_steps": 12, "batch_size_eval": 50, "max_seq_length": 128, "dtype": "float32"}
GENERATION = {"max_length": 144, "max_new_tokens": 16}
WIKI = "the cat sat on the mat and the dog lay by the door while the rain fell on the roof "


def tokenizer() -> Any:
    """Of bytes."""
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<eos>", *alphabet])}
    made = Tokenizer(models.BPE(vocabulary, []))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<eos>")


def save_model(folder: Path, rows: list[str]) -> None:
    """A Llama of random weights, trained until its loss on the rows passes run.py's test of it (1 to 2 nats)."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes: Any = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    tokens = tokenizer()
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokens), num_key_value_heads=2, eos_token_id=0, **sizes))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    ids = torch.tensor(tokens(rows[:8])["input_ids"])
    while (loss := model(input_ids=ids, labels=ids).loss) > 1.5:
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    tokens.save_pretrained(folder)


def sums(count: int, seed: int) -> list[dict[str, str]]:
    """Made-up questions with their answers."""
    draw = random.Random(seed)
    pairs = [(draw.randrange(10), draw.randrange(10)) for _ in range(count)]
    return [{"query": f"{a} + {b}?", "response": f" {a} + {b} = {a + b}. The answer is: {a + b}"} for a, b in pairs]


def load_dataset(name: str, *_: Any, **__: Any) -> Any:
    """In the place of datasets.load_dataset."""
    from datasets import Dataset, DatasetDict

    if name == "meta-math/MetaMathQA":
        rows = [{**row, "type": "sum", "original_question": row["query"]} for row in sums(400, 0)]
        return DatasetDict(train=Dataset.from_list(rows))
    if name == "openai/gsm8k":
        made = {part: sums(count, seed) for part, count, seed in (("train", 100, 1), ("test", 100, 2))}
        rows_of = {p: [{"question": r["query"], "answer": r["response"]} for r in rows] for p, rows in made.items()}
        return DatasetDict({part: Dataset.from_list(rows) for part, rows in rows_of.items()})
    assert name == "HuggingFaceFW/finewiki", name
    return Dataset.from_list([{"text": row} for row in wiki()])


def wiki() -> list[str]:
    words = WIKI.split()
    draw = random.Random(3)
    return [" ".join(draw.choices(words, k=48))[:96] for _ in range(100)]


def stand_in_for_what_is_missing() -> Any:
    """The accelerator, bitsandbytes, the data sets and a keyword of Python 3.12; the module `utils` beside run.py."""
    import datasets
    import peft.utils

    memory = ("reset_peak_memory_stats", "manual_seed_all", "max_memory_reserved", "memory_allocated", "empty_cache")
    for name in (*memory, "memory_reserved"):
        setattr(torch.cpu, name, lambda *_: 0)
    torch.cpu.get_device_name = lambda *_: "no accelerator: stand_in.py on a CPU"  # type: ignore[attr-defined]
    bitsandbytes: Any = types.ModuleType("bitsandbytes")
    bitsandbytes.__version__, bitsandbytes.__path__ = "absent", ["site-packages"]
    sys.modules["bitsandbytes"] = bitsandbytes
    datasets.load_dataset = load_dataset
    peft.utils.infer_device = lambda: "cuda"  # asked for once, when `utils` is imported
    import utils  # pyright: ignore[reportMissingImports]

    peft.utils.infer_device = utils.infer_device = lambda: "cpu"
    utils.device = "cpu"
    del sys.modules["bitsandbytes"]  # or PEFT would take it for installed
    if sys.version_info < (3, 12):
        folder: Any = tempfile.TemporaryDirectory
        tempfile.TemporaryDirectory = lambda *args, delete=True, **given: folder(*args, **given)  # type: ignore
    return utils


def make_updates(utils: Any) -> None:
    """Have an OIALRUpdater follow the learning rate's scheduler, which run.py steps after the optimizer."""
    from oialr_peft import OIALRUpdater

    original = utils.get_optimizer_and_scheduler

    def with_updates(model: Any, **given: Any) -> tuple[Any, Any]:
        optimizer, scheduler = original(model, **given)
        updater = OIALRUpdater(model, optimizer, total_steps=given["max_steps"])
        step = scheduler.step

        def both() -> None:
            step()
            if (report := updater.step()) is not None:
                print(report, flush=True)

        scheduler.step = both
        return optimizer, scheduler

    utils.get_optimizer_and_scheduler = with_updates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peft", type=Path, required=True, help="a checkout of huggingface/peft")
    parser.add_argument("--experiment", required=True, help="METHOD/NAME below MetaMathQA/experiments, here or there")
    parser.add_argument("--updates", action="store_true")
    parser.add_argument("--steps", type=int, default=SHORT["max_steps"])
    parser.add_argument("--output", type=Path, help="where to copy the result")
    parsed = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    sys.path.insert(0, str(parsed.peft.resolve() / "src"))
    import oialr_peft  # noqa: F401  (PEFT learns of the method by it)

    inside = Path("method_comparison") / "MetaMathQA"
    own, theirs = (root / inside / "experiments" / parsed.experiment for root in (HERE, parsed.peft.resolve()))
    with tempfile.TemporaryDirectory() as temporary:
        suite, model = Path(temporary) / "MetaMathQA", Path(temporary) / "model"
        shutil.copytree(parsed.peft / inside, suite, ignore=shutil.ignore_patterns("experiments", "results"))
        for folder in ("results", "temporary_results", "cancelled_results"):
            (suite / folder).mkdir(exist_ok=True)
        experiment = suite / "experiments" / parsed.experiment
        shutil.copytree(own if own.exists() else theirs, experiment)
        parameters = experiment / "training_params.json"
        given = json.loads(parameters.read_text()) if parameters.exists() else {}
        short = {**SHORT, "max_steps": parsed.steps, "eval_steps": parsed.steps // 2, "model_id": str(model)}
        parameters.write_text(json.dumps({**given, **short, "generation_kwargs": GENERATION}))
        save_model(model, wiki())
        os.chdir(suite)
        sys.path.insert(0, str(suite))
        utils = stand_in_for_what_is_missing()
        if parsed.updates:
            make_updates(utils)
        sys.argv = ["run.py", "-v", f"experiments/{parsed.experiment}", "--clean"]
        runpy.run_path("run.py", run_name="__main__")
        (result,) = (file for folder in suite.glob("*results") for file in folder.glob("*.json"))
        found = json.loads(result.read_text())
        print(
            json.dumps({k: found["train_info"][k] for k in ("status", "num_trainable_params", "file_size", "metrics")})
        )
        if parsed.output:
            shutil.copy(result, parsed.output)


if __name__ == "__main__":
    main()
