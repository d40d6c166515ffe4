"""Experts' sizes for which serving engines have no kernel."""

from __future__ import annotations

from typing import Any

import pytest

from moec.layouts.serving_sizes import ExpertSizes, expert_sizes, lacking_in_tensorrt_llm, lacking_in_vllm


@pytest.mark.parametrize(
    ("config", "found"),
    [
        ({"hidden_size": 64, "intermediate_size": 128}, None),
        (
            {"hidden_size": 64, "intermediate_size": 128, "num_local_experts": 4, "num_experts_per_tok": 2},
            ExpertSizes(64, 128, 2),
        ),
        (
            {"hidden_size": 64, "intermediate_size": 128, "moe_intermediate_size": 32, "num_experts": 4},
            ExpertSizes(64, 32, 0),
        ),
    ],
)
def test_sizes_of_a_config(config: dict[str, Any], found: ExpertSizes | None) -> None:
    assert expert_sizes(config) == found


@pytest.mark.parametrize(
    ("sizes", "group", "floats", "said"),
    [
        (ExpertSizes(4096, 14336, 2), 128, False, ""),
        (ExpertSizes(2048, 768, 8), 128, False, "--tensor-parallel-size 4 or 8"),  # Qwen3-30B-A3B
        (ExpertSizes(2048, 768, 8), 32, False, ""),
        (ExpertSizes(2048, 768, 8), 0, False, ""),
        (ExpertSizes(2880, 2880, 4), 32, False, "wants a hidden size that 128 divides, not 2880"),
        (ExpertSizes(2880, 2880, 4), 16, True, "--tensor-parallel-size 8 "),
        (ExpertSizes(2880, 4096, 4), 16, True, ""),
        (ExpertSizes(2080, 4096, 4), 16, True, "stops at a hidden size of 2080"),
    ],
)
def test_what_vllm_lacks(sizes: ExpertSizes, group: int, floats: bool, said: str) -> None:
    found = "; ".join(lacking_in_vllm(sizes, group, floats))
    assert said in found and bool(said) is bool(found), found


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        (ExpertSizes(4096, 14336, 2), ""),
        (ExpertSizes(2880, 14336, 2), "512 divides, not 2880"),
        (ExpertSizes(4096, 96, 2), "64 divides, not 96"),
        (ExpertSizes(4096, 128, 12), "10 experts a token at most, not 12"),
    ],
)
def test_what_tensorrt_llm_lacks(sizes: ExpertSizes, said: str) -> None:
    found = "; ".join(lacking_in_tensorrt_llm(sizes))
    assert said in found and bool(said) is bool(found), found
