"""Which layers are chosen: sane without any argument, refused with words where it cannot be."""

import copy
import re
import warnings

import accelerate
import pytest
import torch
import transformers
from peft import get_peft_model
from torch import nn

from oialr_peft import OIALRConfig
from oialr_peft.errors import OIALRWarning
from tests.conftest import MLP, MODELS, output, tiny_llama, tiny_t5


LEFT_ALONE = {  # what must not be factorised, and how many layers must be
    "llama": (r"lm_head|embed", 14),
    "gpt2": (r"lm_head|wte|wpe", 8),
    "bert": (r"classifier|embeddings", 13),
    "vit": (r"classifier|embeddings", 12),
    "t5": (r"lm_head|shared|embed", 32),
    "autoformer": (r"parameter_projection|embedding|seasonality_projection|trend_projection", 22),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_default_config_factorises_the_body_and_keeps_the_output(name):
    make, inputs = MODELS[name]
    model = make()
    expected = output(model, inputs())
    peft_model = get_peft_model(model, OIALRConfig())
    pattern, count = LEFT_ALONE[name]
    ranks = peft_model.base_model.ranks()
    assert len(ranks) == count
    assert not [layer for layer in ranks if re.search(pattern, layer)]
    assert sorted(ranks) == sorted(peft_model.base_model.targeted_module_names)
    assert str(peft_model.base_model.selection).startswith(f"OIALR factorises {count} layers: ")
    assert all(layer in str(peft_model.base_model.selection) for layer in ranks)
    torch.testing.assert_close(output(peft_model, inputs()), expected, atol=1e-5, rtol=1e-4)
    trainable = [n for n, p in peft_model.named_parameters() if p.requires_grad]
    assert trainable
    assert all("oialr_sigma" in n for n in trainable)


class Timm(nn.Module):
    """A model that tells its head in timm's way."""

    def __init__(self):
        super().__init__()
        self.body, self.fc = nn.Linear(32, 32), nn.Linear(32, 32)

    def get_classifier(self):
        return self.fc


class Wrapper(nn.Module):
    def __init__(self):
        super().__init__()
        self.timm_model = Timm()


@pytest.mark.parametrize(("make", "start"), [(Timm, ""), (Wrapper, "timm_model.")])
def test_the_head_that_a_timm_model_names_is_left_alone(make, start):
    selection = get_peft_model(make(), OIALRConfig()).base_model.selection
    assert selection.chosen == [f"{start}body"]
    assert selection.skipped == {f"{start}fc": "output head"}


def test_tied_layers_are_left_alone_and_named():
    model = get_peft_model(tiny_llama(tie_word_embeddings=True), OIALRConfig())
    assert "lm_head" in model.base_model.selection.skipped
    assert model.base_model.model.lm_head.weight is model.base_model.model.model.embed_tokens.weight


def test_a_tied_layer_cannot_be_freed():
    with pytest.raises(ValueError, match="'lm_head' is tied to another's and cannot be freed"):
        get_peft_model(tiny_t5(), OIALRConfig(target_modules=["lm_head"], train_rest=True))


def test_skinny_layers_heads_and_unusual_linears_are_left_alone_with_a_reason():
    class Scaled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    class OddAttention(nn.MultiheadAttention):
        def forward(self, *args, **kwargs):
            return super().forward(*args, **kwargs)

    model = nn.Sequential()
    model.body = nn.Linear(32, 32)
    model.skinny = nn.Linear(32, 3)
    model.scaled = Scaled(32, 32)
    model.attention = OddAttention(32, 2)
    model.depthwise = nn.Conv1d(32, 32, 3, groups=32)
    model.head = nn.Linear(32, 32)
    skipped = get_peft_model(model, OIALRConfig()).base_model.selection.skipped
    assert skipped["skinny"] == "skinny: (3, 32)"
    assert skipped["head"] == "output head"
    assert "Scaled; supported are" in skipped["scaled"]
    assert "OddAttention; supported are" in skipped["attention"]
    assert "OddAttention reads its weight directly" in skipped["attention.out_proj"]
    assert skipped["depthwise"] == "cannot get smaller: its factors hold at least 160 values, the weight 96"


def test_layers_whose_weight_is_read_directly_are_never_replaced():
    model = nn.Sequential()
    model.block = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    model.body = nn.Linear(16, 16)
    x = torch.randn(2, 3, 16)
    selection = get_peft_model(model, OIALRConfig(exclude_modules=["self_attn"])).base_model.selection
    assert selection.chosen == ["body"]
    assert "TransformerEncoderLayer reads its weight directly" in selection.skipped["block.linear1"]
    assert model(x).shape == x.shape
    fresh = nn.Sequential(nn.TransformerEncoderLayer(16, 2, 32))
    with pytest.raises(ValueError, match="is read directly by TransformerEncoderLayer"):
        get_peft_model(fresh, OIALRConfig(target_modules=["linear1"]))


def test_what_cannot_be_reached_is_named():
    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate_up_proj = nn.Parameter(torch.randn(4, 16, 16))

    model = nn.Sequential()
    model.experts, model.conv, model.body = Experts(), nn.ConvTranspose2d(3, 16, 3), nn.Linear(16, 16)
    with pytest.warns(
        OIALRWarning, match=r"84% of this model's .* 2 modules .* most of them Experts \(first 'experts'"
    ):
        skipped = get_peft_model(copy.deepcopy(model), OIALRConfig()).base_model.selection.skipped
    assert "Experts; supported are" in skipped["experts"]
    assert "ConvTranspose2d; supported are" in skipped["conv"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        excluded = get_peft_model(model, OIALRConfig(exclude_modules=["experts", "conv"])).base_model.selection
    assert excluded.skipped == dict.fromkeys(["experts", "conv"], "excluded by the config")
    with pytest.raises(ValueError, match=r"No layer is left(.|\n)*ConvTranspose2d; supported are"):
        get_peft_model(nn.Sequential(nn.ConvTranspose2d(3, 16, 3)), OIALRConfig())


def test_a_module_under_two_names_is_refused_when_named():
    model = nn.Sequential()
    model.a = nn.Linear(16, 16)
    model.b = model.a
    with pytest.raises(ValueError, match="stands in the model under several names"):
        get_peft_model(model, OIALRConfig(target_modules=["a"]))


def test_weights_on_the_meta_device_are_refused():
    with torch.device("meta"):
        model = MLP()
    with pytest.raises(ValueError, match="'first' is on the meta device"):
        get_peft_model(model, OIALRConfig())


def test_tied_modules_to_save_with_the_rest_are_refused():
    config = OIALRConfig(train_rest=True, modules_to_save=["lm_head"])
    with pytest.raises(ValueError, match="`modules_to_save` names 'lm_head', whose weight is tied"):
        get_peft_model(tiny_llama(tie_word_embeddings=True), config)


def test_layers_to_transform_without_target_modules():
    ranks = get_peft_model(tiny_llama(), OIALRConfig(layers_to_transform=[1])).base_model.ranks()
    assert len(ranks) == 7
    assert all(name.startswith("model.layers.1.") for name in ranks)


def test_peft_selectors(mlp):
    ranks = get_peft_model(mlp, OIALRConfig(exclude_modules=["middle"])).base_model.ranks()
    assert sorted(ranks) == ["first", "last"]
    ranks = get_peft_model(MLP(), OIALRConfig(target_modules="fir.*|mid.*")).base_model.ranks()
    assert sorted(ranks) == ["first", "middle"]
    ranks = get_peft_model(MLP(), OIALRConfig(modules_to_save=["last"])).base_model.ranks()
    assert sorted(ranks) == ["first", "middle"]
    ranks = get_peft_model(MLP(), OIALRConfig(keep_first_layer=True, keep_last_layer=True)).base_model.ranks()
    assert sorted(ranks) == ["middle"]
    config = OIALRConfig(target_modules=["q_proj", "v_proj"], layers_to_transform=[1])
    ranks = get_peft_model(tiny_llama(), config).base_model.ranks()
    assert sorted(ranks) == ["model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.v_proj"]
    ranks = get_peft_model(tiny_llama(), OIALRConfig(target_modules="all-linear")).base_model.ranks()
    assert len(ranks) == 14


def test_ranks_by_number_share_and_pattern(mlp):
    config = OIALRConfig(r=0.5, rank_pattern={"middle": 5, "last": None})
    assert get_peft_model(mlp, config).base_model.ranks() == {"first": 6, "middle": 5, "last": 16}


@pytest.mark.parametrize(
    ("change", "kwargs", "words"),
    [
        (None, {"target_modules": ["nothing"]}, "nothing"),
        (None, {"exclude_modules": ".*"}, "No layer is left to factorise(.|\n)*first .excluded by the config"),
        (None, {"target_modules": ["first"], "keep_first_layer": True}, "No layer is left(.|\n)*keep_first_layer"),
        (None, {"r": 13}, r"Rank 13 of target module 'first' is above min\(out, in\) = 12"),
        ("nan", {}, "'middle' has non-finite entries"),
        ("inf", {"delay": 3}, "'middle' has non-finite entries"),
        ("int8", {}, "'middle' holds quantised weights .* not supported yet"),
        ("int8", {"target_modules": ["middle"]}, "'middle' holds quantised weights"),
        ("packed", {}, "'middle' holds quantised weights"),
        (
            "bag",
            {"target_modules": ["middle"]},
            "'middle' is a torch.nn.modules.sparse.EmbeddingBag; supported are",
        ),
    ],
)
def test_refusals_come_before_the_model_is_touched(mlp, change, kwargs, words):
    if change in ("nan", "inf"):
        mlp.middle.weight.data[1, 2] = float(change)
    elif change == "int8":
        mlp.middle.weight = nn.Parameter(torch.zeros(24, 24, dtype=torch.int8), requires_grad=False)
    elif change == "packed":
        mlp.middle.qweight = torch.zeros(4, dtype=torch.int32)
    elif change == "bag":
        mlp.middle = nn.EmbeddingBag(24, 24)
    before = [type(module) for module in mlp.modules()]
    with pytest.raises(ValueError, match=words):
        get_peft_model(mlp, OIALRConfig(**kwargs))
    assert [type(module) for module in mlp.modules()] == before


def test_the_flatten_head_of_a_forecaster_is_left_alone_unless_it_is_named():
    """The pattern is that of docs/layers.md."""
    sizes = {"num_input_channels": 2, "d_model": 16, "ffn_dim": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes |= {"context_length": 64, "prediction_length": 8, "patch_length": 4, "patch_stride": 2}
    config = transformers.PatchTSTConfig(pooling_type=None, **sizes)
    by_rule = get_peft_model(transformers.PatchTSTForPrediction(config), OIALRConfig(delay=5))
    assert "head.projection (output head)" in str(by_rule.base_model.selection)
    pattern = r".*(_proj|ff\.[03]|head\.projection)"
    named = get_peft_model(transformers.PatchTSTForPrediction(config), OIALRConfig(delay=5, target_modules=pattern))
    assert set(named.base_model.ranks()) == {*by_rule.base_model.ranks(), "head.projection"}


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (nn.LazyLinear(24), "is a LazyLinear without a shape yet; run one batch"),
        (nn.Linear(24, 24, dtype=torch.complex64), "holds complex numbers"),
    ],
)
def test_weights_without_a_shape_or_with_complex_numbers_are_told_for_what_they_are(mlp, layer, words):
    mlp.middle = layer
    with pytest.raises(ValueError, match=words):
        get_peft_model(mlp, OIALRConfig(target_modules=["middle"]))


@pytest.mark.parametrize("settings", [{"r": 4}, {"delay": 3}, {"residual": True, "r": 3}])
def test_a_model_that_was_offloaded_afterwards_says_so_instead_of_giving_any_numbers(mlp, settings):
    model = get_peft_model(mlp, OIALRConfig(**settings))
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    with pytest.raises(RuntimeError, match="offloaded after the adapter was made"):
        model(torch.randn(4, 12))


def test_a_base_that_is_partly_on_disk_is_refused_with_a_delay_too(tmp_path):
    tiny_llama().save_pretrained(tmp_path / "base")
    places = {"model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.norm": "cpu", "lm_head": "cpu"}
    places |= {"model.layers.0": "cpu", "model.layers.1": "disk"}
    load = transformers.AutoModelForCausalLM.from_pretrained
    model = load(tmp_path / "base", device_map=places, offload_folder=str(tmp_path / "disk"))
    with pytest.raises(ValueError, match=r"layers\.1\..* is on the meta device \(offloaded"):
        get_peft_model(model, OIALRConfig(delay=2))


@pytest.mark.parametrize("settings", [{}, {"residual": True, "r": 4}])
@pytest.mark.parametrize("names", [["embed_tokens", "lm_head"], ["lm_head"], ["q_proj", "embed_tokens"]])
def test_a_weight_that_another_layer_shares_is_not_merged_into(names, settings):
    torch.manual_seed(0)
    base = tiny_llama(tie_word_embeddings=True)
    model = get_peft_model(base, OIALRConfig(target_modules=names, init_weights=False, **settings))
    before = {name: t.clone() for name, t in model.state_dict().items()}
    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(ValueError, match=r"weight of '(model.embed_tokens|lm_head)' is tied to another's"):
            merge()
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_a_layer_without_values_is_refused(mlp):
    mlp.middle = nn.Linear(0, 8)
    with pytest.raises(ValueError, match=r"'middle' holds no values: \(8, 0\)"):
        get_peft_model(mlp, OIALRConfig(target_modules=["middle"], r=0.5))
