"""The sweep as data: what makes a config tiny, and the models with what they need beyond it."""

from __future__ import annotations

from typing import Any


# Fields of configs by their names in all architectures; only those that a config has are set.
TINY: dict[str, Any] = {
    **dict.fromkeys(("vocab_size", "max_position_embeddings", "n_positions", "n_ctx", "max_target_positions"), 64),
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "dim", "embed_dim", "emb_dim", "word_embed_proj_dim"), 32),
    **dict.fromkeys(("embedding_size", "d_embed", "projection_dim", "shared_expert_intermediate_size"), 32),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "d_ff", "hidden_dim", "n_inner", "ffn_hidden_size"), 64),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim", "d_inner"), 64),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_decoder_layers"), 2),
    **dict.fromkeys(("encoder_layers", "decoder_layers", "num_key_value_heads", "type_vocab_size"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "num_frames"), 4),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("head_dim", "d_kv", "rotary_dim", "patch_size"), 8),
    **{"moe_intermediate_size": 32, "num_experts_per_tok": 2, "image_size": 32, "tubelet_size": 2},
    **{"num_mel_bins": 16, "input_feat_per_channel": 16, "max_source_positions": 32},
    **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1},
}

# Shapes of inputs by name; names with "ids" are tokens, with "mask" ones, others numbers.
INPUTS: dict[str, tuple[int, ...]] = {
    "input_ids": (2, 8),
    "pixel_values": (2, 3, 32, 32),
    "input_features": (2, 16, 64),
    "input_values": (2, 800),
}

_VIDEO = {"pixel_values": (2, 4, 3, 32, 32)}
_WAVE = {
    **{"conv_dim": (32, 32), "conv_kernel": (8, 4), "conv_stride": (4, 4), "num_feat_extract_layers": 2},
    **{"num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2},
}
_STAGES = {"hidden_sizes": [32, 64], "depths": [1, 1]}
_SWIN = {"embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "window_size": 2, "patch_size": 4}
_SERIES = {
    **{"prediction_length": 8, "context_length": 12, "lags_sequence": [1], "num_time_features": 2},
    "distribution_output": "normal",
}
_SERIES_INPUTS = {
    **{"past_values": (2, 13), "past_time_features": (2, 13, 2), "past_observed_mask": (2, 13)},
    **{"future_values": (2, 8), "future_time_features": (2, 8, 2)},
}
_IMAGE_AND_TEXT = {"input_ids": (2, 8), "pixel_values": (2, 3, 32, 32)}
_LATENT = {
    **{"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8},
    **{"head_dim": 8, "num_key_value_heads": 4, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1},
}

# Classes of transformers that every change is tried on, and those that are left to the slow suite.
QUICK = """
LlamaForCausalLM MistralForCausalLM Qwen2ForCausalLM Qwen3ForCausalLM GemmaForCausalLM Gemma3ForCausalLM
PhiForCausalLM Phi3ForCausalLM FalconForCausalLM GPT2LMHeadModel GPTNeoXForCausalLM GPTJForCausalLM
GPTBigCodeForCausalLM OPTForCausalLM BloomForCausalLM MptForCausalLM StableLmForCausalLM Olmo2ForCausalLM
CohereForCausalLM MambaForCausalLM RwkvForCausalLM MixtralForCausalLM Qwen2MoeForCausalLM GptOssForCausalLM
DeepseekV3ForCausalLM BertForSequenceClassification RobertaForSequenceClassification
DistilBertForSequenceClassification AlbertForSequenceClassification ElectraForSequenceClassification
DebertaV2ForSequenceClassification MPNetForSequenceClassification ModernBertForSequenceClassification
XLNetForSequenceClassification EsmForMaskedLM IBertForSequenceClassification ConvBertForSequenceClassification
SqueezeBertForSequenceClassification T5ForConditionalGeneration BartForConditionalGeneration
PegasusForConditionalGeneration MarianMTModel M2M100ForConditionalGeneration WhisperForConditionalGeneration
Wav2Vec2ForCTC HubertForCTC WavLMForCTC ASTForAudioClassification ViTForImageClassification
DeiTForImageClassification BeitForImageClassification Dinov2ForImageClassification SiglipForImageClassification
SiglipModel CLIPModel SwinForImageClassification ConvNextForImageClassification ResNetForImageClassification
MobileNetV1ForImageClassification MobileNetV2ForImageClassification SegformerForImageClassification
PvtForImageClassification BitForImageClassification VideoMAEForVideoClassification PatchTSTForPrediction
TimeSeriesTransformerForPrediction AutoformerForPrediction LlavaForConditionalGeneration
""".split()
SLOW = """
Gemma2ForCausalLM CodeGenForCausalLM Starcoder2ForCausalLM OlmoForCausalLM GraniteForCausalLM BioGptForCausalLM
XGLMForCausalLM PersimmonForCausalLM OpenAIGPTLMHeadModel SmolLM3ForCausalLM Exaone4ForCausalLM NemotronForCausalLM
HeliumForCausalLM GlmForCausalLM Qwen3MoeForCausalLM OlmoeForCausalLM PhimoeForCausalLM GraniteMoeForCausalLM
JetMoeForCausalLM DebertaForSequenceClassification XLMRobertaForTokenClassification
BigBirdForSequenceClassification FNetForSequenceClassification FunnelForSequenceClassification
MobileBertForSequenceClassification RoFormerForSequenceClassification LongformerForSequenceClassification
NystromformerForSequenceClassification XLMForSequenceClassification CamembertForMaskedLM
CanineForSequenceClassification RemBertForSequenceClassification YosoForSequenceClassification
MraForSequenceClassification LayoutLMForTokenClassification MT5ForConditionalGeneration
MBartForConditionalGeneration BlenderbotForConditionalGeneration LEDForConditionalGeneration
LongT5ForConditionalGeneration SwitchTransformersForConditionalGeneration UMT5ForConditionalGeneration
ProphetNetForConditionalGeneration FSMTForConditionalGeneration CLIPForImageClassification
ImageGPTForImageClassification BlipForConditionalGeneration CTRLLMHeadModel ConvNextV2ForImageClassification
DPTForDepthEstimation Data2VecAudioForCTC DbrxForCausalLM DeepseekV2ForCausalLM DetrForObjectDetection
DeepseekV4ForCausalLM EfficientNetForImageClassification FocalNetForImageClassification GLPNForDepthEstimation
GPTNeoForCausalLM GitForCausalLM HieraForImageClassification InformerForPrediction JambaForCausalLM
LevitForImageClassification Mamba2ForCausalLM MobileViTForImageClassification MobileViTV2ForImageClassification
MoonshineForConditionalGeneration PatchTSMixerForPrediction PerceiverForImageClassificationLearned
PoolFormerForImageClassification PvtV2ForImageClassification ReformerModelWithLMHead RegNetForImageClassification
SEWForCTC Siglip2ForImageClassification Speech2TextForConditionalGeneration SpeechT5ForTextToSpeech
Swinv2ForImageClassification TimesformerForVideoClassification UniSpeechForCTC UniSpeechSatForCTC
ViTMAEForPreTraining ViltForQuestionAnswering VivitForVideoClassification Wav2Vec2BertForCTC
Wav2Vec2ConformerForCTC YolosForObjectDetection
""".split()

# What a model needs: "config" over `TINY`, "inputs" over `INPUTS`, "rule" over the settings of the walk, "generates"
# where it says that it can but cannot, "unused" for trained parameters that its output does not depend on, "refused"
# for the words of a refusal.
ROWS: dict[str, dict[str, Any]] = {
    "MobileNetV1ForImageClassification": {"config": {"depth_multiplier": 0.25, "min_depth": 8}},
    "MobileNetV2ForImageClassification": {"config": {"depth_multiplier": 0.25, "min_depth": 8}},
    "BigBirdForSequenceClassification": {"unused": "pooler"},
    "CanineForSequenceClassification": {"unused": "projection|final_char_encoder"},
    "MraForSequenceClassification": {"unused": "query|key|value"},
    "LayoutLMForTokenClassification": {"unused": "pooler"},
    "LEDForConditionalGeneration": {"unused": "_global"},
    "SiglipForImageClassification": {"unused": "vision_model.head"},
    "T5ForConditionalGeneration": {"config": {"decoder_start_token_id": 1}},
    "RwkvForCausalLM": {"rule": {"sigma_cutoff": 0.99}},
    "GPTNeoForCausalLM": {"config": {"attention_types": [[["global", "local"], 1]], "num_layers": 2}},
    "Mamba2ForCausalLM": {"config": {"num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 1}},
    "DeepseekV2ForCausalLM": {"config": _LATENT},
    "DeepseekV3ForCausalLM": {"config": _LATENT},
    "DeepseekV4ForCausalLM": {  # compressed attention, whose projections see nothing of a shorter input
        "config": {
            "compress_rates": {"compressed_sparse_attention": 4, "heavily_compressed_attention": 8},
            "sliding_window": 8,
        },
        "inputs": {"input_ids": (2, 24)},
    },
    "CTRLLMHeadModel": {"config": {"dff": 64}},
    "JambaForCausalLM": {
        "config": {
            "num_hidden_layers": 2,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "mamba_dt_rank": 4,
            "mamba_d_state": 4,
            "use_mamba_kernels": False,
        }
    },
    "DbrxForCausalLM": {
        "config": {
            "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0},
            "ffn_config": {"ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": 32},
            "max_seq_len": 64,
        }
    },
    "ReformerModelWithLMHead": {
        "config": {
            "is_decoder": True,
            "axial_pos_shape": [4, 2],
            "axial_pos_embds_dim": [16, 16],
            "attn_layers": ["local", "local"],
            "feed_forward_size": 64,
            "attention_head_size": 8,
            "local_attn_chunk_length": 4,
        },
        "rule": {"train_rest": True},
        "unused": "lm_head.bias",
        "generates": False,
    },
    "Speech2TextForConditionalGeneration": {
        "config": {"conv_channels": 32},
        "inputs": {"input_features": (2, 32, 16)},
    },
    "Wav2Vec2BertForCTC": {
        "config": {"feature_projection_input_dim": 16, "apply_spec_augment": False, "layerdrop": 0.0},
        "inputs": {"input_features": (2, 8, 16)},
    },
    "ASTForAudioClassification": {"config": {"max_length": 32}, "inputs": {"input_values": (2, 32, 16)}},
    "SpeechT5ForTextToSpeech": {
        "config": {
            "num_mel_bins": 16,
            "speech_decoder_prenet_units": 32,
            "speaker_embedding_dim": 16,
            "speech_decoder_postnet_units": 32,
            "reduction_factor": 2,
        },
        "inputs": {
            "input_ids": (2, 8),
            "input_values": None,
            "decoder_input_ids": None,
            "decoder_input_values": (2, 6, 16),
            "speaker_embeddings": (2, 16),
        },
    },
    "MoonshineForConditionalGeneration": {"inputs": {"input_values": (2, 4000)}},
    **{
        f"{n}ForCTC": {"config": _WAVE}
        for n in ("Wav2Vec2", "Hubert", "WavLM", "Wav2Vec2Conformer", "UniSpeech", "UniSpeechSat")
    },
    "SEWForCTC": {"config": {**_WAVE, "squeeze_factor": 2}},
    "Data2VecAudioForCTC": {"config": {**_WAVE, "conv_pos_kernel_size": 3, "num_conv_pos_embeddings": 2}},
    "SwinForImageClassification": {"config": _SWIN},
    "Swinv2ForImageClassification": {"config": _SWIN},
    "ConvNextForImageClassification": {"config": {**_STAGES, "patch_size": 4, "num_stages": 2}},
    "ConvNextV2ForImageClassification": {"config": {**_STAGES, "patch_size": 4, "num_stages": 2}},
    "ResNetForImageClassification": {"config": _STAGES},
    "RegNetForImageClassification": {"config": {**_STAGES, "groups_width": 16}},
    "PoolFormerForImageClassification": {
        "config": {
            **_STAGES,
            "patch_sizes": [3, 3],
            "strides": [2, 2],
            "padding": [1, 1],
            "num_encoder_blocks": 2,
            "patch_size": 8,
        }
    },
    "MobileViTForImageClassification": {
        "config": {"hidden_sizes": [32, 32, 32], "neck_hidden_sizes": [8, 8, 16, 16, 16, 16, 32], "patch_size": 2},
        "inputs": {"pixel_values": (2, 3, 64, 64)},
    },
    "MobileViTV2ForImageClassification": {
        "config": {"patch_size": 2, "width_multiplier": 0.25, "base_attn_unit_dims": [64, 64, 64]},
        "inputs": {"pixel_values": (2, 3, 64, 64)},
    },
    "EfficientNetForImageClassification": {
        "config": {"width_coefficient": 0.25, "depth_coefficient": 0.2, "hidden_dim": 320}
    },
    "PvtForImageClassification": {
        "config": {
            "depths": [1, 1],
            "hidden_sizes": [32, 64],
            "num_attention_heads": [2, 2],
            "sequence_reduction_ratios": [2, 1],
            "mlp_ratios": [2, 2],
            "patch_sizes": [4, 2],
            "strides": [4, 2],
            "num_encoder_blocks": 2,
        }
    },
    "PvtV2ForImageClassification": {
        "config": {
            "depths": [1, 1],
            "hidden_sizes": [32, 64],
            "num_attention_heads": [2, 2],
            "sr_ratios": [2, 1],
            "mlp_ratios": [2, 2],
            "patch_sizes": [7, 3],
            "strides": [4, 2],
            "num_encoder_blocks": 2,
        }
    },
    "LevitForImageClassification": {
        "config": {
            "hidden_sizes": [32, 48, 64],
            "num_attention_heads": [2, 2, 2],
            "depths": [1, 1, 1],
            "key_dim": [8, 8, 8],
        },
        "inputs": {"pixel_values": (2, 3, 64, 64)},
    },
    "SegformerForImageClassification": {
        "config": {
            "depths": [1, 1],
            "hidden_sizes": [32, 64],
            "num_attention_heads": [2, 2],
            "sr_ratios": [2, 1],
            "mlp_ratios": [2, 2],
            "patch_sizes": [7, 3],
            "strides": [4, 2],
            "num_encoder_blocks": 2,
        }
    },
    "FocalNetForImageClassification": {
        "config": {
            "embed_dim": 16,
            "depths": [1, 1],
            "hidden_sizes": [16, 32],
            "focal_levels": [2, 2],
            "focal_windows": [3, 3],
            "patch_size": 4,
        }
    },
    "HieraForImageClassification": {
        "config": {
            "embed_dim": 16,
            "depths": [1, 1],
            "num_heads": [1, 2],
            "image_size": [32, 32],
            "patch_stride": [4, 4],
            "patch_size": [7, 7],
            "query_stride": [2, 2],
            "masked_unit_size": [4, 4],
            "num_query_pool": 1,
        }
    },
    "ViTMAEForPreTraining": {
        "config": {
            "decoder_hidden_size": 32,
            "decoder_num_hidden_layers": 1,
            "decoder_num_attention_heads": 4,
            "decoder_intermediate_size": 64,
            "mask_ratio": 0.0,
        }
    },
    "PerceiverForImageClassificationLearned": {
        "config": {
            "num_latents": 8,
            "d_latents": 32,
            "num_blocks": 1,
            "num_self_attends_per_block": 2,
            "num_self_attention_heads": 4,
            "num_cross_attention_heads": 4,
        },
        "inputs": {"inputs": (2, 3, 32, 32)},
    },
    "Siglip2ForImageClassification": {
        "unused": "vision_model.head",
        "config": {"vision_config": {"num_patches": 16}},
        "inputs": {"pixel_values": (2, 16, 192), "pixel_attention_mask": (2, 16), "spatial_shapes": [[4, 4], [4, 4]]},
    },
    "CLIPModel": {"inputs": _IMAGE_AND_TEXT},
    "SiglipModel": {"inputs": _IMAGE_AND_TEXT},
    "BlipForConditionalGeneration": {"inputs": _IMAGE_AND_TEXT},
    "ViltForQuestionAnswering": {"inputs": _IMAGE_AND_TEXT},
    "GitForCausalLM": {"config": {"vision_config": {}}, "inputs": _IMAGE_AND_TEXT},
    "YolosForObjectDetection": {"config": {"image_size": [32, 32], "num_detection_tokens": 4}},
    "DPTForDepthEstimation": {
        "config": {
            "num_hidden_layers": 4,
            "backbone_out_indices": [0, 1, 2, 3],
            "neck_hidden_sizes": [8, 16, 16, 32],
            "fusion_hidden_size": 16,
        }
    },
    "GLPNForDepthEstimation": {
        "config": {
            "depths": [1, 1, 1, 1],
            "hidden_sizes": [16, 16, 32, 32],
            "num_attention_heads": [1, 1, 2, 2],
            "decoder_hidden_size": 16,
        },
        "inputs": {"pixel_values": (2, 3, 64, 64)},
    },
    "BitForImageClassification": {
        "config": {**_STAGES, "num_groups": 8},
        "refused": r"No layer is left(.|\n)*WeightStandardizedConv2d; supported are",
    },
    "IBertForSequenceClassification": {"refused": r"No layer is left(.|\n)*QuantLinear; supported are"},
    "VideoMAEForVideoClassification": {"inputs": _VIDEO},
    "TimesformerForVideoClassification": {"inputs": _VIDEO},
    "VivitForVideoClassification": {"config": {"tubelet_size": [2, 8, 8]}, "inputs": _VIDEO},
    "PatchTSTForPrediction": {
        "config": {
            "num_input_channels": 2,
            "context_length": 16,
            "patch_length": 4,
            "patch_stride": 4,
            "prediction_length": 4,
        },
        "inputs": {"past_values": (2, 16, 2)},
    },
    "PatchTSMixerForPrediction": {
        "config": {
            "num_input_channels": 2,
            "context_length": 16,
            "patch_length": 4,
            "patch_stride": 4,
            "prediction_length": 4,
        },
        "inputs": {"past_values": (2, 16, 2)},
    },
    "TimeSeriesTransformerForPrediction": {"config": _SERIES, "inputs": _SERIES_INPUTS},
    "InformerForPrediction": {"config": {**_SERIES, "attention_type": "full"}, "inputs": _SERIES_INPUTS},
    "AutoformerForPrediction": {
        "config": {**_SERIES, "moving_average": 5, "label_length": 4},
        "inputs": _SERIES_INPUTS,
    },
    "DetrForObjectDetection": {
        "config": {
            "use_timm_backbone": False,
            "num_queries": 4,
            "backbone_config": {
                "model_type": "resnet",
                "hidden_sizes": [32, 64],
                "depths": [1, 1],
                "embedding_size": 32,
                "out_features": ["stage2"],
            },
        }
    },
    "LlavaForConditionalGeneration": {
        "unused": "layers.1",
        "config": {
            "text_config": {
                "model_type": "llama",
                "vocab_size": 64,
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
            },
            "vision_config": {
                "model_type": "clip_vision_model",
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "image_size": 16,
                "patch_size": 8,
            },
            "image_token_index": 60,
        },
        "inputs": {
            "pixel_values": (2, 3, 16, 16),
            "input_ids": [[1, 60, 60, 60, 60, 7, 8, 9], [1, 60, 60, 60, 60, 10, 8, 9]],
        },
    },
}
