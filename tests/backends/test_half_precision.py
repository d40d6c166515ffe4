"""Engines in half precision of models whose routers are nearly tied: right ones are proven, wrong ones are found with
those tokens left out."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import moec
from moec import registry
from moec.backends.onnxruntime.session.engine import OnnxruntimeEngine
from moec.backends.tensorrt.graph.export import write_onnx
from moec.backends.tensorrt.policy import BuildPlan
from moec.errors import MoecError
from moec.execution.engine import Engine
from moec.frontend.source import Source
from moec.pipeline.passes import Context
from moec.pipeline.pipeline import Pipeline
from moec.program.program import Program
from moec.proof.compare import Tolerance
from moec.proof.verification import Verification
from moec.targets.target import Target
from moec.weights import lazy
from tests.proving import decided, verify
from tests.zoo import save

HALF, GOAL = torch.float16, Target.parse("onnxruntime:precision=fp16")
ONE = {"num_hidden_layers": 1}
CHANGES = {"deepseek_v3": {**ONE, "first_k_dense_replace": 0}}


def opened(name: str, folder: Path) -> tuple[Source, Program]:
    """A tiny model and its program in half precision, as backends take it."""
    source = moec.open_source(save(name, folder / "model", **CHANGES.get(name, ONE)))
    passes = Pipeline.parse("find-moe, fuse-moe").all_optional()
    return source, passes.run(source.capture(HALF), Context(seed=0), [])[0]


def through_onnxruntime(program: Program, folder: Path) -> tuple[Engine, Program]:
    backend = registry.find("backends", GOAL.backend)()
    program, _ = backend.legalize(GOAL).run(program, Context(seed=0), [])
    folder.mkdir()
    backend.build(program, GOAL, folder)
    return backend.load(folder, GOAL), program


def through_tensorrt(program: Program, folder: Path) -> Engine:
    """TensorRT's graph on what stands in for it."""
    folder.mkdir()
    write_onnx(program, folder / "model.onnx", HALF, BuildPlan("tensorrt-rtx", lowering="gathered"))
    return OnnxruntimeEngine(folder, Target("onnxruntime"))


def proof(source: Source, engine: Engine, program: Program, precision: torch.dtype = HALF) -> Verification:
    return verify(source, engine, program, Tolerance.of(HALF).deviation, precision)


@pytest.mark.parametrize("name", ["deepseek_v3", "qwen2_moe", pytest.param("olmoe", marks=pytest.mark.repeats)])
def test_nearly_tied_routers_are_proven(name: str, tmp_path: Path) -> None:
    source, program = opened(name, tmp_path)
    engine, program = through_onnxruntime(program, tmp_path / "engine")
    found = proof(source, engine, program)
    found.require()
    assert found.coverage.complete
    part = decided(found)  # None where no token changed sides
    assert part is not None or name != "qwen2_moe"
    assert part is None or part.compared > 0.5 * part.tokens
    assert (part is None) is proof(source, engine, program, torch.float32).ok, "why some tokens are left out"


def heavier(program: Program) -> None:
    """One expert's output 4 % too large."""
    name = str(program.nodes(torch.ops.moec.moe.default)[0].args[5].target)  # type: ignore[union-attr]
    spoiled = program.weights[name].load().clone()
    spoiled[5] *= 1.04
    program.weights[name] = lazy.from_tensor(spoiled, "spoiled")


def swapped(program: Program) -> None:
    """Up before gate."""
    name = str(program.nodes(torch.ops.moec.moe.default)[0].args[4].target)  # type: ignore[union-attr]
    half = program.weights[name].shape[1] // 2
    program.weights[name] = lazy.rowwise("swap", partial(torch.roll, shifts=half, dims=1), program.weights[name])


def unnormalised(program: Program) -> None:
    """Weights as the scores have them."""
    node = program.nodes(torch.ops.moec.moe.default)[0]
    assert node.kwargs.get("combine", "renormalize") != "scores"
    node.kwargs = {**node.kwargs, "combine": "scores"}


@pytest.fixture(scope="module")
def deepseek(tmp_path_factory: pytest.TempPathFactory) -> tuple[Source, Program]:
    return opened("deepseek_v3", tmp_path_factory.mktemp("deepseek"))


def test_tensorrts_graph_is_proven(deepseek: tuple[Source, Program], tmp_path: Path) -> None:
    source, program = deepseek
    found = proof(source, through_tensorrt(program, tmp_path / "engine"), program)
    found.require()
    assert found.coverage.complete


# what is least wrong is seen; the others are, too
@pytest.mark.parametrize(
    "spoil", [heavier, *(pytest.param(s, marks=pytest.mark.repeats) for s in (swapped, unnormalised))]
)
def test_a_wrong_engine_is_found_on_what_is_left(
    deepseek: tuple[Source, Program], spoil: Callable[[Program], None], tmp_path: Path
) -> None:
    source, program = deepseek
    wrong = program.clone()
    spoil(wrong)
    found = proof(source, through_tensorrt(wrong, tmp_path / "engine"), program)
    assert (part := decided(found)) is not None and not part.problem and not found.comparison.ok
    with pytest.raises(MoecError, match="differs"):
        found.require()


def test_where_every_token_is_undecided_the_way_out_is_named(tmp_path: Path) -> None:
    path = Path(save("qwen2_moe", tmp_path / "model", **ONE)) / "model.safetensors"
    weights = load_file(path)
    gate = next(n for n in weights if n.endswith("mlp.gate.weight"))
    weights[gate] = weights[gate][:1] + 1e-4 * weights[gate]
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(MoecError, match="can't tell") as error:
        moec.compile(str(tmp_path / "model"), target=str(GOAL), out=tmp_path / "engine")
    assert (
        error.value.code == "M108"
        and error.value.exit_code == 1
        and "--max-kl" in error.value.fix
        and not (tmp_path / "engine").exists()
    )
