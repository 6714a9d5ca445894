"""OIALRConfig refuses bad values at construction, naming field, rule and value."""

import copy
import json
import pickle

import pytest
from peft import PeftConfig

from oialr_peft import OIALRConfig


@pytest.mark.parametrize(
    ("field", "value", "error", "words"),
    [
        ("r", 0, ValueError, "`r` must be at least 1; got 0"),
        ("r", -3, ValueError, "got -3"),
        ("r", 0.0, ValueError, r"share and must be in \(0, 1\]; got 0.0"),
        ("r", 1.5, ValueError, "got 1.5"),
        ("r", "16", TypeError, "got '16'"),
        ("r", True, TypeError, "got True"),
        ("rank_pattern", {"q_proj": 0}, ValueError, r"`rank_pattern\['q_proj'\]` must be at least 1"),
        ("delay", -1, ValueError, "`delay` must be at least 0"),
        ("delay", "Auto", TypeError, "`delay` must be .*, or 'auto'; got 'Auto'"),
        ("delay", 1.5, ValueError, "`delay` as a float is a share of the run"),
        ("delay", 1.0, ValueError, r"must be in \(0, 1\); got 1.0"),
        ("update_interval", 2.0, ValueError, r"`update_interval` as a float .* must be in \(0, 1\]; got 2.0"),
        ("update_interval", 0, ValueError, "`update_interval` must be at least 1 optimizer steps; got 0"),
        ("format_version", 3, ValueError, "format version 3; this oialr_peft reads versions up to 2"),
        ("rank_multiple", 0, ValueError, "`rank_multiple` must be at least 1 singular values; got 0"),
        ("update_interval", "2", TypeError, "must be a number of optimizer steps or a share of the run"),
        ("sigma_cutoff", 1.0, ValueError, r"`sigma_cutoff` must be in \[0, 1\); got 1.0"),
        ("sigma_cutoff", -0.1, ValueError, "got -0.1"),
        ("sigma_cutoff", float("nan"), ValueError, "got nan"),
        ("sigma_cutoff", "0.1", TypeError, "must be a number"),
        ("layer_step", 0.0, ValueError, r"`layer_step` must be in \(0, 1\]"),
        ("max_cut", 1.1, ValueError, "`max_cut`"),
        ("min_rank", -1.0, ValueError, "`min_rank`"),
        ("target_size", 0.0, ValueError, r"`target_size` must be in \(0, 1\); got 0.0"),
        ("target_size", 1.0, ValueError, "got 1.0"),
        ("target_size", float("nan"), ValueError, "got nan"),
        ("target_size", 1, TypeError, "a share of the dense parameters"),
        ("target_size", "0.4", TypeError, "got '0.4'"),
        ("moments", "keep", ValueError, "`moments` must be one of rotate, slice, reset; got 'keep'"),
        ("init", "qr", ValueError, "`init` must be one of svd, lowrank"),
        ("train_rest", 1, TypeError, "`train_rest` must be True or False"),
        ("keep_base_weights", "yes", TypeError, "`keep_base_weights`"),
        ("rank_rule", "median", ValueError, "must be one of relative, energy, optimal; got 'median'"),
        ("layers_pattern", "layers", ValueError, "no effect without `layers_to_transform`"),
    ],
)
def test_bad_values_are_refused_by_name(field, value, error, words):
    with pytest.raises(error, match=words):
        OIALRConfig(**{field: value})


@pytest.mark.parametrize(
    "setting", [{"sigma_cutoff": 0.3}, {"layer_step": 1.0}, {"max_cut": 0.1}, {"rank_rule": "energy"}], ids=str
)
def test_what_target_size_decides_is_not_given_beside_it(setting):
    with pytest.raises(ValueError, match=f"`{next(iter(setting))}=.* has no effect with `target_size`"):
        OIALRConfig(target_size=0.5, **setting)


@pytest.mark.parametrize("setting", [{"sigma_cutoff": 0.3}, {"max_cut": 0.1}], ids=str)
def test_the_optimal_rule_takes_no_cutoff(setting):
    with pytest.raises(ValueError, match=f"`{next(iter(setting))}=.* has no effect with rank_rule='optimal'"):
        OIALRConfig(rank_rule="optimal", **setting)


def test_layers_to_transform_with_a_regex_is_refused():
    with pytest.raises(ValueError, match="no effect when `target_modules` is a regex"):
        OIALRConfig(target_modules=".*q_proj", layers_to_transform=[0])


@pytest.mark.parametrize(
    ("kwargs", "freed"),
    [
        ({}, False),
        ({"delay": 1}, True),
        ({"delay": "auto"}, True),
        ({"train_rest": True}, True),
        ({"delay": 1, "keep_base_weights": True}, False),
        ({"keep_base_weights": False}, True),
    ],
)
def test_the_base_weight_is_freed_by_rule(kwargs, freed):
    assert OIALRConfig(**kwargs).frees_base is freed


def test_round_trips(tmp_path):
    config = OIALRConfig(target_modules=["a", "b"], r=0.5, delay=7, rank_pattern={"a": 3}, train_rest=True)
    config.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert saved["peft_type"] == "OIALR"
    for other in (PeftConfig.from_pretrained(tmp_path), pickle.loads(pickle.dumps(config)), copy.deepcopy(config)):
        assert type(other) is OIALRConfig
        assert other.to_dict() == config.to_dict()
