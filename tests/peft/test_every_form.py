"""Every form that a saved adapter can have, into a live adapter of every form, by every way in."""

import json

import pytest
import torch
from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from torch import nn

from oialr_peft import OIALRConfig, OIALRUpdater
from oialr_peft.layer import adapted_weights
from tests.conftest import MLP, tiny_bert


# What a run with these fields holds after so many steps; `first` is tall, `last` wide, so either side trains of one.
FORMS = {
    "dense": ({"delay": 9}, 1),
    "one side trains": ({"bases": "longer", "delay": 2, "r": 0.5}, 3),
    "one side at full rank": ({"bases": "longer", "sigma_cutoff": 0.0}, 1),
    "frozen after it": ({"bases": "longer", "delay": 1, "r": 0.5, "freeze_bases": 3}, 4),
    "frozen": ({"r": 0.7}, 1),
}


def run(form: str, model: nn.Module | None = None, **fields) -> nn.Module:
    given, steps = FORMS[form]
    model = get_peft_model(model or MLP(), OIALRConfig(update_interval=2, train_rest=True, **given, **fields))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    updater = OIALRUpdater(model, optimizer)
    for _ in range(steps):
        model(torch.randn(8, 12)).square().sum().backward()
        optimizer.step()
        updater.step()
        optimizer.zero_grad()
    return model


def by_file(saved, live, folder):
    saved.save_pretrained(folder)
    live.load_adapter(folder, "default")


def by_pickled_file(saved, live, folder):
    saved.save_pretrained(folder, safe_serialization=False)
    live.load_adapter(folder, "default")


WAYS = {
    "file": by_file,
    "pickled file": by_pickled_file,
    "adapter's state dict": lambda saved, live, _: set_peft_model_state_dict(live, get_peft_model_state_dict(saved)),
    "whole state dict": lambda saved, live, _: live.load_state_dict(saved.state_dict()),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("into", FORMS)
@pytest.mark.parametrize("form", FORMS)
def test_a_live_adapter_becomes_what_was_saved(form, into, way, tmp_path):
    torch.manual_seed(0)
    saved, live = run(form), run(into)
    way(saved, live, tmp_path)
    expected, found = (adapted_weights(m) for m in (saved, live))
    assert {n: (w.form, w.rank) for n, w in found.items()} == {n: (w.form, w.rank) for n, w in expected.items()}
    x = torch.randn(3, 12)
    assert torch.equal(live(x), saved(x))
    assert all(weight.core.requires_grad for weight in found.values())


@pytest.mark.parametrize("bases", ["frozen", "longer"])
def test_transformers_own_files_come_back(bases, tmp_path):
    model = tiny_bert().bert.eval()
    model.add_adapter(OIALRConfig(r=0.5, bases=bases))
    model.save_pretrained(tmp_path)
    fresh = tiny_bert().bert.eval()
    fresh.load_state_dict({k: v for k, v in model.state_dict().items() if "oialr" not in k}, strict=False)
    ids = torch.randint(0, 40, (2, 6))
    expected = model(input_ids=ids).last_hidden_state
    fresh.load_adapter(str(tmp_path))
    assert torch.equal(fresh(input_ids=ids).last_hidden_state, expected)


def saved_by_transformers(folder, **fields):
    model = tiny_bert().bert.eval()
    model.add_adapter(OIALRConfig(**fields))
    model.save_pretrained(folder)
    return folder


def test_what_transformers_wrote_is_refused_where_it_does_not_fit(tmp_path):
    """Its files carry no config of their own, so the one beside them says what they are."""
    whole = saved_by_transformers(tmp_path / "whole", r=0.5)
    live = get_peft_model(tiny_bert().bert, OIALRConfig(residual=True))
    with pytest.raises(ValueError, match="is an adapter with residual=False, the live one has residual=True"):
        live.load_adapter(whole, "default")
    bare = saved_by_transformers(tmp_path / "bare", residual=True, save_bases=False)
    with pytest.raises(ValueError, match="was saved without its bases"):
        tiny_bert().bert.load_adapter(str(bare))
    config = json.loads((whole / "adapter_config.json").read_text())
    for wrong in ("abc", {"a": ["left"]}):
        (whole / "adapter_config.json").write_text(json.dumps({**config, "one_sided": wrong}))
        with pytest.raises((ValueError, TypeError), match="`one_sided` must"):
            tiny_bert().bert.load_adapter(str(whole))
