"""Tiny configurations of Hugging Face's classifiers of text and sound."""

from __future__ import annotations

from typing import Any

from .huggingface_models import Tiny

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
WORDS = {"vocab_size": 60, "max_position_embeddings": 32}


def words(kind: str, **settings: Any) -> Tiny:
    return Tiny(kind, {"vocab_size": 60, **settings}, (9,), (13,), "SequenceClassification", words=True)


MODELS = {
    "bert": words("Bert", **SIZES, **WORDS),
    "distilbert": words("DistilBert", dim=16, n_layers=2, n_heads=2, hidden_dim=24, max_position_embeddings=32),
    "roberta": words("Roberta", **SIZES, **WORDS),
    "albert": words("Albert", embedding_size=8, **SIZES, **WORDS),
    "deberta_v2": words("DebertaV2", relative_attention=True, pos_att_type=["c2p", "p2c"], **SIZES, **WORDS),
    "gpt2": words(
        "GPT2",
        n_embd=16,
        n_layer=2,
        n_head=2,
        n_positions=32,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        use_cache=False,
    ),
    "opt": words(
        "OPT",
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        ffn_dim=24,
        word_embed_proj_dim=16,
        max_position_embeddings=32,
        pad_token_id=0,
        layerdrop=0.0,
        use_cache=False,
    ),
    "llama": words("Llama", num_key_value_heads=1, pad_token_id=0, use_cache=False, **SIZES, **WORDS),
    "ast": Tiny(
        "AST",
        {"max_length": 32, "num_mel_bins": 16, "patch_size": 4, **SIZES},
        (32, 16),
        None,
        "AudioClassification",
    ),
    "wav2vec2": Tiny(
        "Wav2Vec2",
        {
            "conv_dim": (8, 8),
            "conv_stride": (5, 2),
            "conv_kernel": (10, 3),
            "num_feat_extract_layers": 2,
            "num_conv_pos_embeddings": 4,
            "num_conv_pos_embedding_groups": 2,
            "apply_spec_augment": False,
            "layerdrop": 0.0,
            **SIZES,
        },
        (400,),
        (600,),
        "SequenceClassification",
    ),
    "whisper": Tiny(
        "Whisper",
        {
            "d_model": 16,
            "encoder_layers": 2,
            "encoder_attention_heads": 2,
            "encoder_ffn_dim": 24,
            "num_mel_bins": 8,
            "max_source_positions": 16,
            "encoder_layerdrop": 0.0,
            "vocab_size": 60,
            "pad_token_id": 0,
        },
        (8, 32),
        None,
        "AudioClassification",
    ),
}
