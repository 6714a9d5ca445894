"""Neighbouring libraries with their real trainers and models; what is not installed is reported as "not run"."""

import warnings

import pytest
import torch
from datasets import Dataset
from peft import PeftModel, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import PreTrainedTokenizerFast

from oialr_peft import OIALRCallback, OIALRConfig, OIALRUpdater, OIALRWarning
from oialr_peft.layer import oialr_layers
from tests.conftest import output, tiny_bert, tiny_llama, tokens
from tests.helpers import disturb


SENTENCES = [
    "the film is good",
    "the film is bad",
    "a good plot and a good cast",
    "a bad plot",
    "is the cast good",
] * 4
CUTS = {"update_interval": 2, "layer_step": 1.0, "sigma_cutoff": 0.5}


def tokenizer() -> PreTrainedTokenizerFast:
    words = ["<pad>", "<eos>", "<unk>", *sorted({word for sentence in SENTENCES for word in sentence.split()})]
    plain = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", model_max_length=16
    )


def sft_trainer(folder, callbacks):
    trl = pytest.importorskip("trl", reason="not run: trl absent")
    args = trl.SFTConfig(
        str(folder),
        max_steps=6,
        per_device_train_batch_size=4,
        report_to=[],
        use_cpu=True,
        save_strategy="no",
        logging_steps=1,
        max_length=16,
        learning_rate=1e-2,
        bf16=False,
    )
    return trl.SFTTrainer(
        tiny_llama(),
        args=args,
        train_dataset=Dataset.from_dict({"text": SENTENCES}),
        processing_class=tokenizer(),
        peft_config=OIALRConfig(task_type="CAUSAL_LM", **CUTS),
        callbacks=callbacks,
    )


def test_trl_sft_trains_and_cuts(tmp_path):
    trainer = sft_trainer(tmp_path, [OIALRCallback()])
    start = trainer.model.base_model.ranks()
    trainer.train()
    ranks = trainer.model.base_model.ranks()
    assert ranks.keys() == start.keys()
    assert sum(ranks.values()) < sum(start.values())
    assert any("oialr/mean_rank" in entry for entry in trainer.state.log_history)


def test_trl_without_the_callback_warns(tmp_path):
    trainer = sft_trainer(tmp_path, [])
    with pytest.warns(OIALRWarning, match="no OIALR update was made"):
        trainer.train()


@pytest.mark.parametrize("form", [{}, {"residual": True, "r": 4}], ids=["in its place", "residual"])
@pytest.mark.parametrize("comes", ["trained here", "from a file"])
def test_trls_reference_is_the_adapter_as_dpo_finds_it(form, comes, tmp_path):
    trl = pytest.importorskip("trl", reason="not run: trl absent")
    config = OIALRConfig(task_type="CAUSAL_LM", **form, **({} if form else CUTS))
    policy, batch = get_peft_model(tiny_llama(), config), {"input_ids": tokens()}
    disturb(policy)
    if not form:
        updater = OIALRUpdater(policy, torch.optim.SGD([p for p in policy.parameters() if p.requires_grad]))
        with warnings.catch_warnings(action="ignore", category=OIALRWarning):  # no step of the optimizer
            reports = [updater.step() for _ in range(4)]
        assert any(report and report.changed for report in reports)
    if comes == "from a file":
        policy.save_pretrained(tmp_path / "adapter")
        policy = PeftModel.from_pretrained(tiny_llama(), tmp_path / "adapter", is_trainable=True)
    args = trl.DPOConfig(
        str(tmp_path), max_steps=4, per_device_train_batch_size=2, report_to=[], use_cpu=True, save_strategy="no",
        learning_rate=1e-2, bf16=False, max_length=16,
    )  # fmt: skip
    rows = [{"prompt": "is the film", "chosen": " good", "rejected": " bad"}] * 8
    trainer = trl.DPOTrainer(
        policy, args=args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer(),
        callbacks=[] if form else [OIALRCallback()],
    )  # fmt: skip
    before = output(policy, batch)
    trainer.train()
    assert not torch.allclose(output(policy, batch), before, atol=1e-3)
    policy.set_adapter("ref")
    assert torch.equal(output(policy, batch), before)


def test_accelerate_in_a_loop_of_ones_own():
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = get_peft_model(tiny_llama(), OIALRConfig(**CUTS))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.5, 6)
    loader = torch.utils.data.DataLoader([torch.randint(0, 48, (8,)) for _ in range(24)], batch_size=2)
    model, optimizer, loader, schedule = accelerator.prepare(model, optimizer, loader, schedule)
    updater, reports = OIALRUpdater(model, optimizer), []
    for batch in loader:
        with accelerator.accumulate(model):
            accelerator.backward(model(input_ids=batch, labels=batch).loss)
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            reports.append(updater.step())
            schedule.step()
            optimizer.zero_grad()
    assert updater.steps == 6
    assert len([report for report in reports if report]) == 3
    assert max(accelerator.unwrap_model(model).base_model.ranks().values()) < 16


@pytest.mark.parametrize("bases", ["frozen", "longer"])
def test_sentence_transformers_trains_and_cuts(bases, tmp_path):
    st = pytest.importorskip("sentence_transformers", reason="not run: sentence-transformers absent")
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.losses import MultipleNegativesRankingLoss

    tiny_bert().bert.save_pretrained(tmp_path / "bert")
    tokenizer().save_pretrained(tmp_path / "bert")
    model = st.SentenceTransformer(str(tmp_path / "bert"), device="cpu")
    model.add_adapter(OIALRConfig(task_type="FEATURE_EXTRACTION", bases=bases, **CUTS))
    pairs = Dataset.from_dict({"anchor": SENTENCES, "positive": SENTENCES[1:] + SENTENCES[:1]})
    args = SentenceTransformerTrainingArguments(
        str(tmp_path / "out"), max_steps=6, report_to=[], use_cpu=True, save_strategy="no", learning_rate=1e-2
    )
    loss = MultipleNegativesRankingLoss(model)
    callback = OIALRCallback()
    SentenceTransformerTrainer(model, args, train_dataset=pairs, loss=loss, callbacks=[callback]).train()
    ranks = [weight.rank for weight in callback.updater.weights.values()]
    assert callback.updater.steps == 6
    assert min(ranks) < 16
    embeddings = model.encode(SENTENCES[:2])
    model.save_pretrained(str(tmp_path / "saved"))
    loaded = st.SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    torch.testing.assert_close(loaded.encode(SENTENCES[:2]), embeddings, rtol=1e-5, atol=1e-6)


def test_diffusers_unet_trains_and_cuts_convolutions_and_attention():
    pytest.importorskip("diffusers", reason="not run: diffusers absent")
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        norm_num_groups=4,
        layers_per_block=1,
        cross_attention_dim=16,
        attention_head_dim=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )
    inputs = (torch.randn(2, 4, 8, 8), torch.tensor([1, 7]), torch.randn(2, 3, 16))
    expected = unet.eval()(*inputs).sample
    unet.add_adapter(OIALRConfig(target_modules=["to_q", "to_k", "to_v", "to_out.0", "conv1", "conv2"], **CUTS))
    torch.testing.assert_close(unet(*inputs).sample, expected, rtol=1e-3, atol=1e-4)
    optimizer = torch.optim.AdamW([p for p in unet.parameters() if p.requires_grad], lr=1e-3)
    updater = OIALRUpdater(unet, optimizer)
    layers = oialr_layers(unet)
    kinds = {layer.kind.name for layer in layers.values()}
    assert kinds == {"Linear", "Conv2d"}
    with warnings.catch_warnings():
        warnings.simplefilter("error", OIALRWarning)
        for _ in range(4):
            nn.functional.mse_loss(unet(*inputs).sample, inputs[0]).backward()
            optimizer.step()
            updater.step()
            optimizer.zero_grad()
    cut = {layers[name].kind.name for name, weight in updater.weights.items() if weight.rank < weight.full_rank}
    assert cut == kinds
