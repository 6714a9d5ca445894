"""README.md's quick start as a newcomer's first minutes, on a tiny model without network: python quick_start.py FOLDER

Needs the package alone, as an installed one has it; `make dist` runs it in an empty environment.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

import torch
import transformers


def run(folder: Path) -> dict[str, Any]:
    """Runs the block in `folder` and returns its names."""
    os.chdir(folder)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    transformers.BertForSequenceClassification(transformers.BertConfig(vocab_size=48, **sizes)).save_pretrained("base")
    readme = (Path(__file__).resolve().parents[1] / "README.md").read_text()
    code = re.findall(r"```python\n(.*?)```", readme, flags=re.DOTALL)[0]
    for shown, here in (
        ('"google-bert/bert-base-uncased"', '"base"'),
        ("update_interval=100", "update_interval=2"),
        ('TrainingArguments("out")', 'TrainingArguments("out", use_cpu=True, report_to="none")'),
    ):
        assert shown in code, shown
        code = code.replace(shown, here)
    ids = torch.randint(1, 48, (64, 6))
    namespace = {"dataset": [{"input_ids": row, "labels": number % 2} for number, row in enumerate(ids)], "code": code}
    exec(code, namespace)
    return namespace


if __name__ == "__main__":
    names = run(Path(sys.argv[1]))
    import oialr_peft

    oialr_peft.save_compressed(names["model"], "small")
    transformers.AutoModelForSequenceClassification.from_pretrained("small")
    print(f"The quick start ran with {Path(oialr_peft.__file__).parent}.")
