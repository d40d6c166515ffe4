"""Tiny random models with an encoder and a decoder, of one layer each, whose texts do not end."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from moec.report.artefacts import MANIFEST, hash_artefacts
from moec.report.report import Report

VOCAB = 48
_BART: dict[str, Any] = {
    "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "vocab_size": VOCAB, "pad_token_id": 1,
    "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2,
    "tie_word_embeddings": False,
}  # fmt: skip
_KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "bart": ("Bart", {**_BART, "max_position_embeddings": 72, "forced_eos_token_id": None}),
    "whisper": (
        "Whisper",
        {**_BART, "max_source_positions": 20, "max_target_positions": 40, "num_mel_bins": 8,
         "suppress_tokens": None, "begin_suppress_tokens": None},
    ),
    "speech_to_text": (
        "Speech2Text",
        {**_BART, "max_source_positions": 80, "max_target_positions": 40, "input_feat_per_channel": 10,
         "conv_channels": 16},
    ),
    "seamless": (
        "SeamlessM4T",
        {"vocab_size": VOCAB, "t2u_vocab_size": 24, "hidden_size": 16, "max_position_embeddings": 40,
         **{f"{part}_layers": 1 for part in ("encoder", "decoder", "speech_encoder", "t2u_encoder", "t2u_decoder")},
         **{f"{part}_attention_heads": 2 for part in ("encoder", "decoder", "speech_encoder")},
         **{f"{part}_ffn_dim": 24 for part in ("encoder", "decoder", "t2u_encoder", "t2u_decoder")},
         "speech_encoder_intermediate_size": 24, "feature_projection_input_dim": 10, "num_conv_pos_embeddings": 8,
         "conv_depthwise_kernel_size": 3},
    ),
    "t5": (
        "T5",
        {"vocab_size": VOCAB, "d_model": 16, "d_kv": 6, "d_ff": 24, "num_layers": 1, "num_heads": 2,
         "feed_forward_proj": "gated-gelu", "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1,
         "tie_word_embeddings": False},
    ),
    "switch": (
        "SwitchTransformers",
        {"vocab_size": VOCAB, "d_model": 16, "d_kv": 6, "d_ff": 24, "num_layers": 1, "num_decoder_layers": 1,
         "num_heads": 2, "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1, "num_experts": 4,
         "expert_capacity": 3, "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1,
         "tie_word_embeddings": False},
    ),
    "nllb_moe": (
        "NllbMoe",
        {**_BART, "max_position_embeddings": 40, "num_experts": 4, "encoder_sparse_step": 1, "decoder_sparse_step": 1,
         "moe_eval_capacity_token_fraction": 0.3},
    ),
}  # fmt: skip


def _head(name: str) -> str:
    return "ForSpeechToText" if name == "seamless" else "ForConditionalGeneration"


ARCHITECTURES = {name: f"{kind}{_head(name)}" for name, (kind, _) in _KINDS.items()}


def build(name: str) -> Any:
    """The model, the same in every call; weights are spread, so that texts hang on them."""
    kind, settings = _KINDS[name]
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**settings)
    model = getattr(transformers, ARCHITECTURES[name])(config).eval()
    for path, parameter in model.named_parameters():
        parameter.data = torch.randn(parameter.shape) if parameter.dim() > 1 else parameter + 0.1
        if name == "bart" and "embed_positions" in path:
            parameter.data *= 4  # else a text says one token again and again
    model.generation_config.eos_token_id = None
    return model


def save(name: str, folder: Path) -> Path:
    """The model as a Hugging Face folder."""
    build(name).save_pretrained(folder)
    return folder


def padded() -> dict[str, Tensor]:
    """Three texts of different lengths for the encoder."""
    ids = torch.randint(3, VOCAB, (3, 7), generator=torch.Generator().manual_seed(2))
    mask = torch.tensor([[1] * 5 + [0] * 2, [1] * 7, [1] * 3 + [0] * 4])
    return {"input_ids": ids, "attention_mask": mask}


def generated(model: Any, given: dict[str, Tensor], tokens: int) -> Tensor:
    """What transformers writes, start included."""
    found: Tensor = model.generate(**given, max_new_tokens=tokens, do_sample=False, num_beams=1)
    return found


def signed_anew(engine: Path) -> Path:
    """An engine's folder whose manifests have the hashes of the files that lie there now, as one who edits it can."""
    for folder in (engine / "encoder", engine / "decoder", engine):
        report = Report.read(folder / MANIFEST)
        (folder / MANIFEST).write_text(replace(report, artefacts=hash_artefacts(folder)).to_json())
    return engine
