"""Plugins by TensorRT's own validators, on its real Python bindings over empty libraries; and their place in a real
parsed network.

What the kernels compute is in `test_chain.py`. What TensorRT makes of them needs a GPU.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
import torch

from moec.backends.tensorrt.building.builder import _replace_blocks
from moec.backends.tensorrt.edition import RTX
from moec.backends.tensorrt.gpu import Gpu
from moec.backends.tensorrt.graph.moe import lower_experts
from moec.backends.tensorrt.plugins import network as plugins
from moec.backends.tensorrt.plugins.chain import compile_chains
from moec.backends.tensorrt.plugins.network import ChainStep, OutputTensor, Size, demand_gpu_of, splice
from moec.backends.tensorrt.policy import BuildPlan
from moec.errors import MoecError
from moec.kernels.dispatch import has_triton
from tests.backends.onnxruntime.blocks import Experts, experts_model
from tests.backends.onnxruntime.rounding import quantize_model
from tests.backends.tensorrt.chains import block
from tests.backends.tensorrt.stubs import ask, needs_bindings, write_libraries
from tests.backends.tensorrt.tiny import needs_rtx
from tests.kernels.conftest import Interpret

needs_triton = pytest.mark.skipif(not has_triton(), reason="Triton is not installed")
STEP = ChainStep(
    "double",
    "double_kernel",
    "double.ptx",
    ("x", "ids"),
    (Size(1), Size(2, 16, 6)),
    (OutputTensor("out", "float16", (Size(1), Size(plus=32))),),
    (Size(2, 16, 6, 3),),
    128,
    1024,
)


def test_sizes_grow_with_tokens() -> None:
    assert [Size(2, 16, 6, 3).of(tokens) for tokens in (1, 8, 100)] == [18, 21, 54]
    assert Size(plus=5, columns=2).of(99) == 10 and Size(1).of(99) == 99


def test_a_step_is_data() -> None:
    assert ChainStep.from_dict(json.loads(json.dumps(STEP.to_dict()))) == STEP


def test_kernels_of_another_gpu_are_refused() -> None:
    here = Gpu("a GPU", 80, 2**30, 13000)
    with pytest.raises(MoecError, match="compiled for sm90, and the GPU here is sm80") as caught:
        demand_gpu_of([{"sm": 90}], here)
    assert caught.value.code == "M302"
    for blocks, gpu in (([{"sm": 80}], here), ([], here), ([{"sm": 90}], None)):
        demand_gpu_of(blocks, gpu)


def test_the_process_that_builds_waits_for_neither_torch_nor_triton() -> None:
    code = "import sys, moec.backends.tensorrt.plugins.network; assert not {'torch', 'triton'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


# ---------------------------------------------------------------------- the real bindings
@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_libraries(tmp_path_factory.mktemp("libraries"))


@needs_bindings
@pytest.mark.parametrize("most", [16, 40], ids=["few", "many"])
def test_the_bindings_take_every_plugin(compiler: Interpret, libraries: Path, tmp_path: Path, most: int) -> None:
    """Registered, made and asked for everything that the builder asks; sizes are those of the tokens at hand."""
    spliced = compiler(block, tmp_path, 90, tokens=most)
    answer = ask(libraries, {"ask": "chain", "block": spliced, "folder": str(tmp_path), "tokens": [1, 11]})
    for tokens, pairs in ((1, 2), (11, 22)):
        found, tiles = answer[str(tokens)], pairs if most == 16 else pairs // 16 + 6
        assert found["last"] == [tokens, 32]
        asked = {plugin["kernel"].removesuffix("_kernel"): plugin for plugin in found["asked"]}
        assert list(asked) == [*(["align"] if most > 16 else []), "rows_in", "rows_out", "combine"]
        for plugin in asked.values():
            assert (
                plugin["parameters"] == plugin["inputs"] + len(plugin["numbers"]) + len(plugin["outputs"])
                and plugin["target"] == "sm_90a"
            )
            assert plugin["launch"][3:] == [128, 1, 1] and plugin["shared"] <= 48 * 1024
        if most > 16:
            assert asked["align"]["outputs"] == [["INT32", [pairs]], ["INT32", [7]], ["INT32", [tiles]]]
            assert asked["align"]["numbers"] == [pairs, tiles] and asked["align"]["launch"][:3] == [6, 1, 1]
        assert asked["rows_in"]["outputs"] == [["HALF", [pairs, 24]]] and asked["rows_out"]["outputs"] == [
            ["HALF", [pairs, 32]]
        ]
        assert asked["rows_in"]["numbers"] == asked["rows_out"]["numbers"] == [tokens, tiles]
        assert asked["rows_in"]["launch"][0] == tiles and asked["combine"]["launch"][0] == tokens


@needs_bindings
@needs_triton
def test_the_bindings_take_packed_weights(libraries: Path, tmp_path: Path) -> None:
    model = experts_model(Experts(hidden=128, inner=64, dtype=torch.float16), 3, 2)
    quantize_model(model, ["w_in", "w_out"], 4, 64, False)
    (fact,) = lower_experts(model, BuildPlan("tensorrt", architectures=(89,), tokens=40, lowering="kernels"))
    ((spliced,), _) = compile_chains([fact["kernels"]], tmp_path)
    spliced["tensors"] = {
        "x": ["float16", (1, -1, 128)],
        "ids": ["int64", (1, -1, 2)],
        "weights": ["float16", (1, -1, 2)],
    }
    _, first, second, last = ask(
        libraries, {"ask": "chain", "block": spliced, "folder": str(tmp_path), "tokens": [11]}
    )["11"]["asked"]
    assert first["inputs"] == second["inputs"] == 7 and first["parameters"] == second["parameters"] == 10, (
        "codes and scales are two"
    )
    assert (
        first["outputs"] == [["HALF", [22, 64]]]
        and second["outputs"] == [["HALF", [22, 128]]]
        and last["outputs"] == [["HALF", [11, 128]]]
    )


@needs_bindings
def test_the_bindings_refuse_what_is_wrong(libraries: Path) -> None:
    right, dotted = STEP.to_dict(), {**STEP.to_dict(), "plugin": "do.uble"}
    said = ask(libraries, {"ask": "said", "steps": [(right, 2), (right, 1), (dotted, 2)]})["said"]
    assert said[0] == "" and "Unexpected schema" in said[1] and "cannot have any '.'" in said[2]


# ---------------------------------------------------------------------- a parsed network
class Recorder:
    """A real network of TensorRT-RTX, which takes no plugins: they are written down, and their outputs are inputs of
    the network."""

    def __init__(self, trt: Any, network: Any, gives: bool = True) -> None:
        self.trt, self.network, self.gives, self.added = trt, network, gives, []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.network, name)

    def add_plugin(self, made: tuple[ChainStep, tuple[Any, ...]], aot: bool) -> Any:
        assert aot
        step, inputs = made
        self.added.append((step, {n: (t.dtype, tuple(t.shape)) for n, t in zip(step.inputs, inputs, strict=True)}))
        return Layer(self, step) if self.gives else None


class Layer:
    def __init__(self, network: Recorder, step: ChainStep) -> None:
        self.network, self.step = network, step

    def get_output(self, n: int) -> Any:
        made = self.step.outputs[n]
        shape = tuple(-1 if size.times else size.of(1) for size in made.shape)
        return self.network.network.add_input(
            f"{self.step.plugin}.{made.name}", getattr(self.network.trt, made.dtype), shape
        )


def parsed(tokens: int, gives: bool = True, bits: int = 0) -> tuple[Any, Recorder, dict[str, Any], list[Any]]:
    """The library, a network of one block, what is to be spliced, and what must outlive the network."""
    model = experts_model(Experts(biases=not bits, hidden=128 if bits else 32, inner=64 if bits else 24), 3, 2)
    if bits:
        model.graph.opset_imports[""] = 21
        quantize_model(model, ["w_in", "w_out"], bits, 64, False)
    (fact,) = lower_experts(model, BuildPlan("tensorrt", architectures=(90,), tokens=tokens, lowering="kernels"))
    model.opset_imports.pop("moec", None)
    trt = RTX.load()
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    assert parser.parse(ir.to_proto(model).SerializeToString())
    return trt, Recorder(trt, network, gives), fact["kernels"], [builder, parser, logger]


@needs_rtx
@pytest.mark.parametrize(("tokens", "form"), [(1, "gathered"), (40, "dense")])
def test_the_chain_stands_between_the_blocks_ends(
    compiler: Interpret, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tokens: int, form: str
) -> None:
    trt, network, found, _alive = parsed(tokens)
    assert found["sizes"]["turned"] == (form == "dense")
    ((spliced,), rows) = compiler(compile_chains, [found], tmp_path)
    monkeypatch.setattr(plugins, "register", lambda _trt, step, ptx: lambda *inputs: (step, inputs) if ptx else None)
    splice(trt, network, [spliced], tmp_path)
    assert len(rows) == len(network.added) == (3 if tokens == 1 else 4)
    given = {name: value for _, inputs in network.added for name, value in inputs.items()}
    assert (
        given["ids"] == (trt.int32, (-1, 2))
        and given["x"] == (trt.float32, (-1, 32))
        and given["route_weights"] == (trt.float32, (-1, 2))
    )
    numbers = {"w_in": 6 * 48 * 32, "w_out": 6 * 32 * 24, "b_in": 6 * 48, "b_out": 6 * 32}
    for name, count in numbers.items():
        dtype, shape = given[name]
        assert dtype == trt.float32 and _product(shape) == count
    last = next(g for n in range(network.num_layers) if (g := network.get_layer(n)).get_output(0).name == "y")
    assert last.get_input(0).name == f"{network.added[-1][0].plugin}.out"


@needs_rtx
@needs_triton
def test_packed_weights_come_from_their_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    trt, network, found, _alive = parsed(40, bits=4)
    ((spliced,), _) = compile_chains([found], tmp_path)  # here, since lazy weights don't travel
    assert json.loads(json.dumps(spliced)) and set(spliced["packed"]) == {"w_in", "s_in", "w_out", "s_out"}
    monkeypatch.setattr(plugins, "register", lambda _trt, step, _ptx: lambda *inputs: (step, inputs))
    kept = _replace_blocks(trt, network, {"native": [], "kernels": [spliced], "onnx": str(tmp_path / "model.onnx")})
    assert len(kept) == 4 + 4, "pages of the file and layers, as long as the builder needs them"
    given = {name: value for _, inputs in network.added for name, value in inputs.items()}
    assert given["w_in"] == (trt.int32, (6, 128, 16)) and given["s_in"] == (trt.float32, (6, 128, 2))
    assert given["w_out"] == (trt.int32, (6, 128, 8)) and given["s_out"] == (trt.float32, (6, 128, 1))


@needs_rtx
def test_what_cannot_be_spliced(compiler: Interpret, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    trt, network, found, _alive = parsed(1, gives=False)
    ((spliced,), _) = compiler(compile_chains, [found], tmp_path)
    monkeypatch.setattr(plugins, "register", lambda _trt, step, _ptx: lambda *inputs: (step, inputs))
    with pytest.raises(MoecError, match="no tensor 'elsewhere'"):
        splice(trt, network, [{**spliced, "x": "elsewhere"}], tmp_path)
    with pytest.raises(MoecError, match="takes no plugin rows_in") as caught:
        splice(trt, network, [spliced], tmp_path)
    assert caught.value.code == "M208"


def _product(shape: tuple[int, ...]) -> int:
    return shape[0] * _product(shape[1:]) if shape else 1
