"""OIALRConfig(residual=True): beside a base that stays, as LoRA does it."""

import copy
import json
import os
import warnings

import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from oialr_peft import OIALRConfig, OIALRUpdater, OIALRWarning, rank_report, save_compressed
from oialr_peft.export.lora import save_as_lora
from oialr_peft.layer import adapted_weights
from oialr_peft.linalg import orthonormality_error
from tests.conftest import MLP, MODELS, output, tiny_bert, tiny_llama, tokens
from tests.helpers import adapt, disturb, train


X = torch.linspace(-1, 1, 36).reshape(3, 12)
LAYERS = {
    "linear": lambda: (nn.Linear(12, 16), torch.randn(5, 12)),
    "transposed linear": lambda: (Conv1D(16, 12), torch.randn(5, 12)),
    "conv1d": lambda: (nn.Conv1d(12, 16, 3, stride=2, padding_mode="reflect", padding=1), torch.randn(2, 12, 11)),
    "conv2d groups": lambda: (nn.Conv2d(12, 32, 3, groups=4, stride=2), torch.randn(2, 12, 9, 7)),
    "attention": lambda: (nn.MultiheadAttention(16, 2, batch_first=True), torch.randn(2, 5, 16)),
}


def mlp(dtype: torch.dtype = torch.float32) -> MLP:
    torch.manual_seed(11)
    return MLP(dtype=dtype).eval()


def residual(**settings) -> PeftModel:
    return get_peft_model(mlp(), OIALRConfig(residual=True, **{"r": 4, **settings}))


@pytest.mark.parametrize("name", MODELS)
def test_the_output_is_the_bases_bit_for_bit_before_step_one(name):
    make, inputs = MODELS[name]
    model, inputs = make(), inputs()
    before = output(model, inputs)
    model = get_peft_model(model, OIALRConfig(residual=True, r=0.25))
    same = torch.equal
    if name == "autoformer":  # the last bit of a convolution that is not adapted depends on where its input lies
        same = torch.allclose
    assert same(output(model, inputs), before)
    disturb(model)
    assert not torch.allclose(output(model, inputs), before)
    with model.disable_adapter():
        assert same(output(model, inputs), before)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_every_kind_of_layer_adds_the_change_and_merges_it(name, dtype):
    layer, x = (part.to(dtype) for part in LAYERS[name]())
    inputs = (x, x, x) if name == "attention" else (x,)
    tolerance = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 5e-2}[dtype]

    def run(model):
        y = model(*inputs)
        return y[0] if isinstance(y, tuple) else y

    twin = copy.deepcopy(layer)
    expected = run(twin)
    model = adapt(layer, residual=True, r=3)
    if name != "attention":  # whose parts add up in another order
        assert torch.equal(run(model), expected)
    for weight in adapted_weights(model).values():
        assert weight.trainable_size == weight.core.numel()
        assert weight.core.shape[-2:] == (3, 3)
    disturb(model)
    y = run(model)
    assert y.dtype == dtype
    y.square().mean().backward()
    assert all(weight.core.grad is not None for weight in adapted_weights(model).values())
    merged = model.merge_and_unload().layer
    torch.testing.assert_close(run(merged), y, atol=tolerance, rtol=tolerance)


def test_the_bases_are_the_leading_directions_and_all_that_trains_is_sigma():
    model = residual()
    for name, weight in adapted_weights(model).items():
        dense = mlp().get_submodule(name).weight
        left, core, right = weight.factors
        assert orthonormality_error(left) < 2e-3  # of float16
        leading = torch.linalg.svdvals(dense.detach())[:4]
        torch.testing.assert_close(left.float().mT @ dense @ right.float().mT, leading.diag(), atol=2e-3, rtol=0)
        assert (core == 0).all()
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained == [f"base_model.model.{name}.oialr_sigma.default" for name in ("first", "middle", "last")]


def test_training_moves_sigma_alone_and_lowers_the_loss():
    model = residual()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    loss = model(X).square().mean()
    updater = train(model, (X,), steps=20)
    assert model(X).square().mean() < loss
    after = model.state_dict()
    assert {name for name in before if not torch.equal(before[name], after[name])} == {
        f"base_model.model.{name}.oialr_sigma.default" for name in ("first", "middle", "last")
    }
    assert updater.summary().endswith("The base is as it was, and nothing got smaller.")
    scales = updater._step_scale.scales()
    assert scales["middle"] == pytest.approx(24 / 4)  # sqrt(24 * 24) / 4: `lr_scale="match"`


def test_adapters_add_up_active_or_merged_and_the_base_comes_back_to_the_bit():
    base = mlp()(X)
    model = residual()
    disturb(model)
    first = model(X)
    model.add_adapter("second", OIALRConfig(residual=True, r=2))
    assert torch.equal(model(X), first)
    model.set_adapter("second")
    disturb(model)
    model.base_model.set_adapter(["default", "second"])
    both = model(X)
    deltas = [model.base_model.model.middle.get_delta_weight(name) for name in ("default", "second")]
    model.merge_adapter(["default"])
    model.merge_adapter(["second"])
    torch.testing.assert_close(model(X), both, atol=1e-5, rtol=1e-5)
    weight = mlp().middle.weight + deltas[0] + deltas[1]
    torch.testing.assert_close(model.base_model.model.middle.base_weight, weight, atol=1e-6, rtol=1e-6)
    model.unmerge_adapter()
    assert torch.equal(model(X), both)
    model.delete_adapter("second")
    model.set_adapter("default")
    assert torch.equal(model(X), first)
    assert torch.equal(model.unload()(X), base)


def test_beside_an_adapter_that_replaces_the_weight_only_one_is_active():
    model = residual()
    model.add_adapter("whole", OIALRConfig())
    model.base_model.set_adapter(["default", "whole"])
    with pytest.raises(ValueError, match=r"Those of OIALRConfig\(residual=True\) add up"):
        model(X)


@pytest.mark.parametrize("save_bases", [True, False])
def test_save_and_load_to_the_bit(save_bases, tmp_path):
    model = residual(save_bases=save_bases)
    disturb(model)
    model.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = PeftModel.from_pretrained(mlp(), tmp_path)
    assert torch.equal(loaded(X), model(X))
    assert loaded.base_model.ranks() == {"first": 4, "middle": 4, "last": 4}
    live = residual(r=2, save_bases=save_bases)
    live.load_adapter(tmp_path, "default", is_trainable=True)
    assert torch.equal(live(X), model(X))
    loaded.save_pretrained(tmp_path / "again")
    assert torch.equal(PeftModel.from_pretrained(mlp(), tmp_path / "again")(X), model(X))


def test_the_files_are_smaller_than_loras(tmp_path):
    def saved(config) -> int:
        model = transformers.BertModel(
            transformers.BertConfig(
                vocab_size=48, hidden_size=192, intermediate_size=384, num_hidden_layers=2, num_attention_heads=4
            )
        )
        targets = ["query", "key", "value", "dense"]
        config.target_modules = targets
        get_peft_model(model, config).save_pretrained(tmp_path / "a")
        return os.path.getsize(tmp_path / "a" / "adapter_model.safetensors")

    for rank in (8, 16):
        lora = saved(LoraConfig(r=rank))
        assert saved(OIALRConfig(residual=True, r=rank)) < 0.6 * lora
        assert saved(OIALRConfig(residual=True, r=rank, save_bases=False)) < lora / 20


def test_bases_that_were_not_saved_are_refused_from_another_base(tmp_path):
    model = residual(save_bases=False)
    disturb(model)
    model.save_pretrained(tmp_path)
    assert not any("oialr_u" in key or "oialr_vh" in key for key in _tensors(tmp_path))
    others = {"another": MLP(), "short": mlp(torch.bfloat16), "tuned": mlp()}
    others["tuned"].last.weight.data += 1e-3 * torch.randn(16, 24)
    for other in others.values():
        with pytest.raises(ValueError, match=r"the\s+base model is another one, or of another dtype.*save_bases=True"):
            PeftModel.from_pretrained(other, tmp_path)
    get_peft_model(tiny_llama(), OIALRConfig(residual=True, r=2, save_bases=False)).save_pretrained(tmp_path / "llama")
    with pytest.raises(ValueError, match="transformers' `load_adapter` asks nobody"):
        tiny_llama().load_adapter(tmp_path / "llama")


def test_a_file_of_the_other_mode_is_not_loaded_into_a_live_adapter(tmp_path):
    residual().save_pretrained(tmp_path / "residual")
    get_peft_model(mlp(), OIALRConfig(r=4)).save_pretrained(tmp_path / "whole")
    for folder, live in (("residual", OIALRConfig(r=4)), ("whole", OIALRConfig(residual=True, r=4))):
        model = get_peft_model(mlp(), live)
        before = model(X)
        with pytest.raises(ValueError, match="Load it under another `adapter_name`"):
            model.load_adapter(tmp_path / folder, "default")
        assert torch.equal(model(X), before)


def test_bases_read_from_a_file_are_not_left_out_of_the_next(tmp_path):
    residual().save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(mlp(), tmp_path)
    loaded.peft_config["default"].save_bases = False
    with pytest.raises(ValueError, match=r"were read from a file.*set `save_bases=True`"):
        loaded.save_pretrained(tmp_path / "again")


def test_equal_singular_values_are_told_at_loading(tmp_path):
    """Bases of an equal pair may come out turned elsewhere: the fingerprint tells, silence would be a wrong model."""
    flat = mlp()
    u, s, vh = torch.linalg.svd(flat.middle.weight.detach().double())
    s[:2] = 1.0
    flat.middle.weight.data = (u * s @ vh).float()
    model = get_peft_model(flat, OIALRConfig(residual=True, r=4, save_bases=False))
    model.save_pretrained(tmp_path)
    loaded = copy.deepcopy(model).unload()
    loaded.middle.weight.data += 1e-7 * torch.randn(24, 24)  # enough to turn the pair, not to tell the weight
    with pytest.raises(ValueError, match="are not the ones it was trained with"):
        PeftModel.from_pretrained(loaded, tmp_path)


def test_transformers_own_loading_and_old_readers(tmp_path):
    model = tiny_llama()
    state = copy.deepcopy(model.state_dict())
    adapted = get_peft_model(model, OIALRConfig(residual=True, r=4))
    disturb(adapted)
    adapted.save_pretrained(tmp_path)
    plain = tiny_llama()
    plain.load_state_dict(state)
    plain.load_adapter(tmp_path)
    assert torch.equal(output(plain, {"input_ids": tokens()}), output(adapted, {"input_ids": tokens()}))
    # Earlier versions would take the change for the weight; they stop at the number of the format.
    assert json.loads((tmp_path / "adapter_config.json").read_text())["format_version"] == 2


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"delay": 10}, "`delay=10` with `residual=True`"),
        ({"delay": 0.3}, r"`delay=0.3` with `residual=True`"),
        ({"train_rest": True}, "`train_rest=True` with `residual=True`"),
        ({"keep_base_weights": False}, "`keep_base_weights=False` with `residual=True`"),
        ({"target_size": 0.5}, "`target_size=0.5` with `residual=True`"),
        ({"bases": "longer"}, "`bases='longer'` with `residual=True`"),
        ({"residual": False, "save_bases": False}, "`save_bases=False` needs `residual=True`"),
    ],
    ids=str,
)
def test_what_residual_excludes_is_refused_by_name(settings, words):
    with pytest.raises(ValueError, match=words):
        OIALRConfig(**{"residual": True, **settings})


def test_words_where_fields_do_nothing_and_where_nobody_scales_the_steps():
    model = residual(update_interval=2, sigma_cutoff=0.5)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    with pytest.warns(OIALRWarning, match=r"`update_interval=2`, `sigma_cutoff=0.5` has no effect with `residual"):
        updater = OIALRUpdater(model, optimizer, total_steps=3)
    for _ in range(3):
        model(X).square().mean().backward()
        optimizer.step()
        assert updater.step() is None
    assert set(model.base_model.ranks().values()) == {4}
    alone = residual()
    with pytest.warns(OIALRWarning, match="The size of sigma's steps is not matched"):
        alone(X).square().mean().backward()
        torch.optim.SGD([p for p in alone.parameters() if p.requires_grad], lr=0.1).step()
    quiet = residual(lr_scale="none")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quiet(X).square().mean().backward()
        torch.optim.SGD([p for p in quiet.parameters() if p.requires_grad], lr=0.1).step()


def test_reports_count_what_is_held_and_that_nothing_gets_smaller(tmp_path):
    model = get_peft_model(tiny_bert(), OIALRConfig(residual=True, r=2))
    report = rank_report(model)
    assert report.trainable == 4 * len(report.layers)
    assert report.size.compressed == report.size.dense
    for layer in report.layers:
        rows, cols = layer.shape
        assert layer.parameters == rows * cols + 2 * (rows + cols) + 4
        assert layer.bytes == 4 * rows * cols + 2 * 2 * (rows + cols) + 4 * 4
        assert layer.compressed == rows * cols
    with pytest.raises(ValueError, match="a residual adapter leaves them whole"):
        save_compressed(model, tmp_path)
    disturb(model)
    losses = save_as_lora(model, tmp_path / "lora", rank=2)
    assert max(losses.values()) < 1e-5  # its change has rank 2


@pytest.mark.parametrize(("save_bases", "held"), [(True, 4 * (12 + 24 + 4)), (False, 16)])
def test_the_card_says_what_the_file_holds(save_bases, held, tmp_path):
    residual(save_bases=save_bases).save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "to each weight U Σ Vᵀ is added" in card
    assert f"| `first` | 24x12 | 4 | 33% | {held} |" in card


def test_the_default_rank_and_a_start_with_noise():
    config = OIALRConfig(residual=True, target_modules=["0", "1"], init_weights=False)
    model = get_peft_model(nn.Sequential(nn.Linear(48, 64), nn.Linear(64, 24)), config)
    assert list(model.base_model.ranks().values()) == [32, 24]
    assert all((weight.core != 0).any() for weight in adapted_weights(model).values())


def test_a_randomised_start_repeats():
    model = residual(init="lowrank", r=2)
    again = residual(init="lowrank", r=2)
    for one, other in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


def _tensors(folder) -> list[str]:
    from safetensors.torch import load_file

    return list(load_file(folder / "adapter_model.safetensors"))
