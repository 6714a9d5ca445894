"""Our card comes with every save of an OIALR model, and PEFT's with every other."""

import warnings

import peft
import pytest
from peft import LoraConfig, PeftModel, get_peft_model

from oialr_peft import OIALRConfig, OIALRWarning
from oialr_peft.compat.patch import is_patched
from oialr_peft.registry import register


@pytest.mark.parametrize("name", ["create_or_update_model_card", "_upload_modified_files"])
def test_peft_still_has_the_methods_that_we_extend(name):
    method = getattr(PeftModel, name, None)
    assert method is not None, f"PEFT {peft.__version__} has no PeftModel.{name}; see registry.py for what it did"
    assert is_patched(PeftModel, name)


def test_a_second_registration_changes_nothing():
    before = PeftModel.create_or_update_model_card
    register()
    assert PeftModel.create_or_update_model_card is before


def test_other_methods_keep_pefts_card(mlp, tmp_path):
    get_peft_model(mlp, LoraConfig(target_modules=["first"])).save_pretrained(tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert "- PEFT " in text
    assert "oialr" not in text


@pytest.mark.parametrize("settings", [{"delay": 5}, {"train_rest": True}, {"keep_base_weights": True}], ids=str)
def test_every_state_can_be_saved(mlp, settings, tmp_path):
    get_peft_model(mlp, OIALRConfig(**settings)).save_pretrained(tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert ("| dense | 100% |" in text) is ("delay" in settings)
    assert f"`{next(iter(settings))}`: `{next(iter(settings.values()))}`" in text


def test_saving_while_disabled_or_merged_writes_a_card(mlp, tmp_path):
    model = get_peft_model(mlp, OIALRConfig())
    with model.disable_adapter():
        model.save_pretrained(tmp_path / "disabled")
    model.merge_adapter()
    model.save_pretrained(tmp_path / "merged")
    assert all("| `middle` |" in (tmp_path / name / "README.md").read_text() for name in ("disabled", "merged"))


def test_a_readme_that_cannot_be_read_does_not_cost_the_weights(mlp, tmp_path):
    broken = "---\ntags: [a\n---\nMine"
    (tmp_path / "README.md").write_text(broken)
    with pytest.warns(OIALRWarning, match="left as it is: its metadata cannot be read"):
        get_peft_model(mlp, OIALRConfig()).save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == broken
    assert (tmp_path / "adapter_model.safetensors").exists()


def test_saving_twice_changes_nothing_and_warns_of_nothing(mlp, tmp_path):
    model = get_peft_model(mlp, OIALRConfig())
    model.save_pretrained(tmp_path)
    first = (tmp_path / "README.md").read_bytes()
    with warnings.catch_warnings():
        warnings.simplefilter("error", OIALRWarning)
        model.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_bytes() == first
