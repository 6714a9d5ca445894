"""What stands around the code of docs/*.md: tiny models under names of the Hub, and what a page takes for given."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset
from peft import get_peft_model

from oialr_peft import OIALRConfig, save_compressed
from tests.conftest import tiny_gpt2, tiny_llama, tiny_t5, tokens
from tests.neighbours.test_libraries import SENTENCES, tokenizer


BERT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


def bert(positions: int = 32) -> transformers.BertForSequenceClassification:
    """Little of it is embedding, so that half of its size can be had, as of the real one."""
    config = transformers.BertConfig(vocab_size=48, max_position_embeddings=positions, **BERT)
    return transformers.BertForSequenceClassification(config)


def vit() -> transformers.ViTForImageClassification:
    config = transformers.ViTConfig(image_size=16, patch_size=8, num_labels=2, **BERT)
    return transformers.ViTForImageClassification(config)


def tiny_whisper() -> transformers.WhisperForConditionalGeneration:
    sizes = {"d_model": 16, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "num_mel_bins": 8, "vocab_size": 48}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_layers": 1, "decoder_layers": 1}
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    config = transformers.WhisperConfig(**sizes, **heads, **special, max_source_positions=16, max_target_positions=16)
    model = transformers.WhisperForConditionalGeneration(config)
    model.generation_config.update(max_new_tokens=3, suppress_tokens=None, begin_suppress_tokens=None)
    return model


def unet() -> Any:
    from diffusers import UNet2DConditionModel

    blocks = {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    }
    sizes = {"sample_size": 8, "block_out_channels": (16, 32), "cross_attention_dim": 16, "attention_head_dim": 4}
    return UNet2DConditionModel(norm_num_groups=4, layers_per_block=1, **sizes, **blocks)


ON_THE_HUB: dict[str, Callable[[], Any]] = {
    "google-bert/bert-base-uncased": bert,
    "openai-community/gpt2": tiny_gpt2,
    "google-t5/t5-small": tiny_t5,
    "openai/whisper-tiny": tiny_whisper,
    "google/vit-base-patch16-224": vit,
}


PROCESSORS: dict[str, Callable[[], Any]] = {  # the others have a tokenizer
    "openai/whisper-tiny": lambda: transformers.WhisperProcessor(
        transformers.WhisperFeatureExtractor(feature_size=8), tokenizer()
    ),
    "google/vit-base-patch16-224": lambda: transformers.ViTImageProcessor(size={"height": 16, "width": 16}),
}


def rows(labels: Any = None, **columns: torch.Tensor) -> Any:
    """Eight rows, the labels of which are the tokens themselves where nothing else is said."""
    columns["labels"] = columns["input_ids"] if labels is None else labels
    return Dataset.from_dict({name: values.tolist() for name, values in columns.items()}).with_format("torch")


def adapted_bert() -> Any:
    return get_peft_model(bert(), OIALRConfig(r=0.25))


def classes() -> torch.Tensor:
    return torch.tensor([0, 1] * 4)


def small() -> None:
    """A compressed classifier in the folder `small`, for the lengths that the page speaks of."""
    save_compressed(get_peft_model(bert(512), OIALRConfig(r=0.25)), "small", processing_class=tokenizer())


def alone() -> None:
    """torch.distributed as torchrun starts it, with one process."""
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)


def names_of(page: str) -> dict[str, Any]:
    """The names that a page takes for given."""
    language = {"dataset": rows(input_ids=tokens(8)), "tokenizer": tokenizer()}
    given: dict[str, Callable[[], dict[str, Any]]] = {
        "index.md": lambda: {**language, "dataset": rows(classes(), input_ids=tokens(8))},
        "classification.md": lambda: {**language, "dataset": rows(classes(), input_ids=tokens(8))},
        "causal_lm.md": lambda: {**language, "texts": Dataset.from_dict({"text": SENTENCES[:8]})},
        "from_lora.md": lambda: language,
        "seq2seq.md": lambda: {**language, "speech": rows(tokens(8), input_features=torch.randn(8, 8, 32))},
        "vision.md": lambda: {"pictures": rows(classes(), pixel_values=torch.randn(8, 3, 16, 16))},
        "time_series.md": lambda: {
            "windows": rows(classes(), past_values=torch.randn(8, 32, 2), future_values=torch.randn(8, 8, 2))
        },
        "embeddings.md": lambda: {"pairs": Dataset.from_dict({"anchor": SENTENCES[:8], "positive": SENTENCES[1:9]})},
        "diffusion.md": lambda: {
            "batches": [
                (torch.randn(2, 4, 8, 8), torch.tensor([1, 7]), torch.randn(2, 3, 16), torch.randn(2, 4, 8, 8))
            ]
            * 4
        },
        "from_scratch.md": lambda: {"batches": [tokens(seed=seed) for seed in range(12)]},
        "compress.md": lambda: {"model": adapted_bert(), "tokenizer": tokenizer()},
        "serving.md": lambda: {"nothing": small()},
        "training.md": lambda: around_training(),
        "processes.md": lambda: around_processes(),
        "target_size.md": lambda: {"OIALRConfig": OIALRConfig},
        "layers.md": lambda: {"OIALRConfig": OIALRConfig},
    }
    return given.get(page, dict)()


def around_training() -> dict[str, Any]:
    """A model, its optimizer and updater, in the middle of a loop."""
    from oialr_peft import OIALRUpdater

    model = get_peft_model(tiny_llama(), OIALRConfig(train_rest=True))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    model(input_ids=tokens(), labels=tokens()).loss.backward()
    return {
        "base": tiny_llama(),
        "model": model,
        "optimizer": optimizer,
        "updater": OIALRUpdater(model, optimizer),
    }


def around_processes() -> dict[str, Any]:
    import oialr_peft

    alone()
    made = {"model": adapted_bert(), "base": bert(), "torch": torch, "oialr_peft": oialr_peft}
    return {**made, "save_compressed": save_compressed, "get_peft_model": get_peft_model, "OIALRConfig": OIALRConfig}


def put_on_the_hub(code: str, folder: Path) -> None:
    """Writes the models and processors that the code names into folders of these names, where transformers looks."""
    for name, make in ON_THE_HUB.items():
        if f'"{name}"' in code:
            make().save_pretrained(folder / name)
            PROCESSORS.get(name, tokenizer)().save_pretrained(folder / name)
    if (name := "stable-diffusion-v1-5/stable-diffusion-v1-5") in code and find_spec("diffusers"):
        unet().save_pretrained(folder / name / "unet")
