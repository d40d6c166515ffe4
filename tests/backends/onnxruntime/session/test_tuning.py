"""Kernels are chosen at load: the calls after it have nothing left to choose."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest
import torch

from moec.backends.onnxruntime.backend import Onnxruntime
from moec.dialect import Routing
from moec.errors import MoecError
from moec.targets.target import Target
from tests.backends.onnxruntime.blocks import Experts, lowered, moe_model
from tests.backends.onnxruntime.session.test_opening import convolution
from tests.backends.onnxruntime.session.there import mark, there

TOKENS = 16


def block(folder: Path) -> Path:
    """One layer of experts; rows are its tokens."""
    model, _ = lowered(moe_model(Experts(), 3, Routing(2)), "latency", "cuda")
    for value, name in ((model.graph.inputs[0], "x"), (model.graph.outputs[0], "y")):
        assert value.name == name and value.shape is not None
        value.shape = ir.Shape(["batch", "sequence", 32])
    ir.save(model, folder / "model.onnx")
    return folder


def load(folder: str, tune: str) -> str:
    """Load an engine and call it with one token, some, and more than it was tuned for; returns what it says of it."""
    engine = Onnxruntime().load(Path(folder), Target.parse(f"onnxruntime:cuda,tune={tune}"))
    for tokens in (1, 11, TOKENS, TOKENS + 1):
        mark(str(tokens))
        engine.run({"x": torch.ones(1, tokens, 32)})
    return engine.prepared


def refused(folder: str) -> str:
    try:
        Onnxruntime().load(Path(folder), Target("onnxruntime", "cuda"))
    except MoecError as error:
        return f"{error.code} {error.what}"
    return ""


@pytest.mark.parametrize("tune", [TOKENS, 0])
def test_calls_after_loading_choose_nothing(tmp_path: Path, tune: int) -> None:
    seen = there(load, str(block(tmp_path)), str(tune))
    launches = {name: part.launches for name, part in seen.parts.items()}
    assert (launches["load"] > 1000, seen.result != "") == (tune > 0, tune > 0)
    assert [launches[str(n)] > 100 for n in (1, 11, TOKENS, TOKENS + 1)] == [not tune, not tune, False, True]
    assert not tune or f"up to {TOKENS} tokens" in seen.result


def test_loading_says_which_library_an_engine_needs(tmp_path: Path) -> None:
    said = there(refused, str(convolution(tmp_path))).result
    assert said.startswith("M301 Conv") and "libcudnn.so.9" in said
