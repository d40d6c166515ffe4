"""Sizes come from the model, and engines that are wrong only there are refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn

import moec
from moec import api
from moec.compiler.engine_folder import EngineFolder
from moec.errors import MoecError
from moec.execution.engine import EagerEngine
from moec.proof.checks.outputs import Outputs
from moec.proof.costs import Costs
from moec.proof.sizes import UNKNOWN, Budget, SizePlan, contract_sizes, plan_sizes
from moec.proof.subject import Subject
from moec.proof.trial import Trial
from moec.proof.verification import Verification, prove
from tests.moe_module import MoeModel, source_of
from tests.proof.bounded import Bounded, WrongAt
from tests.proving import sizes, verify
from tests.spoiling import edit, halve_logits_from, set_constant, spoil
from tests.zoo import captured, save, source

WINDOW, CONTEXT = 200, 512


@dataclass(frozen=True)
class Built:
    """An engine, and what it has to equal."""

    folder: Path
    subject: Subject

    def proof(self, copy: Path | None = None) -> Verification:
        engine = api.load(copy or self.folder)
        try:
            return prove(self.subject, engine)
        finally:
            engine.close()

    def refusal(self, copy: Path) -> str:
        """The code of the error that the proof of a wrong copy raises."""
        with pytest.raises(MoecError) as caught:
            self.proof(copy).require()
        return caught.value.code


def built(folder: Path, name: str, **changes: int) -> Built:
    save(name, folder / "model", **changes)
    moec.compile(str(folder / "model"), out=folder / "engine")
    engine = EngineFolder(folder / "engine", {})
    source = engine.source()
    return Built(folder / "engine", replace(engine.subject(source, *engine.remake(source)), seed=1))


@pytest.fixture(scope="module")
def windowed(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """A decoder with a sliding window of 200 tokens."""
    return built(tmp_path_factory.mktemp("windowed"), "mistral", sliding_window=WINDOW, max_position_embeddings=CONTEXT)


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """An encoder with a table of 512 positions."""
    return built(tmp_path_factory.mktemp("learned"), "bert", max_position_embeddings=CONTEXT)


def test_right_engines_pass_at_every_size(windowed: Built, learned: Built) -> None:
    proof = windowed.proof()
    proof.require()
    run = sizes(proof)
    assert dict(run.bounds) == {"sliding_window": WINDOW, "max_position_embeddings": CONTEXT}
    lengths = {s["sequence"] + s["past_sequence"] for s in run.sizes}
    assert {WINDOW, WINDOW + 1, CONTEXT, CONTEXT + 1} <= lengths and {s["batch"] for s in run.sizes} >= {1, 2, 5, 9}
    assert not run.refused and not run.beyond
    run = sizes(learned.proof())
    assert {"batch": 1, "sequence": CONTEXT} in run.sizes
    assert [b.what for b in run.beyond] == ["batch=1, sequence=513"]  # where the model does not run either


@pytest.mark.parametrize("window", [4000, 150, WINDOW - 1, WINDOW + 1])
def test_another_window_is_found(windowed: Built, tmp_path: Path, window: int) -> None:
    copy = edit(windowed.folder, tmp_path / "copy", set_constant(np.array(WINDOW), np.array(window)))
    assert windowed.refusal(copy) == "M101"


FROM_BATCH, FROM_CACHE = halve_logits_from(5, "input_ids", 0), halve_logits_from(13, "past_key_values.0.key", 2)


@pytest.mark.parametrize("change", [FROM_BATCH, FROM_CACHE], ids=["batch 5", "13 cached tokens"])
def test_an_engine_that_is_wrong_from_a_size_on_is_found(
    windowed: Built, tmp_path: Path, change: Callable[[ir.Model], None]
) -> None:
    copy = edit(windowed.folder, tmp_path / "copy", change)
    assert windowed.refusal(copy) == "M101"


def test_slightly_faster_low_rotary_frequencies_are_found(windowed: Built, tmp_path: Path) -> None:
    def change(model: ir.Model) -> None:
        table = model.graph.initializers["model.rotary_emb.inv_freq"]
        assert table.const_value is not None
        values = table.const_value.numpy().copy()
        values[values < values.max() / 500] *= 1.05
        assert not np.array_equal(values, table.const_value.numpy())
        table.const_value = ir.tensor(values, name=table.name)

    copy = edit(windowed.folder, tmp_path / "copy", change)
    assert windowed.refusal(copy) == "M101"


@pytest.mark.parametrize("first", [131, CONTEXT - 1])
def test_positions_that_are_zeroed_are_found(learned: Built, tmp_path: Path, first: int) -> None:
    def change(values: np.ndarray) -> np.ndarray:
        return np.where(np.arange(len(values))[:, None] < first, values, 0)

    copy = spoil(learned.folder, tmp_path / "copy", "embeddings.position_embeddings.weight", change)
    assert learned.refusal(copy) == "M101"


def plan(name: str, flops: float = 1e12, byte: float = 2**30, streamed: bool = False) -> SizePlan:
    return plan_sizes(source(name), captured(name), streamed, Budget(flops, byte))


def test_both_sides_of_every_bound_are_run_as_texts_and_behind_caches() -> None:
    found = plan("llama4")
    assert [b.size for b in found.bounds] == [4, 7, 256] and found.cached == [4, 7, 256] and not found.beyond
    for length in (4, 5, 7, 8, 256, 257):
        assert {"batch": 1, "sequence": length, "past_sequence": 0} in found.far
        assert any(s["past_sequence"] and s["past_sequence"] + s["sequence"] == length for s in found.far)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("mistral", lambda batch, new, past: batch == new == 1 and past > 0),  # as most texts are written
        ("qwen3_next", lambda batch, new, past: new == 64),  # chunks of a delta rule
        ("qwen3_next", lambda batch, new, past: new == 65),
    ],
)
def test_calls_at_the_edges_of_kernels_are_compared(name: str, wrong: Callable[[int, int, int], bool]) -> None:
    program = captured(name)
    found = Outputs.measure(Trial(Subject(source(name), program, program), WrongAt(program, wrong)))
    assert found is not None and [o.name for o in found.comparison.outputs if not found.comparison.within(o)] == [
        "logits"
    ]


def test_what_cannot_be_afforded_is_named_and_the_longest_that_can_is_run() -> None:
    text = Costs(captured("mistral")).of({"batch": 1, "sequence": 200, "past_sequence": 0})
    found = plan("mistral", flops=text.flops)
    lengths = {s["sequence"] for s in found.far if not s["past_sequence"]}
    assert max(lengths) < 200 and {"batch": 2, "sequence": 3, "past_sequence": 253} in found.far
    assert found.beyond[0].what == "positions 131 to 255, but for 253 to 255, 256, after drawn caches"
    assert "FLOPs" in found.beyond[0].why and "batch=1, sequence=256, past_sequence=0" in [b.what for b in found.beyond]
    nothing = plan("mistral", flops=0)
    assert not nothing.far and not nothing.cached and len(nothing.beyond) > 4
    assert not plan("mistral", byte=0).far


def test_a_streamed_model_gets_one_long_input() -> None:
    found = plan("mistral", streamed=True)
    assert found.far == [{"batch": 2, "sequence": 3, "past_sequence": 253}] and not found.cached
    assert "each run reads all weights anew" in {b.why for b in found.beyond}


def test_where_nothing_says_how_long_texts_may_be_that_is_said() -> None:
    model = source_of(MoeModel())
    found = plan_sizes(model, model.capture())
    assert found.context == UNKNOWN and {"batch": 1, "sequence": UNKNOWN} in found.far
    assert [b.what for b in found.beyond] == [f"texts of more than {UNKNOWN + 1} tokens"]


def test_a_model_without_lengths_has_no_long_inputs() -> None:
    found = plan("vit")
    assert not found.far and not found.context and {s["batch"] for s in found.near} >= {1, 2, 5, 9}


def test_contracts_are_held_past_every_window() -> None:
    first, long = contract_sizes(source("mistral"), captured("mistral"))
    assert first["past_sequence"] + first["sequence"] == 13 and long["past_sequence"] == 253
    assert contract_sizes(source("vit"), captured("vit")) == [first_size := {"batch": 2}] and first_size


def test_an_engine_is_run_at_the_longest_text_that_it_is_made_for() -> None:
    model = source_of(MoeModel())
    program = model.capture()
    run = sizes(verify(model, Bounded(program), program))
    assert {"batch": 1, "sequence": 10} in run.sizes and max(s["sequence"] for s in run.sizes) == 10
    assert {b.why for b in run.beyond} >= {"the engine is made for other sizes"} and not run.refused


def test_where_the_model_ends_before_its_context_the_longest_text_is_found() -> None:
    """As RoBERTa's, whose table holds two more rows than a text may have tokens."""
    model = source_of(Offset(), 50)
    program = model.capture()
    run = sizes(verify(model, EagerEngine(program), program))
    assert "a table of 66 positions" not in dict(run.bounds) and max(s["sequence"] for s in run.sizes) == 64


class Offset(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(50, 8), nn.Embedding(66, 8)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.tokens(input_ids) + self.places(torch.arange(input_ids.shape[1]) + 2)
