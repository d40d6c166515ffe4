"""Names of the dialect's operators, for those who only speak of them: importing the dialect imports torch."""

from __future__ import annotations

OPERATORS = (
    "route",
    "experts",
    "experts_on_cpu",
    "moe",
    "attention",
    "linear_attention",
    "selective_scan",
    "causal_conv",
    "dequantize",
    "dequantize_float",
)
