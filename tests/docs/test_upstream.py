"""upstream/: the page for PEFT's documentation runs as it would there, and its configurations are OIALR's."""

import warnings
from pathlib import Path

import peft
import pytest
import torch
from peft import PeftConfig
from transformers import LlamaConfig, LlamaForCausalLM

import oialr_peft
from oialr_peft import OIALRConfig
from oialr_peft.tuner.rules import initial_rank
from tests.conftest import tokens
from tests.docs.around import put_on_the_hub, rows
from tests.docs.test_pages import blocks


UPSTREAM = Path(__file__).resolve().parents[2] / "upstream"
CONFIGS = sorted(path.parent for path in UPSTREAM.rglob("adapter_config.json"))


def test_the_page_runs_with_the_names_that_peft_would_export(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = blocks(UPSTREAM / "docs" / "source" / "package_reference" / "oialr.md")
    put_on_the_hub("".join(code), tmp_path)
    for name in ("OIALRCallback", "OIALRConfig", "OIALRUpdater"):
        monkeypatch.setattr(peft, name, getattr(oialr_peft, name), raising=False)
    batches = [{"input_ids": tokens(seed=seed), "labels": tokens(seed=seed)} for seed in range(12)]
    names = {"dataset": rows(input_ids=tokens(8)), "batches": batches}
    assert len(code) == 2
    for block in code:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # tiny models and runs earn some
            exec(block, names)


@pytest.mark.parametrize("folder", CONFIGS, ids=lambda folder: "-".join(folder.parts[-4:]))
def test_the_configurations_are_oialrs(folder):
    config = PeftConfig.from_pretrained(folder)
    assert isinstance(config, OIALRConfig)
    assert folder.parent.name == "oialr"
    assert folder.parents[1].name == "experiments"
    assert (config.target_size is None) == config.residual


def test_the_larger_rank_has_as_many_trainable_values_as_the_lora_of_that_suite():
    """Of Llama 3.2 3B: LoRA of rank 32 on query and value, PEFT's default for it."""
    (folder,) = (path for path in CONFIGS if path.name == "llama-3.2-3B-residual-share0.08")
    sizes = {"hidden_size": 3072, "intermediate_size": 8192, "num_attention_heads": 24, "num_key_value_heads": 8}
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=1, vocab_size=8))
    layers = {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and n != "lm_head"}
    config = PeftConfig.from_pretrained(folder)
    ours = 28 * sum(initial_rank(name, min(layer.weight.shape), config) ** 2 for name, layer in layers.items())
    lora = 28 * sum(32 * sum(m.weight.shape) for n, m in layers.items() if n.endswith(("q_proj", "v_proj")))
    assert ours == pytest.approx(lora, rel=0.05)
