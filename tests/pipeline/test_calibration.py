"""Windows of a calibration text: in a seed's order, without overlap, begun as the tokenizer begins a text."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from moec.compiler.open import open_source
from moec.errors import MoecError
from moec.pipeline.calibration import BATCH, Calibration
from moec.pipeline.calibration_text import CalibrationText
from moec.text.corpus import calibration_hash, read_calibration


def of(tokens: int, seed: int = 0, start: tuple[int, ...] = (), limit: int = 0) -> Calibration:
    return Calibration(CalibrationText("text", limit, 8), "", torch.arange(tokens), start, seed)


def test_windows_hold_every_token_once() -> None:
    windows = of(43).windows()
    assert windows.shape == (5, 8)
    assert windows.flatten().sort().values.tolist() == list(range(40))


def test_a_seed_decides_the_order_and_more_begin_with_the_same() -> None:
    few, many = of(80, limit=16).windows(), of(80).windows()
    assert few.tolist() == many[:2].tolist() and len(many) == 10
    assert many.tolist() != of(80, seed=1).windows().tolist()


def test_every_window_begins_as_a_text_does() -> None:
    windows = of(43, start=(99,)).windows()
    assert windows.shape == (6, 8) and set(windows[:, 0].tolist()) == {99}


def test_batches_are_inputs_of_the_model(mixtral: Path, tmp_path: Path) -> None:
    import numpy as np

    np.save(tmp_path / "ids.npy", np.arange(600) % 90)
    source = open_source(str(mixtral))
    calibration = read_calibration(CalibrationText(str(tmp_path / "ids.npy"), 0, 64), source, seed=0)
    batches = list(calibration.batches(source.inputs))
    assert [len(b["input_ids"]) for b in batches] == [BATCH, BATCH, 1]
    assert set(batches[0]) == {i.name for i in source.inputs}


@pytest.mark.parametrize(("windows", "fitted_on", "judged"), [(2, 1, 1), (12, 10, 2), (15, 12, 3)])
def test_the_last_windows_judge_a_fit_on_the_others(windows: int, fitted_on: int, judged: int, mixtral: Path) -> None:
    inputs = open_source(str(mixtral)).inputs
    parts = of(8 * windows).divided(inputs, 5, "here")
    assert [sum(len(batch["input_ids"]) for batch in part) for part in parts] == [fitted_on, judged]
    assert all(len(batch["input_ids"]) <= BATCH for part in parts for batch in part)
    rows = torch.cat([batch["input_ids"] for part in parts for batch in part])
    assert torch.equal(rows.long(), of(8 * windows).windows())
    with pytest.raises(MoecError, match="one window") as caught:
        of(8).divided(inputs, 5, "here")
    assert (caught.value.code, caught.value.where) == ("M203", "here")


@pytest.mark.parametrize("tokens", [0, 7])
def test_a_short_text_is_refused(tokens: int) -> None:
    with pytest.raises(MoecError, match="too few for one window of 8") as caught:
        of(tokens)
    assert caught.value.code == "M211"


def test_several_texts_are_one_with_parts(mixtral: Path, tmp_path: Path) -> None:
    import numpy as np

    for name, low in (("a", 3), ("b", 50)):
        np.save(tmp_path / f"{name}.npy", low + np.arange(300) % 40)
    text = CalibrationText(f"code={tmp_path}/a.npy,law={tmp_path}/b.npy", 0, 64)
    both = read_calibration(text, open_source(str(mixtral)), seed=0)
    assert list(both.parts) == ["code", "law"] and len(both.tokens) == 600
    assert int(both.parts["code"].tokens.max()) < 50 <= int(both.parts["law"].tokens.min())
    assert both.sha256 == calibration_hash(text) != both.parts["code"].sha256
    np.save(tmp_path / "b.npy", np.arange(300) % 40)
    assert both.sha256 != calibration_hash(text)
