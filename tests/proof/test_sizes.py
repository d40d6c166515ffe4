"""Sizes come from the model, and engines that are wrong only there are refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import moec
from moec import api
from moec.compiler.engine_folder import EngineFolder
from moec.errors import MoecError
from moec.proof.subject import Subject
from moec.proof.verification import Verification, prove
from tests.proving import sizes
from tests.spoiling import edit, halve_logits_from, set_constant, spoil
from tests.zoo import save

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
    assert run.bounds == {"sliding_window": WINDOW, "max_position_embeddings": CONTEXT}
    lengths = {s["sequence"] + s["past_sequence"] for s in run.sizes}
    assert {WINDOW, WINDOW + 1, CONTEXT, CONTEXT + 1} <= lengths and {s["batch"] for s in run.sizes} >= {1, 2, 5, 9}
    assert not run.refused and not run.beyond
    run = sizes(learned.proof())
    assert {"batch": 1, "sequence": CONTEXT} in run.sizes
    assert [b.what for b in run.beyond] == ["batch=1, sequence=513"] and "the model itself" in run.beyond[0].why


@pytest.mark.parametrize("window", [4000, 150, WINDOW - 1, WINDOW + 1])
def test_another_window_is_found(windowed: Built, tmp_path: Path, window: int) -> None:
    copy = edit(windowed.folder, tmp_path / "copy", set_constant(np.array(WINDOW), np.array(window)))
    assert windowed.refusal(copy) == "M101"


FROM_BATCH, FROM_CACHE = halve_logits_from(5, "input_ids", 0), halve_logits_from(13, "past_key_values.0.key", 2)


@pytest.mark.parametrize("change", [FROM_BATCH, FROM_CACHE], ids=["batch 5", "13 cached tokens"])
def test_an_engine_that_is_wrong_from_a_size_on_is_found(
    windowed: Built, tmp_path: Path, change: Callable[[ir.Graph], None]
) -> None:
    copy = edit(windowed.folder, tmp_path / "copy", change)
    assert windowed.refusal(copy) == "M101"


def test_slightly_faster_low_rotary_frequencies_are_found(windowed: Built, tmp_path: Path) -> None:
    def change(graph: ir.Graph) -> None:
        table = graph.initializers["model.rotary_emb.inv_freq"]
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
