"""An adapter's files: what goes with it, what they may not bring, and which of two saves counts."""

import json
import os
import warnings

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from oialr_peft import OIALRConfig, OIALRWarning
from tests.conftest import MLP, output, tiny_llama, tokens


X = torch.linspace(-1, 1, 36).reshape(3, 12).sin()
SIGMA, U = "base_model.model.middle.oialr_sigma", "base_model.model.middle.oialr_u"


class WithNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.norm = MLP(), nn.BatchNorm1d(12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(self.norm(x))


def with_norm() -> WithNorm:
    torch.manual_seed(0)
    return WithNorm()


def adapter(r: float = 0.5, **settings) -> PeftModel:
    torch.manual_seed(0)
    return get_peft_model(MLP(), OIALRConfig(r=r, **settings)).eval()


def load(folder, **settings) -> PeftModel:
    torch.manual_seed(0)
    return PeftModel.from_pretrained(MLP(), folder, **settings)


def edit(folder, change) -> None:
    """Change the tensors and lose the metadata, as other tools do."""
    tensors = load_file(folder / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, folder / "adapter_model.safetensors")


def test_running_statistics_go_with_the_adapter(tmp_path):
    model = get_peft_model(with_norm(), OIALRConfig(r=0.5))
    model.train()(torch.randn(16, 12) * 3 + 1)
    model.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error", OIALRWarning)
        loaded = PeftModel.from_pretrained(with_norm(), tmp_path)
    assert torch.equal(loaded(X), model.eval()(X))
    other = get_peft_model(with_norm(), OIALRConfig(r=0.5))
    with pytest.warns(OIALRWarning, match=r"running statistics .* are replaced"):
        other.load_adapter(tmp_path, "second")
    edit(tmp_path, lambda tensors: [tensors.pop(key) for key in list(tensors) if ".norm." in key])
    with pytest.warns(OIALRWarning, match=r"has no running statistics of BatchNorm .*norm\.running_mean"):
        PeftModel.from_pretrained(with_norm(), tmp_path)


FOREIGN = {
    "a norm": (lambda t: t.update({"base_model.model.score.weight": torch.zeros(4, 16)}), "carries 'score.weight'"),
    "what nobody has": (lambda t: t.update({"base_model.model.x": torch.zeros(4)}), "Nothing in this model takes"),
    "int8": (lambda t: t.update({SIGMA: t[SIGMA].to(torch.int8)}), "floating-point"),
    "bool": (lambda t: t.update({SIGMA: t[SIGMA] > 0}), "floating-point"),
    "NaN": (lambda t: t[SIGMA][0].fill_(float("nan")), "middle.oialr_sigma' of the adapter file is not finite"),
    "no basis": (lambda t: t[U].mul_(1.2), "middle.oialr_u' of the adapter file is no orthonormal basis"),
}


@pytest.mark.parametrize(("change", "words"), FOREIGN.values(), ids=FOREIGN)
def test_what_a_file_may_not_bring(change, words, tmp_path):
    adapter().save_pretrained(tmp_path)
    edit(tmp_path, change)
    with pytest.raises(ValueError, match=words):
        load(tmp_path)


def test_a_flipped_byte_is_noticed(tmp_path):
    adapter().save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors' is damaged: its tensors are not those"):
        load(tmp_path)
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors' is damaged"):
        adapter().load_adapter(tmp_path, "default")


def test_transformers_own_loading_looks_at_the_file_too(tmp_path):
    get_peft_model(tiny_llama(), OIALRConfig(r=0.5)).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    key = next(key for key in tensors if key.endswith("oialr_u"))
    tensors[key].mul_(2)
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ValueError, match="no orthonormal basis"):
        tiny_llama().load_adapter(tmp_path)


def test_a_save_that_was_killed_between_its_two_files(tmp_path):
    """The weights are the new ones already: their own config counts, not the old one beside them."""
    old, new = adapter(0.25, target_modules=["first", "middle"]), adapter(0.5, train_rest=True)
    old.save_pretrained(tmp_path / "old")
    new.save_pretrained(tmp_path / "new")
    os.replace(tmp_path / "new" / "adapter_model.safetensors", tmp_path / "old" / "adapter_model.safetensors")
    loaded = load(tmp_path / "old")
    assert torch.equal(loaded(X), new(X))
    assert loaded.peft_config["default"].train_rest
    assert loaded.base_model.ranks() == new.base_model.ranks()


def test_an_edited_config_counts(tmp_path):
    adapter().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, "sigma_cutoff": 0.3}))
    assert load(tmp_path).peft_config["default"].sigma_cutoff == 0.3


def test_a_pickled_save_over_safetensors_is_the_one_that_loads(tmp_path):
    adapter(0.25).save_pretrained(tmp_path)
    new = adapter(0.5)
    new.save_pretrained(tmp_path, safe_serialization=False)
    assert not (tmp_path / "adapter_model.safetensors").exists()
    loaded = load(tmp_path)
    assert torch.equal(loaded(X), new(X))
    loaded.save_pretrained(tmp_path)
    assert not (tmp_path / "adapter_model.bin").exists()


def test_ranks_above_a_layers_size_are_refused_before_anything_is_made(tmp_path):
    adapter().save_pretrained(tmp_path, safe_serialization=False)  # whose ranks only the config tells beforehand
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    config["ranks"]["middle"] = 40_000
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"'middle' .* rank 40000, .* min\(out, in\) = 24"):
        load(tmp_path)


def test_regexes_become_names_when_saved(tmp_path):
    model = adapter(delay=5, keep_base_weights=True, rank_pattern={"(first|mid.*)": 3, "last": 4})
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "adapter_config.json").read_text())["rank_pattern"]
    assert saved == {"first": 3, "middle": 3, "last": 4}
    assert model.peft_config["default"].rank_pattern == {"(first|mid.*)": 3, "last": 4}


def test_a_state_dict_of_senseless_ranks_changes_nothing():
    model = adapter()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    for shape in ((40_000, 0), (0, 0), (30, 30), (12,)):
        state = {**before, "base_model.model.middle.oialr_sigma.default": torch.zeros(shape)}
        with pytest.raises(RuntimeError, match=r"size mismatch for .*middle"):
            model.load_state_dict(state)
        assert model.state_dict()["base_model.model.middle.oialr_sigma.default"].shape == (12, 12)


def test_the_file_tells_of_itself(tmp_path):
    get_peft_model(tiny_llama(), OIALRConfig(r=0.5)).save_pretrained(tmp_path)
    with safe_open(tmp_path / "adapter_model.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["oialr_config"]) == json.loads(
            (tmp_path / "adapter_config.json").read_text()
        )
        assert file.metadata()["format"] == "pt"
    torch.manual_seed(0)
    base = tiny_llama()
    assert output(PeftModel.from_pretrained(base, tmp_path), {"input_ids": tokens()}).isfinite().all()


def test_an_adapter_that_diverged_is_told_of_when_it_is_saved_and_when_it_is_loaded(tmp_path):
    model = adapter()
    next(p for name, p in model.named_parameters() if "oialr_sigma" in name).data[0, 0] = float("inf")
    with pytest.warns(OIALRWarning, match=r"oialr_sigma.* is not finite \(1 tensors are not\): training diverged"):
        model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is not finite: training diverged before it was saved"):
        load(tmp_path)


def test_names_of_modules_are_written_in_order(tmp_path):
    """They are sets, whose order is each process's own: the same training would be another file."""
    names = [f"body.{number}" for number in range(30)]
    model = nn.ModuleDict({"body": nn.Sequential(*(nn.Linear(16, 16) for _ in names))})
    get_peft_model(model, OIALRConfig(target_modules=names)).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"] == sorted(names)
