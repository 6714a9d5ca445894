"""`target_size`: the file that a run leaves has the size that was asked for, or the run does not start."""

import json
import warnings
from pathlib import Path

import pytest
import torch
import transformers
from peft import get_peft_model

from oialr_peft import OIALRConfig, OIALRUpdater, OIALRWarning, save_compressed
from oialr_peft.files import read_header
from oialr_peft.plain import model_size
from tests.conftest import MLP
from tests.training.runs import losses, snapshot, trainer


WIDTH = 48
IDS = torch.randint(1, 96, (2, 8), generator=torch.Generator().manual_seed(0))
SHAPE = {"hidden_size": WIDTH, "intermediate_size": 3 * WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2}


def bert():
    config = transformers.BertConfig(vocab_size=96, max_position_embeddings=16, **SHAPE)
    return transformers.BertForSequenceClassification(config), {"input_ids": IDS, "labels": IDS[:, 0] % 2}


def llama():
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=96, **SHAPE)), {
        "input_ids": IDS,
        "labels": IDS,
    }


def t5():
    config = transformers.T5Config(
        vocab_size=96, d_model=WIDTH, d_kv=24, d_ff=3 * WIDTH, num_layers=2, num_heads=2, decoder_start_token_id=0
    )
    return transformers.T5ForConditionalGeneration(config), {"input_ids": IDS, "labels": IDS}


def vit():
    config = transformers.ViTConfig(image_size=16, patch_size=8, num_labels=4, **SHAPE)
    return transformers.ViTForImageClassification(config), {
        "pixel_values": torch.randn(2, 3, 16, 16),
        "labels": torch.tensor([0, 1]),
    }


def resnet():
    config = transformers.ResNetConfig(
        embedding_size=16, hidden_sizes=[32, 64], depths=[1, 2], layer_type="basic", num_labels=4
    )
    return transformers.ResNetForImageClassification(config), {
        "pixel_values": torch.randn(2, 3, 16, 16),
        "labels": torch.tensor([0, 1]),
    }


MODELS = {make.__name__: make for make in (bert, llama, t5, vit, resnet)}
FROM_SCRATCH = {"delay": 0.3, "train_rest": True, "bases": "longer"}


def bytes_of(folder: Path) -> int:
    """Of the tensors in the weights files; what comes before them is names."""
    headers = [read_header(path)[0] for path in folder.glob("*.safetensors")]
    return sum(max(entry["data_offsets"][1] for entry in header.values()) for header in headers)


def trained(model, batch, steps=12, **settings):
    model = get_peft_model(model, OIALRConfig(**settings))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    updater = OIALRUpdater(model, optimizer, total_steps=steps)
    cuts = []
    for _ in range(steps):
        model(**batch).loss.backward()
        optimizer.step()
        report = updater.step()
        optimizer.zero_grad()
        cuts += [report.step] if report and report.changed else []
    return model, updater, cuts


CASES = [(kind, size, scratch) for kind in MODELS for size in (0.8, 0.6, 0.5, 0.4) for scratch in (False, True)]
QUICK = {("resnet", 0.4, True)}


@pytest.mark.parametrize(
    ("kind", "size", "scratch"), [c if c in QUICK else pytest.param(*c, marks=pytest.mark.slow) for c in CASES]
)
def test_the_compressed_file_has_the_size_that_was_asked_for(kind, size, scratch, tmp_path):
    model, batch = MODELS[kind]()
    model.save_pretrained(tmp_path / "dense")
    model, updater, cuts = trained(model, batch, target_size=size, **(FROM_SCRATCH if scratch else {}))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OIALRWarning)  # of the tokenizer that there is not
        save_compressed(model, tmp_path / "small")
    dense, small = bytes_of(tmp_path / "dense"), bytes_of(tmp_path / "small")
    a_rank = 4 * max(sum(weight.matrix_shape[-2:]) for weight in updater.weights.values())
    assert small <= 1.01 * size * dense
    assert size * dense - small < max(0.01 * size * dense, a_rank)  # of the largest layer: no rank has room any more
    told = model_size(model)
    assert (told.dense.bytes, told.compressed.bytes) == (dense, small)
    assert cuts[-1] == (8 if scratch else 4)  # of 12 steps
    assert len(cuts) > 2
    with warnings.catch_warnings():
        warnings.simplefilter("error", OIALRWarning)
        updater.summary()


def start(model=None, total_steps=100, **settings):
    model = get_peft_model(model or bert()[0], OIALRConfig(**settings))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    return OIALRUpdater(model, optimizer, total_steps=total_steps)


def test_below_the_floor_nothing_starts_and_the_floor_is_told():
    parts = rf"embeddings {(96 + 16 + 2) * WIDTH:,}, everything else .* 1,394, and 13 layers at .* 1,632"
    with pytest.raises(ValueError, match=rf"`target_size=0.05` of .* floor of 8,498 \(15.4%\): {parts}"):
        start(target_size=0.05)


@pytest.mark.parametrize("setting", [{"min_rank": 0.5}, {"rank_multiple": 24}], ids=str)
def test_a_floor_that_a_setting_makes_names_the_setting(setting):
    start(target_size=0.4)
    with pytest.raises(ValueError, match=r"lower `min_rank` \(now .*\) or `rank_multiple` \(now "):
        start(target_size=0.4, **setting)


def test_the_floor_that_is_told_can_be_reached():
    with pytest.raises(ValueError, match="floor of") as caught:
        start(target_size=0.05)
    share = float(str(caught.value).partition("(")[2].partition("%")[0]) / 100
    assert start(target_size=share)


def test_a_run_of_unknown_length_and_one_without_an_update_are_refused():
    with pytest.raises(ValueError, match=r"approached over the run, whose length is not known here. Pass `OIALRUp"):
        start(target_size=0.5, total_steps=None)
    with pytest.raises(ValueError, match="ends at optimizer step 100, before the first update at step 200"):
        start(target_size=0.5, update_interval=200)


def test_a_start_below_the_size_and_an_end_above_it_are_told():
    with pytest.warns(OIALRWarning, match=r"below `target_size=0.9`: nothing will be cut. Raise `r`"):
        start(target_size=0.9, r=0.1)
    updater = start(target_size=0.5)
    with pytest.warns(OIALRWarning, match=r"ended at step 0 with 100.0% of the dense size .* to come at step 30"):
        updater.summary()


def test_any_model_and_a_rank_multiple():
    """An MLP is no model of transformers; its sizes count all the same."""
    torch.manual_seed(0)
    model = get_peft_model(MLP(width=64), OIALRConfig(target_size=0.5, rank_multiple=4, update_interval=2))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    updater = OIALRUpdater(model, optimizer, total_steps=12)
    for _ in range(12):
        model(torch.randn(3, 12)).sum().backward()
        optimizer.step()
        updater.step()
    assert all(rank % 4 == 0 for rank in model.base_model.ranks().values())
    assert 0.4 < model_size(model).share <= 0.5


def two_alike(more, **settings):
    """The ranks at which two layers of one weight end; `more(faint, x)` is what the second adds to the loss."""
    torch.manual_seed(0)
    model = torch.nn.ModuleDict({name: torch.nn.Linear(32, 32, bias=False) for name in ("felt", "faint")})
    model["faint"].load_state_dict(model["felt"].state_dict())
    config = OIALRConfig(target_size=0.4, target_modules=["felt", "faint"], update_interval=5, **settings)
    model = get_peft_model(model, config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    updater = OIALRUpdater(model, optimizer, total_steps=10)
    for _ in range(6):
        layers, x = model.base_model.model, torch.randn(64, 32)
        (layers["felt"](x).square().mean() + more(layers["faint"], x)).backward()
        optimizer.step()
        updater.step()
        optimizer.zero_grad()
    return model.base_model.ranks()


@pytest.mark.parametrize("aware", [True, False])
def test_the_layer_that_the_loss_feels_less_is_cut_further(aware):
    ranks = two_alike(lambda faint, x: faint(x).square().mean() / 100, activation_aware=aware)
    assert ranks["felt"] > ranks["faint"] + 4


def test_the_layer_whose_inputs_lie_in_few_directions_is_cut_further():
    few = torch.diag(torch.tensor([100.0] * 4 + [1.0] * 28))
    ranks = two_alike(lambda faint, x: faint(x @ few).square().mean() / 100)
    assert 2 <= ranks["faint"] <= 5
    assert ranks["felt"] + ranks["faint"] == 12  # for which there is room


WITHOUT_EFFECT = {
    "not called": lambda faint, x: 0,
    "not in the loss": lambda faint, x: 0 * float(faint(x).sum()),
    "times zero": lambda faint, x: 0 * faint(x).sum(),
}


@pytest.mark.parametrize("case", WITHOUT_EFFECT)
def test_a_layer_that_had_no_effect_counts_as_a_typical_one(case):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", OIALRWarning)
        ranks = two_alike(WITHOUT_EFFECT[case])
    assert min(ranks.values()) >= 4  # of the 12 for which there is room; neither takes it all
    told = [str(w.message) for w in caught if "chose by the weights alone" in str(w.message)]
    assert len(told) == (case != "times zero")


def test_a_cut_that_takes_much_names_the_size_and_not_the_cutoff():
    updater = start(target_size=0.3, update_interval=1, total_steps=3)
    updater.optimizer.step()
    with pytest.warns(OIALRWarning, match=r"more than 20% of the energy .* `target_size=0.3` asks for it"):
        for _ in range(2):
            updater.step()


@pytest.mark.slow
def test_resume_reaches_the_same_ranks(tmp_path):
    settings = {"sigma_cutoff": 0.1, "layer_step": 0.1, "update_interval": 2, "target_size": 0.5}
    whole = trainer(str(tmp_path), settings, save_strategy="steps", save_steps=9)
    whole.train()
    again = trainer(str(tmp_path / "again"), settings)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-9"))
    saved = json.loads((tmp_path / "checkpoint-9" / "adapter_config.json").read_text())["ranks"]
    assert sum(saved.values()) > sum(whole.model.base_model.ranks().values())  # cuts came after it
    assert again.model.base_model.ranks() == whole.model.base_model.ranks()
    assert losses(again) == {step: loss for step, loss in losses(whole).items()}
    assert all(torch.equal(value, snapshot(again)[name]) for name, value in snapshot(whole).items())
    assert model_size(whole.model).share == pytest.approx(0.5, rel=0.02)
