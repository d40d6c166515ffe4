"""What users reported: the engine equals a model made anew for each input, or moec refuses with a true reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import moec
from moec.errors import MoecError
from moec.frontend.from_exported import named_outputs
from tests.reported import CASES

TOLERANCE = 1e-3  # max |d| / std, float32
DYNAMIC: dict[str, Any] = {  # of models that have no folder
    "switch": {"input_ids": ("batch", "sequence")},
    "loop": {"input_ids": ("batch", "sequence")},
    "one-hot": {"input_ids": ("batch", "sequence")},
    "speech": {"feats": ("batch", "frames", None)},
}
MIXTURES = ("switch", "loop", "one-hot")  # each becomes one operator, and holds for all sizes
REFUSED = {"qwen3-vl-moe": ("M216", "pixel_values")}  # and tests/huggingface/inputs/test_arguments.py goes the way out


def engine_of(name: str, tmp_path: Path) -> Any:
    case = CASES[name]
    if name not in DYNAMIC:
        case.save(tmp_path / "model")
    model = case.model() if name in DYNAMIC else str(tmp_path / "model")
    samples = list(case.inputs())[1] if name in DYNAMIC else None
    moec.compile(model, out=tmp_path / "engine", inputs=samples, dynamic=DYNAMIC.get(name))
    return moec.load(tmp_path / "engine")


@pytest.mark.parametrize("name", CASES)
def test_equal_or_refused(name: str, tmp_path: Path) -> None:
    if name in REFUSED:
        with pytest.raises(MoecError, match=REFUSED[name][1]) as caught:
            engine_of(name, tmp_path)
        assert caught.value.code == REFUSED[name][0]
        return
    engine = engine_of(name, tmp_path)
    compared = 0
    for inputs in CASES[name].inputs():
        with torch.no_grad():
            want = named_outputs(CASES[name].model()(**inputs))
        try:
            found = engine(**inputs)
        except MoecError as error:
            assert error.code in ("M211", "M213"), error
            continue
        for output in set(found) & set(want):
            difference = (found[output].double() - want[output].double()).abs().max()
            values = want[output].double()
            spread = values.std() if values.numel() > 1 else values.abs().max()
            assert difference <= TOLERANCE * float(spread), (output, inputs)
        compared += 1
    assert compared
    if name in MIXTURES:
        assert len(moec.Report.read(tmp_path / "engine" / "moec.json").facts["blocks"]) == 1
        assert compared == len(list(CASES[name].inputs()))
