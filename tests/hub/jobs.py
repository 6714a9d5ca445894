"""What the fresh processes of these tests do with the real client: `python -m tests.hub.jobs FOLDER JOB ...`.

Each job returns what the test looks at. Starting a process takes longer than any job, so one may do several.
"""

from __future__ import annotations

import json
import re
import sys
import time
import traceback
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from peft import get_peft_model
from transformers import AutoModelForCausalLM, LlamaForCausalLM, Trainer, TrainingArguments

from oialr_peft import OIALRCallback, OIALRConfig, OIALRUpdater, save_compressed
from tests.conftest import output, tiny_bert, tiny_llama, tokens


SETTINGS = {"update_interval": 2, "layer_step": 1.0, "sigma_cutoff": 0.4}
INPUTS = {"input_ids": tokens()}


def trained(base):
    """A causal model after some real steps, with uneven ranks."""
    model = get_peft_model(base, OIALRConfig(task_type="CAUSAL_LM", **SETTINGS))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    updater = OIALRUpdater(model, optimizer)
    for _ in range(5):
        model(**INPUTS, labels=INPUTS["input_ids"]).loss.backward()
        optimizer.step()
        updater.step()
        optimizer.zero_grad()
    return model


def push(folder: Path) -> dict:
    """Push a base, an adapter trained on it, the two compressed and merged; leave the adapter's logits."""
    tiny_llama().push_to_hub("me/base")
    model = trained(LlamaForCausalLM.from_pretrained("me/base"))
    model.push_to_hub("me/adapter", tags=["of-the-user"])
    torch.save(output(model, INPUTS), folder / "logits.pt")
    ranks = model.base_model.ranks()
    save_compressed(model, folder / "small", push_to_hub=True, repo_id="me/small", private=True)
    model.merge_and_unload().push_to_hub("me/merged")
    return {"ranks": ranks}


def push_compressed_over_an_adapter(folder: Path) -> None:
    """As a user whose folder holds more than the model, into the repository that has had the adapter until now."""
    model = trained(tiny_llama())
    model.push_to_hub("me/replaced")
    (folder / "work").mkdir()
    (folder / "work" / ".env").write_text("SECRET=1")
    save_compressed(model, folder / "work", push_to_hub=True, repo_id="me/replaced")


def pull(folder: Path) -> dict:
    """Load what was pushed, in a process and a cache that know nothing: largest difference of logits by repository."""
    card = Path(HfApi().hf_hub_download("me/adapter", "README.md")).read_text()
    scope: dict = {}
    exec(re.findall(r"```python\n(.*?)```", card, re.DOTALL)[0], scope)  # the code on the card, as it stands
    models = {repo: AutoModelForCausalLM.from_pretrained(repo) for repo in ("me/merged", "me/small")}
    models["me/adapter"] = scope["model"]
    expected = torch.load(folder / "logits.pt")
    return {repo: (output(model, INPUTS) - expected).abs().max().item() for repo, model in models.items()}


def push_over_an_edited_readme(folder: Path) -> None:
    """As a user who has edited the README on the Hub since the last push."""
    model = trained(tiny_llama())
    model.push_to_hub("me/edited")
    card = ModelCard.load("me/edited")
    card.text = card.text.replace("# edited", "# Mine\n\nMy words.")
    card.data.tags = [*(card.data.tags or []), "my-tag"]
    HfApi().upload_file(path_or_fileobj=str(card).encode(), path_in_repo="README.md", repo_id="me/edited")
    model.push_to_hub("me/edited")


def trainer(folder: Path) -> dict:
    """Train and push with the Trainer, twice."""
    data = [{"input_ids": row, "labels": 1} for row in tokens(8)]
    arguments = TrainingArguments(
        str(folder / "out"), max_steps=4, save_steps=2, report_to=[], use_cpu=True, hub_model_id="me/trained"
    )
    model = get_peft_model(tiny_bert(), OIALRConfig(task_type="SEQ_CLS", **SETTINGS))
    run = Trainer(model, arguments, train_dataset=data, callbacks=[OIALRCallback()])
    run.train()
    run.push_to_hub()
    run.push_to_hub()
    return {"ranks": model.base_model.ranks()}


def fail(folder: Path) -> dict:
    """Save, then push while the Hub fails in the ways of conftest.py: the message of each error."""
    time.sleep = lambda seconds: None  # the client waits half a minute between its retries
    model = trained(tiny_llama())
    model.save_pretrained(folder / "saved")
    (folder / "saved" / "README.md").write_text("My own words.")
    messages = {}
    for way in ("upload", "commit", "connection"):
        with pytest.raises(Exception) as caught:
            model.push_to_hub(f"me/no-{way}")
        messages[way] = "".join(traceback.format_exception_only(caught.value))
    return {"messages": messages}


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.manual_seed(0)  # once: two jobs must not make equal files, which the Hub takes only once
    print(json.dumps({job: globals()[job](Path(sys.argv[1])) for job in sys.argv[2:]}))
