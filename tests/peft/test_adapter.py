"""The adapter in PEFT: forward, disable, merge, unload, dtypes, registration."""

import copy
import importlib
import subprocess
import sys
import warnings

import pytest
import torch
import transformers
from peft import PeftType, get_model_status, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from torch import nn
from transformers.pytorch_utils import Conv1D

import oialr_peft
from oialr_peft import OIALRConfig, OIALRModel, OIALRUpdater, rank_report
from oialr_peft.linalg import orthonormality_error
from tests.conftest import MLP, tiny_gpt2, tokens
from tests.helpers import disturb


def test_registration_is_real_and_idempotent():
    assert PeftType("OIALR") is PeftType.OIALR
    assert PeftType.OIALR in list(PeftType)
    assert PEFT_TYPE_TO_CONFIG_MAPPING[PeftType.OIALR] is OIALRConfig
    importlib.reload(oialr_peft)
    assert PEFT_TYPE_TO_CONFIG_MAPPING[PeftType.OIALR] is OIALRConfig


def test_importing_the_package_does_not_import_what_few_need():
    slow = {"rich", "transformers.trainer", "matplotlib", "torch.distributed.optim"}
    code = f"import sys, oialr_peft; assert not {slow} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_model_status(mlp):
    model = get_peft_model(mlp, OIALRConfig())
    assert isinstance(model.base_model, OIALRModel)
    status = get_model_status(model)
    assert (status.peft_types, status.requires_grad, status.enabled) == ({"default": "OIALR"}, {"default": True}, True)
    model.print_trainable_parameters()


@pytest.mark.parametrize("make", [MLP, tiny_gpt2])
def test_disable_merge_unmerge_and_unload(make):
    model = make()
    x = torch.randn(3, 12) if make is MLP else tokens()

    def out(m):
        result = m(x)
        return getattr(result, "logits", result).detach()

    model.eval()
    base = out(model)
    weights = {name: p.clone() for name, p in model.named_parameters()}
    peft_model = get_peft_model(model, OIALRConfig()).eval()
    disturb(peft_model)
    trained = out(peft_model)
    assert not torch.allclose(trained, base, atol=1e-3)
    with peft_model.disable_adapter():
        assert torch.equal(out(peft_model), base)
    peft_model.merge_adapter(safe_merge=True)
    torch.testing.assert_close(out(peft_model), trained, atol=1e-5, rtol=1e-5)
    peft_model.unmerge_adapter()
    for name, p in peft_model.base_model.model.named_parameters():
        if "oialr_" not in name:
            assert torch.equal(p, weights[name.replace(".base_layer", "")])
    merged = peft_model.merge_and_unload()
    torch.testing.assert_close(out(merged), trained, atol=1e-5, rtol=1e-5)
    assert set(dict(merged.named_parameters())) == set(weights)


def test_a_base_that_was_merged_comes_back_in_the_dtype_of_the_model(mlp):
    weight, x = mlp.middle.weight.detach().clone(), torch.randn(3, 12, dtype=torch.bfloat16)
    model = get_peft_model(mlp, OIALRConfig())
    disturb(model)
    model.merge_adapter()
    model.to(torch.bfloat16).unmerge_adapter()
    assert torch.equal(mlp.middle.base_layer.weight, weight.bfloat16())
    with model.disable_adapter():
        assert model(x).dtype == torch.bfloat16


def test_unload_gives_the_base_back(mlp):
    x = torch.randn(3, 12)
    base = mlp(x)
    model = get_peft_model(mlp, OIALRConfig())
    disturb(model)
    assert torch.equal(model.unload()(x), base)


def test_a_freed_base_says_which_option_keeps_it(mlp):
    model = get_peft_model(mlp, OIALRConfig(delay=3))
    with pytest.raises(RuntimeError, match="keep_base_weights=True"), model.disable_adapter():
        pass
    with pytest.raises(RuntimeError, match="keep_base_weights=True"):
        model.delete_adapter("default")
    with pytest.raises(ValueError, match="keep_base_weights=True"):
        model.add_adapter("second", OIALRConfig())
    assert list(model.peft_config) == ["default"]
    merged = model.merge_and_unload()
    assert merged.first.weight.shape == (24, 12)


def test_freeing_the_base_releases_its_memory_and_merging_brings_the_weight_back(mlp):
    weight, x = mlp.middle.weight.detach().clone(), torch.randn(3, 12)
    base = mlp(x)
    model = get_peft_model(mlp, OIALRConfig(train_rest=True))
    assert model.base_model.model.middle.base_layer.weight.numel() == 0
    torch.testing.assert_close(model(x), base, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model.merge_and_unload().middle.weight, weight, atol=1e-5, rtol=1e-5)


def test_two_adapters_switch_and_only_one_is_active(mlp):
    x = torch.randn(3, 12)
    model = get_peft_model(mlp, OIALRConfig())
    disturb(model)
    first = model(x).detach()
    model.add_adapter("second", OIALRConfig(r=0.5))
    assert torch.equal(model(x), first)
    model.set_adapter("second")
    assert model.base_model.ranks()["middle"] == 12
    assert not torch.equal(model(x), first)
    model.set_adapter("default")
    model.delete_adapter("second")
    assert torch.equal(model(x), first)


def test_merging_twice_warns_and_a_second_adapter_is_refused(mlp):
    model = get_peft_model(mlp, OIALRConfig())
    model.add_adapter("second", OIALRConfig(init_weights=False))
    model.merge_adapter()
    merged = mlp.first.base_layer.weight.clone()
    with pytest.warns(UserWarning, match="already merged, nothing to do"):
        model.merge_adapter()
    with pytest.warns(UserWarning, match="additionally"), pytest.raises(ValueError, match="unmerge_adapter"):
        model.merge_adapter(["second"])
    assert torch.equal(mlp.first.base_layer.weight, merged)


def test_a_deleted_adapter_leaves_nothing_behind(mlp):
    model = get_peft_model(mlp, OIALRConfig(update_interval=1), adapter_name="gone")
    model.delete_adapter("gone")
    assert "gone" not in mlp.first.weights
    model.add_adapter("gone", OIALRConfig(update_interval=1000))
    model.set_adapter("gone")
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0)
    OIALRUpdater(model, optimizer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(5):  # more than the deleted adapter's watch would have borne
            optimizer.step()


def test_layers_tell_their_features():
    for layer in (torch.nn.Linear(6, 4), Conv1D(4, 6), torch.nn.Conv1d(6, 4, 3), torch.nn.Conv2d(6, 4, 3, groups=2)):
        model = get_peft_model(torch.nn.Sequential(layer), OIALRConfig(target_modules=["0"]))
        assert (model.base_model.model[0].in_features, model.base_model.model[0].out_features) == (6, 4)


def test_disabling_a_merged_adapter_gives_the_base(mlp):
    x = torch.randn(3, 12)
    base = mlp(x)
    model = get_peft_model(mlp, OIALRConfig())
    disturb(model)
    model.merge_adapter()
    with model.disable_adapter():
        assert torch.equal(model(x), base)


def test_a_trained_rest_cannot_be_disabled_or_unloaded(mlp):
    model = get_peft_model(mlp, OIALRConfig(train_rest=True, keep_base_weights=True))
    for wish in (model.unload, model.base_model.disable_adapter_layers):
        with pytest.raises(RuntimeError, match="With `train_rest` the rest of the model was trained too"):
            wish()


def test_unloading_a_freed_base_is_refused(mlp):
    model = get_peft_model(mlp, OIALRConfig(keep_base_weights=False))
    with pytest.raises(RuntimeError, match=r"unloading the adapter is impossible.*keep_base_weights=True"):
        model.unload()


def test_autocast_gives_autocasts_dtype_in_every_phase():
    x = torch.randn(3, 12)
    for config in (OIALRConfig(), OIALRConfig(delay=5)):
        model = get_peft_model(MLP(), config)
        with torch.autocast("cpu", torch.bfloat16):
            assert model.base_model.model.first(x).dtype == torch.bfloat16


def test_the_model_pickles_and_copies(mlp, tmp_path):
    model = get_peft_model(mlp, OIALRConfig(train_rest=True))
    x = torch.randn(3, 12)
    torch.save(model, tmp_path / "model.pt")
    for other in (torch.load(tmp_path / "model.pt", weights_only=False), copy.deepcopy(model)):
        assert torch.equal(other(x), model(x))


def test_train_rest_trains_everything_but_frozen_parameters(mlp):
    mlp.first.bias.requires_grad_(False)
    model = get_peft_model(mlp, OIALRConfig(train_rest=True))
    trainable = {n.removeprefix("base_model.model.") for n, p in model.named_parameters() if p.requires_grad}
    expected = {f"{layer}.oialr_sigma.default" for layer in ("first", "middle", "last")}
    assert trainable == expected | {"last.base_layer.bias", "score.weight", "score.bias"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_bases_get_float32_factors(dtype):
    mlp, x = MLP(dtype=dtype), torch.randn(3, 12, dtype=dtype)
    base = mlp(x)
    model = get_peft_model(mlp, OIALRConfig())
    layer = model.base_model.model.middle
    assert {part.dtype for part in layer.weights["default"].factors} == {torch.float32}
    assert orthonormality_error(layer.oialr_u["default"]) < 1e-5
    assert model(x).dtype == dtype
    torch.testing.assert_close(model(x), base, atol=0.02, rtol=0.02)
    merged = layer.weights["default"].dense(layer.base_weight.dtype)
    # The float32 product, rounded once, is the weight again to one unit in the last place.
    torch.testing.assert_close(merged, layer.base_layer.weight, atol=1e-6, rtol=torch.finfo(dtype).eps)


def test_autocast_adapter_dtype_false_stores_the_factors_in_the_base_dtype():
    model = get_peft_model(MLP(dtype=torch.bfloat16), OIALRConfig(), autocast_adapter_dtype=False)
    layer = model.base_model.model.middle
    assert {part.dtype for part in layer.weights["default"].factors} == {torch.bfloat16}
    assert model(torch.randn(3, 12, dtype=torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.parametrize(("rank", "most"), [(None, 3.0), (0.25, 1.4)])
def test_bfloat16_factors_are_held_in_their_own_bytes(rank, most):
    """u, sigma and vh at full rank; at a quarter two quarters and a sixteenth of a square weight, more of others."""
    base = MLP(dtype=torch.bfloat16)
    dense = sum(p.nbytes for p in base.parameters())
    config = OIALRConfig(r=rank, train_rest=True)
    model = get_peft_model(base, config, autocast_adapter_dtype=False)
    held = [*model.parameters(), *model.buffers()]
    assert sum(tensor.untyped_storage().nbytes() for tensor in held) <= most * dense


def test_lowrank_initialisation_of_a_large_layer():
    torch.manual_seed(0)
    mlp = MLP(width=24)
    mlp.middle = torch.nn.Linear(24, 24)
    state = torch.get_rng_state()
    config = OIALRConfig(init="lowrank", r=2)
    model = get_peft_model(mlp, config)
    assert set(model.base_model.ranks().values()) == {2}
    assert torch.equal(torch.get_rng_state(), state)


def test_rank_report(mlp):
    model = get_peft_model(mlp, OIALRConfig(rank_pattern={"middle": 6}, train_rest=True))
    report = rank_report(model)
    middle = next(layer for layer in report.layers if layer.name == "middle")
    assert (middle.shape, middle.rank, middle.trainable) == ((24, 24), 6, 36)
    assert middle.parameters == 6 * (24 + 24 + 6)
    assert middle.bytes == 4 * middle.parameters
    assert (middle.flops, middle.dense_flops) == (2 * 6 * 48, 2 * 576)
    kept = rank_report(get_peft_model(MLP(), OIALRConfig(rank_pattern={"middle": 6})))
    assert kept.layers[1].parameters == middle.parameters + 24 * 24  # the dense base weight is held beside the factors
    assert report.trainable == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert "middle" in str(report)
    assert "3 layers hold" in str(report)
    assert middle.compressed == 6 * (24 + 24)
    assert report.size.compressed.bytes < report.size.dense.bytes == 4 * sum(p.numel() for p in MLP().parameters())
    assert "in files: " in str(report)
    with pytest.raises(TypeError, match="no active OIALR adapter"):
        rank_report(MLP())


@pytest.mark.parametrize(("init", "largest"), [("svd", 1e-5), ("lowrank", 0.1)])
def test_the_error_of_initialisation_is_reported_and_logged(init, largest, caplog):
    layer = nn.Linear(200, 200)
    with torch.no_grad():
        layer.weight.copy_(layer.weight[:, :6] @ torch.randn(6, 200) + 1e-2 * layer.weight)  # close to rank 6
    rank = None if init == "svd" else 6
    with caplog.at_level("INFO", logger="oialr_peft.tuner.model"):
        model = get_peft_model(nn.Sequential(layer), OIALRConfig(target_modules=["0"], r=rank, init=init))
    (error,) = model.base_model.init_errors.values()
    factored = model.base_model.model[0]
    dense = factored.base_layer.weight.detach()
    distance = (factored.weights["default"].dense(factored.base_weight.dtype) - dense).norm() / dense.norm()
    assert error == pytest.approx(float(distance), rel=1e-2, abs=1e-6)
    assert error < largest
    assert "factorised 1 layers in" in caplog.text
    assert f"init='{init}'" in caplog.text


@pytest.mark.parametrize("head", ["RobertaForSequenceClassification", "ElectraForSequenceClassification"])
def test_a_model_whose_saved_head_is_several_layers_is_merged(head):
    config = getattr(transformers, head).config_class(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=32, pad_token_id=1,
    )  # fmt: skip
    model = get_peft_model(getattr(transformers, head)(config), OIALRConfig(task_type="SEQ_CLS", r=0.25)).eval()
    tokens = torch.arange(2, 10).reshape(1, 8)
    with torch.no_grad():
        model.base_model.model.classifier.modules_to_save["default"].dense.weight.mul_(2)
        expected = model(tokens).logits
        torch.testing.assert_close(model.merge_and_unload()(tokens).logits, expected)
