"""Every architecture of the zoo becomes a TensorRT-RTX engine without a GPU: in fp16, and with experts of 4 bits, batch
and length dynamic.

What the graphs compute is proven in the tests of the lowering; here the library's own parser and builder have the last
word.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from moec import open_source, registry
from moec.backends.tensorrt.session.engine import read_facts
from moec.pipeline.passes import Context
from moec.pipeline.pipeline import Pipeline
from moec.program.program import Program
from moec.targets.target import Target
from tests.backends.tensorrt.tiny import needs_rtx
from tests.cases import Case, cases
from tests.zoo import save

pytestmark = [needs_rtx, pytest.mark.slow]
BLOCK = 64  # TensorRT documents blocks of 64 and 128
WIDE: dict[str, dict[str, Any]] = {  # inner widths that such blocks divide
    "qwen2_moe": {"moe_intermediate_size": BLOCK, "shared_expert_intermediate_size": BLOCK},
    "qwen3_moe": {"moe_intermediate_size": BLOCK},
    "deepseek_v2": {"moe_intermediate_size": BLOCK, "first_k_dense_replace": 0},
    "deepseek_v3": {"moe_intermediate_size": BLOCK, "first_k_dense_replace": 0},
    "glm4_moe": {"moe_intermediate_size": BLOCK, "first_k_dense_replace": 0},
    "llama4": {"intermediate_size_mlp": BLOCK, "num_hidden_layers": 2},  # the second counts the tokens before it
    "gpt2": {"n_inner": BLOCK},
}


def built(folder: Path, captured: Program, passes: str) -> dict[str, Any]:
    """Facts of an engine built from a captured model, after checks of what lies in `folder` then."""
    goal = Target.parse("tensorrt-rtx:sm86,sm89,sm120,precision=fp16")
    backend = registry.find("backends", goal.backend)()
    program, _ = Pipeline.parse(passes).run(captured, Context(), [])
    program, _ = backend.legalize(goal).run(program, Context(), [])
    assert backend.supports(program, goal) == []
    folder.mkdir()
    facts: dict[str, Any] = backend.build(program, goal, folder)
    assert (folder / "model.plan").stat().st_size > 100_000
    sizes = read_facts(folder)["profiles"][-1]["sizes"]
    assert sizes["batch"][2] > 1 and all(low < high for low, _, high in sizes.values()), sizes
    assert facts["blocks"] and all(block["why"] for block in facts["blocks"]) and facts["precision"] == "float16"
    return facts


def layers(facts: dict[str, Any]) -> dict[str, int]:
    return {row["layer"]: row["count"] for row in facts["layers"]}


# what the builder sees of these it sees in another of the zoo: the same attention, block and activation
REPEATED = (
    "deepseek_v2",
    "olmoe",
    "glm4_moe",
    "llama",
    "qwen2",
    "qwen3",
    "qwen3_moe",
    "granite_moe",
    "mistral",
    "phi3",
)
CASES = [pytest.param(c, marks=[pytest.mark.repeats] if c.name in REPEATED else [], id=c.name) for c in cases()]


def captured(case: Case, folder: Path) -> Program:
    wide = {"hidden_size": BLOCK, "intermediate_size": BLOCK, "num_hidden_layers": 1, **WIDE.get(case.name, {})}
    return open_source(save(case.name, folder, **wide)).capture(torch.float16)


@pytest.mark.parametrize("case", CASES)
def test_it_builds(case: Case, tmp_path: Path) -> None:
    plain = built(tmp_path / "fp16", captured(case, tmp_path / "model"), case.pipeline)
    assert "dequantize" not in layers(plain)
    caches = [row["cache"] for row in plain.get("cache", ())]
    assert ("kv_cache_update" in layers(plain)) == (caches == ["fixed"]) and (caches == ["growing"]) == (
        case.name == "llama4"
    )


# experts that are made of one block of a dense model: packed they are those of gpt2 or of a mixture; llama4's are
# mixtral's, and what is its own, the cache that grows, is not packed
PACKED = [
    pytest.param(c, marks=[pytest.mark.repeats] if c.name in (*REPEATED, "llama4") else [], id=c.name)
    for c in cases()
    if not c.pipeline or c.name == "gpt2"
]


@pytest.mark.parametrize("case", PACKED)
def test_it_builds_packed(case: Case, tmp_path: Path) -> None:
    passes = filter(None, (case.pipeline, f"quantize(bits=4, group={BLOCK}, attention=16)"))
    packed = built(tmp_path / "int4", captured(case, tmp_path / "model"), ", ".join(passes))
    assert {str(block["bits"]) for block in packed["blocks"]} == {"4"} and layers(packed)["dequantize"] >= 2
