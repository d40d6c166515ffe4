"""Sizes of experts for which serving engines have kernels: what they would say when they load a checkpoint, or not at
all.

Read in vLLM 0.32 and in what is written of TensorRT-LLM's kernels; no GPU has run it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

_SHARES = (2, 4, 8)  # of tensor parallelism
_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts")


@dataclass(frozen=True)
class ExpertSizes:
    """What a config says of its experts: hidden and inner size, and experts a token; 0 where it says nothing."""

    hidden: int
    inner: int
    top_k: int


def expert_sizes(config: Mapping[str, Any]) -> ExpertSizes | None:
    """Of a mixture's config.json; None for a dense model."""
    if not any(config.get(name) for name in _COUNTS):
        return None
    inner = config.get("moe_intermediate_size") or config.get("intermediate_size") or 0
    return ExpertSizes(config.get("hidden_size") or 0, inner, config.get("num_experts_per_tok") or 0)


def lacking_in_vllm(sizes: ExpertSizes, group: int, floats: bool) -> Iterator[str]:
    """What vLLM says of packed experts' sizes on GPUs, or does without saying it.

    Args:
        group: inputs that share a scale, 0 where it is one for all. floats: NVFP4, else integers.
    """
    tile = 64 if floats else 128  # of Marlin, which pads the inner size but not the hidden one
    if sizes.hidden % tile and floats:
        yield (
            f"its kernel for experts in NVFP4 on GPUs (Marlin, by its sources) stops at a hidden size of "
            f"{sizes.hidden}, which {tile} does not divide: write experts=16"
        )
    elif sizes.hidden % tile:
        yield (
            f"its fast kernel for experts on GPUs (Marlin, by its sources) wants a hidden size that {tile} divides, "
            f"not {sizes.hidden}: it takes a slower one, or write experts=16"
        )
    cut = [share for share in _SHARES if group and sizes.inner % (share * group)]
    if cut:
        counts = " or ".join(map(str, cut))
        yield (
            f"with --tensor-parallel-size {counts} its experts need --enable-expert-parallel, by its sources: groups "
            f"of {group} do not divide a share of {sizes.inner}"
        )


def lacking_in_tensorrt_llm(sizes: ExpertSizes) -> Iterator[str]:
    """What TensorRT-LLM's own kernel for experts in NVFP4 does not take."""
    limits = (
        (sizes.hidden % 512, f"a hidden size that 512 divides, not {sizes.hidden}"),
        (sizes.inner % 64, f"an inner size that 64 divides, not {sizes.inner}"),
        (sizes.top_k > 10, f"10 experts a token at most, not {sizes.top_k}"),
    )
    wanted = [words for lacks, words in limits if lacks]
    if wanted:
        yield f"its kernel 'TRTLLM' for experts in NVFP4 wants {', '.join(wanted)}: leave moe_config.backend at CUTLASS"
