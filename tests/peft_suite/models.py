"""Tiny models under the names that PEFT's tests load from the Hub: transformers finds a folder of that name first.

python models.py FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import transformers


WIDTH = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA = {**WIDTH, "intermediate_size": 64, "num_key_value_heads": 2, "vocab_size": 128}
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 128, "n_positions": 128}
T5 = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "vocab_size": 128}
BART = {"d_model": 16, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "encoder_layers": 2, "decoder_layers": 2}
HEADS = {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "max_position_embeddings": 128}
END = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 3}  # the tests' inputs are tokens 1 and 2
CONFIGS = {
    "peft-internal-testing/tiny-random-OPTForCausalLM": transformers.OPTConfig(
        **WIDTH, ffn_dim=64, vocab_size=128, word_embed_proj_dim=16, max_position_embeddings=128, **END
    ),
    "peft-internal-testing/tiny-random-GPT2LMHeadModel": transformers.GPT2Config(
        **GPT, bos_token_id=0, eos_token_id=2
    ),
    "hf-internal-testing/tiny-random-gpt2": transformers.GPT2Config(**GPT, bos_token_id=0, eos_token_id=2),
    "peft-internal-testing/tiny-random-GPTJForCausalLM": transformers.GPTJConfig(
        **GPT, rotary_dim=4, bos_token_id=0, eos_token_id=2
    ),
    "trl-internal-testing/tiny-random-LlamaForCausalLM": transformers.LlamaConfig(**LLAMA, **END),
    "peft-internal-testing/tiny-dummy-qwen2": transformers.Qwen2Config(**LLAMA, **END),
    "hf-internal-testing/tiny-random-MistralForCausalLM": transformers.MistralConfig(**LLAMA, **END),
    "hf-internal-testing/tiny-random-Gemma3ForCausalLM": transformers.Gemma3TextConfig(**LLAMA, head_dim=8, **END),
    "peft-internal-testing/tiny-random-T5ForConditionalGeneration-calibrated": transformers.T5Config(
        **T5, decoder_start_token_id=0
    ),
    "peft-internal-testing/tiny-random-BartForConditionalGeneration": transformers.BartConfig(
        **BART, **HEADS, vocab_size=128, **END, decoder_start_token_id=2, forced_eos_token_id=2
    ),
}


def main() -> None:
    root = Path(sys.argv[1])
    for name, config in CONFIGS.items():
        torch.manual_seed(0)
        encoder_decoder = config.is_encoder_decoder
        kind = transformers.AutoModelForSeq2SeqLM if encoder_decoder else transformers.AutoModelForCausalLM
        kind.from_config(config).save_pretrained(root / name)


if __name__ == "__main__":
    main()
