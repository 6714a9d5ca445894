"""Beside other adapters and other ways in: what cannot work is refused by name, nothing is lost without a word."""

import pytest
import torch
from peft import (
    HRAConfig,
    IA3Config,
    LoHaConfig,
    LoraConfig,
    OFTConfig,
    PeftModel,
    get_peft_model,
    inject_adapter_in_model,
)
from transformers import BertForSequenceClassification

from oialr_peft import OIALRConfig, OIALRUpdater, OIALRWarning, rank_report, save_compressed
from tests.conftest import MLP, output, tiny_bert, tokens
from tests.helpers import disturb


INPUTS = {"input_ids": tokens()}


@pytest.fixture
def base(tmp_path):
    torch.manual_seed(0)
    tiny_bert().save_pretrained(tmp_path / "base")
    return lambda: BertForSequenceClassification.from_pretrained(tmp_path / "base")


def test_an_adapter_without_bases_comes_back_from_transformers_files(base, tmp_path):
    model = base()
    model.add_adapter(OIALRConfig(residual=True, r=4, save_bases=False))
    disturb(model)
    model.save_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(base(), tmp_path / "adapter")
    torch.testing.assert_close(output(again, INPUTS), output(model, INPUTS))


OTHERS = {
    "LORA": LoraConfig(target_modules=["query"], init_lora_weights=False),
    "LOHA": LoHaConfig(target_modules=["query"]),
    "IA3": IA3Config(target_modules=["query"], feedforward_modules=[]),
    "OFT": OFTConfig(target_modules=["query"], oft_block_size=4),
    "HRA": HRAConfig(target_modules=["query"]),
}


def mix_in(model, config):
    return inject_adapter_in_model(config, model)


@pytest.mark.parametrize("method", OTHERS)
def test_other_methods_on_a_replaced_weight_are_refused_and_leave_the_model_as_it_was(base, method):
    replaced = get_peft_model(base(), OIALRConfig(target_modules=["query"], r=4))
    expected = output(replaced, INPUTS)
    for inject, onto in ((get_peft_model, replaced), (mix_in, replaced.base_model.model)):
        with pytest.raises(ValueError, match=f"{method} on '.*query', whose weight an OIALR adapter replaces"):
            inject(onto, OTHERS[method])
        torch.testing.assert_close(output(replaced, INPUTS), expected)
        replaced.merge_adapter()
        replaced.unmerge_adapter()


def test_lora_instead_of_a_replaced_weight_or_beside_a_residual_one(base):
    switched = base()
    switched.add_adapter(OIALRConfig(target_modules=["query"], r=4), "small")
    switched.disable_adapters()
    switched.add_adapter(OTHERS["LORA"], "lora")
    added = get_peft_model(base(), OIALRConfig(target_modules=["query"], r=4, residual=True))
    disturb(added)
    both = get_peft_model(added, OTHERS["LORA"])
    expected = output(both, INPUTS)
    both.merge_adapter()
    torch.testing.assert_close(output(both, INPUTS), expected, atol=1e-5, rtol=1e-4)


def test_a_model_with_another_methods_adapter_is_not_compressed_without_it(base, tmp_path):
    model = base()
    model.add_adapter(LoraConfig(target_modules=["key"]), "lora")
    model.add_adapter(OIALRConfig(target_modules=["query"], r=4), "small")
    with pytest.raises(ValueError, match=r"key' has an adapter of another method .* on the base model alone"):
        save_compressed(model, tmp_path / "small")
    model.save_pretrained(tmp_path / "adapter")
    save_compressed(PeftModel.from_pretrained(base(), tmp_path / "adapter"), tmp_path / "small")


def test_a_dense_phase_loads_without_memory_for_the_start(base, tmp_path):
    model = get_peft_model(base(), OIALRConfig(task_type="SEQ_CLS", delay=3))
    disturb(model)
    model.save_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(base(), tmp_path / "adapter", low_cpu_mem_usage=True)
    torch.testing.assert_close(output(again, INPUTS), output(model, INPUTS))


def test_an_adapter_for_each_sample_is_refused(base):
    model = get_peft_model(base(), OIALRConfig(residual=True, r=4))
    with pytest.raises(NotImplementedError, match="`adapter_names`"):
        model(input_ids=tokens(), adapter_names=["default"] * len(tokens()))
    model(input_ids=tokens(), adapter_names=None)


def test_several_adapters_that_train_together_are_refused():
    model = get_peft_model(MLP(), OIALRConfig(residual=True, r=4))
    model.add_adapter("b", OIALRConfig(residual=True, r=6))
    model.base_model.set_adapter(["default", "b"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    with pytest.raises(ValueError, match=r"Several OIALR adapters of one layer train, \['default', 'b'\]"):
        OIALRUpdater(model, optimizer)
    model.set_adapter("b")
    OIALRUpdater(model, optimizer)


@pytest.mark.parametrize("way", ["disable_adapters", "delete_adapter"])
def test_a_rest_that_was_trained_is_not_passed_off_as_the_base(base, way):
    model = base()
    model.add_adapter(OIALRConfig(train_rest=True, keep_base_weights=True))
    with pytest.raises(RuntimeError, match="would not give the base model back"):
        getattr(model, way)(*(["default"] if way == "delete_adapter" else []))


def trained(count: int, between=lambda model: None):
    """A model with the adapters "default" and "b", its updater, and the reports of so many steps of "default"."""
    settings = {"update_interval": 3, "sigma_cutoff": 0.5, "layer_step": 1.0}
    torch.manual_seed(0)
    model = get_peft_model(MLP(), OIALRConfig(**settings))
    model.add_adapter("b", OIALRConfig(**settings))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    updater = OIALRUpdater(model, optimizer, total_steps=20)

    def step():
        model(torch.ones(4, 12)).square().mean().backward()
        optimizer.step()
        between(model)
        report = updater.step()
        optimizer.zero_grad()
        return report

    return model, updater, step, [step() for _ in range(count)]


def test_an_adapter_that_no_longer_trains_is_not_cut():
    model, updater, step, _ = trained(1)
    ranks = {name: weight.rank for name, weight in updater.weights.items()}
    model.set_adapter("b")
    with pytest.warns(OIALRWarning, match="'default' is frozen while its optimizer steps"):
        assert [step() for _ in range(4)] == [None] * 4
    assert {name: weight.rank for name, weight in updater.weights.items()} == ranks
    model.set_adapter("default")
    assert any(report is not None and report.changed for report in [step() for _ in range(3)])


def test_what_is_frozen_between_the_step_and_the_call_has_trained():
    def freeze(model) -> None:
        model.requires_grad_(False)

    plain = trained(0)[2]
    model, _, step, _ = trained(0, between=freeze)
    for _ in range(7):
        model.set_adapter("default")
        report, expected = step(), plain()
        assert (report is None) == (expected is None)
        assert report is None or report.ranks == expected.ranks


def test_layers_that_are_frozen_while_others_train_are_told_of_once():
    def freeze(model) -> None:
        model.get_submodule("base_model.model.middle").requires_grad_(False)

    step = trained(0, between=freeze)[2]
    with pytest.warns(OIALRWarning, match=r"1 of 3 layers, first 'middle', are frozen while others train") as said:
        for _ in range(9):
            step()
    assert len([warning for warning in said if issubclass(warning.category, OIALRWarning)]) == 1


def test_an_adapter_without_the_saved_modules_of_another_uses_the_models_own(base, tmp_path):
    model = get_peft_model(base(), OIALRConfig(modules_to_save=["bert.pooler"]), adapter_name="one")
    disturb(model)
    model.add_adapter("two", OIALRConfig(r=8))
    model.set_adapter("two")
    disturb(model)
    OIALRUpdater(model, torch.optim.SGD([p for p in model.parameters() if p.requires_grad]), total_steps=10)
    assert not [name for name in model.base_model.ranks() if "pooler" in name]
    model.save_pretrained(tmp_path / "adapters")
    for name in ("one", "two"):
        model.set_adapter(name)
        save_compressed(model, tmp_path / name)
        small = BertForSequenceClassification.from_pretrained(tmp_path / name)
        torch.testing.assert_close(output(small, INPUTS), output(model, INPUTS), atol=1e-5, rtol=1e-4)
        again = PeftModel.from_pretrained(base(), tmp_path / "adapters" / name)
        torch.testing.assert_close(output(again, INPUTS), output(model, INPUTS))


def test_an_adapter_trains_beside_loras_words(base):
    words = {"word_embeddings": [1, 2]}
    model = get_peft_model(base(), LoraConfig(target_modules=["query"], trainable_token_indices=words))
    mix_in(model.base_model.model, OIALRConfig(residual=True, r=4, target_modules=["value"]))
    OIALRUpdater(model, torch.optim.SGD([p for p in model.parameters() if p.requires_grad])).step()
    assert "value" in str(rank_report(model))


def test_a_saved_adapter_with_factors_inside_anothers_saved_module_says_so(base, tmp_path):
    get_peft_model(base(), OIALRConfig()).save_pretrained(tmp_path)
    model = get_peft_model(base(), OIALRConfig(modules_to_save=["bert.pooler"]), adapter_name="one")
    with pytest.raises(ValueError, match=r"Another adapter saves 'bert\.pooler' whole"):
        model.load_adapter(tmp_path, "two")
