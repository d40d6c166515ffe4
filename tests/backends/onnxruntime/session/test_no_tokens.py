"""Calls without tokens: CUDA's kernels refuse them, the engine answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
import torch

from moec.backends.onnxruntime.session.engine import OnnxruntimeEngine
from moec.backends.onnxruntime.session.no_tokens import without_tokens
from moec.dialect import Routing
from moec.errors import MoecError
from moec.program.decoder_signature import IDS, LOGITS, MASK, SEQUENCE, TOTAL
from moec.program.signature import Input
from moec.targets.target import Target
from tests.backends.onnxruntime.blocks import Experts, lowered, moe_model
from tests.backends.onnxruntime.session.there import mark, there

PAST, PRESENT = "past_key_values.0.key", "present.0.key"
DECODER = (
    Input(IDS, torch.int64, ("batch", SEQUENCE)),
    Input(MASK, torch.int64, ("batch", TOTAL)),
    Input(PAST, torch.float32, ("batch", 2, "past_sequence", 8)),
)
OUTPUTS = (
    Input(LOGITS, torch.float32, ("batch", SEQUENCE, 96)),
    Input(PRESENT, torch.float32, ("batch", 2, TOTAL, 8)),
)


def sample(new: int, past: int, batch: int = 2) -> dict[str, torch.Tensor]:
    return {
        IDS: torch.ones(batch, new, dtype=torch.int64),
        MASK: torch.ones(batch, past + new, dtype=torch.int64),
        PAST: torch.randn(batch, 2, past, 8),
    }


def test_the_cache_stays_and_the_rest_is_empty() -> None:
    given = sample(0, 3)
    found = without_tokens(DECODER, OUTPUTS, given, "engine")
    assert found is not None and found[LOGITS].shape == (2, 0, 96) and torch.equal(found[PRESENT], given[PAST])
    none = without_tokens(DECODER, OUTPUTS, sample(4, 0, batch=0), "engine")
    assert none is not None and none[LOGITS].shape == (0, 4, 96) and none[PRESENT].shape[0] == 0


def test_a_first_prompt_has_tokens_and_an_empty_cache() -> None:
    assert without_tokens(DECODER, OUTPUTS, sample(4, 0), "engine") is None


def test_what_must_be_computed_of_nothing_is_refused() -> None:
    pooled = Input("pooled", torch.float32, ("batch", 32))
    with pytest.raises(MoecError) as caught:
        without_tokens(DECODER, (*OUTPUTS, pooled), sample(0, 3), "engine")
    assert caught.value.code == "M211" and "pooled" in caught.value.what


# ---------------------------------------------------------------------- on the stand-in
def call(folder: str) -> dict[str, Any]:
    """A call without tokens by the engine, and one by the runtime itself."""
    engine = OnnxruntimeEngine(Path(folder), Target("onnxruntime", "cuda"))
    mark("engine")
    y = engine(x=torch.ones(0, 32))["y"]
    mark("runtime")
    try:
        engine._session.run(None, {"x": torch.ones(0, 32).numpy()})
    except Exception as error:
        return {"shape": list(y.shape), "error": str(error)}
    return {"shape": list(y.shape), "error": ""}


def test_an_engine_answers_where_the_runtime_fails(tmp_path: Path) -> None:
    model, fact = lowered(moe_model(Experts(), 2, Routing(2)), "latency", "cuda")
    assert fact["formulation"] == "kernel"
    ir.save(model, tmp_path / "model.onnx")
    seen = there(call, str(tmp_path))
    assert seen.result["shape"] == [0, 32] and seen.parts["engine"].launches == 0
    assert seen.parts["runtime"].empty_grids and "MoE" in seen.result["error"]
