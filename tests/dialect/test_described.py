"""What an operator takes and gives."""

from __future__ import annotations

import pytest
import torch

from moec.dialect.described import describe


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("route", ["logits", "[..., E]", "renormalize", "int64"]),
        ("experts", ["w_in", "[E, F*I, H]", "silu"]),
        ("moe", ["router_weight", "[E, H]", "top_groups", "score_before"]),
        ("attention", ["query"]),
        ("selective_scan", ["delta", "[D, N]"]),
        ("linear_attention", ["rate", "[B, S, H, D]", "epsilon"]),
        ("causal_conv", ["window", "[B, C, W]", "silu"]),
        ("dequantize", ["packed", "uint8"]),
        ("dequantize_float", ["nvfp4"]),
    ],
)
def test_every_argument_and_its_shape_is_said(name: str, says: list[str]) -> None:
    found = describe(name)
    assert found["operator"] == f"moec::{name}" and found["schema"].startswith(f"moec::{name}(")
    assert all(word in found["doc"] for word in says)
    for argument in getattr(torch.ops.moec, name).default._schema.arguments:
        assert argument.name in found["schema"]
