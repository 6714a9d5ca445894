"""README.md's quick start as a newcomer's first minutes, on a tiny model without network: python quick_start.py FOLDER

Needs the package alone, as an installed one has it; `make dist` runs it in an empty environment.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace


TEXT = "a film to remember"


def run(folder: Path) -> dict[str, Any]:
    """Runs the first block in `folder`; its names, with the code of it and of the second, which uses the model."""
    os.chdir(folder)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.BertConfig(vocab_size=48, max_position_embeddings=16, **sizes)
    transformers.BertForSequenceClassification(config).save_pretrained("base")
    tokenizer().save_pretrained("base")
    readme = (Path(__file__).resolve().parents[1] / "README.md").read_text()
    code, use = re.findall(r"```python\n(.*?)```", readme, flags=re.DOTALL)[:2]
    for shown, here in (
        ('"google-bert/bert-base-uncased"', '"base"'),
        ('TrainingArguments("out")', 'TrainingArguments("out", use_cpu=True, report_to="none")'),
    ):
        assert shown in code, shown
        code = code.replace(shown, here)
    namespace = {"code": code, "use": use}
    exec(code, namespace)
    return namespace


def tokenizer() -> transformers.PreTrainedTokenizerFast:
    """Of whole words, few enough for the model."""
    vocabulary = {word: number for number, word in enumerate(["[PAD]", "[UNK]", *TEXT.split()])}
    plain = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    plain.pre_tokenizer = Whitespace()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="[PAD]", unk_token="[UNK]")


def use(code: str) -> Any:
    """What the last line of the block gives."""
    *before, last = code.strip().splitlines()
    assert f'("{TEXT}")' in last
    names: dict[str, Any] = {}
    exec("\n".join(before), names)
    return eval(last, names)


if __name__ == "__main__":
    names = run(Path(sys.argv[1]))
    import oialr_peft

    print(use(names["use"]))
    print(f"The quick start ran with {Path(oialr_peft.__file__).parent}.")
