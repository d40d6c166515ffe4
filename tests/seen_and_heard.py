"""Tiny random models that see or hear, each with the processor that lies beside such checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers as T
from torch import nn

from tests.reported import detr, qwen3_vl_moe, spread

_BODY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
_TEXT = {**_BODY, "vocab_size": 99, "max_position_embeddings": 64, "pad_token_id": 1, "eos_token_id": 98}
_EYE = {**_BODY, "image_size": 32, "patch_size": 8}
_EAR = {
    **_BODY, "conv_dim": [16, 16, 16], "conv_stride": [5, 4, 4], "conv_kernel": [10, 4, 4], "vocab_size": 32,
    "num_feat_extract_layers": 3, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4,
}  # fmt: skip
_ANY = {"shortest_edge": 64, "longest_edge": 96}


@dataclass(frozen=True)
class Seen:
    """A model, its processor, and the sizes of its inputs: fixed ones as numbers, those that differ by name."""

    model: Callable[[], nn.Module]
    processor: Callable[[], Any]
    shapes: dict[str, tuple[int | str, ...]]

    def save(self, folder: Path) -> nn.Module:
        torch.manual_seed(0)
        model = spread(self.model())
        model.save_pretrained(folder)  # type: ignore[operator]
        self.processor().save_pretrained(folder)
        return model


def rt_detr() -> nn.Module:
    backbone = T.RTDetrResNetConfig(embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1],
                                    layer_type="basic", out_features=["stage2", "stage3", "stage4"])  # fmt: skip
    config = T.RTDetrConfig(
        backbone_config=backbone, encoder_hidden_dim=32, encoder_in_channels=[16, 24, 32], encoder_ffn_dim=48,
        encoder_attention_heads=4, d_model=32, num_queries=7, decoder_in_channels=[32, 32, 32], decoder_ffn_dim=48,
        decoder_attention_heads=4, decoder_layers=2, num_labels=4, num_denoising=0, decoder_n_points=2,
    )  # fmt: skip
    return T.RTDetrForObjectDetection(config)


def layoutlm3() -> nn.Module:
    sizes = {"coordinate_size": 4, "shape_size": 8, "input_size": 32, "patch_size": 8, "type_vocab_size": 1}
    config = T.LayoutLMv3Config(**_TEXT, **sizes, max_2d_position_embeddings=1024, rel_pos_bins=8, rel_2d_pos_bins=8)
    return T.LayoutLMv3ForTokenClassification(config)


def segformer() -> nn.Module:
    config = T.SegformerConfig(depths=[1, 1, 1, 1], hidden_sizes=[8, 16, 16, 32], num_attention_heads=[1, 2, 2, 4],
                               decoder_hidden_size=16, sr_ratios=[4, 2, 1, 1])  # fmt: skip
    return T.SegformerForSemanticSegmentation(config)


def whisper() -> nn.Module:
    config = T.WhisperConfig(
        vocab_size=99, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, encoder_ffn_dim=48,
        decoder_attention_heads=4, decoder_ffn_dim=48, num_mel_bins=16, max_source_positions=100, pad_token_id=0,
        bos_token_id=1, eos_token_id=2, classifier_proj_size=16,
    )  # fmt: skip
    return T.WhisperForAudioClassification(config)


def _clip() -> nn.Module:
    return T.CLIPModel(T.CLIPConfig(text_config=_TEXT, vision_config=_EYE, projection_dim=16))


def _ast() -> nn.Module:
    config = T.ASTConfig(**_BODY, num_mel_bins=16, max_length=64, patch_size=8, frequency_stride=6, time_stride=6)
    return T.ASTForAudioClassification(config)


def _wave(masked: bool) -> Callable[[], Any]:
    return lambda: T.Wav2Vec2FeatureExtractor(return_attention_mask=masked)


SOUND = {"input_values": ("batch", "samples")}
MASKED = {**SOUND, "attention_mask": ("batch", "samples")}
TEXT = {"input_ids": ("batch", "sequence"), "attention_mask": ("batch", "sequence")}
ANY_IMAGE = {"pixel_values": ("batch", 3, "height", "width")}
SEEN = {
    "wav2vec2": Seen(
        lambda: T.Wav2Vec2ForCTC(T.Wav2Vec2Config(**_EAR, do_stable_layer_norm=True, feat_extract_norm="layer")),
        _wave(True), MASKED,
    ),
    "hubert": Seen(lambda: T.HubertModel(T.HubertConfig(**_EAR)), _wave(False), SOUND),
    "wavlm": Seen(lambda: T.WavLMForSequenceClassification(T.WavLMConfig(**_EAR)), _wave(True), MASKED),
    "ast": Seen(_ast, lambda: T.ASTFeatureExtractor(num_mel_bins=16, max_length=64),
                {"input_values": ("batch", 64, 16)}),
    "whisper": Seen(whisper, lambda: T.WhisperFeatureExtractor(feature_size=16, chunk_length=2),
                    {"input_features": ("batch", 16, 200)}),
    "wav2vec2-bert": Seen(
        lambda: T.Wav2Vec2BertForCTC(T.Wav2Vec2BertConfig(**_BODY, vocab_size=32, feature_projection_input_dim=160)),
        T.SeamlessM4TFeatureExtractor,
        {"input_features": ("batch", "frames", 160), "attention_mask": ("batch", "frames")},
    ),
    "clip": Seen(_clip, lambda: T.CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=32),
                 {**TEXT, "pixel_values": ("images", 3, 32, 32)}),
    "siglip": Seen(
        lambda: T.SiglipModel(T.SiglipConfig(text_config=dict(_TEXT), vision_config=_EYE)),
        lambda: T.SiglipImageProcessorPil(size={"height": 32, "width": 32}),
        {**TEXT, "pixel_values": ("images", 3, 32, 32)},
    ),
    "detr": Seen(detr, lambda: T.DetrImageProcessorPil(size=_ANY),
                 {**ANY_IMAGE, "pixel_mask": ("batch", "height", "width")}),
    "rt-detr": Seen(rt_detr, lambda: T.RTDetrImageProcessorPil(size={"height": 64, "width": 64}),
                    {"pixel_values": ("batch", 3, 64, 64)}),
    "yolos": Seen(
        lambda: T.YolosForObjectDetection(
            T.YolosConfig(**_BODY, image_size=[64, 96], patch_size=16, num_detection_tokens=5)),
        lambda: T.YolosImageProcessorPil(size=_ANY), ANY_IMAGE,
    ),
    "segformer": Seen(segformer, lambda: T.SegformerImageProcessorPil(size={"height": 64, "width": 64}),
                      {"pixel_values": ("batch", 3, 64, 64)}),
    "layoutlmv3": Seen(
        layoutlm3, lambda: T.LayoutLMv3ImageProcessorPil(size={"height": 32, "width": 32}, apply_ocr=False),
        {**TEXT, "bbox": ("batch", "sequence", 4), "pixel_values": ("batch", 3, 32, 32)},
    ),
}  # fmt: skip
VISION_LANGUAGE = Seen(
    qwen3_vl_moe,
    lambda: T.Qwen2VLImageProcessorPil(
        patch_size=8, temporal_patch_size=2, merge_size=2, min_pixels=256, max_pixels=4096
    ),
    {"pixel_values": ("pixel_values_0", 384), "image_grid_thw": ("batch", 3)},
)
_DECODER = {
    "vocab_size": 256, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 96, "max_position_embeddings": 256, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_MARKS = {"image_token_id": 250, "video_token_id": 251}
_PATCHES = {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 4, "patch_size": 8}


def _rope(*sections: int, **more: float) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": list(sections), **more}


def glm4v_moe() -> nn.Module:
    text = {**_DECODER, "head_dim": 16, "moe_intermediate_size": 48, "n_routed_experts": 4, "num_experts_per_tok": 2,
            "n_shared_experts": 1, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1,
            "rope_parameters": _rope(2, 1, 1, partial_rotary_factor=0.5)}  # fmt: skip
    eye = {**_PATCHES, "out_hidden_size": 64, "image_size": 32, "spatial_merge_size": 2, "temporal_patch_size": 2}
    return T.Glm4vMoeForConditionalGeneration(T.Glm4vMoeConfig(text_config=text, vision_config=eye, **_MARKS))


def ernie_vl_moe() -> nn.Module:
    text = {**_DECODER, "moe_intermediate_size": [48, 48], "moe_num_experts": 4, "moe_k": 2,
            "moe_num_shared_experts": 1, "mlp_layer_types": ["dense", "sparse"],
            "rope_parameters": _rope(3, 3, 2)}  # fmt: skip
    eye = {**_PATCHES, "spatial_merge_size": 2, "temporal_merge_size": 2}
    config = T.Ernie4_5_VLMoeConfig(text_config=text, vision_config=eye, **_MARKS)
    return T.Ernie4_5_VLMoeForConditionalGeneration(config)


def llama4() -> nn.Module:
    text = {**_DECODER, "head_dim": 16, "intermediate_size_mlp": 48, "num_local_experts": 4, "num_experts_per_tok": 1,
            "attention_chunk_size": 16}  # fmt: skip
    eye = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128,
           "vision_output_dim": 24, "image_size": 32, "patch_size": 8, "projector_input_dim": 24,
           "projector_output_dim": 24, "pixel_shuffle_ratio": 0.5}  # fmt: skip
    return T.Llama4ForConditionalGeneration(T.Llama4Config(text_config=text, vision_config=eye, image_token_index=250))


GRID = ((1, 4, 6),)
# the model, its pixels' shape, and what else its method for images takes
EYES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], dict[str, torch.Tensor]]] = {
    "GLM-4V-MoE": (glm4v_moe, (24, 384), {"image_grid_thw": torch.tensor(GRID)}),
    "ERNIE-VL": (ernie_vl_moe, (24, 192), {"image_grid_thw": torch.tensor(GRID)}),
    "Llama 4": (llama4, (4, 3, 32, 32), {}),
}
