"""Architectures of the library `transformers`, small and with random weights.

Each function is the entry point of a torch_export target. The models are the library's own classes,
called by their own parameters.
"""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import nn
from transformers.modeling_outputs import BaseModelOutput

from slipway.export import ExportSpec

from .scanned_mamba import ScannedMamba

__all__ = ["ARCHITECTURES"]

_BATCH = {"batch": (1, 16)}
_BATCH_AND_SEQUENCE = {"batch": (1, 16), "seq": (1, 48)}
_VOCABULARY = 99
_TEXT = {"vocab_size": _VOCABULARY, "max_position_embeddings": 64}
_WIDTHS = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}


def _tokens(*shape: int) -> torch.Tensor:
    return torch.randint(3, _VOCABULARY, shape)


def _mask(*shape: int) -> torch.Tensor:
    """Returns a mask of ones with padding at the end of the last row."""
    mask = torch.ones(shape, dtype=torch.int64)
    mask[-1, -2:] = 0
    return mask


def _text_model(model: nn.Module, **options: Any) -> ExportSpec:
    """Returns the spec of a model of token sequences with a mask, both (batch, seq)."""
    return ExportSpec(
        model=model.eval(),
        kwargs={"input_ids": _tokens(2, 9), "attention_mask": _mask(2, 9)},
        dynamic_shapes={"input_ids": "batch, seq", "attention_mask": "batch, seq"},
        symbols=_BATCH_AND_SEQUENCE,
        **options,
    )


def bert() -> ExportSpec:
    return _text_model(transformers.BertModel(transformers.BertConfig(**_TEXT, **_WIDTHS)))


def distilbert() -> ExportSpec:
    config = transformers.DistilBertConfig(
        **_TEXT, dim=32, n_layers=2, n_heads=4, hidden_dim=64, num_labels=3
    )
    return _text_model(transformers.DistilBertForSequenceClassification(config))


def gpt2() -> ExportSpec:
    config = transformers.GPT2Config(
        vocab_size=_VOCABULARY, n_positions=64, n_embd=32, n_layer=2, n_head=4, use_cache=False
    )
    # Without a mask: every token attends to all before it.
    return ExportSpec(
        model=transformers.GPT2LMHeadModel(config).eval(),
        kwargs={"input_ids": _tokens(2, 9)},
        dynamic_shapes={"input_ids": "batch, seq"},
        symbols=_BATCH_AND_SEQUENCE,
    )


def llama() -> ExportSpec:
    config = transformers.LlamaConfig(**_TEXT, **_WIDTHS, num_key_value_heads=2, use_cache=False)
    return _text_model(transformers.LlamaForCausalLM(config))


def mixtral() -> ExportSpec:
    config = transformers.MixtralConfig(
        **_TEXT,
        **_WIDTHS,
        num_key_value_heads=2,
        num_local_experts=4,
        num_experts_per_tok=2,
        use_cache=False,
        # The default is an operator of the library's own, which a server would have to import.
        experts_implementation="batched_mm",
    )
    return _text_model(transformers.MixtralForCausalLM(config))


def mamba() -> ExportSpec:
    return _text_model(ScannedMamba(unmodified_mamba()))


def unmodified_mamba() -> nn.Module:
    """Returns the model as the library has it, which works for one length of a sequence only."""
    config = transformers.MambaConfig(
        vocab_size=_VOCABULARY,
        hidden_size=32,
        state_size=8,
        num_hidden_layers=2,
        use_cache=False,
    )
    return transformers.MambaForCausalLM(config)


def _t5_config() -> transformers.T5Config:
    return transformers.T5Config(
        vocab_size=_VOCABULARY,
        d_model=32,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        use_cache=False,
        decoder_start_token_id=0,
    )


def t5_encoder() -> ExportSpec:
    return _text_model(transformers.T5EncoderModel(_t5_config()))


def t5_decoder() -> ExportSpec:
    return ExportSpec(
        model=transformers.T5ForConditionalGeneration(_t5_config()).eval(),
        kwargs={
            "decoder_input_ids": _tokens(2, 5),
            "encoder_outputs": BaseModelOutput(last_hidden_state=torch.randn(2, 9, 32)),
            "attention_mask": _mask(2, 9),
        },
        dynamic_shapes={
            "decoder_input_ids": "batch, seq",
            "encoder_outputs": {"last_hidden_state": "batch, source, _"},
            "attention_mask": "batch, source",
        },
        symbols={**_BATCH_AND_SEQUENCE, "source": (1, 48)},
    )


def vit() -> ExportSpec:
    config = transformers.ViTConfig(**_WIDTHS, image_size=16, patch_size=4)
    return ExportSpec(
        model=transformers.ViTModel(config).eval(),
        kwargs={"pixel_values": torch.randn(2, 3, 16, 16)},
        dynamic_shapes={"pixel_values": "batch, 3, 16, 16"},
        symbols=_BATCH,
    )


def _whisper() -> transformers.WhisperModel:
    config = transformers.WhisperConfig(
        vocab_size=_VOCABULARY,
        num_mel_bins=8,
        d_model=32,
        encoder_layers=2,
        encoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_layers=2,
        decoder_attention_heads=4,
        decoder_ffn_dim=64,
        max_source_positions=20,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
        use_cache=False,
    )
    return transformers.WhisperModel(config).eval()


def whisper_encoder() -> ExportSpec:
    return ExportSpec(
        model=_whisper().encoder,
        kwargs={"input_features": torch.randn(2, 8, 40)},
        dynamic_shapes={"input_features": "batch, 8, 40"},
        symbols=_BATCH,
    )


def whisper_decoder() -> ExportSpec:
    return ExportSpec(
        model=_whisper().decoder,
        kwargs={"input_ids": _tokens(2, 9), "encoder_hidden_states": torch.randn(2, 20, 32)},
        dynamic_shapes={"input_ids": "batch, seq", "encoder_hidden_states": "batch, 20, 32"},
        symbols=_BATCH_AND_SEQUENCE,
    )


def clip() -> ExportSpec:
    text = {**_TEXT, **_WIDTHS, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    vision = {**_WIDTHS, "image_size": 16, "patch_size": 4}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)
    tokens = _tokens(2, 9)
    tokens[:, -1] = 1
    return ExportSpec(
        model=transformers.CLIPModel(config).eval(),
        kwargs={
            "input_ids": tokens,
            "pixel_values": torch.randn(3, 3, 16, 16),
            "attention_mask": _mask(2, 9),
        },
        dynamic_shapes={
            "input_ids": "texts, seq",
            "pixel_values": "images, 3, 16, 16",
            "attention_mask": "texts, seq",
        },
        symbols={"texts": (1, 16), "images": (1, 16), "seq": (1, 48)},
    )


ARCHITECTURES = {
    function.__name__: function
    for function in (
        bert,
        clip,
        distilbert,
        gpt2,
        llama,
        mamba,
        mixtral,
        t5_decoder,
        t5_encoder,
        vit,
        whisper_decoder,
        whisper_encoder,
    )
}
