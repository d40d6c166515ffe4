"""What no input reaches is compared by value: rows, positions, tables, limits and settings of a built engine."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn

import moec
from moec.errors import MoecError
from moec.execution.engine import Engine
from moec.frontend.source import Source
from moec.huggingface.source import HuggingFaceSource
from moec.pipeline.pipeline import Pipeline
from moec.program.program import Program
from moec.proof.checks.values import Values
from moec.proof.subject import Subject
from moec.proof.trial import Trial
from moec.targets.backend import Backend, find_backend
from moec.targets.engine_file import EngineFile
from moec.targets.target import Target
from moec.weights.lazy import Weight, from_tensor, rowwise
from tests.moe_module import HIDDEN, VOCAB, MoeModel, source_of
from tests.spoiling import edit, set_attribute, set_number
from tests.zoo import build, save
from tests.zoo import source as of_zoo

ONNXRUNTIME = Target("onnxruntime")
ROWS = 32000


class Given(Engine):
    """A model's own tensors; nothing is run here."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.name, self._tensors = "given", tensors

    def run(self, inputs: object) -> dict[str, Tensor]:
        raise AssertionError("values are compared without a run")

    def tensors(self) -> dict[str, Tensor]:
        return self._tensors


@dataclass
class Built:
    """An engine before its proof."""

    subject: Subject
    folder: Path
    reference: Engine

    def values(self, folder: Path | None = None) -> Values:
        assert self.subject.file is not None
        file = replace(self.subject.file, folder=folder or self.folder)
        return measured(replace(self.subject, file=file), self.reference)


def measured(subject: Subject, reference: Engine) -> Values:
    trial = Trial(subject, reference)
    trial.__dict__["reference"] = reference
    found = Values.measure(trial)
    assert found is not None
    return found


def built(source: Source, folder: Path, pipeline: str = "", target: Target = ONNXRUNTIME) -> Built:
    backend = find_backend(target, runtime=False)
    captured = source.capture(backend.precision(target))
    program, _ = Pipeline.parse(pipeline).run(captured) if pipeline else (captured, [])
    program, _ = backend.legalize(target).run(program)
    folder.mkdir(exist_ok=True)
    (backend.build if backend.probe(target).available else backend.export)(program, target, folder)
    file = EngineFile(backend, target, folder)
    subject = replace(Subject.of(source, captured, program, backend, target), file=file)
    return Built(subject, folder, Given(source.reference().tensors()))


@pytest.fixture(scope="module")
def gpt_oss(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """A vocabulary of which inputs reach little, a window, a rotary table, limits, biases."""
    model = build("gpt_oss", vocab_size=ROWS, sliding_window=200, swiglu_limit=7.0)
    return built(HuggingFaceSource.from_model(model), tmp_path_factory.mktemp("gpt_oss"))


class Positions(MoeModel):
    """A table of positions, of which proofs reach the first."""

    def __init__(self) -> None:
        super().__init__()
        self.positions = nn.Embedding(1024, HIDDEN)

    def forward(self, input_ids: Tensor) -> dict[str, Tensor]:
        x = self.embedding(input_ids) + self.positions(torch.arange(input_ids.shape[1]))
        return {"logits": self.head(x + self.blocks[1](self.norms[1](x)).clamp(max=30.0))}


@pytest.fixture(scope="module")
def positions(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return built(source_of(Positions()), tmp_path_factory.mktemp("positions"))


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The kernel's packed experts, and packed products."""
    return built(of_zoo("mixtral"), tmp_path_factory.mktemp("quantized"), "quantize(bits=4, group=16)")


def window(model: ir.Model) -> None:
    found = [v for v in model.graph.initializers.values() if v.const_value is not None and v.const_value.size == 1]
    for value in found:
        if value.const_value is not None and value.const_value.numpy().item() == 200:
            value.const_value = ir.tensor(np.asarray(199, np.int64).reshape(value.const_value.numpy().shape))


def one_code(codes: np.ndarray) -> np.ndarray:
    codes = codes.copy()
    codes.reshape(-1)[1234] ^= 1
    return codes


# ---------------------------------------------------------------------- right engines
def test_right_engines_pass(gpt_oss: Built, positions: Built, quantized: Built) -> None:
    for engine in (gpt_oss, positions, quantized):
        found = engine.values()
        assert found.ok, found.differences
        assert found.constants > 50 and found.weights > 10 and "equal by value" in str(found)
        assert Values.from_dict(json.loads(json.dumps(found.to_dict()))) == found


def test_the_graph_of_an_opaque_engine_is_compared(tmp_path: Path) -> None:
    target = Target.parse("tensorrt:sm90,precision=fp16")
    engine = built(of_zoo("mixtral"), tmp_path / "engine", "quantize(bits=8, group=16)", target)
    assert engine.subject.file is not None
    anew = replace(engine.subject.file, backend=find_backend(target, runtime=False))  # lowers the program once more
    found = measured(replace(engine.subject, file=anew), engine.reference)
    assert found.ok and "which the plan is built from" in found.note, found.differences
    epsilon = edit(engine.folder, tmp_path / "spoiled", set_number("model.norm.weight", (3,), 1.01))
    assert engine.values(epsilon).differences[0].name == "model.norm.weight"


# ---------------------------------------------------------------------- wrong files
EDITS: dict[str, tuple[str, Callable[[ir.Model], None], str]] = {
    "an embedding row": ("gpt_oss", set_number("model.embed_tokens.weight", (31990, 5), 1.5), "[31990, 5]"),
    "a rotary frequency": ("gpt_oss", set_number("model.rotary_emb.inv_freq", (3,), 1.05), "inv_freq"),
    "a norm's epsilon": ("gpt_oss", set_attribute("SimplifiedLayerNormalization", "epsilon", 10), "epsilon"),
    "a clamp": ("gpt_oss", set_number("moec/float[]:7.0", (), 6.9 / 7), "it is 6.8999"),
    "an activation's constant": ("gpt_oss", set_attribute("QuickGelu", "alpha", 1.01), "alpha"),
    "a window": ("gpt_oss", window, "199, not 200"),
    "an expert's bias": ("gpt_oss", set_number("node_moe_1.5.out.bias", (7,), 2.0), "node_moe_1.5.out.bias"),
    "a router's bias": ("gpt_oss", set_number("model.layers.1.mlp.router.bias", (2,), 1.001), "router.bias"),
    "a position": ("positions", set_number("positions.weight", (900, 0), 0.0), "[900, 0]"),
    "a kernel's scale": ("quantized", set_number("node_moe.w_in.scales", (5, 90, 1), 1.01), "[5, 90, 1]"),
}


@pytest.mark.parametrize("edited", EDITS)
def test_a_spoiled_file_is_found(edited: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    fixture, change, where = EDITS[edited]
    engine: Built = request.getfixturevalue(fixture)
    found = engine.values(edit(engine.folder, tmp_path / "spoiled", change))
    assert not found.ok and where in str(found.error())
    assert found.figures()[0].ok is False


def test_one_code_is_found(quantized: Built, tmp_path: Path) -> None:
    model = ir.load(quantized.folder / "model.onnx")
    codes = model.graph.initializers["node_moe.w_out.packed"].const_value
    assert codes is not None
    flat = one_code(codes.numpy())

    def change(model: ir.Model) -> None:
        model.graph.initializers["node_moe.w_out.packed"].const_value = ir.tensor(flat, name="node_moe.w_out.packed")

    found = quantized.values(edit(quantized.folder, tmp_path / "spoiled", change))
    assert not found.ok and found.differences[0].name == "node_moe.w_out.packed"


def test_a_constant_under_another_name_is_traced_by_its_content(gpt_oss: Built, tmp_path: Path) -> None:
    """As another version of the exporter may name them."""

    def rename(name: str, by: float) -> Callable[[ir.Model], None]:
        def change(model: ir.Model) -> None:
            value = model.graph.initializers.pop(name)
            assert value.const_value is not None
            value.name = "other"
            value.const_value = ir.tensor(value.const_value.numpy() * np.float32(by), name="other")
            model.graph.register_initializer(value)

        return change

    table = "model.rotary_emb.inv_freq"
    assert gpt_oss.values(edit(gpt_oss.folder, tmp_path / "renamed", rename(table, 1.0))).ok
    found = gpt_oss.values(edit(gpt_oss.folder, tmp_path / "wrong", rename(table, 1.05)))
    assert {f.name: f.what for f in found.differences}["other"] == "it cannot be traced to the model"


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compiled from the model beside it."""
    folder = tmp_path_factory.mktemp("qwen2")
    save("qwen2", folder / "model", vocab_size=ROWS)
    moec.compile(str(folder / "model"), out=folder / "engine")
    return folder / "engine"


def test_verify_finds_a_row_that_no_input_reaches(engine: Path, tmp_path: Path) -> None:
    row = edit(engine, tmp_path / "row", set_number("model.embed_tokens.weight", (31990,), -1.0))
    proof = moec.verify(row)
    found = proof.find(Values)
    assert proof.comparison.ok and found is not None and not found.ok and not proof.ok
    with pytest.raises(MoecError, match=r"\[31990, 0\] is .*, not ") as caught:
        proof.require()
    assert caught.value.code == "M110" and "model.embed_tokens.weight in model.onnx" in caught.value.where


def test_another_model_is_compared_by_value(engine: Path, tmp_path: Path) -> None:
    """A twin with an epsilon twice as large: no output shows it."""
    twin = save("qwen2", tmp_path / "twin", vocab_size=ROWS, rms_norm_eps=2e-6)
    proof = moec.verify(engine, against=twin)
    found = proof.find(Values)
    assert proof.comparison.ok and found is not None and not found.ok and not proof.ok
    assert "epsilon" in found.differences[0].name


# ---------------------------------------------------------------------- wrong writers, lowerings, passes and readers
def test_a_writer_that_errs_publishes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is built from has one wrong row, by less than any tolerance."""
    right = type(find_backend(ONNXRUNTIME))
    build = right.build

    def wrong(self: Backend, program: Program, *rest: object, **more: object) -> object:
        changed = program.clone()
        table = program.weights["embedding.weight"].load().clone()
        table[49] *= 1.0 + 2**-20
        changed.weights["embedding.weight"] = from_tensor(table, "spoiled")
        return build(self, changed, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(right, "build", wrong)
    sample = {"input_ids": torch.randint(0, VOCAB, (3, 11))}
    with pytest.raises(MoecError) as caught:
        moec.compile(MoeModel(), out=tmp_path / "engine", inputs=sample)
    assert caught.value.code == "M110" and not (tmp_path / "engine").exists()
    assert "embedding.weight" in caught.value.where and "[49, 0]" in caught.value.what


@pytest.mark.parametrize("table", ["embedding.weight", "head.weight"])
def test_a_lowering_that_errs_is_found(table: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same wrong lowering at the build and at the proof: the program itself is asked."""
    from moec.backends.onnx import export

    class Off(export.WeightTensor):  # type: ignore[misc]
        def __init__(self, weight: Weight, name: str) -> None:
            super().__init__(rowwise("off", lambda t: t * 1.0001, weight) if name == table else weight, name)

    monkeypatch.setattr(export, "WeightTensor", Off)
    found = built(source_of(MoeModel()), tmp_path).values()
    assert not found.ok and table in found.differences[0].name


def test_a_large_table_of_the_lowering_s_own_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from moec.backends.onnx import folding

    def other(weight: Weight, *_: int) -> Weight:
        return from_tensor(weight.load().mT.contiguous() + 1e-6, "other")

    monkeypatch.setattr(folding.lazy, "transpose", other)
    monkeypatch.setattr("moec.proof.values.SMALL", 64)
    found = built(source_of(MoeModel()), tmp_path).values()
    assert any(f.what == "it cannot be traced to the model" for f in found.differences)


def test_a_reader_that_errs_is_found(gpt_oss: Built) -> None:
    captured = gpt_oss.subject.captured.clone()
    table = captured.weights["model.embed_tokens.weight"].load().clone()
    table[31990] = 0
    captured.weights["model.embed_tokens.weight"] = from_tensor(table, "read")
    found = measured(replace(gpt_oss.subject, captured=captured), gpt_oss.reference)
    assert {f.name for f in found.differences} == {"model.embed_tokens.weight"}


def test_a_model_that_changes_its_tables_while_it_runs_is_compared_as_it_was(positions: Built) -> None:
    after = Given({**positions.reference.tensors(), "positions.weight": torch.zeros(1024, HIDDEN)})
    assert measured(positions.subject, after).ok  # the subject's own reference, opened anew, has the table


def test_a_pass_that_changes_a_clamp_is_found(positions: Built) -> None:
    captured = positions.subject.captured.clone()
    node = captured.nodes(torch.ops.aten.clamp)[0]
    assert node.args[-1] == 30.0
    node.args = (*node.args[:-1], 31.0)
    found = measured(replace(positions.subject, captured=captured), positions.reference)
    assert [f.what for f in found.differences] == ["its number 31 is not in the engine"]


def test_who_allows_a_difference_from_another_model_gets_one(positions: Built) -> None:
    captured = positions.subject.captured.clone()
    captured.source = "another model"
    captured.weights["head.bias"] = from_tensor(captured.weights["head.bias"].load() + 1e-6, "other")
    tensors = Given({name: weight.load() for name, weight in captured.weights.items()})
    other = replace(positions.subject, captured=captured)
    assert [f.name for f in measured(other, tensors).differences] == ["head.bias"]
    assert measured(replace(other, asked=1e-3), tensors).ok


def test_an_engine_without_a_file_is_left_out(gpt_oss: Built) -> None:
    assert Values.measure(Trial(replace(gpt_oss.subject, file=None), gpt_oss.reference)) is None


class Counts(nn.Module):
    """A buffer that each call writes and no output reads."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(8, 4)
        self.register_buffer("load", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.line(x)
        self.load.add_(nn.functional.one_hot(y.argmax(-1), 4).float().sum(0))
        return y


def test_a_buffer_that_calls_write_is_compared_as_it_was(tmp_path: Path) -> None:
    given = {"x": torch.randn(3, 8)}
    report = moec.compile(Counts().eval(), inputs=given, dynamic={"x": ("batch", None)}, out=tmp_path / "engine")
    assert report.ok and report.proof.find(Values) is not None


@pytest.mark.parametrize(
    ("change", "made"),
    [
        (set_number("node_moe.w_in.scales", (5, 90, 1), 1.01), True),
        (set_number("model.embed_tokens.weight", (90, 5), 1.5), False),
    ],
)
def test_only_what_passes_made_may_differ_since_it_was_fitted_elsewhere(
    change: Callable[[ir.Model], None], made: bool, quantized: Built, tmp_path: Path
) -> None:
    """No kind of processor changes a row of the model's own; what passes made may be spoiled for all that."""
    fitted = replace(quantized.subject, fitted_elsewhere="passes fitted it to a text by processor AVX2, here AVX512")
    engine = Built(fitted, quantized.folder, quantized.reference)
    error = engine.values(edit(quantized.folder, tmp_path / "spoiled", change)).error()
    assert error is not None and error.code == "M110"
    assert ("AVX2" in error.what) is ("changed since" in error.what) is ("here" in error.fix) is made
