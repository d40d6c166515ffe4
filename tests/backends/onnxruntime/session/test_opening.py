"""Engines run on the provider that their target names, with its numbers, or say why they cannot."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

import moec
from moec.backends.onnx.sessions import EXACT
from moec.backends.onnxruntime.backend import TF32, Onnxruntime
from moec.backends.onnxruntime.session import opening
from moec.backends.onnxruntime.session.engine import OnnxruntimeEngine
from moec.backends.onnxruntime.session.opening import session_of
from moec.dialect import Routing
from moec.errors import EXIT_CODES, MoecError
from moec.proof.compare import Tolerance
from moec.targets.target import Target
from tests.backends.onnxruntime.blocks import Experts, error, tokens
from tests.backends.onnxruntime.experts.test_qmoe import built, reference
from tests.backends.onnxruntime.session.there import array, constant, mark, save_graph, there
from tests.cuda_stand_in.build import library
from tests.zoo import build, save

CUDA = Target("onnxruntime", "cuda")


def product(folder: Path) -> Path:
    """`y = x @ w`."""
    weight = constant("w", np.eye(16, dtype=np.float32))
    return save_graph(folder, weight, ir.node("MatMul", [array("x", "rows", 16), weight.outputs[0]]))


def convolution(folder: Path) -> Path:
    weight = constant("w", np.ones((2, 3, 2, 2), np.float32))
    return save_graph(folder, weight, ir.node("Conv", [array("x", "rows", 3, 4, 4), weight.outputs[0]]))


# ---------------------------------------------------------------------- on the stand-in
def call(folder: str, *targets: str) -> list[str]:
    """A call for each target; returns the providers of the last one's session."""
    for target in targets:
        engine = OnnxruntimeEngine(Path(folder), Target.parse(target))
        mark(target)
        engine(x=torch.ones(*(3 if isinstance(d, str) else d for d in engine.inputs[0].shape)))
    return list(engine._session.get_providers())


def refusal(folder: str) -> list[str]:
    """The error of a call, and that of opening the engine without one where it has one."""
    try:
        call(folder, str(CUDA))
    except MoecError as found:
        return [found.code, str(found)]
    return []


def test_float32_products_keep_their_digits_unless_tf32_is_asked_for(tmp_path: Path) -> None:
    asked = f"{CUDA},tf32=true"
    seen = there(call, str(product(tmp_path)), str(CUDA), asked)
    assert [[p.tf32 for p in seen.parts[target].products] for target in (str(CUDA), asked)] == [[False], [True]]
    assert seen.result[0] == "CUDAExecutionProvider" and seen.stdout == ""


def test_an_operator_that_needs_cudnn_is_refused_by_name(tmp_path: Path) -> None:
    code, text = there(refusal, str(convolution(tmp_path))).result
    assert EXIT_CODES[code[:2]] == 3 and text.count("\n") == 2
    assert "Conv" in text and "libcudnn.so.9" in text and "pip install nvidia-cudnn-cu13" in text


def held(folder: str, one_copy: str) -> None:
    """Open an engine with weights of 4 bits; `no`: as the runtime opens it by itself."""
    opening.ONE_COPY = opening.ONE_COPY if one_copy == "yes" else "session.of_no_meaning"
    mark("open")
    engine = OnnxruntimeEngine(Path(folder), CUDA)
    mark("opened")
    engine.close()


def test_weights_of_4_bits_are_held_once(tmp_path: Path) -> None:
    e = Experts(experts=16, hidden=512, inner=512, dtype=torch.float16)
    model, _ = built(e, (4, 32, False), Routing(2), provider="cuda")
    ir.save(model, tmp_path / "model.onnx")
    size = (tmp_path / "model.onnx").stat().st_size
    once, twice = (there(held, str(tmp_path), word).parts["open"].held_bytes / size for word in ("yes", "no"))
    assert once < 1.25 < 1.5 < twice


def test_a_library_that_is_missing_is_named(tmp_path: Path) -> None:
    for path in library().iterdir():
        if "curand" not in path.name:
            (tmp_path / path.name).symlink_to(path)
    seen = there(refusal, str(product(tmp_path)), libraries=tmp_path)
    code, text = seen.result
    assert EXIT_CODES[code[:2]] == 3 and "libcurand.so.10" in text and "cublas" not in text and seen.stdout == ""


# ---------------------------------------------------------------------- without CUDA
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_an_engine_for_cuda_never_runs_on_the_cpu(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(MoecError) as caught:
        OnnxruntimeEngine(product(tmp_path), CUDA)
    assert EXIT_CODES[caught.value.code[:2]] == 3 and capfd.readouterr().out == ""


def test_tf32_is_an_option_of_cuda_alone() -> None:
    backend = Onnxruntime()
    assert not backend.options(Target.parse("onnxruntime:cuda,tf32=true"))
    assert backend.options(Target.parse("onnxruntime:tf32=true"))[0].reason == "only CUDA has TF32"
    assert backend.client_settings(CUDA)["use_tf32"] == "0" and not backend.client_settings(Target("onnxruntime"))


class Tf32(TorchFunctionMode):
    """Factors of products rounded to 10 bits of mantissa, sums in float32."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in (torch.nn.functional.linear, torch.matmul, torch.bmm, torch.Tensor.matmul):
            args = (*map(_rounded, args[:2]), *args[2:])
        return function(*args, **(kwargs or {}))


def _rounded(value: Tensor) -> Tensor:
    bits = value.contiguous().view(torch.int32)
    return ((bits + 0x0FFF + ((bits >> 13) & 1)) & ~0x1FFF).view(torch.float32)


def test_what_tf32_costs_is_more_than_float32_may_and_less_than_its_own_tolerance() -> None:
    model, ids = build("llama"), torch.randint(3, 96, (2, 40), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        want = model(input_ids=ids).logits
        with Tf32():
            got = model(input_ids=ids).logits
    deviation = float((got - want).abs().max() / want.std())
    assert 3 * Tolerance.of(torch.float32).deviation < deviation < TF32


# ---------------------------------------------------------------------- 8 bits on the CPU that stands in for CUDA
def test_experts_of_8_bits_are_multiplied_with_activations_as_they_are() -> None:
    e = Experts(hidden=128, inner=128, dtype=torch.float16)
    x = tokens(64, hidden=128).half()
    model, fact = built(e, (8, 32, False), Routing(2), provider="cuda")
    want = reference(e, x, Routing(2))
    assert fact["formulation"] == "kernel"
    found = {}
    for target in (Target("onnxruntime"), Target("onnxruntime", options={"accuracy": "int8"})):
        opened = session_of(target, ir.to_proto(model).SerializeToString(), {})
        found[str(target)] = error(torch.from_numpy(opened.run(None, {"x": x.numpy()})[0]), want)
    exact, rounded = found.values()
    assert exact < 0.5 * Tolerance.of(torch.float16).deviation < Tolerance.of(torch.float16).deviation < rounded
    assert EXACT[0] not in os.environ


@pytest.mark.repeats
@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA itself runs the engine")
def test_an_engine_with_experts_of_8_bits_is_proven_where_there_is_no_cuda(tmp_path: Path) -> None:
    model = save("qwen3_moe", tmp_path / "model", hidden_size=64, moe_intermediate_size=64, num_hidden_layers=1)
    target = "onnxruntime:cuda,precision=fp16"
    report = moec.compile(model, pipeline="quantize(bits=8, group=32)", target=target, out=tmp_path / "engine")
    assert report.ok and [block["kernel"] for block in report.facts["blocks"]] == ["QMoE"]
