"""save_compressed for models that are not of transformers alone, and how their own libraries load what it wrote."""

import json
import subprocess
import sys

import pytest
import torch
from peft import get_peft_model

from oialr_peft import OIALRConfig, save_compressed
from tests.conftest import tiny_bert
from tests.neighbours.test_libraries import SENTENCES, tokenizer


LAYERS = ["to_q", "to_k", "to_v", "to_out.0", "conv1", "conv2"]
INPUTS = (torch.ones(2, 4, 8, 8), torch.tensor([1, 7]), torch.ones(2, 3, 16))


def values(model) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.fixture
def sentences(tmp_path):
    """A SentenceTransformer with more than a transformer: pooling of its own, a dense layer, normalisation."""
    st = pytest.importorskip("sentence_transformers", reason="not run: sentence-transformers absent")
    from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer

    tiny_bert().bert.save_pretrained(tmp_path / "bert")
    tokenizer().save_pretrained(tmp_path / "bert")
    torch.manual_seed(0)
    body = Transformer(str(tmp_path / "bert"))
    size = body.get_embedding_dimension()
    modules = [body, Pooling(size, pooling_mode="cls"), Dense(size, 8), Normalize()]
    model = st.SentenceTransformer(modules=modules, device="cpu", prompts={"query": "is "})
    model.add_adapter(OIALRConfig(task_type="FEATURE_EXTRACTION", r=0.25))
    return model


def test_a_sentence_transformer_is_written_whole(sentences, tmp_path):
    expected = sentences.encode(SENTENCES[:2], prompt_name="query")
    save_compressed(sentences, tmp_path / "small")
    again = type(sentences)(str(tmp_path / "small"), device="cpu")
    assert [type(module).__name__ for module in again] == ["Transformer", "Pooling", "Dense", "Normalize"]
    torch.testing.assert_close(again.encode(SENTENCES[:2], prompt_name="query"), expected, rtol=1e-4, atol=1e-5)
    assert values(again[0]) < values(tiny_bert().bert)
    assert not list((tmp_path / "small").glob("adapter*"))
    assert "import oialr_peft" in (tmp_path / "small" / "README.md").read_text()
    assert sentences[0].auto_model.peft_config  # the live model is as it was


@pytest.fixture
def unet():
    pytest.importorskip("diffusers", reason="not run: diffusers absent")
    from tests.docs.around import unet as tiny_unet

    torch.manual_seed(0)
    model = tiny_unet().eval()
    model.add_adapter(OIALRConfig(target_modules=LAYERS, r=0.25))
    return model


def test_a_unet_is_loaded_by_diffusers_alone_with_the_same_outputs(unet, tmp_path):
    expected = unet(*INPUTS).sample
    save_compressed(unet, tmp_path / "small")
    again = type(unet).from_pretrained(tmp_path / "small").eval()
    torch.testing.assert_close(again(*INPUTS).sample, expected, rtol=1e-4, atol=1e-5)
    assert values(again) < values(type(unet).from_config(unet.config))
    assert again.to(torch.bfloat16).dtype == torch.bfloat16
    again.float().save_pretrained(tmp_path / "again")
    third = type(unet).from_pretrained(tmp_path / "again").eval()
    torch.testing.assert_close(third(*INPUTS).sample, expected, rtol=1e-2, atol=1e-2)  # through bfloat16
    third.dequantize().save_pretrained(tmp_path / "dense")
    assert json.loads((tmp_path / "dense" / "config.json").read_text()).get("quantization_config") is None


@pytest.mark.parametrize("wrapped", [False, True], ids=["in place", "PeftModel"])
def test_a_whole_pipeline_has_its_adapted_parts_compressed(wrapped, unet, tmp_path):
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    sizes = {"sample_size": 8, "block_out_channels": (16, 32), "layers_per_block": 1, "norm_num_groups": 4}
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    plain = UNet2DModel(**sizes, **blocks).eval()
    model = get_peft_model(plain, OIALRConfig(target_modules=["conv1", "conv2"], r=0.25))  # its layers, in place
    pipeline = DDPMPipeline(plain, DDPMScheduler(num_train_timesteps=4))
    settings = {"num_inference_steps": 2, "output_type": "np"}
    expected = pipeline(generator=torch.Generator().manual_seed(0), **settings).images
    pipeline.unet = model if wrapped else plain
    save_compressed(pipeline, tmp_path / "small")
    again = DDPMPipeline.from_pretrained(tmp_path / "small")
    found = again(generator=torch.Generator().manual_seed(0), **settings).images
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=1e-3, atol=1e-4)
    assert values(again.unet) < values(UNet2DModel.from_config(plain.config))
    assert pipeline.unet is (model if wrapped else plain)


def test_files_of_two_saves_are_refused(unet, tmp_path):
    save_compressed(unet, tmp_path / "one")
    with torch.no_grad():
        next(unet.parameters()).add_(1)
    save_compressed(unet, tmp_path / "two")
    weights = "diffusion_pytorch_model.safetensors"
    (tmp_path / "one" / weights).write_bytes((tmp_path / "two" / weights).read_bytes())
    with pytest.raises(ValueError, match="is not the file that config"):
        type(unet).from_pretrained(tmp_path / "one")


def test_without_an_adapter_it_is_refused_by_name(unet, tmp_path):
    with pytest.raises(TypeError, match="UNet2DConditionModel has no active OIALR adapter"):
        save_compressed(type(unet).from_config(unet.config), tmp_path)


@pytest.mark.slow
def test_in_a_process_of_its_own_the_order_of_imports_does_not_matter(unet, tmp_path):
    save_compressed(unet, tmp_path)
    torch.save(unet(*INPUTS).sample, tmp_path / "sample.pt")
    code = """
import sys, torch
{}
from diffusers import UNet2DConditionModel
{}
model = UNet2DConditionModel.from_pretrained(sys.argv[1])
inputs = (torch.ones(2, 4, 8, 8), torch.tensor([1, 7]), torch.ones(2, 3, 16))
print((model(*inputs).sample - torch.load(sys.argv[1] + "/sample.pt")).abs().max().item() < 1e-5)
"""
    for first, second in (("import oialr_peft", ""), ("", "import oialr_peft")):
        command = [sys.executable, "-c", code.format(first, second), str(tmp_path)]
        assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "True"
    command = [sys.executable, "-c", code.format("", ""), str(tmp_path)]
    assert "Unknown quantization type, got oialr" in subprocess.run(command, capture_output=True, text=True).stderr
