"""Embedding tables as low-rank ones: chosen when asked for, trained, cut, saved both ways, counted in sizes."""

import pytest
import safetensors.torch
import torch
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
)

from oialr_peft import MuonAdamW, OIALRConfig, OIALRUpdater, rank_report, save_compressed
from oialr_peft.layer import adapted_weights


SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
SIZES["vocab_size"] = 400
INPUTS = {"input_ids": torch.randint(1, 200, (4, 8), generator=torch.Generator().manual_seed(0))}
TABLE = "bert.embeddings.word_embeddings"


def bert() -> BertForSequenceClassification:
    torch.manual_seed(0)
    return BertForSequenceClassification(BertConfig(max_position_embeddings=16, **SIZES)).eval()


def trained(model, labels, **settings):
    """After 12 steps with updates."""
    model = get_peft_model(model, OIALRConfig(embeddings=True, update_interval=2, **settings))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    updater = OIALRUpdater(model, optimizer, total_steps=12)
    for _ in range(12):
        model(**INPUTS, labels=labels).loss.backward()
        optimizer.step()
        updater.step()
        optimizer.zero_grad()
    return model.eval()


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(**INPUTS).logits


def test_they_are_left_alone_unless_asked_for():
    usual, more = (get_peft_model(bert(), OIALRConfig(embeddings=asked)).base_model.ranks() for asked in (False, True))
    assert set(more) - set(usual) == {TABLE, TABLE.replace("word", "position")}  # the third has two rows
    named = get_peft_model(bert(), OIALRConfig(target_modules=["word_embeddings"])).base_model.ranks()
    assert named == {TABLE: 32}


@pytest.mark.parametrize("bases", ["frozen", "longer"])
def test_a_size_is_reached_that_is_below_the_floor_without_them(bases, tmp_path):
    plain = get_peft_model(bert(), OIALRConfig(target_size=0.3))
    with pytest.raises(ValueError, match="target_size"):
        OIALRUpdater(plain, torch.optim.AdamW(plain.parameters()), total_steps=12)
    start = logits(bert())
    model = trained(bert(), torch.tensor([0, 1, 0, 1]), target_size=0.3, bases=bases, task_type="SEQ_CLS")
    expected = logits(model)
    assert not torch.allclose(expected, start, atol=1e-3)
    assert model.base_model.ranks()[TABLE] < 32
    save_compressed(model, tmp_path / "small")
    small = AutoModelForSequenceClassification.from_pretrained(tmp_path / "small")
    torch.testing.assert_close(logits(small), expected, rtol=1e-4, atol=1e-5)
    assert small.num_parameters() <= 0.3 * bert().num_parameters()
    assert rank_report(model).size.compressed.values == small.num_parameters()
    table = small.get_input_embeddings()
    assert (table.num_embeddings, table.embedding_dim) == (400, 32)
    dense = small.dequantize()
    assert type(dense.get_input_embeddings()) is nn.Embedding
    torch.testing.assert_close(logits(dense), expected, rtol=1e-4, atol=1e-5)
    model.save_pretrained(tmp_path / "adapter")
    kept = safetensors.torch.load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert not [name for name, tensor in kept.items() if tensor.shape == (400, 32)]
    again = PeftModel.from_pretrained(bert(), tmp_path / "adapter").eval()
    torch.testing.assert_close(logits(again), expected)


def test_a_decoder_whose_table_is_its_own_and_one_whose_table_is_tied(tmp_path):
    torch.manual_seed(0)
    config = {**SIZES, "num_key_value_heads": 2, "max_position_embeddings": 16}
    model = LlamaForCausalLM(LlamaConfig(tie_word_embeddings=False, **config)).eval()
    settings = {"sigma_cutoff": 0.5, "layer_step": 1.0, "task_type": "CAUSAL_LM", "train_rest": True}
    model = trained(model, INPUTS["input_ids"], **settings)
    expected = logits(model)
    assert model.base_model.ranks()["model.embed_tokens"] < 32
    save_compressed(model, tmp_path / "small")
    small = AutoModelForCausalLM.from_pretrained(tmp_path / "small")
    torch.testing.assert_close(logits(small), expected, rtol=1e-4, atol=1e-5)
    assert small.generate(**INPUTS, max_new_tokens=2, pad_token_id=0).shape == (4, 10)
    model.save_pretrained(tmp_path / "adapter")
    again = LlamaForCausalLM(LlamaConfig(tie_word_embeddings=False, **config)).eval()
    torch.testing.assert_close(logits(PeftModel.from_pretrained(again, tmp_path / "adapter").eval()), expected)
    tied = LlamaForCausalLM(LlamaConfig(tie_word_embeddings=True, **config))
    selection = get_peft_model(tied, OIALRConfig(embeddings=True)).base_model.selection
    assert "tied" in selection.skipped["model.embed_tokens"]


@pytest.mark.parametrize("option", [{"max_norm": 1.0}, {"scale_grad_by_freq": True}])
def test_a_table_that_does_more_than_give_its_rows_is_refused_by_name(option):
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.layer = nn.Embedding(100, 16, **option), nn.Linear(16, 16)

    with pytest.raises(ValueError, match=r"'table' is a .*Embedding; supported are .*without max_norm"):
        get_peft_model(Model(), OIALRConfig(target_modules=["table"]))
    assert set(get_peft_model(Model(), OIALRConfig(embeddings=True)).base_model.ranks()) == {"layer"}


def test_muon_leaves_a_factored_table_to_adamw_as_it_does_a_plain_one():
    model = get_peft_model(bert(), OIALRConfig(embeddings=True, bases="longer"))
    optimizer = MuonAdamW.from_model(model, muon_lr=0.02, lr=0.002)
    kinds = {id(p): group["kind"] for group in optimizer.param_groups for p in group["params"]}
    found = {name: kinds[id(weight.core)] for name, weight in adapted_weights(model).items()}
    assert {name for name, kind in found.items() if kind == "adamw"} == {TABLE, TABLE.replace("word", "position")}
