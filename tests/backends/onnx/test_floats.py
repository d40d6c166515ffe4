"""Small floats run in PyTorch, are read back from a graph, and are refused by name where a backend has no lowering for
them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import moec
from moec.backends.onnx.export import to_onnx
from moec.backends.onnx.floats import read_floats, refuse_floats
from moec.errors import MoecError
from moec.execution.streaming import StreamingEngine
from moec.frontend.export import capture
from moec.frontend.stored_program import load_program, save_program
from moec.pipeline.pipeline import Pipeline
from moec.program.program import Program
from moec.weights.lazy import rows

X = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Two layers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(64, 48), nn.Linear(48, 32)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(x)))


def quantized(text: str) -> Program:
    return Pipeline.parse(f"quantize({text})").run(capture(Net(), {"x": X}))[0]


@pytest.mark.parametrize(
    ("text", "kinds", "low", "high"),
    [("format=fp8", ["fp8"] * 2, 5e-3, 0.05), ("format=nvfp4", ["nvfp4"] * 2, 0.05, 0.3)],
)
def test_eager_streamed_and_stored_programs_say_the_same(
    text: str, kinds: list[str], low: float, high: float, tmp_path: Path
) -> None:
    program, plain = quantized(text), Net()(X).detach()
    assert [n.kwargs["format"] for n in program.nodes(torch.ops.moec.dequantize_float)] == kinds
    y = program.run(x=X)["output"]
    assert low < float((y - plain).norm() / plain.norm()) < high
    torch.testing.assert_close(StreamingEngine(program).run({"x": X})["output"], y)
    save_program(program, tmp_path)
    torch.testing.assert_close(load_program(tmp_path).run(x=X)["output"], y)


def test_eight_bits_beside_nvfp4_are_fp8() -> None:
    program = quantized("format=nvfp4, rules={'b': 8}, group=16")
    assert [n.kwargs["format"] for n in program.nodes(torch.ops.moec.dequantize_float)] == ["nvfp4", "fp8"]
    mixed = quantized("rules={'b': {'format': 'nvfp4'}}, group=16")
    assert len(mixed.nodes(torch.ops.moec.dequantize)) == len(mixed.nodes(torch.ops.moec.dequantize_float)) == 1


def test_a_second_run_changes_nothing() -> None:
    program = quantized("format=nvfp4")
    again, (step,) = Pipeline.parse("quantize(format=nvfp4)").all_optional().run(program)
    assert step.rewrites == 0 and again.text() == program.text()


@pytest.mark.parametrize("kind", ["fp8", "nvfp4"])
def test_onnxruntime_refuses_before_it_builds(kind: str, tmp_path: Path) -> None:
    with pytest.raises(MoecError) as caught:
        moec.compile(Net(), inputs={"x": X}, out=tmp_path / "out", pipeline=f"quantize(format={kind}, group=16)")
    assert (
        caught.value.code == "M208"
        and kind in caught.value.what
        and "bits=2|4|8" in caught.value.fix
        and not (tmp_path / "out").exists()
    )


def test_every_weight_is_named() -> None:
    program = quantized("format=nvfp4")
    assert len({r.where for r in refuse_floats(program, "x", "y")}) == 2
    assert not refuse_floats(quantized("group=16"), "x", "y")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("text", ["format=fp8", "format=nvfp4"])
def test_the_graph_says_what_the_program_says(text: str, dtype: torch.dtype) -> None:
    program = Pipeline.parse(f"quantize({text})").run(capture(Net().to(dtype), {"x": X.to(dtype)}))[0]
    nodes = [n for n in to_onnx(program, 21).graph if n.op_type == "DequantizeFloat"]
    found = [read_floats(n) for n in nodes]
    assert len(found) == 2 and read_floats(None) is None
    for read, node in zip(found, program.nodes(torch.ops.moec.dequantize_float), strict=True):
        assert read is not None and (read.shape, read.dtype, read.format) == (
            node.meta["val"].shape,
            dtype,
            node.kwargs["format"],
        )
        assert sum(w.size_bytes for w in read.parts()) == read.size_bytes and (read.group, read.kind) == _GRIDS[text](
            read.shape[-1]
        )
        want = torch.ops.moec.dequantize_float(*(program.weight_of(a).load() for a in node.args), **node.kwargs)  # type: ignore[union-attr]
        some = read.each(lambda w: rows(w, 3, 9))
        got = torch.ops.moec.dequantize_float(*(w.load() for w in some.parts()), format=read.format, dtype=read.dtype)
        assert torch.equal(got, want[3:9]) and not torch.equal(got, want[4:10])


_GRIDS = {
    "format=fp8": lambda width: (width, "fp8, one scale"),
    "format=nvfp4": lambda width: (16, "nvfp4, blocks of 16"),
}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("format=fp16", "format='fp16'"),
        ("format=nvfp4, bits=2", "nvfp4 has 4 bits"),
        ("format=fp8, method=hqq", "no method but rtn"),
        ("format=fp8, symmetric=False", "no zero points"),
        ("format=nvfp4, budget_bits=3.0", "shares out integers"),
    ],
)
def test_settings_that_do_not_go_together(text: str, words: str) -> None:
    with pytest.raises(MoecError) as caught:
        quantized(text)
    assert caught.value.code == "M203" and words in caught.value.what
