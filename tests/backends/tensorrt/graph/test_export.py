"""Whole models as TensorRT's graph: under ONNX Runtime they equal untouched eager, on inputs that reach every expert;
wrong ones do not."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn

import moec
from moec.backends.onnxruntime.session.engine import OnnxruntimeEngine
from moec.backends.tensorrt.graph.export import lowered, stages, sum_in_float, write_onnx
from moec.backends.tensorrt.graph.operators import check, table_of
from moec.backends.tensorrt.policy import BuildPlan
from moec.errors import MoecError
from moec.execution.engine import EagerEngine
from moec.frontend.export import capture
from moec.frontend.source import Source
from moec.pipeline.passes import Context
from moec.pipeline.pipeline import Pipeline
from moec.program.decoder_signature import PAST, cache_inputs
from moec.program.dialect_call import ROUTE, RouteCall
from moec.program.program import Program
from moec.proof.compare import Tolerance, compare
from moec.proof.verification import Verification
from moec.targets.target import Target
from moec.weights import lazy
from tests import mixtures
from tests.backends.onnxruntime.blocks import error
from tests.backends.tensorrt import decoder as buffered
from tests.capacities import Capacity
from tests.moe_module import MoeModel, source_of
from tests.proving import verify
from tests.routers import HIDDEN, KNOWN, Block, Router, captured, mixtral, other_input
from tests.zoo import build, save

DENSE = BuildPlan("tensorrt-rtx", lowering="dense")
GATHERED = replace(DENSE, lowering="gathered")
BOUND = 1e-4  # of one block in float32


def legal(program: Program, passes: str = "") -> Program:
    if passes:
        program, _ = Pipeline.parse(passes).run(program, Context(), [])
    return Pipeline.parse("find-moe, fuse-moe").all_optional().run(program, Context(), [])[0]


def proven(
    source: Source, program: Program, folder: Path, plan: BuildPlan, precision: torch.dtype = torch.float32
) -> Verification:
    """Write the graph, run it, and compare it with the untouched model."""
    _, facts = write_onnx(program, folder / "model.onnx", precision, plan)
    assert facts["operators"] == "tensorrt-rtx-1.7"
    engine = OnnxruntimeEngine(folder, Target("onnxruntime"))
    return verify(source, engine, program, Tolerance.of(precision).deviation, precision)


@pytest.mark.parametrize(
    ("name", "precision", "plan"),
    [
        ("mixtral", torch.float32, GATHERED), ("gpt_oss", torch.float16, GATHERED), ("bert", torch.float16, DENSE),
    ],
)  # fmt: skip
def test_models_equal_untouched_eager(name: str, precision: torch.dtype, plan: BuildPlan, tmp_path: Path) -> None:
    source = moec.open_source(save(name, tmp_path / "model"))
    proof = proven(source, legal(source.capture(precision)), tmp_path, plan, precision)
    proof.require()
    assert proof.coverage.reached == proof.coverage.total


def test_a_capacity_is_lowered_by_operators_that_a_parser_has(tmp_path: Path) -> None:
    program = legal(mixtures.source_of(mixtures.mixture(Capacity)).capture())
    write_onnx(program, tmp_path / "model.onnx", torch.float32, DENSE)  # refuses what no parser takes
    ids = torch.arange(60).view(2, 30)
    found = OnnxruntimeEngine(tmp_path, Target("onnxruntime"))(input_ids=ids)["output"]
    want = mixtures.mixture(Capacity)(ids).detach()
    assert (found - want).abs().max() < BOUND
    RouteCall(program.nodes(ROUTE)[0]).replace(capacity=9)
    assert (EagerEngine(program)(input_ids=ids)["output"] - want).abs().max() > 100 * BOUND


def swapped(program: Program) -> None:
    """Up before gate, in every block."""
    for node in program.nodes(torch.ops.moec.moe.default):
        name = str(node.args[4].target)  # type: ignore[union-attr]
        half = program.weights[name].shape[1] // 2
        program.weights[name] = lazy.rowwise("swap", partial(torch.roll, shifts=half, dims=1), program.weights[name])


def unnormalised(program: Program) -> None:
    """Weights as the softmax over all experts has them."""
    for node in program.nodes(torch.ops.moec.moe.default):
        node.kwargs = {**node.kwargs, "combine": "scores"}


@pytest.mark.parametrize("plan", [GATHERED, DENSE], ids=lambda p: p.lowering)
def test_wrong_lowerings_are_caught(plan: BuildPlan) -> None:
    program = legal(captured(Block(mixtral)))
    assert block_error(program, program, plan) < BOUND
    for spoil in (swapped, unnormalised):
        wrong = program.clone()
        spoil(wrong)
        assert block_error(wrong, program, plan) > 100 * BOUND


@pytest.mark.parametrize("router", KNOWN, ids=lambda r: r.__name__)
def test_every_routing_rule(router: Router) -> None:
    program = legal(captured(Block(router)))
    assert program.nodes(torch.ops.moec.moe.default), "the rule was found, so that the lowering has to say it"
    model, facts = lowered(program, DENSE)
    assert check(model, table_of("tensorrt")) == [] and len(facts["blocks"]) == 1
    assert scores_are_wide(model)
    assert block_error(program, program, DENSE) < BOUND


def block_error(program: Program, reference: Program, plan: BuildPlan) -> float:
    """max |d| / std of a lowered program, on an input that the capture never saw."""
    x = other_input()
    (want,), (got,) = reference.run(x=x).values(), session(lowered(program, plan)[0]).run(None, {"x": x.numpy()})
    return float((torch.from_numpy(got) - want).abs().max() / want.std())


def session(model: ir.Model):  # type: ignore[no-untyped-def]
    import onnxruntime as ort

    return ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])


def scores_are_wide(model: ir.Model) -> bool:
    """Whether every choice among experts, and every softmax, is made in float32."""
    return all(
        n.inputs[0] is not None and n.inputs[0].dtype == ir.DataType.FLOAT
        for n in model.graph
        if n.op_type in ("TopK", "Softmax")
    )


def test_routers_compute_in_float32_in_half_precision_too() -> None:
    block = Block(mixtral).half()
    program = legal(capture(block, {"x": torch.randn(2, 5, HIDDEN).half()}, {"x": ("batch", "sequence")}))
    model, _ = lowered(program, DENSE)
    assert scores_are_wide(model)
    chosen = next(n for n in model.graph if n.op_type == "TopK")
    chosen.inputs[0].type = ir.TensorType(ir.DataType.FLOAT16)  # type: ignore[union-attr]
    assert not scores_are_wide(model)


def test_packed_weights_equal_the_program(tmp_path: Path) -> None:
    """4 bits, and the head's 8: what is compared with is the quantized program itself."""
    model = build("mixtral")
    config = model.config  # type: ignore[attr-defined]
    wide = type(config)(**{**config.to_dict(), "hidden_size": 64, "intermediate_size": 128})
    wide.architectures = config.architectures
    torch.manual_seed(0)
    type(model)(wide).save_pretrained(tmp_path / "model")  # type: ignore[operator]
    source = moec.open_source(str(tmp_path / "model"))
    program = legal(source.capture(torch.float32), "quantize(bits=4, group=64)")
    _, facts = write_onnx(program, tmp_path / "model.onnx", torch.float32, DENSE)
    assert {f["bits"] for f in facts["packed"]} == {4, 8} and facts["blocks"][0]["bits"] == "4"
    engine, sample = (
        OnnxruntimeEngine(tmp_path, Target("onnxruntime")),
        source.sample({"batch": 2, "sequence": 7, "past_sequence": 0}, seed=5),
    )
    got, want = engine(**sample)["logits"], program.run(**sample)["logits"]
    assert float((got - want).abs().max() / want.std()) < 1e-3
    plain = source.capture(torch.float32).run(**sample)["logits"]
    assert float((got - plain).abs().max() / plain.std()) > 1e-2, "the mutant: not the model before quantization"


def test_the_file_is_of_standard_operators_and_holds_no_path_of_this_machine(tmp_path: Path) -> None:
    write_onnx(legal(captured(Block(mixtral))), tmp_path / "model.onnx", torch.float32, DENSE)
    made = ir.load(tmp_path / "model.onnx")
    assert set(made.opset_imports) == {""} and {n.domain for n in made.graph} == {""}
    assert not any(n.metadata_props for n in made.graph) and b"/work" not in (tmp_path / "model.onnx").read_bytes()
    assert (tmp_path / "model.onnx.data").stat().st_size == 4 * 8 * 3 * HIDDEN * 12, (
        "three matrices of 8 experts lie beside it"
    )


def test_what_the_parser_lacks_is_refused_with_the_models_line() -> None:
    class Counting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.ops.aten.bitwise_and.Scalar(x.to(torch.int32), 3)

    with pytest.raises(MoecError) as caught:
        lowered(capture(Counting(), {"x": torch.randn(4, 4)}), DENSE)
    assert caught.value.code == "M208" and "BitwiseAnd" in caught.value.what and "test_export.py" in caught.value.where


def test_running_sums_count_in_float() -> None:
    class Running(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.cumsum(-1)

    model, _ = lowered(
        capture(Running(), {"x": torch.ones(3, 5, dtype=torch.int64)}, {"x": ("batch", "sequence")}),
        BuildPlan("tensorrt"),
    )
    assert sum_in_float(model) == 0, "done already"
    assert [n.inputs[0].dtype for n in model.graph if n.op_type == "CumSum"] == [ir.DataType.FLOAT]  # type: ignore[union-attr]
    x = torch.randint(0, 2, (4, 3000))
    assert torch.equal(torch.from_numpy(session(model).run(None, {"x": x.numpy()})[0]), x.cumsum(-1))


def test_every_step_keeps_the_numbers() -> None:
    source, tolerance = source_of(MoeModel()), Tolerance.of(torch.float32)
    program, samples = source.capture(), [source.sample({"batch": 2, "sequence": 19})]
    spoiled = program.clone()
    spoiled.weights["head.weight"] = lazy.scale(program.weights["head.weight"], 1.01)
    right, wrong = EagerEngine(program), EagerEngine(spoiled)
    names = []
    for name, engine in stages(program, DENSE):
        names.append(name)
        assert compare(right, engine, samples, tolerance).ok, name
        assert not compare(wrong, engine, samples, tolerance).ok, name
    assert names[:2] == ["export to ONNX", "lower-experts"] and names[-1].startswith("infer-shapes")


def test_every_step_has_the_cache_that_the_plan_has() -> None:
    decoder, draw = buffered.program(), torch.Generator().manual_seed(5)
    given = {"input_ids": torch.randint(3, 60, (2, 3), generator=draw), "attention_mask": torch.ones(2, 7).long()}
    given["attention_mask"][1, :2] = 0
    given |= {
        c.name: torch.randn(c.resolve({"batch": 2, PAST: 4}), generator=draw) for c in cache_inputs(decoder.inputs)
    }
    right, names = EagerEngine(decoder)(**given), []
    moved = {**given, "input_ids": given["input_ids"].flip(1)}
    for name, engine in stages(decoder, replace(DENSE, capacity=buffered.CAPACITY, tokens=64)):
        names.append(name)
        for inputs, same in ((given, True), (moved, False)):
            found = engine(**inputs)
            assert (max(error(found[n], right[n]) for n in right) < 1e-4) is same, name
    assert names[:2] == ["export to ONNX", "fix-cache"] and len(names) > 4
    assert engine.holds({PAST: buffered.CAPACITY - 1, "sequence": 1}) and not engine.holds({PAST: 24, "sequence": 1})
