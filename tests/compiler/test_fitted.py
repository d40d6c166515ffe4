"""What passes fit to a text is computed anew by as many threads as then, and what else decides is said."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import moec
from moec.compiler.engine_folder import EngineFolder
from moec.compiler.fitted import as_fitted, as_recorded, fitted_elsewhere, where_fitted
from moec.pipeline.hooks import RecordHook
from moec.pipeline.passes import Pass
from moec.pipeline.pipeline import Pipeline
from moec.program.program import Program
from tests.spoiling import agree
from tests.zoo import VOCAB

FITS, DRAWS = Pipeline.parse("carve(experts=4, active=2)"), Pipeline.parse("upcycle(experts=4)")


class Threads(RecordHook):
    """How many PyTorch has when a pass begins."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = set[int]()

    def before(self, step: int, item: Pass, program: Program) -> None:
        self.seen.add(torch.get_num_threads())


def test_a_later_proof_fits_with_the_threads_of_the_compile(llama: Path, tmp_path: Path) -> None:
    ids = torch.randint(3, VOCAB, (512,), generator=torch.Generator().manual_seed(0))
    np.save(tmp_path / "text.npy", ids.numpy())
    out = tmp_path / "engine"
    moec.compile(str(llama), out=out, pipeline=str(FITS), calibration=tmp_path / "text.npy", max_kl=9.0)
    manifest = json.loads((out / "moec.json").read_text())
    assert manifest["environment"]["threads"] == str(torch.get_num_threads())
    manifest["environment"] |= {"threads": "3", "cpu_capability": "OTHER"}
    (out / "moec.json").write_text(json.dumps(manifest))
    folder, threads = EngineFolder(out, {}), Threads()
    source = folder.source()
    subject = folder.subject(source, *folder.remake(source, (threads,)))
    assert threads.seen == {3} and torch.get_num_threads() != 3
    assert "processor OTHER, here " in subject.fitted_elsewhere
    number = next((out / "model.onnx").parent.glob("*.data"))
    data = bytearray(number.read_bytes())
    data[-8] ^= 1
    number.write_bytes(data)
    agree(out)
    error = moec.verify(out, max_kl=9.0).error
    assert error is not None and error.code == "M110" and "processor OTHER" in error.what and "here" in error.fix


@pytest.mark.parametrize("asked", ["", "two", "0", "-1", "9999999", "²"])
def test_a_manifest_cannot_ask_for_any_number(asked: str) -> None:
    before = torch.get_num_threads()
    with as_fitted({"threads": asked}, FITS):
        assert torch.get_num_threads() == before
    with as_fitted({"threads": "5"}, DRAWS):
        assert torch.get_num_threads() == before, "nothing hangs on it"
    with as_fitted({"threads": "5"}, FITS):
        assert torch.get_num_threads() == 5
    assert torch.get_num_threads() == before


def test_what_nothing_was_fitted_to_hangs_on_no_machine() -> None:
    then, here = {"cpu_capability": "AVX2", "torch": "1"}, {"cpu_capability": "AVX512", "torch": "1"}
    assert fitted_elsewhere(then, here, FITS) == "passes fitted it to a text by processor AVX2, here AVX512"
    assert (
        fitted_elsewhere(then, here, DRAWS)
        == fitted_elsewhere({}, here, FITS)
        == fitted_elsewhere(here, here, FITS)
        == ""
    )
    assert where_fitted(DRAWS) == {} and list(where_fitted(FITS)) == ["threads"]


@pytest.mark.parametrize("then", [{}, {"threads": "9"}])
def test_threads_of_this_machine_are_not_said_to_be_those_of_an_older_compile(then: dict[str, str]) -> None:
    here = {"torch": "2"} | where_fitted(FITS)
    assert "threads" in here and as_recorded(here, {"torch": "1"} | then) == {"torch": "2"} | then
